"""Your own images, each with its multiset of labels: arrays, or a folder.

A folder holds PNG or JPEG files, grey or RGB, all of one size, and ``labels.csv``, which names them and their labels::

    file,labels
    cups/1.png,3 3 0
    cups/2.jpg,7
    table.png,

Labels are separated by spaces and counted from 0. An image may have none. Instead the folder may hold such folders named
``train``, ``val`` and ``test``. If some files are grey and others in colour, grey is repeated over the channels. Nothing is
resized.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from hsal_env.data.canvases import CanvasBatch
from hsal_env.data.glyphs import SPLITS, Split
from hsal_env.errors import ConfigError, DataError

LABELS_FILE = "labels.csv"
MOST_CLASSES = 10_000  # a larger label is probably a mistake: every class is a column of the agent's output

CustomSplit = Literal[Split, "all"]
_COLUMNS = ["file", "labels"]
_Stamp = tuple[str, int, int]
_PLAIN_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # modes that lose nothing when read as grey or RGB


class LabelledImages:
    """Images and their labels. They are checked once and never changed, and environments share them.

    Args:
        images: uint8 ``[N, h, w]`` (grey) or ``[N, h, w, 3]`` (RGB), N at least 1. They are copied unless read-only.
        labels: N lists of whole numbers from 0 on, in any order, of any length.
        names: what messages call the images. None: "image 0", "image 1", ...
        parts: indices of the images of each split. None: shares of 80, 10 and 10 percent, see :meth:`part`.

    Raises:
        DataError: images or labels of another dtype, shape or kind. The message says which image.

    Example:
        >>> images = LabelledImages(np.zeros((2, 48, 64), np.uint8), [[3, 3, 0], []])
        >>> len(images), images.image_shape, images.num_classes(), images.max_objects()
        (2, (48, 64, 1), 4, 3)
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        names: Sequence[str] | None = None,
        parts: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.images = _read_only(images)
        self.names = names or [f"image {i}" for i in range(len(self.images))]
        self.labels = self._padded(labels)  # int64 [N, most], padded with -1
        self._parts = parts

    def __len__(self) -> int:
        return len(self.images)

    def __deepcopy__(self, memo: dict[int, Any]) -> LabelledImages:
        return self  # never changed, and large

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h_px, w_px, 1 or 3)."""
        height, width, *channels = self.images.shape[1:]
        return height, width, (channels or [1])[0]

    def num_classes(self, wished: int | None = None) -> int:
        """C: ``wished``, else the largest label plus 1.

        Raises:
            DataError: a label is not below C; or ``wished`` is None and no image has a label.
        """
        highest = self.labels.max(axis=1, initial=-1)  # [N]
        if wished is None and highest.max() < 0:
            raise DataError("No image has a label, so the number of classes is unknown: pass num_classes.")
        classes = int(highest.max()) + 1 if wished is None else wished
        if classes <= highest.max():
            first = int((highest >= classes).argmax())
            raise DataError(
                f"{self.names[first]}: expected labels in 0..{classes - 1}, since num_classes={classes}; got {highest[first]}. "
                "Raise num_classes or correct the labels."
            )
        return classes

    def max_objects(self, wished: int | None = None) -> int:
        """Most objects in an image: ``wished``, else the number in the image that has most.

        Raises:
            DataError: an image has more than ``wished``.
        """
        if wished is None or wished >= self.labels.shape[1]:
            return self.labels.shape[1] if wished is None else wished
        first = int((self.labels[:, max(wished, 0)] >= 0).argmax())
        raise DataError(
            f"{self.names[first]}: expected at most max_objects={wished} labels; got {(self.labels[first] >= 0).sum()}. "
            f"Raise max_objects to {self.labels.shape[1]}."
        )

    def part(self, split: CustomSplit) -> np.ndarray:
        """Indices of the images of a split. ``"all"``: of all images, in their order.

        If the images come without splits, they are sorted by a hash of their pixels. The first tenth is the test share, the
        second tenth the validation share, and the rest is for training. So the shares do not depend on the order of the images.
        Adding images moves none of the others from train to test, unless very many are added.

        Raises:
            DataError: there is no such split, or there are fewer images than splits.
        """
        if split == "all":
            return np.arange(len(self))
        if self._parts is not None:
            if split not in self._parts:
                raise DataError(
                    f"There are images for {' and '.join(self._parts)}, none for {split!r}: make a folder {split} with "
                    f"{LABELS_FILE} beside the others."
                )
            return self._parts[split]
        if len(self) < len(SPLITS):
            raise DataError(
                f"Expected at least {len(SPLITS)} images to share among train, val and test; got {len(self)}. Pass more, or "
                "split='all'."
            )
        order = np.argsort(np.frombuffer(b"".join(digest[:8] for digest in self._digests), ">u8"), kind="stable")
        tenth = max(1, len(self) // 10)
        return {"test": order[:tenth], "val": order[tenth : 2 * tenth], "train": order[2 * tenth :]}[split]

    @cached_property
    def digest(self) -> str:
        """A hash of shape, pixels and labels."""
        whole = hashlib.sha256(repr((self.images.shape, self.labels.tolist())).encode())
        for digest in self._digests:
            whole.update(digest)
        return whole.hexdigest()

    @cached_property
    def _digests(self) -> list[bytes]:
        return [hashlib.sha256(image.tobytes()).digest() for image in self.images]

    def _padded(self, labels: Any) -> np.ndarray:
        try:
            rows = [*labels]
        except TypeError:
            raise DataError(f"Expected labels as one list of whole numbers per image; got {labels!r}.") from None
        if len(rows) != len(self.images):
            raise DataError(
                f"Expected as many lists of labels as images; got {len(rows)} for {len(self.images)} images."
            )
        lists = [_label_list(row, name) for row, name in zip(rows, self.names, strict=True)]
        padded = np.full((len(rows), max(map(len, lists))), -1, np.int64)
        for row, values in zip(padded, lists, strict=True):
            row[: len(values)] = values
        return padded


class CustomCanvases:
    """The images of one split as canvases. Nothing is known of boxes.

    Args:
        data: all images.
        split: ``"train"``, ``"val"`` or ``"test"``, each in an order drawn with ``seed``; or ``"all"``, in their own order.
        seed: draws that order. Which images belong to a split does not depend on it.

    Raises:
        DataError: see :meth:`LabelledImages.part`.
    """

    source = "custom"

    def __init__(self, data: LabelledImages, split: CustomSplit, seed: int = 0) -> None:
        self._data = data
        chosen = data.part(split)
        self._order = chosen if split == "all" else np.random.default_rng(seed).permutation(chosen)

    def __len__(self) -> int:
        return len(self._order)

    @property
    def content(self) -> tuple[str | np.ndarray, ...]:
        """The hash of all images and labels, and the order."""
        return self._data.digest, self._order

    def compose(self, indices: Sequence[int] | np.ndarray) -> CanvasBatch:
        """The images and labels of the given indices. Every box is -1, which means unknown.

        Raises:
            DataError: an index outside 0..len - 1.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise DataError(f"Expected canvas indices in 0..{len(self) - 1}; got {indices.min()}..{indices.max()}.")
        chosen = self._order[indices]
        labels = self._data.labels[chosen]
        return CanvasBatch(self._data.images[chosen], labels, np.full((*labels.shape, 4), -1, np.int64))


def given_images(images: Any, labels: Any) -> str | LabelledImages | None:
    """What the arguments ``images`` and ``labels`` mean: a folder that is read later, images that are there, or nothing.

    Raises:
        ConfigError: an array without labels, or labels without an array.
        DataError: see :class:`LabelledImages`.
    """
    if isinstance(images, os.PathLike):
        images = os.fspath(images)
    is_array = images is not None and not isinstance(images, (str, LabelledImages))
    if is_array and labels is None:
        raise ConfigError("Expected labels, N lists of whole numbers, with images as an array; got none.")
    if labels is not None and not is_array:
        raise ConfigError(
            "Expected labels only with images as an array; a folder names its labels in labels.csv. Leave labels out."
        )
    return LabelledImages(images, labels) if is_array else images


def load_images(images: str | LabelledImages | None) -> LabelledImages:
    """The images that :func:`given_images` found.

    Raises:
        ConfigError: there are none.
        DataError: see :func:`load_folder`.
    """
    if images is None:
        raise ConfigError(
            "HSAL-Custom-v0 needs your images: pass images=FOLDER (--images FOLDER), or images=ARRAY and labels=LISTS."
        )
    return images if isinstance(images, LabelledImages) else load_folder(images)


def load_folder(folder: str, outside: bool = False) -> LabelledImages:
    """Read a folder as described at the head of this file. A process keeps what it has read until a file changes.

    Args:
        folder: the folder.
        outside: whether ``labels.csv`` may name files outside the folder. A folder from a stranger should not.

    Raises:
        DataError: the folder, ``labels.csv`` or an image is missing, damaged, or not as described; or ``labels.csv`` names a file
            outside the folder, be it by ``..``, by an absolute path or by a link. The message names it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"No folder {root}. Expected one that holds {LABELS_FILE} and the images it names.")
    splits: list[str] = [split for split in SPLITS if (root / split / LABELS_FILE).is_file()]
    if (root / LABELS_FILE).is_file() == bool(splits):
        found = f"got both it and {', '.join(f'{s}/{LABELS_FILE}' for s in splits)}" if splits else "got none"
        raise DataError(
            f"{root}: expected {LABELS_FILE}, or train/{LABELS_FILE}, val/{LABELS_FILE} and test/{LABELS_FILE}; {found}."
        )
    rows: list[tuple[_Stamp, tuple[int, ...]]] = []
    within = None if outside else root.resolve()
    parts = []
    for part in splits or ["."]:
        before = len(rows)
        rows += [(_stamp(file), labels) for file, labels in _read_labels(root / part / LABELS_FILE, within)]
        parts.append((part, before, len(rows)))
    return _read_images(tuple(rows), tuple(parts) if splits else ())


def _read_only(images: Any) -> np.ndarray:
    wanted = "Expected images as one array uint8 [N, h, w] or [N, h, w, 3], N > 0"
    try:
        array = np.asarray(images)
    except (TypeError, ValueError) as error:
        raise DataError(f"{wanted}; got {type(images).__name__} of several shapes or kinds ({error}).") from error
    if array.dtype != np.uint8:
        hint = " Scale them to 0..255 and convert with .astype(numpy.uint8)." if array.dtype.kind in "fiub" else ""
        raise DataError(f"{wanted}; got {array.dtype} of shape {array.shape}.{hint}")
    if array.ndim not in (3, 4) or array.shape[3:] not in ((), (3,)) or not array.size:
        raise DataError(f"{wanted}; got shape {array.shape}.")
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array


def _label_list(row: Any, name: str) -> tuple[int, ...]:
    try:
        values = [*row]
    except TypeError:
        raise DataError(
            f"{name}: expected a list of labels; got {row!r}. Write a single label as a list, too: [{row!r}]."
        ) from None
    for value in values:
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or not 0 <= value < MOST_CLASSES:
            raise DataError(f"{name}: expected labels as whole numbers in 0..{MOST_CLASSES - 1}; got {value!r}.")
    return tuple(int(value) for value in values)


def _read_labels(path: Path, root: Path | None) -> list[tuple[Path, tuple[int, ...]]]:
    """The files that a ``labels.csv`` names, all of them in ``root``, and their labels."""
    rows: dict[Path, tuple[int, ...]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if header != _COLUMNS:
                raise DataError(f"{path}: expected the first line {','.join(_COLUMNS)!r}; got {','.join(header)!r}.")
            for row in reader:
                if not row:
                    continue
                where = f"{path}, line {reader.line_num}"
                if len(row) != len(_COLUMNS) or not row[0]:
                    raise DataError(f"{where}: expected a file, a comma, and labels separated by spaces; got {row}.")
                file_name, labels = path.parent / row[0], row[1].split()
                if root and not file_name.resolve().is_relative_to(root):
                    raise DataError(
                        f"{where}: expected a file in {root}; got {row[0]}, which lies outside. Move it there, or read the "
                        "folder with hsal_env.data.custom.load_folder(FOLDER, outside=True)."
                    )
                if file_name in rows:
                    raise DataError(f"{where}: {row[0]} is listed twice.")
                wrong = [text for text in labels if not (text.isascii() and text.isdigit())]
                if wrong:
                    raise DataError(
                        f"{where} ({row[0]}): expected labels as whole numbers from 0 on, separated by spaces; got {wrong[0]!r}."
                    )
                rows[file_name] = _label_list(map(int, labels), f"{where} ({row[0]})")
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read: {error}. Expected text in UTF-8.") from error
    if not rows:
        raise DataError(f"{path} names no images.")
    return [*rows.items()]


def _stamp(file: Path) -> _Stamp:
    """Path, time of the last change, and size of a file, by which a change is noticed."""
    try:
        status = file.stat()
    except OSError as error:
        raise DataError(f"{file} is named in {LABELS_FILE} but cannot be found: {error.strerror}.") from error
    return str(file), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=2)
def _read_images(
    rows: tuple[tuple[_Stamp, tuple[int, ...]], ...], parts: tuple[tuple[str, int, int], ...]
) -> LabelledImages:
    """Read the files of ``rows``, in colour if one of them is. ``parts`` holds name, start and stop of each split."""
    (first, *_), _ = rows[0]
    images = np.empty((len(rows), *read_image(first).shape), np.uint8)
    for i, ((file, *_), _) in enumerate(rows):
        pixels = read_image(file)
        if pixels.shape[:2] != images.shape[1:3]:
            height, width = pixels.shape[:2]
            raise DataError(
                f"{file}: expected {images.shape[1]}x{images.shape[2]} px (rows x columns), the size of {first}; got "
                f"{height}x{width}. Bring all images to one size."
            )
        if pixels.ndim == images.ndim:
            images = images[..., None].repeat(3, axis=3)
        images[i] = pixels if pixels.ndim == images.ndim - 1 else pixels[..., None]
    images.flags.writeable = False
    names = [file for (file, *_), _ in rows]
    splits = {split: np.arange(start, stop) for split, start, stop in parts}
    return LabelledImages(images, [labels for _, labels in rows], names, splits or None)


def read_image(file: str) -> np.ndarray:
    """Read a PNG or JPEG file as uint8 ``[h, w]`` (grey) or ``[h, w, 3]`` (RGB).

    Raises:
        DataError: the file cannot be read, or is neither 8-bit grey nor RGB.
    """
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            mode = image.mode if "transparency" not in image.info else f"{image.mode} with transparency"
            upright = ImageOps.exif_transpose(image)  # a camera may have stored it turned
            pixels = np.array(upright.convert(_PLAIN_MODES[mode])) if mode in _PLAIN_MODES else None
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise DataError(
            f"{file}: cannot be read as PNG or JPEG ({type(error).__name__}: {error}). Repair it, or remove its line from "
            f"{LABELS_FILE}."
        ) from error
    if pixels is None:
        raise DataError(f"{file}: expected 8-bit grey or RGB; got mode {mode}. Convert it, for example to RGB.")
    return pixels
