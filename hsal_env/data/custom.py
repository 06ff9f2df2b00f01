"""Your own images, each with its multiset of labels: arrays, or a folder.

A folder holds PNG or JPEG files, grey or RGB, all of one size, and ``labels.csv``, which names them and their labels::

    file,labels
    cups/1.png,3 3 0
    cups/2.jpg,7
    table.png,

Labels are separated by spaces and counted from 0, or they are class names. An image may have none. A file ``classes.txt`` names
the classes, one in each line; without it, names are numbered in the order of the alphabet. Instead the folder may hold such
folders named ``train``, ``val`` and ``test``. If some files are grey and others in colour, grey is repeated over the channels.
Nothing is resized. :mod:`hsal_env.data.labels` and :mod:`hsal_env.data.label_file` describe other forms of labels that are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hsal_env.data.canvases import CanvasBatch
from hsal_env.data.glyphs import SPLITS, Split
from hsal_env.data.label_file import CLASSES_FILE, LABELS_FILE, read_class_file, read_label_file
from hsal_env.data.labels import Labels, LabelsAre, checked_names, read_labels
from hsal_env.data.pixels import read_image, read_images, stacked
from hsal_env.errors import ConfigError, DataError
from hsal_env.storage.files import as_path

CustomSplit = Literal[Split, "all"]
_Stamp = tuple[str, int, int]


class LabelledImages:
    """Images and their labels. They are checked once and never changed, and environments share them.

    Args:
        images: uint8 ``[N, h, w]`` (grey) or ``[N, h, w, 3]`` (RGB), N at least 1, or another form that
            :func:`hsal_env.data.pixels.read_images` takes. An array is copied unless it is read-only.
        labels: N lists of whole numbers from 0 on, in any order, of any length, or another form that
            :mod:`hsal_env.data.labels` describes.
        names: what messages call the images. None: "image 0", "image 1", ...
        parts: indices of the images of each split. None: shares of 80, 10 and 10 percent, see :meth:`part`.
        labels_are: ``"lists"``, or ``"counts"``: a row of ``labels`` holds how often each class occurs, as a multi-hot row does.
            None: the form decides, and what could be both is refused.
        class_names: the name of each class. None: as ``labels`` say, or none.

    Raises:
        DataError: images or labels of another dtype, shape or kind. The message says which image.

    Example:
        >>> images = LabelledImages(np.zeros((2, 48, 64), np.uint8), [[3, 3, 0], []])
        >>> len(images), images.image_shape, images.num_classes(), images.max_objects()
        (2, (48, 64, 1), 4, 3)
        >>> LabelledImages(np.zeros((2, 48, 64), np.uint8), [["cup", "cup"], ["plate"]]).class_names
        ('cup', 'plate')
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        names: Sequence[str] | None = None,
        parts: Mapping[str, np.ndarray] | None = None,
        labels_are: LabelsAre | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.images = read_images(images)
        self.names = names or [f"image {i}" for i in range(len(self.images))]
        known = labels if isinstance(labels, Labels) else read_labels(labels, self.names, labels_are, class_names)
        self.class_names: tuple[str, ...] = known.class_names
        self._known_classes = known.num_classes
        self.labels = np.full((len(self.images), max(map(len, known.lists))), -1, np.int64)  # [N, most], padded with -1
        for row, values in zip(self.labels, known.lists, strict=True):
            row[: len(values)] = values
        self._parts = parts
        if self.class_names:
            self.num_classes()

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
        """C: ``wished``, else the number of class names or of counts in a row, else the largest label plus 1.

        Raises:
            DataError: a label is not below C; there are more or fewer than C class names; or ``wished`` is None and no image has
                a label.
        """
        highest = self.labels.max(axis=1, initial=-1)  # [N]
        if wished is None and self._known_classes is None and highest.max() < 0:
            raise DataError("No image has a label, so the number of classes is unknown: pass num_classes.")
        classes = wished or self._known_classes or int(highest.max()) + 1
        if classes <= highest.max():
            first = int((highest >= classes).argmax())
            raise DataError(
                f"{self.names[first]}: expected labels in 0..{classes - 1}, since num_classes={classes}; got {highest[first]}. "
                "Raise num_classes or correct the labels."
            )
        if self.class_names and classes != len(self.class_names):
            raise DataError(
                f"Expected {classes} class names, since num_classes={classes}; got {len(self.class_names)}: "
                f"{', '.join(self.class_names)}. Name every class."
            )
        return classes

    def renamed(self, class_names: Sequence[str] | None) -> LabelledImages:
        """The same images for an agent that knows the classes by ``class_names``, in this order.

        Labels without names keep their numbers. Named ones become the places of their names in ``class_names``. None: no change.

        Raises:
            DataError: an image has a label whose name is not among ``class_names``, or whose number is not below their number.
        """
        if class_names is None or tuple(class_names) == self.class_names:
            return self
        known, own = checked_names(class_names), self.class_names
        lists = [[label for label in row if label >= 0] for row in self.labels.tolist()]
        words = [[own[label] for label in row] for row in lists] if own else lists
        read = read_labels(words, self.names, "lists", known)
        return LabelledImages(self.images, read, self.names, self._parts)

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


def given_images(
    images: Any, labels: Any, labels_are: LabelsAre | None = None, class_names: Sequence[str] | None = None
) -> str | LabelledImages | None:
    """What these arguments of an environment mean: a folder that is read later, images that are there, or nothing.

    Raises:
        ConfigError: an array without labels, or labels without an array.
        DataError: see :class:`LabelledImages`.
    """
    if isinstance(images, os.PathLike):
        images = os.fspath(images)
    is_array = images is not None and not isinstance(images, (str, LabelledImages))
    if is_array and labels is None:
        raise ConfigError("Expected labels, N lists of whole numbers, with images as an array; got none.")
    if not is_array and not (labels is None and labels_are is None):
        raise ConfigError(
            "Expected labels only with images as an array; a folder names its labels in labels.csv. Leave both out."
        )
    return LabelledImages(images, labels, labels_are=labels_are, class_names=class_names) if is_array else images


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
    root = as_path(folder)
    if not root.is_dir():
        raise DataError(f"No folder {root}. Expected one that holds {LABELS_FILE} and the images it names.")
    splits: list[str] = [split for split in SPLITS if (root / split / LABELS_FILE).is_file()]
    if (root / LABELS_FILE).is_file() == bool(splits):
        found = f"got both it and {', '.join(f'{s}/{LABELS_FILE}' for s in splits)}" if splits else "got none"
        raise DataError(
            f"{root}: expected {LABELS_FILE}, or train/{LABELS_FILE}, val/{LABELS_FILE} and test/{LABELS_FILE}; {found}."
        )
    within = None if outside else root.resolve()
    read = {part: read_label_file(root / part / LABELS_FILE, within) for part in splits or ["."]}
    kinds = {part.labels_are for part in read.values()}
    if len(kinds) > 1:
        raise DataError(f"{root}: expected the same first line in the {LABELS_FILE} of all splits; got different ones.")
    labels = read_labels(
        [text for part in read.values() for text in part.texts],
        [where for part in read.values() for where in part.where],
        kinds.pop(),
        read_class_file(root / CLASSES_FILE),
    )
    stamps = tuple(_stamp(file) for part in read.values() for file in part.files)
    sizes = tuple((name, len(part.files)) for name, part in read.items()) if splits else ()
    return _read_images(stamps, labels, sizes)


def _stamp(file: Path) -> _Stamp:
    """Path, time of the last change, and size of a file, by which a change is noticed."""
    try:
        status = file.stat()
    except (OSError, ValueError) as error:  # the latter for a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{file} is named in {LABELS_FILE} but cannot be found: {reason}.") from error
    return str(file), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=2)
def _read_images(stamps: tuple[_Stamp, ...], labels: Labels, sizes: tuple[tuple[str, int], ...]) -> LabelledImages:
    """Read the files of ``stamps``, in colour if one of them is. ``sizes`` holds name and number of images of each split."""
    names = [file for file, *_ in stamps]
    images = stacked((read_image(file) for file in names), names)
    stops = np.cumsum([size for _, size in sizes])
    parts = {name: np.arange(stop - size, stop) for (name, size), stop in zip(sizes, stops, strict=True)}
    return LabelledImages(images, labels, names, parts or None)
