"""Pascal VOC's XML: a file of annotations for each image, and lists of the images of each part."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from hsal_env.data.annotations.entries import UNKNOWN_BOX, Annotations, Entries, spelled, text_of
from hsal_env.data.annotations.listing import Key, Listing, key_of, part_of, part_of_folders
from hsal_env.data.glyphs import SPLITS, Split
from hsal_env.data.label_file import CLASSES_FILE, read_class_file
from hsal_env.data.left_out import MISSING, UNLISTED
from hsal_env.errors import DataError

_CORNERS = ("ymin", "xmin", "ymax", "xmax")


def voc_files(listing: Listing) -> list[str]:
    """The XML files that lie in a folder ``Annotations``, or belong to an image."""
    return [
        name
        for name in listing.having((".xml",))
        if PurePosixPath(name).parent.name.lower() == "annotations" or key_of(name) in listing.images
    ]


def read_voc(listing: Listing) -> Annotations:
    """Read ``Annotations/NAME.xml`` of ``JPEGImages/NAME.jpg``, or ``NAME.xml`` beside ``NAME.jpg``, at any depth.

    ``ImageSets/Main/train.txt``, ``val.txt`` and ``test.txt`` list the images of each part (``trainval.txt`` where there is no
    ``train.txt``); without them folders name the parts. Classes are the names that occur, sorted, or the lines of
    ``classes.txt``. Corners count from 1 and belong to the box, as VOC defines them. Objects marked as difficult count.

    Raises:
        DataError: a file is no such XML, or it declares a document type, which could hold entities that expand without end. The
            message names the file and the object.
    """
    names = voc_files(listing)
    read = {name: _read(listing.root / name) for name in names}
    classes = read_class_file(listing.root / CLASSES_FILE)
    known = list(classes or sorted({label for labels, _, _ in read.values() for label in labels}))
    places = {label: place for place, label in enumerate(known)}
    parts = _parts(listing)
    entries = Entries(problems=listing.of_same_name())
    for name, (labels, boxes, size) in read.items():
        key, file = key_of(name), listing.root / name
        if unknown := [label for label in labels if label not in places]:
            raise DataError(
                f"{file}: expected names among those of {CLASSES_FILE}, {', '.join(known)}; got {unknown[0]!r}."
            )
        if key not in listing.images:
            entries.problems.append((MISSING, str(file)))
            continue
        part = parts.get(key) if parts else part_of_folders(name)
        entries.add(listing.root / listing.images[key], [places[label] for label in labels], boxes, part, size)
    keys = {key_of(name) for name in names}
    folders = {key[:-1] for key in keys}
    entries.problems += [
        (UNLISTED, str(listing.root / image))
        for key, image in listing.images.items()
        if key not in keys and key[:-1] in folders
    ]
    entries.problems += [(MISSING, "/".join(key)) for key in parts if key not in keys and key not in listing.images]
    return entries.done("voc", listing, spelled(known, str(listing.root)))


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Called when a document type begins, before its entities are read."""
        raise DataError("expected no document type (DOCTYPE), whose entities may expand without end")


def _read(path: Path) -> tuple[list[str], list[tuple[float, ...]], tuple[int, int] | None]:
    """Names and boxes of the objects of an image, and its size."""
    try:
        root = ElementTree.XML(path.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
    except DataError as error:
        raise DataError(f"{path}: {error}. Remove it.") from None
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        raise DataError(f"{path} cannot be read as XML: {error}.") from error
    if root.tag != "annotation":
        raise DataError(f"{path}: expected VOC's <annotation>; got <{root.tag:.60}>.")
    names, boxes = [], []
    for place, one in enumerate(root.findall("object")):
        where = f"{path}: object {place + 1}"
        name = (one.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{where}: expected a name; got none.")
        names.append(name)
        boxes.append(_box(one.find("bndbox"), where))
    size = [_number(root.find(f"size/{side}"), str(path)) for side in ("height", "width")]
    return names, boxes, (int(size[0]), int(size[1])) if all(side > 0 for side in size) else None


def _box(corners: Any, where: str) -> tuple[float, ...]:
    """(ymin, xmin, ymax, xmax), from 1 on and within the box, as (row, col, height, width)."""
    if corners is None:
        return UNKNOWN_BOX
    top, left, bottom, right = (_number(corners.find(side), f"{where}, {side}", math.nan) for side in _CORNERS)
    if any(map(math.isnan, (top, left, bottom, right))):
        raise DataError(f"{where}: expected bndbox with {', '.join(_CORNERS)}; got one without.")
    return top - 1, left - 1, bottom - top + 1, right - left + 1


def _number(element: Any, where: str, missing: float = 0.0) -> float:
    text = "" if element is None else (element.text or "").strip()
    try:
        number = float(text) if text else missing
        if math.isinf(number) or (text and math.isnan(number)):
            raise ValueError
    except ValueError:
        raise DataError(f"{where}: expected a number; got {text!r:.60}.") from None
    return number


def _parts(listing: Listing) -> dict[Key, Split]:
    """The part of each image that ImageSets lists; empty without lists. What is in several has the last."""
    lists: dict[Split, list[str]] = {}
    joint: list[str] = []
    for name in listing.having((".txt",)):
        path = PurePosixPath(name)
        if path.parent.name.lower() != "main" or path.parent.parent.name.lower() != "imagesets":
            continue
        if part := part_of(path.stem):
            lists.setdefault(part, []).append(name)
        elif path.stem.lower() == "trainval":
            joint.append(name)
    if "train" not in lists and joint:
        lists = {"train": joint, **lists}
    found: dict[Key, Split] = {}
    for part in SPLITS:
        for name in lists.get(part, []):
            for line in text_of(listing.root / name).splitlines():
                if line.strip():
                    whole = (*key_of(name)[:-1], line.strip())
                    found[whole if whole in listing.images else (*whole[:-1], line.split()[0])] = part
    return found
