"""Which layout a folder has, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from hsal_env.data.annotations.coco import coco_files, read_coco
from hsal_env.data.annotations.entries import Annotations
from hsal_env.data.annotations.listing import Listing, list_folder
from hsal_env.data.annotations.table import read_table, table_parts
from hsal_env.data.annotations.voc import read_voc, voc_files
from hsal_env.data.annotations.yolo import read_yolo, yolo_files
from hsal_env.data.label_file import LABELS_FILE
from hsal_env.errors import ConfigError, DataError

ImagesFormat = Literal["auto", "csv", "coco", "voc", "yolo"]

_Layout = tuple[str, Callable[[Listing], list[str]], Callable[[Listing], Annotations]]
_LAYOUTS: dict[str, _Layout] = {  # what is expected, where it is, and how it is read
    "coco": ("COCO's annotations/instances_*.json or *_annotations.coco.json", coco_files, read_coco),
    "voc": ("Pascal VOC's .xml in Annotations or beside the images", voc_files, read_voc),
    "yolo": ("YOLO's .txt in labels or beside the images", yolo_files, read_yolo),
}


def read_annotations(root: Path, images_format: ImagesFormat = "auto", outside: bool = False) -> Annotations:
    """Read what a folder says of its images.

    ``labels.csv`` counts before all else. Without it the folder must have one of the other layouts, and not two.

    Args:
        root: the folder.
        images_format: the layout. ``"auto"``: the one that is found.
        outside: whether images may lie outside the folder. A folder from a stranger should not.

    Raises:
        ConfigError: an unknown layout.
        DataError: there is no such folder; no layout is found, or several; or see
            :func:`hsal_env.data.annotations.table.read_table`,
            :func:`hsal_env.data.annotations.coco.read_coco`, :func:`hsal_env.data.annotations.voc.read_voc` and
            :func:`hsal_env.data.annotations.yolo.read_yolo`.
    """
    if images_format not in get_args(ImagesFormat):
        raise ConfigError(
            f"Expected images_format to be one of {', '.join(get_args(ImagesFormat))}; got {images_format!r}."
        )
    if not root.is_dir():
        raise DataError(f"No folder {root}. Expected one that holds {LABELS_FILE} and the images it names.")
    tables = table_parts(root) if images_format in ("auto", "csv") else {}
    if tables:
        return read_table(root, tables, outside)
    own = f"{LABELS_FILE}, or train/{LABELS_FILE}, val/{LABELS_FILE} and test/{LABELS_FILE}"
    if images_format == "csv":
        raise DataError(f"{root}: expected {own}; got none.")
    listing = list_folder(root, outside)
    asked = [name for name in _LAYOUTS if images_format in ("auto", name)]
    found = [name for name in asked if _LAYOUTS[name][1](listing)]
    if len(found) > 1:
        raise DataError(
            f"{root}: expected annotations of one kind; got {' and '.join(_LAYOUTS[name][0] for name in found)}. Say which: "
            f"images_format={' or '.join(map(repr, found))} (--images-format)."
        )
    if not found:
        expected = [*([own] if images_format == "auto" else []), *(_LAYOUTS[name][0] for name in asked)]
        raise DataError(f"{root}: expected {'; or '.join(expected)}; got none.")
    return _read(_Listed(listing), found[0])


class _Listed:
    """A listing that equals another of the same files."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    def __hash__(self) -> int:
        return hash(self.listing.stamp)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Listed) and other.listing.stamp == self.listing.stamp


@lru_cache(maxsize=2)
def _read(listed: _Listed, layout: str) -> Annotations:
    return _LAYOUTS[layout][2](listed.listing)
