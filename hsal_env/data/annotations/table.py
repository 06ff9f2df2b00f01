"""Our own ``labels.csv``: a table of images and labels, see :mod:`hsal_env.data.label_file`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hsal_env.data.annotations.entries import Annotations
from hsal_env.data.annotations.listing import part_of
from hsal_env.data.glyphs import SPLITS, Split
from hsal_env.data.label_file import CLASSES_FILE, LABELS_FILE, read_class_file, read_label_file
from hsal_env.data.labels import Labels, read_labels
from hsal_env.data.left_out import MISSING, Problem
from hsal_env.errors import DataError


def table_parts(root: Path) -> dict[Split | None, Path]:
    """The folders that hold a ``labels.csv``: the folder itself (None), or those in it that a part is named after.

    Raises:
        DataError: both, or two for one part.
    """
    found: dict[Split | None, Path] = {None: root} if (root / LABELS_FILE).is_file() else {}
    inner: list[tuple[Split, Path]] = []
    for path in sorted(root.iterdir()):
        if (part := part_of(path.name)) and (path / LABELS_FILE).is_file():
            inner.append((part, path))
    for part, path in sorted(inner, key=lambda item: SPLITS.index(item[0])):
        if found.keys() & {part, None}:
            names = ", ".join(f"{path.name}/{LABELS_FILE}" for _, path in inner)
            raise DataError(
                f"{root}: expected {LABELS_FILE}, or train/{LABELS_FILE}, val/{LABELS_FILE} and test/{LABELS_FILE}; got "
                + (f"both it and {names}." if None in found else f"{names}, two for {part}.")
            )
        found[part] = path
    return found


def read_table(root: Path, folders: dict[Split | None, Path], outside: bool) -> Annotations:
    """Read the tables of the folders that :func:`table_parts` found.

    Raises:
        DataError: see :func:`hsal_env.data.label_file.read_label_file` and :func:`hsal_env.data.labels.read_labels`; the tables
            of the parts differ in their first lines; or an image has boxes of another number than labels.
    """
    within = None if outside else root.resolve()
    read = {part: read_label_file(path / LABELS_FILE, within) for part, path in folders.items()}
    kinds = {table.labels_are for table in read.values()}
    if len(kinds) > 1:
        raise DataError(f"{root}: expected the same first line in the {LABELS_FILE} of all splits; got different ones.")
    where = [place for table in read.values() for place in table.where]
    labels = read_labels(
        [text for table in read.values() for text in table.texts],
        where,
        kinds.pop(),
        read_class_file(root / CLASSES_FILE),
    )
    files = [file for table in read.values() for file in table.files]
    boxes = [own for table in read.values() for own in table.boxes]
    parts = [part for part, table in read.items() for _ in table.files]
    for place, own, names in zip(where, boxes, labels.lists, strict=True):
        if own is not None and len(own) != len(names):
            raise DataError(f"{place}: expected a box for each of {len(names)} labels; got {len(own)} boxes.")
    kept, problems, stamps = [], list[Problem](), []
    for i, file in enumerate(files):
        try:
            status = os.stat(file)
        except (OSError, ValueError):  # the latter for a zero byte
            problems.append((MISSING, str(file)))
            continue
        kept.append(i)
        stamps.append((str(file), status.st_mtime_ns, status.st_size))
    told = (str(root), stamps, labels, [None if own is None else own.tolist() for own in boxes], parts, problems)
    return Annotations(
        hashlib.sha256(repr(told).encode()).hexdigest(),
        [files[i] for i in kept],
        Labels(tuple(labels.lists[i] for i in kept), labels.num_classes, labels.class_names),
        [boxes[i] for i in kept],
        [parts[i] for i in kept],
        [None] * len(kept),
        problems=tuple(problems),
    )
