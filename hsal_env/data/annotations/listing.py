"""The files of a folder, which of them belong together, and which part they are of."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hsal_env.data.glyphs import Split
from hsal_env.data.left_out import LINK, SAME_NAME, Problem
from hsal_env.data.pixels import IMAGE_SUFFIXES
from hsal_env.errors import DataError

_PARTS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_BESIDE = frozenset({"images", "labels", "jpegimages", "annotations", "imagesets", "main"})

Key = tuple[str, ...]
"""The folders of a file, without those that only keep images and annotations apart, and its name without its ending."""


def part_of(name: str) -> Split | None:
    """The part that the name of a folder or a file stands for, such as ``"valid"`` or ``"train2017"``; None: it stands for none.

    Example:
        >>> part_of("train2017"), part_of("Valid"), part_of("training_set")
        ('train', 'val', None)
    """
    found = re.fullmatch(r"([a-z]+)[-_]?\d*", name.lower())
    return _PARTS.get(found[1]) if found else None


def part_of_folders(name: str) -> Split | None:
    """The part that the outermost of a file's folders stands for."""
    parts = (part_of(folder) for folder in name.split("/")[:-1])
    return next((part for part in parts if part), None)


def key_of(name: str) -> Key:
    """What an image and its annotations have in common.

    Example:
        >>> key_of("VOC/JPEGImages/a.jpg"), key_of("VOC/Annotations/a.xml")
        (('VOC', 'a'), ('VOC', 'a'))
    """
    *folders, last = name.split("/")  # pathlib is slow, and there may be 100,000 files
    return (*(folder for folder in folders if folder.lower() not in _BESIDE), last.rpartition(".")[0] or last)


@dataclass(frozen=True)
class Listing:
    """The files of a folder and of the folders in it, without hidden ones.

    Attributes:
        root: the folder.
        files: time of the last change and size of each file, by its path in the folder, with ``/``; sorted.
        outside: whether files may lie outside the folder.
        problems: links that lead out of it and are not followed, if files may not.
    """

    root: Path
    files: dict[str, tuple[int, int]]
    outside: bool
    problems: list[Problem]

    @cached_property
    def stamp(self) -> str:
        """A hash by which a change of any file is noticed."""
        return hashlib.sha256(repr((str(self.root), self.outside, [*self.files.items()])).encode()).hexdigest()

    @cached_property
    def images(self) -> dict[Key, str]:
        """The images by their keys. Of several with one key, only the first."""
        found: dict[Key, str] = {}
        for name in self.having(IMAGE_SUFFIXES):
            found.setdefault(key_of(name), name)
        return found

    def of_same_name(self) -> list[Problem]:
        """The images that :attr:`images` leaves out."""
        used = set(self.images.values())
        return [(SAME_NAME, str(self.root / name)) for name in self.having(IMAGE_SUFFIXES) if name not in used]

    def having(self, suffixes: tuple[str, ...]) -> Iterator[str]:
        """The files with one of these endings."""
        return (name for name in self.files if name.lower().endswith(suffixes))


def list_folder(root: Path, outside: bool) -> Listing:
    """Look through a folder.

    Raises:
        DataError: a folder in it cannot be read.
    """
    files: dict[str, tuple[int, int]] = {}
    problems: list[Problem] = []
    within, seen = root.resolve(), {root.resolve()}

    def look(folder: Path, prefix: str) -> None:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = prefix + entry.name
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_symlink() and not outside and not Path(entry.path).resolve().is_relative_to(within):
                problems.append((LINK, name))
            elif entry.is_dir(follow_symlinks=outside):  # a link within the folder leads to what is found anyway
                target = Path(entry.path).resolve()
                if target not in seen:  # a link may lead back
                    seen.add(target)
                    look(Path(entry.path), name + "/")
            elif entry.is_file():
                status = entry.stat()
                files[name] = (status.st_mtime_ns, status.st_size)

    try:
        look(root, "")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise DataError(f"{root} cannot be looked through: {error}.") from error
    return Listing(root, files, outside, problems)
