"""COCO's JSON: one file of annotations for all images of a part."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path, PurePosixPath
from typing import Any

from hsal_env.data.annotations.entries import UNKNOWN_BOX, Annotations, Entries, spelled
from hsal_env.data.annotations.listing import Listing, part_of, part_of_folders
from hsal_env.data.glyphs import SPLITS, Split
from hsal_env.data.label_file import check_inside
from hsal_env.data.left_out import CROWD, MISSING, ORPHAN, UNLISTED
from hsal_env.data.pixels import IMAGE_SUFFIXES
from hsal_env.errors import DataError

_PREFIX, _ENDING = "instances_", "_annotations.coco.json"


def coco_files(listing: Listing) -> list[str]:
    """``annotations/instances_*.json`` and ``*_annotations.coco.json``, at any depth."""
    return [
        name
        for name in listing.having((".json",))
        if name.endswith(_ENDING) or PurePosixPath(name).name.startswith(_PREFIX)
    ]


def read_coco(listing: Listing) -> Annotations:
    """Read the files that :func:`coco_files` finds, one for each part, or one for all.

    An image lies where its ``file_name`` says, in ``images``, ``images/PART`` or ``PART`` beside the folder of the file, or
    beside the file. Classes are the ``categories`` in the order of their ids. A box covers the pixels that it touches. An image
    with a crowd, whose number nobody has counted, is left out.

    Raises:
        DataError: a file is no COCO file, has an id twice or one that is not there, or there are several files for a part; the
            message names the file and the entry.
    """
    files: dict[Split | None, str] = {}
    for name in coco_files(listing):
        stem = PurePosixPath(name).stem
        part = part_of(stem.removeprefix(_PREFIX)) if stem.startswith(_PREFIX) else part_of_folders(name)
        if part in files or (files and None in (part, *files)):
            raise DataError(
                f"{listing.root}: expected one file of COCO's annotations, or one each for train, val and test; got "
                f"{[*files.values()][-1]} and {name}. Remove one, or read a folder that holds one of them."
            )
        files[part] = name
    in_order: list[Split | None] = [part for part in (None, *SPLITS) if part in files]
    contents = {part: _read(listing.root / files[part]) for part in in_order}
    names: list[str] = []  # of all files; what has the same name is the same class
    classes: dict[Split | None, dict[Any, int]] = {}
    for part, content in contents.items():
        own = _categories(content["categories"], listing.root / files[part])
        names += [name for name in own.values() if name not in names]
        classes[part] = {number: names.index(name) for number, name in own.items()}
    entries = Entries()
    named: set[str] = set()
    for part, content in contents.items():
        named |= _gather(entries, listing, files[part], part, content, classes[part])
    folders = {posixpath.dirname(name) for name in named}
    entries.problems += [
        (UNLISTED, str(listing.root / name))
        for name in listing.having(IMAGE_SUFFIXES)
        if posixpath.dirname(name) in folders and name not in named
    ]
    return entries.done("coco", listing, spelled(names, str(listing.root / files[in_order[0]])))


def _gather(
    entries: Entries, listing: Listing, file: str, part: Split | None, content: dict[str, Any], classes: dict[Any, int]
) -> set[str]:
    """Add the images of a file, and return their places."""
    path = listing.root / file
    objects: dict[Any, list[dict[str, Any]]] = {}
    for place, image in enumerate(content["images"]):
        where = f"{path}: images, entry {place}"
        number = _id(image, "id", where)
        if number in objects:
            raise DataError(f"{where}: the id {number!r} is there twice. Give every image its own.")
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            raise DataError(f"{where} (id {number!r}): expected a file_name; got {image.get('file_name')!r:.60}.")
        objects[number] = []
    for place, entry in enumerate(content["annotations"]):
        where = f"{path}: annotations, entry {place}"
        number, category = _id(entry, "image_id", where), _id(entry, "category_id", where)
        if category not in classes:
            raise DataError(f"{where}: the category_id {category!r} is not among the categories. Correct it.")
        if number not in objects:
            entries.problems.append((ORPHAN, where))
            continue
        objects[number].append(
            {"label": classes[category], "box": _box(entry.get("bbox"), where), "crowd": entry.get("iscrowd")}
        )
    found = set()
    for place, image in enumerate(content["images"]):
        name = _place(listing, file, image["file_name"].replace("\\", "/"), f"{path}: images, entry {place}")
        own = objects[image["id"]]
        if name is None:
            entries.problems.append((MISSING, image["file_name"]))
            continue
        found.add(name)
        if any(one["crowd"] for one in own):
            entries.problems.append((CROWD, str(listing.root / name)))
            continue
        size = image.get("height"), image.get("width")
        entries.add(
            listing.root / name,
            [one["label"] for one in own],
            [one["box"] for one in own],
            part,
            (size[0], size[1]) if all(type(side) is int and side > 0 for side in size) else None,
        )
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error or type(error).__name__}.") from error
    parts = ("images", "annotations", "categories")
    for part in parts:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise DataError(
                f"{path}: expected COCO's lists {', '.join(parts)}; got no {part}. Export it as COCO again."
            )
        wrong = [place for place, entry in enumerate(content[part]) if not isinstance(entry, dict)]
        if wrong:
            raise DataError(
                f"{path}: {part}, entry {wrong[0]}: expected an object with names; got {content[part][wrong[0]]!r:.60}."
            )
    return content


def _categories(categories: list[dict[str, Any]], path: Path) -> dict[Any, str]:
    """The names of the classes by their ids, in the order of the ids."""
    found: dict[Any, str] = {}
    for place, category in enumerate(categories):
        where = f"{path}: categories, entry {place}"
        number, name = _id(category, "id", where), category.get("name")
        if number in found or not isinstance(name, str) or name in found.values():
            raise DataError(f"{where}: expected an id and a name that no other has; got {number!r} and {name!r:.60}.")
        found[number] = name
    if not found:
        raise DataError(f"{path}: expected categories; got none.")
    return dict(sorted(found.items(), key=lambda item: (str(type(item[0])), item[0])))


def _id(entry: dict[str, Any], name: str, where: str) -> int | str:
    value = entry.get(name)
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise DataError(f"{where}: expected {name} as a whole number or text; got {value!r:.60}.")
    return value


def _box(given: Any, where: str) -> tuple[float, ...]:
    """COCO's (x, y, width, height) as (row, col, height, width)."""
    if given is None:
        return UNKNOWN_BOX
    if not isinstance(given, list) or len(given) != 4 or any(type(side) not in (int, float) for side in given):
        raise DataError(f"{where}: expected bbox as [x, y, width, height]; got {given!r:.60}.")
    x, y, width, height = map(float, given)
    return y, x, height, width


def _place(listing: Listing, file: str, name: str, where: str) -> str | None:
    """Where in the folder an image lies; None: nowhere."""
    beside = posixpath.dirname(file)
    base = posixpath.dirname(beside) if posixpath.basename(beside) == "annotations" else beside
    part = PurePosixPath(file).stem.removeprefix(_PREFIX)
    for folder in (f"{base}/images/{part}", f"{base}/images", f"{base}/{part}", beside, base):
        place = posixpath.normpath(posixpath.join(folder.lstrip("/"), name))
        if place in listing.files:
            return place
        if listing.outside and (listing.root / place).is_file():
            return place
    if not listing.outside and (name.startswith("/") or ".." in name.split("/")):
        check_inside(listing.root / beside / name, listing.root.resolve(), where, name)
    return None
