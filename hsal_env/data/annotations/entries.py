"""What is read of a folder's images, whatever its layout."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hsal_env.data.annotations.listing import Listing
from hsal_env.data.glyphs import SPLITS, Split
from hsal_env.data.labels import MOST_CLASSES, Labels, checked_names
from hsal_env.data.left_out import NO_PART, TWICE, Problem
from hsal_env.errors import DataError

UNKNOWN_BOX = (np.nan,) * 4


@dataclass(frozen=True)
class Annotations:
    """What a folder says of N images. Two are equal if their stamps are.

    Attributes:
        stamp: a hash by which a change of the folder is noticed.
        files: the images. They are there, but nobody has looked whether they are whole.
        labels: their labels.
        boxes: the boxes of each image, float ``[n, 4]`` as (row, col, height, width), NaN where unknown; None: all are unknown.
        relative: whether boxes are in shares of the image's height and width instead of px.
        parts: the part of each image; all None: the folder has no parts.
        sizes: (h, w) that the folder says an image has; None: it does not say.
        problems: what was left out.
    """

    stamp: str
    files: list[Path] = field(compare=False)
    labels: Labels = field(compare=False)
    boxes: list[np.ndarray | None] = field(compare=False)
    parts: list[Split | None] = field(compare=False)
    sizes: list[tuple[int, int] | None] = field(compare=False)
    relative: bool = field(compare=False, default=False)
    problems: tuple[Problem, ...] = field(compare=False, default=())


@dataclass
class Entries:
    """Annotations while they are gathered, one image after the other."""

    files: list[Path] = field(default_factory=list)
    labels: list[tuple[int, ...]] = field(default_factory=list)
    boxes: list[np.ndarray | None] = field(default_factory=list)
    parts: list[Split | None] = field(default_factory=list)
    sizes: list[tuple[int, int] | None] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(
        self,
        file: Path,
        labels: list[int],
        boxes: list[tuple[float, ...]],
        part: Split | None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """One image."""
        self.files.append(file)
        self.labels.append(tuple(labels))
        self.boxes.append(np.array(boxes, np.float64).reshape(-1, 4))
        self.parts.append(part)
        self.sizes.append(size)

    def done(self, layout: str, listing: Listing, names: tuple[str, ...], relative: bool = False) -> Annotations:
        """All of them, train first, then val and test.

        An image in several parts stays in the last, so that none is learned from and tested on.

        Raises:
            DataError: no image has a label.
        """
        order = sorted(range(len(self.files)), key=lambda i: SPLITS.index(part) if (part := self.parts[i]) else 0)
        last = {self.files[i]: i for i in order}
        left_out: list[Problem] = [*self.problems]
        kept: list[int] = []
        some_parts = any(self.parts)
        for i in order:
            if last[self.files[i]] != i:
                left_out.append((TWICE, str(self.files[i])))
            elif self.parts[i] is None and some_parts:
                left_out.append((NO_PART, str(self.files[i])))
            else:
                kept.append(i)
        if kept and not any(self.labels[i] for i in kept):
            raise DataError(f"{listing.root}: no image has a label. Expected some that have.")
        lists = tuple(self.labels[i] for i in kept)
        return Annotations(
            f"{layout} {listing.stamp}",
            [self.files[i] for i in kept],
            Labels(lists, len(names) or None, names),
            [self.boxes[i] for i in kept],
            [self.parts[i] for i in kept],
            [self.sizes[i] for i in kept],
            relative,
            (*left_out, *((kind, str(listing.root / name)) for kind, name in listing.problems)),
        )


def spelled(names: list[str], where: str) -> tuple[str, ...]:
    """Class names, in which numbers are spelled out: ``"1"`` becomes ``"no. 1"``, unless each number is its own place.

    Raises:
        DataError: see :func:`hsal_env.data.labels.checked_names`; or there are too many. The message begins with ``where``.
    """
    if not names:
        return ()
    bare = [name.strip() for name in names]
    numbers = [re.fullmatch(r"[0-9]+", name) for name in bare]
    if any(number and name != str(place) for place, (name, number) in enumerate(zip(bare, numbers, strict=True))):
        bare = [f"no. {name}" if number else name for name, number in zip(bare, numbers, strict=True)]
    if len(bare) > MOST_CLASSES:
        raise DataError(f"{where}: expected at most {MOST_CLASSES} classes; got {len(bare)}.")
    try:
        return checked_names(bare)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def text_of(path: Path) -> str:
    """The content of a text file.

    Raises:
        DataError: it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}. Expected text in UTF-8.") from error
