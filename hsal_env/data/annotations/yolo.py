"""YOLO's text: a file for each image, with a line for each object."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from hsal_env.data.annotations.entries import Annotations, Entries, spelled, text_of
from hsal_env.data.annotations.listing import Listing, key_of, part_of_folders
from hsal_env.data.label_file import CLASSES_FILE
from hsal_env.data.labels import MOST_CLASSES
from hsal_env.data.left_out import MISSING, UNLISTED
from hsal_env.errors import DataError

_TABLES = ("data.yaml", "data.yml")
_LISTS = (CLASSES_FILE, "obj.names", "_darknet.labels")
_SCALAR = r"'(?:[^']|'')*'|\"(?:[^\"\\]|\\.)*\"|[^,\[\]{}'\"#]+?(?=\s*(?:[,\]}]|\s#|$))"
_ITEM = re.compile(rf"\s*(?:(\d+)\s*:\s*)?({_SCALAR})\s*(?:,|$)")
_LINE = re.compile(rf"\s*(?:-|(\d+)\s*:)\s+({_SCALAR})\s*(?:#.*)?$")


def yolo_files(listing: Listing) -> list[str]:
    """The text files that belong to an image, if there are such with lines of YOLO, or none that has a line."""
    found = [
        name
        for name in listing.having((".txt",))
        if name.rpartition("/")[2] not in _LISTS and key_of(name) in listing.images
    ]
    filled = [name for name in found if listing.files[name][1]]
    return found if not filled or any(_looks_right(listing.root / name) for name in filled[:50]) else []


def read_yolo(listing: Listing) -> Annotations:
    """Read ``NAME.txt`` beside ``NAME.jpg``, or ``labels/NAME.txt`` and ``images/NAME.jpg``, at any depth.

    A line is ``class x y width height``: the number of the class, and centre and size of the box in shares of the image's width
    and height; or ``class x y x y x y ...``, the corners of an outline. A file without a line says that the image has no objects;
    an image without a file is left out. ``classes.txt``, ``obj.names`` or the ``names`` of ``data.yaml`` name the classes;
    without them they are numbers. Folders name the parts.

    Raises:
        DataError: a line is malformed, or a class has no name; the message names file and line.
    """
    names = _class_names(listing)
    entries = Entries(problems=listing.of_same_name())
    files = yolo_files(listing)
    for name in files:
        labels, boxes = _read(listing.root / name, names)
        entries.add(listing.root / listing.images[key_of(name)], labels, boxes, part_of_folders(name))
    keys = {key_of(name) for name in files}
    folders = {key[:-1] for key in keys}
    entries.problems += [
        (UNLISTED, str(listing.root / image))
        for key, image in listing.images.items()
        if key not in keys and key[:-1] in folders
    ]
    entries.problems += [
        (MISSING, str(listing.root / name))
        for name in listing.having((".txt",))
        if key_of(name) not in keys
        and key_of(name)[:-1] in folders
        and listing.files[name][1]
        and PurePosixPath(name).name not in _LISTS
        and _looks_right(listing.root / name)
    ]
    return entries.done("yolo", listing, names, relative=True)


def _read(path: Path, names: tuple[str, ...]) -> tuple[list[int], list[tuple[float, ...]]]:
    labels, boxes = [], []
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        try:
            label, *place = int(words[0]), *map(float, words[1:])
            if len(place) < 4 or len(place) % 2 or not all(-1e6 < share < 1e6 for share in place):
                raise ValueError
        except ValueError:
            raise DataError(
                f"{where}: expected 'class x y width height', a whole number and four shares; got {line!r:.120}."
            ) from None
        if not 0 <= label < (len(names) or MOST_CLASSES):
            known = f"{len(names)} classes have names" if names else "the largest that is read"
            raise DataError(
                f"{where}: expected a class in 0..{(len(names) or MOST_CLASSES) - 1}, since {known}; got {label}."
            )
        labels.append(label)
        boxes.append(_box(place))
    return labels, boxes


def _box(place: list[float]) -> tuple[float, ...]:
    """Centre and size, or the corners of an outline, each (x, y), as (row, col, height, width)."""
    if len(place) == 4:
        x, y, width, height = place
        return y - height / 2, x - width / 2, height, width
    across, down = place[::2], place[1::2]
    return min(down), min(across), max(down) - min(down), max(across) - min(across)


def _looks_right(path: Path) -> bool:
    """Whether the first line that is filled has a whole number and four or more others."""
    try:
        line = next((line for line in text_of(path).splitlines() if line.strip()), "")
        return len([float(word) for word in line.split()]) >= 5 and int(line.split()[0]) >= 0
    except (DataError, ValueError):
        return False


def _class_names(listing: Listing) -> tuple[str, ...]:
    """The names of the classes; () where no file names them."""
    found: dict[str, list[str]] = {}
    for name in listing.files:
        path = listing.root / name
        if path.name in _TABLES:
            table = _names_of_table(text_of(path), path)
            if table is not None:
                found[name] = table
        elif path.name in _LISTS:
            found[name] = text_of(path).rstrip().split("\n")
    if not found:
        return ()
    first = next(iter(found))
    for name, names in found.items():
        if [part.strip() for part in names] != [part.strip() for part in found[first]]:
            raise DataError(f"{listing.root}: expected the same class names in all files; {first} and {name} differ.")
    return spelled(found[first], str(listing.root / first))


def _names_of_table(text: str, path: Path) -> list[str] | None:
    """The value of ``names`` in a data.yaml: a list or numbered names, on one line or on several; None without it.

    Raises:
        DataError: it is there, in another form.
    """
    lines = text.splitlines()
    at = next((i for i, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if at is None:
        return None
    inline = lines[at].split(":", 1)[1].strip()
    pairs: list[tuple[str | None, str]] = []
    if inline and not inline.startswith("#"):
        whole = " ".join([inline, *(line.strip() for line in lines[at + 1 :])])
        body = re.match(rf"[\[{{]((?:\s|\d+\s*:\s|{_SCALAR}|,)*)[\]}}]", whole)
        if body:
            pairs = [(number or None, name) for number, name in _ITEM.findall(body[1])]
    else:
        for line in lines[at + 1 :]:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            item = _LINE.match(line)
            if not item:
                break
            pairs.append((item[1], item[2]))
    numbers = [number for number, _ in pairs if number is not None]
    if not pairs or len(numbers) not in (0, len(pairs)) or numbers != [str(i) for i in range(len(numbers))]:
        raise DataError(
            f"{path}: expected names as a list, or numbered from 0 on; got {inline!r:.120}. Write a classes.txt."
        )
    return [_plain(name) for _, name in pairs]


def _plain(scalar: str) -> str:
    scalar = scalar.strip()
    if scalar.startswith("'"):
        return scalar[1:-1].replace("''", "'")
    return re.sub(r"\\(.)", r"\1", scalar[1:-1]) if scalar.startswith('"') else scalar
