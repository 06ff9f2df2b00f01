"""Your own images, each with its multiset of labels: arrays, or a folder.

A folder holds PNG, JPEG, BMP, WebP or TIFF files, grey or RGB, and says in one of four layouts what is in them:

- ``labels.csv``, which names the files and their labels, see below;
- COCO's JSON (:mod:`hsal_env.data.annotations.coco`);
- Pascal VOC's XML (:mod:`hsal_env.data.annotations.voc`);
- YOLO's text files (:mod:`hsal_env.data.annotations.yolo`).

A ``labels.csv`` looks like this::

    file,labels
    cups/1.png,3 3 0
    cups/2.jpg,7
    table.png,

Labels are separated by spaces and counted from 0, or they are class names. An image may have none. A file ``classes.txt`` names
the classes, one in each line; without it, names are numbered in the order of the alphabet. Instead the folder may hold such
folders named ``train``, ``val`` and ``test``. If some files are grey and others in colour, grey is repeated over the channels.
:mod:`hsal_env.data.labels` and :mod:`hsal_env.data.label_file` describe other forms of labels that are read.

Images of one size stay as they are, unless another size is asked for. Others are brought to one size, see
:class:`hsal_env.data.fitting.Fit`. Boxes are for measuring: nothing learns from them.
"""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from hsal_env.data.annotations import Annotations, ImagesFormat, read_annotations
from hsal_env.data.canvases import CanvasBatch
from hsal_env.data.fitting import Fit, FitMode, checked_px
from hsal_env.data.glyphs import SPLITS, Split
from hsal_env.data.label_file import LABELS_FILE
from hsal_env.data.labels import Labels, LabelsAre, checked_names, read_labels
from hsal_env.data.left_out import NO_AREA, OTHER_SIZE, OUTSIDE, Problem, told
from hsal_env.data.pixel_store import store_images
from hsal_env.data.pixels import ImageRows, Pixels, digests, read_images, refitted
from hsal_env.errors import ConfigError, DataError
from hsal_env.storage.files import as_path

CustomSplit = Literal[Split, "all"]
_SLACK_PX = 0.01  # of a box whose shares were rounded: it does not touch one more pixel


class LabelledImages:
    """Images, their labels, and their boxes where these are known. They are checked once and never changed, and shared.

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
        boxes: of each image, the boxes of its labels in their order, whole numbers ``[n, 4]`` as (row, col, height, width) in px
            of the image as it is given; -1 or None where unknown. None: all are unknown.
        fit: brings all images to one size, and their boxes with them. None: they must have one.

    Attributes:
        images: uint8 ``[N, h, w]`` or ``[N, h, w, 3]``; of a folder they are read from disk when rows of it are asked for.
        labels: int64 ``[N, most]``, padded with -1.
        boxes: int64 ``[N, most, 4]`` of ``labels``, (row, col, height, width) in px of ``images``; -1 where unknown, and padding.
        sizes: (h, w) of the images as they were given, ``[N, 2]``, see :meth:`hsal_env.data.fitting.Fit.to_original`.
        fit: how they were brought to one size; None: they are as they were given.
        class_names: the name of each class; () where there are none.

    Raises:
        DataError: images, labels or boxes of another dtype, shape or kind. The message says which image.

    Example:
        >>> images = LabelledImages(np.zeros((2, 48, 64), np.uint8), [[3, 3, 0], []])
        >>> len(images), images.image_shape, images.num_classes(), images.max_objects()
        (2, (48, 64, 1), 4, 3)
        >>> LabelledImages(np.zeros((2, 48, 64), np.uint8), [["cup", "cup"], ["plate"]]).class_names
        ('cup', 'plate')
        >>> photographs = [np.zeros((48, 64), np.uint8), np.zeros((64, 48), np.uint8)]
        >>> LabelledImages(photographs, [["cup"], ["plate"]], fit=Fit((32, 32))).image_shape
        (32, 32, 1)
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        names: Sequence[str] | None = None,
        parts: Mapping[str, np.ndarray] | None = None,
        labels_are: LabelsAre | None = None,
        class_names: Sequence[str] | None = None,
        boxes: Sequence[Any] | None = None,
        fit: Fit | None = None,
    ) -> None:
        self._pixels = images if isinstance(images, Pixels) else read_images(images, fit)
        self.names = names or [f"image {i}" for i in range(len(self))]
        known = labels if isinstance(labels, Labels) else read_labels(labels, self.names, labels_are, class_names)
        self.class_names: tuple[str, ...] = known.class_names
        self._known_classes = known.num_classes
        self.labels = np.full((len(self), max(map(len, known.lists))), -1, np.int64)  # [N, most], padded with -1
        for row, values in zip(self.labels, known.lists, strict=True):
            row[: len(values)] = values
        self.boxes = np.full((*self.labels.shape, 4), -1, np.int64)
        self._place_boxes([None] * len(self) if boxes is None else boxes)
        self._parts = parts
        if self.class_names:
            self.num_classes()

    def _place_boxes(self, boxes: Sequence[Any]) -> None:
        if len(boxes) != len(self):
            raise DataError(f"Expected as many lists of boxes as images; got {len(boxes)} for {len(self)} images.")
        counts = (self.labels >= 0).sum(axis=1).tolist()
        for row, own, count, name, size in zip(self.boxes, boxes, counts, self.names, self.sizes.tolist(), strict=True):
            if own is None:
                continue
            given = np.asarray(own).reshape(-1, 4) if np.size(own) % 4 == 0 else np.asarray(own)
            if given.shape != (count, 4) or (given.size and given.dtype.kind not in "iu"):
                raise DataError(
                    f"{name}: expected boxes as whole numbers (row, col, height, width), one for each of {count} labels; got "
                    f"{given.dtype} of shape {np.shape(own)}."
                )
            unknown = (given == -1).all(axis=1)
            inside = (given >= 0).all(axis=1) & (given[:, 2:] > 0).all(axis=1)
            inside &= (given[:, :2] + given[:, 2:] <= size).all(axis=1)
            if not (inside | unknown).all():
                raise DataError(
                    f"{name}: expected boxes of at least 1 px within {size[0]}x{size[1]} px, or -1; got "
                    f"{given[~(inside | unknown)][0].tolist()}."
                )
            row[:count] = given if self.fit is None else self.fit.boxes(given, (size[0], size[1]))

    def __len__(self) -> int:
        return len(self.images)

    def __deepcopy__(self, memo: dict[int, Any]) -> LabelledImages:
        return self  # never changed, and large

    @property
    def images(self) -> ImageRows:
        """See the attributes of the class."""
        return self._pixels.images

    @property
    def sizes(self) -> np.ndarray:
        """See the attributes of the class."""
        return self._pixels.sizes

    @property
    def fit(self) -> Fit | None:
        """See the attributes of the class."""
        return self._pixels.fit

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h_px, w_px, 1 or 3)."""
        height, width, *channels = self.images.shape[1:]
        return height, width, (channels or [1])[0]

    @cached_property
    def has_boxes(self) -> bool:
        """Whether there are objects, and the boxes of all are known, but for what a crop has cut away."""
        known = self.boxes[..., 2] > 0
        cut = self.fit is not None and self.fit.fit == "crop"
        return bool(known.any()) and (cut or bool((known == (self.labels >= 0)).all()))

    def fitted(self, fit: Fit) -> LabelledImages:
        """The same images in the size of ``fit``, with their boxes. Images of that size stay as they are.

        Of images that were fitted before, it is their present size that counts as the original one.
        """
        if self.image_shape[:2] == fit.image_px:
            return self
        size = self.image_shape[:2]
        other = self._copy()
        other._pixels = refitted(self._pixels, fit)
        other.boxes = np.stack([fit.boxes(own, size) for own in self.boxes])
        return other

    def _copy(self) -> LabelledImages:
        """A copy, without what was computed of it."""
        other = copy.copy(self)
        for name in ("digest", "has_boxes", "_shares"):
            other.__dict__.pop(name, None)
        return other

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
        other = self._copy()
        other.labels = self.labels.copy()
        for row, values in zip(other.labels, read.lists, strict=True):
            row[: len(values)] = values
        other.class_names, other._known_classes = read.class_names, read.num_classes
        other.num_classes()
        return other

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
        second tenth the validation share, and the rest is for training. So the shares do not depend on the order of the images,
        nor on the size that they are brought to. Adding images moves none of the others from train to test, unless very many are
        added.

        If they come with some splits, what an agent is chosen by must not be what it is tested on. Of ``train`` and ``val``
        without ``test``, their ``val`` is the test share, and the first tenth of ``train``, sorted by the hash, the validation
        share. Of ``train`` and ``test`` without ``val``, that tenth is the validation share, too. ``train`` alone counts as no
        splits.

        Raises:
            DataError: there is no such split, or there are fewer images than splits.
        """
        if split == "all":
            return np.arange(len(self))
        if split not in self._shares:
            raise DataError(
                f"There are images for {' and '.join(self._shares)}, none for {split!r}: make a folder {split} with "
                f"{LABELS_FILE} beside the others."
            )
        return self._shares[split]

    @cached_property
    def _shares(self) -> Mapping[str, np.ndarray]:
        own = self._parts
        if own is None or [*own] == ["train"]:
            if len(self) < len(SPLITS):
                raise DataError(
                    f"Expected at least {len(SPLITS)} images to share among train, val and test; got {len(self)}. Pass more, or "
                    "split='all'."
                )
            order = self._by_hash(np.arange(len(self)))
            tenth = max(1, len(self) // 10)
            return {"test": order[:tenth], "val": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
        if "train" not in own or len(own) == len(SPLITS):
            return own
        order = self._by_hash(own["train"])
        tenth = max(1, len(order) // 10)
        if len(order) < 2:
            raise DataError(
                f"Expected at least 2 images in train, to share with val; got {len(order)}. Make a folder val."
            )
        return {"train": order[tenth:], "val": order[:tenth], "test": own["test" if "test" in own else "val"]}

    def _by_hash(self, chosen: np.ndarray) -> np.ndarray:
        """Indices in the order of the hashes of their images."""
        hashes = np.frombuffer(b"".join(digest[:8] for digest in self._digests), ">u8")
        return chosen[np.argsort(hashes[chosen], kind="stable")]

    @cached_property
    def digest(self) -> str:
        """A hash of shape, pixels, fit, labels and boxes."""
        whole = hashlib.sha256(repr((self.images.shape, self.labels.tolist())).encode())
        for digest in self._digests:
            whole.update(digest)
        if self.fit is not None:
            whole.update(repr(self.fit).encode())
        if (self.boxes >= 0).any():
            whole.update(self.boxes.tobytes())
        return whole.hexdigest()

    @cached_property
    def _digests(self) -> Sequence[bytes]:
        return digests(self._pixels)


class CustomCanvases:
    """The images of one split as canvases.

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
        """The images, labels and boxes of the given indices. A box of -1 is unknown.

        Raises:
            DataError: an index outside 0..len - 1.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise DataError(f"Expected canvas indices in 0..{len(self) - 1}; got {indices.min()}..{indices.max()}.")
        chosen = self._order[indices]
        return CanvasBatch(self._data.images[chosen], self._data.labels[chosen], self._data.boxes[chosen])


def given_images(
    images: Any,
    labels: Any,
    labels_are: LabelsAre | None = None,
    class_names: Sequence[str] | None = None,
    fit: Fit | None = None,
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
    return LabelledImages(images, labels, None, None, labels_are, class_names, fit=fit) if is_array else images


def load_images(
    images: str | LabelledImages | None,
    images_format: ImagesFormat = "auto",
    image_px: tuple[int, int] | None = None,
    fit: FitMode = "letterbox",
) -> LabelledImages:
    """The images that :func:`given_images` found, in the size that is asked for.

    Raises:
        ConfigError: there are none.
        DataError: see :func:`load_folder`.
    """
    if images is None:
        raise ConfigError(
            "HSAL-Custom-v0 needs your images: pass images=FOLDER (--images FOLDER), or images=ARRAY and labels=LISTS."
        )
    if isinstance(images, LabelledImages):
        return images.fitted(Fit(image_px, fit)) if image_px else images
    return load_folder(images, images_format=images_format, image_px=image_px, fit=fit)


def load_folder(
    folder: str,
    outside: bool = False,
    images_format: ImagesFormat = "auto",
    image_px: int | tuple[int, int] | None = None,
    fit: FitMode = "letterbox",
) -> LabelledImages:
    """Read a folder as described at the head of this file. A process keeps what it has read until a file changes.

    Images that cannot be used are left out, and one warning counts them: files that are broken, that are named but missing, that
    are neither 8-bit grey nor RGB, and images with a box of no area or outside the image. Boxes that reach out are cut off.

    Args:
        folder: the folder.
        outside: whether images may lie outside the folder. A folder from a stranger should not.
        images_format: the layout, see :func:`hsal_env.data.annotations.reading.read_annotations`.
        image_px: (rows, columns) to which all images are brought; one number means a square. None: the size that all have; if
            they have several, the size of :func:`hsal_env.data.fitting.suited_px`, and a warning says so.
        fit: how, see :class:`hsal_env.data.fitting.Fit`.

    Raises:
        ConfigError: another layout, size or ``fit``.
        DataError: the folder is missing; no image can be used; its annotations are missing, malformed or not as described, or
            name a file outside the folder, be it by ``..``, by an absolute path or by a link. The message names it.
    """
    root = as_path(folder)
    px = None if image_px is None else checked_px(image_px)
    _ = Fit(px or (1, 1), fit)  # raises if fit is unknown
    return _load(str(root), read_annotations(root, images_format, outside), px, fit)


@lru_cache(maxsize=2)
def _load(root: str, found: Annotations, image_px: tuple[int, int] | None, mode: FitMode) -> LabelledImages:
    if not found.files:
        raise DataError(f"{root}: no image can be used. {told(found.problems)}")
    stored = store_images(found.files, image_px, mode)
    problems: list[Problem] = [*found.problems]
    chosen, boxes = [], []
    for i, file in enumerate(found.files):
        size: tuple[int, int] = (int(stored.sizes[i, 0]), int(stored.sizes[i, 1]))
        whole, problem = (None, stored.problems.get(i)) if i in stored.problems else _whole_boxes(found, i, size)
        if problem:
            problems.append((problem, str(file)))
        else:
            chosen.append(i)
            boxes.append(whole)
    if not chosen:
        raise DataError(f"{root}: no image can be used. {told(problems)}")
    labels = Labels(tuple(found.labels.lists[i] for i in chosen), found.labels.num_classes, found.labels.class_names)
    parts: dict[str, np.ndarray] = {
        part: places
        for part in SPLITS
        if len(places := np.array([place for place, i in enumerate(chosen) if found.parts[i] == part], np.int64))
    }
    names = [str(found.files[i]) for i in chosen]
    data = LabelledImages(stored.pixels(np.array(chosen)), labels, names, parts or None, boxes=boxes)
    _warn(root, data, parts, problems, image_px)
    return data


def _whole_boxes(found: Annotations, i: int, size: tuple[int, int]) -> tuple[np.ndarray | None, str | None]:
    """The boxes of an image of (h, w) px in whole px, cut off at its edges; or why the image cannot be used."""
    if found.sizes[i] not in (None, size):
        return None, OTHER_SIZE
    given = found.boxes[i]
    if given is None:
        return None, None
    given = given * np.tile(size, 2) if found.relative else given
    known = np.isfinite(given).all(axis=1)
    if (given[known, 2:] <= 0).any():
        return None, NO_AREA
    start = np.floor(given[known, :2] + _SLACK_PX)
    stop = np.maximum(np.ceil(given[known, :2] + given[known, 2:] - _SLACK_PX), start + 1)
    start, stop = np.clip(start, 0, size), np.clip(stop, 0, size)
    if (start >= stop).any():
        return None, OUTSIDE
    whole = np.full((len(given), 4), -1, np.int64)
    whole[known] = np.concatenate([start, stop - start], axis=1)
    return whole, None


def _warn(
    root: str,
    data: LabelledImages,
    parts: Mapping[str, np.ndarray],
    problems: Sequence[Problem],
    image_px: tuple[int, int] | None,
) -> None:
    """Warn once of all that a user may not expect."""
    said = [f"{len(data)} images are used. {told(problems)}"] if problems else []
    if data.fit and image_px is None:
        rows, columns = data.fit.image_px
        said.append(
            f"Images of several sizes are brought to {rows}x{columns} px (rows x columns) by fit={data.fit.fit!r}; image_px "
            "chooses another size."
        )
    if "train" in parts:
        learned = set(np.unique(data.labels[parts["train"]]).tolist())
        strange = [label for label in np.unique(data.labels).tolist() if label not in learned]
        if strange:
            named = ", ".join(data.class_names[label] if data.class_names else str(label) for label in strange)
            said.append(
                f"No image of train holds {named}, which others hold: an agent cannot learn what it never sees."
            )
    if said:
        warnings.warn(f"{root}: {' '.join(said)}", stacklevel=4)
