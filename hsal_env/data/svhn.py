"""SVHN's full numbers (format 1): photographs of house numbers in colour, with a box and a label for every digit.

Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", NIPS workshop 2011. There are 33,402 images
for training, 13,068 for testing, and 202,353 easier ones, called ``extra``. Each part is a folder of PNG files with
``digitStruct.mat``.

A number is cropped as in decision D4: the common box of its digits grows by 15 % of its height and width on each side, as far as
the image goes. The crops are stored in the cache folder once, without loss. Environments read only the stored crops.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hsal_env.data.canvases import CanvasBatch, Task
from hsal_env.data.digit_struct import Entry, read_digit_struct
from hsal_env.data.draws import IndexedRandom, source_of
from hsal_env.data.glyphs import SPLITS, Split, cache_folder, data_folders
from hsal_env.data.left_out import told
from hsal_env.data.pixels import read_image
from hsal_env.data.resize import bilinear_resize
from hsal_env.errors import ConfigError, DataError, DataUnavailableError
from hsal_env.storage.array_store import ArrayStore
from hsal_env.storage.files import temporary_folder
from hsal_env.storage.filling import Record

MOST_DIGITS = 6  # in an image of any part
TASKS: tuple[Task, ...] = ("single", "multiset")
URL = "http://ufldl.stanford.edu/housenumbers"
MD5 = {  # of PART.tar.gz, as others recorded them who downloaded the files; the site names none
    "train": "a649f4cb15c35520e8a8c342d4c0005a",
    "test": "790d9c8d42f1fcbd219b59956c853a81",
    "extra": "606f41243d71ca4d5fe66dbaf1f02bee",
}

_DIGIT_STRUCT = "digitStruct.mat"
_EVERY = 10  # one image in ten of the training part is for validation
_NAME_BYTES = 64  # length of the names in messages
_LAYOUT = 2  # version of the stored layout; another number stores the crops again
_PROBLEMS = (
    "listed in digitStruct.mat but not there",
    "not listed in digitStruct.mat",
    "listed more than once",
    "not readable as PNG in grey or RGB",
    "without a digit",
    f"of more than {MOST_DIGITS} digits",
    "with a label that is none of 1 to 10",
    "with a box of no area",
    "with a box outside the image",
)
_MISSING, _UNLISTED, _TWICE, _BROKEN, _EMPTY, _CROWDED, _BAD_LABEL, _NO_AREA, _OUTSIDE = range(len(_PROBLEMS))


class SVHN:
    """The numbers of one split as canvases, each cropped and stretched to a square.

    Every tenth image of the training part, in the order of digitStruct.mat, is for validation. The order of the images, and the
    order of the digits of each image, are drawn with ``seed``. So labels do not come in the order of reading.

    Args:
        split: which images.
        task: ``"multiset"``: an image holds all digits of a number. ``"single"``: each digit makes an image, cropped around its
            own box, at whose edges its neighbours may show.
        image_px: side of the image.
        seed: draws both orders. Which images belong to a split does not depend on it.
        data_root: where the data lie or are downloaded to, see :func:`find_svhn`.
        extra: whether the part ``extra`` is added to the split ``"train"``.
        progress: show a progress bar while crops are stored.

    Raises:
        ConfigError: an unknown task, an image of less than 1 px, or h5py is missing.
        DataUnavailableError: see :func:`find_svhn`.
        DataError: digitStruct.mat is damaged, or no image can be used. Single images that cannot be used are left out: broken
            files, files that are not listed, bad boxes or labels. One warning counts them.
    """

    source = "svhn"
    most_digits = MOST_DIGITS

    def __init__(
        self,
        split: Split = "train",
        task: Task = "multiset",
        image_px: int = 100,
        seed: int = 0,
        data_root: str | None = None,
        extra: bool = False,
        progress: bool = True,
    ) -> None:
        self.max_objects = 1 if task == "single" else MOST_DIGITS
        self.check(task, self.max_objects, image_px)
        self.task, self.image_px = task, image_px
        self._crops = [_Crops("test" if split == "test" else "train", data_root, progress)]
        chosen = [np.arange(len(self._crops[0]))]
        if split != "test":
            chosen = [np.flatnonzero((self._crops[0].entries % _EVERY == _EVERY - 1) == (split == "val"))]
        if extra and split == "train":
            self._crops.append(_Crops("extra", data_root, progress))
            chosen.append(np.arange(len(self._crops[1])))
        where = [np.stack([np.full_like(rows, part), rows], axis=1) for part, rows in enumerate(chosen)]
        self._where = np.concatenate(where)  # int64 [len, 2 or 3]: part, row, which digit
        if task == "single":
            digits = np.concatenate([crops.count[rows] for crops, rows in zip(self._crops, chosen, strict=True)])
            place = np.arange(digits.sum()) - np.repeat(np.cumsum(digits) - digits, digits)
            self._where = np.column_stack([np.repeat(self._where, digits, axis=0), place])
        if not len(self._where):
            raise DataError(
                f"SVHN's split {split!r} is empty: {len(self._crops[0])} images are there. Download all of them."
            )
        self._where = np.random.default_rng(seed).permutation(self._where)
        self._random = IndexedRandom(seed, 200 + SPLITS.index(split), MOST_DIGITS)

    @staticmethod
    def check(task: Task, max_objects: int, image_px: int) -> None:
        """Refuse arguments that do not suit SVHN.

        Raises:
            ConfigError: an unknown task, fewer objects than an image may have, or an image of less than 1 px.
        """
        if task not in TASKS:
            raise ConfigError(f"Expected task to be one of {', '.join(TASKS)} with SVHN; got {task!r}.")
        least = 1 if task == "single" else MOST_DIGITS
        if max_objects < least:
            raise ConfigError(
                f"Expected max_objects of at least {least} with SVHN, whose images have up to {least}; got {max_objects}."
            )
        if image_px < 1:
            raise ConfigError(f"Expected canvas_px of at least 1; got {image_px}.")

    def __len__(self) -> int:
        return len(self._where)

    @property
    def content(self) -> tuple[str | np.ndarray, ...]:
        """The checksums of the crops, the arguments, both orders, and the code."""
        crops = repr([crops.store.meta for crops in self._crops])
        code = source_of(SVHN, IndexedRandom, bilinear_resize)
        return crops, repr((self.task, self.image_px)), self._where, self._random.key, *code

    def compose(self, indices: Sequence[int] | np.ndarray) -> CanvasBatch:
        """The images (RGB), labels and boxes of the given indices.

        Raises:
            DataError: an index outside 0..len - 1.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise DataError(f"Expected canvas indices in 0..{len(self) - 1}; got {indices.min()}..{indices.max()}.")
        px, lanes = self.image_px, len(indices)
        images = np.empty((lanes, px, px, 3), np.uint8)
        labels = np.full((lanes, self.max_objects), -1, np.int64)
        boxes = np.full((lanes, self.max_objects, 4), -1, np.int64)
        count = np.ones(lanes, np.int64)
        for lane, (part, row, *digit) in enumerate(self._where[indices].tolist()):
            pixels, names, places = self._crops[part].number(row)
            if digit:
                names, places = names[digit], places[digit]
                window = grown(places, pixels.shape[:2])
                pixels, places = cropped(pixels, places, window)
            count[lane] = len(names)
            images[lane] = np.moveaxis(bilinear_resize(np.moveaxis(pixels, 2, 0), px), 0, 2)
            labels[lane, : len(names)] = names
            boxes[lane, : len(names)] = _scaled(places, pixels.shape[:2], px)
        order = self._random.draws(indices).distinct_below(count, self.max_objects, self.max_objects)
        order = np.where(np.arange(self.max_objects) < count[:, None], order, np.arange(self.max_objects))
        return CanvasBatch(
            images, np.take_along_axis(labels, order, axis=1), np.take_along_axis(boxes, order[..., None], axis=1)
        )


class _Crops:
    """The crops of one part, in the order of digitStruct.mat, from the cache folder.

    Attributes:
        store: the pixels of all crops in one flat array, and the arrays below.
        entries: the index of each crop's entry in digitStruct.mat, ``[N]``.
        sizes: height and width of each crop, ``[N, 2]``.
        labels: 0 to 9 in the order of the entry, ``[N, MOST_DIGITS]``, padded with -1.
        boxes: (row, col, height, width) in the crop, ``[N, MOST_DIGITS, 4]``, padded with -1.
        count: number of digits, ``[N]``.
    """

    def __init__(self, part: str, data_root: str | None, progress: bool) -> None:
        folder = find_svhn(part, data_root)
        images = _listing(folder)
        self.store = ArrayStore.open(
            cache_folder() / "svhn" / f"{part}-{_key(folder, images)}",
            lambda: _read_part(part, folder, {*images}, progress),
            length=None,
        )
        self.entries, self.sizes, self.labels, self.boxes = (
            self.store.read_all(name).astype(np.int64) for name in ("entries", "sizes", "labels", "boxes")
        )
        self.count = (self.labels >= 0).sum(axis=1)
        self._ends = np.cumsum(3 * self.sizes.prod(axis=1))
        _warn(folder, len(self), self.store.read_all("problems"), self.store.read_all("problem_names"))

    def __len__(self) -> int:
        return len(self.sizes)

    def number(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels uint8 ``[h, w, 3]``, labels ``[n]`` and boxes ``[n, 4]`` of a crop."""
        height, width = self.sizes[row].tolist()
        stop, count = int(self._ends[row]), int(self.count[row])
        pixels = self.store.read_slice("pixels", stop - 3 * height * width, stop)
        return pixels.reshape(height, width, 3), self.labels[row, :count], self.boxes[row, :count]


# --- boxes ------------------------------------------------------------------------------------------------------------


def grown(boxes: np.ndarray, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The common box of ``boxes`` ``[n, 4]``, grown by 15 % on each side to whole px, and cut off at the edge of the image.

    Returns:
        (row, col, height, width).
    """
    start, stop = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    margin = 15 * (stop - start)  # in hundredths of a px
    start = np.maximum((100 * start - margin) // 100, 0)
    stop = np.minimum(-((-100 * stop - margin) // 100), size)
    (top, left), (bottom, right) = start.tolist(), stop.tolist()
    return top, left, bottom - top, right - left


def cropped(pixels: np.ndarray, boxes: np.ndarray, window: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The part of an image ``[h, w, 3]`` inside a window, and the boxes ``[n, 4]`` measured from the window's corner."""
    top, left, height, width = window
    return pixels[top : top + height, left : left + width], boxes - (top, left, 0, 0)


def _scaled(boxes: np.ndarray, size: tuple[int, ...], out_px: int) -> np.ndarray:
    """Boxes ``[n, 4]`` after their image (h, w) is stretched to a square, rounded outwards to whole px."""
    start = boxes[:, :2] * out_px // size
    stop = -(-(boxes[:, :2] + boxes[:, 2:]) * out_px // size)
    return np.concatenate([start, stop - start], axis=1)


# --- from the official files to crops ---------------------------------------------------------------------------------


class _LeftOut(Exception):  # noqa: N818 - not an error
    """An image cannot be used. The argument says why: it is an index of ``_PROBLEMS``."""


def _read_part(part: str, folder: Path, images: set[str], progress: bool) -> Iterator[Record]:
    """The arrays of :class:`_Crops`, one image at a time to save memory, and at the end what was left out."""
    entries = read_digit_struct(folder / _DIGIT_STRUCT)
    problems: list[tuple[int, str]] = []
    met: set[str] = set()
    used = 0
    bar = tqdm(entries, desc=f"SVHN, {part}", total=len(images), disable=not progress, mininterval=1)
    for index, entry in enumerate(bar):
        try:
            if entry.name not in images:
                raise _LeftOut(_MISSING)
            if entry.name in met:
                raise _LeftOut(_TWICE)
            met.add(entry.name)
            yield {"entries": np.array([index], np.int32), **_crop(folder, entry)}
            used += 1
        except _LeftOut as reason:
            problems.append((reason.args[0], entry.name))
    problems += [(_UNLISTED, name) for name in sorted(images - met)]
    if not used:
        raise DataError(f"{folder}: no image can be used. {_told(problems)} Download the archive again.")
    yield {
        "problems": np.array([kind for kind, _ in problems], np.int32),
        "problem_names": np.array([name.encode()[:_NAME_BYTES] for _, name in problems], f"S{_NAME_BYTES}"),
    }


def _crop(folder: Path, entry: Entry) -> Record:
    count = len(entry.digits)
    if not count:
        raise _LeftOut(_EMPTY)
    if count > MOST_DIGITS:
        raise _LeftOut(_CROWDED)
    labels = entry.digits[:, 4]
    if not np.isin(labels, range(1, 11)).all():
        raise _LeftOut(_BAD_LABEL)
    corners, sizes = entry.digits[:, :2], entry.digits[:, 2:4]
    if not (np.isfinite(entry.digits).all() and (sizes > 0).all()):
        raise _LeftOut(_NO_AREA)
    try:
        pixels = read_image(str(folder / entry.name))
    except DataError:
        raise _LeftOut(_BROKEN) from None
    if pixels.ndim == 2:
        pixels = pixels[..., None].repeat(3, axis=2)
    # some boxes of SVHN reach a little beyond the image
    start = np.clip(np.floor(corners), 0, pixels.shape[:2]).astype(np.int64)
    stop = np.clip(np.ceil(corners + sizes), 0, pixels.shape[:2]).astype(np.int64)
    if (start >= stop).any():
        raise _LeftOut(_OUTSIDE)
    boxes = np.concatenate([start, stop - start], axis=1)
    pixels, boxes = cropped(pixels, boxes, grown(boxes, pixels.shape[:2]))
    padded = np.full((MOST_DIGITS, 5), -1, np.int32)
    padded[:count] = np.column_stack([labels % 10, boxes])  # 10 stands for 0
    return {
        "pixels": pixels.ravel(),
        "sizes": np.array([pixels.shape[:2]], np.int32),
        "labels": padded[None, :, 0],
        "boxes": padded[None, :, 1:],
    }


def _warn(folder: Path, used: int, kinds: np.ndarray, names: np.ndarray) -> None:
    """Warn once of everything that was left out."""
    if len(kinds):
        problems = [(kind, name.decode(errors="replace")) for kind, name in zip(kinds.tolist(), names, strict=True)]
        warnings.warn(f"{folder}: {used} images are used. {_told(problems)}", stacklevel=4)


def _told(problems: list[tuple[int, str]]) -> str:
    in_order = sorted(problems, key=lambda problem: problem[0])
    return told([(_PROBLEMS[kind], name) for kind, name in in_order]) if problems else "It lists none."


# --- on disk ----------------------------------------------------------------------------------------------------------


def find_svhn(part: str, data_root: str | None = None) -> Path:
    """The folder of ``"train"``, ``"test"`` or ``"extra"`` that holds digitStruct.mat. It is downloaded if it is nowhere.

    Looks for ``SVHN/PART`` and ``PART`` in ``data_root``, ``$HSAL_DATA`` and the cache folder, and for a folder ``PART`` in each
    of these, since some archives are nested. Otherwise torchvision downloads to ``SVHN/PART`` in the first of them.

    Raises:
        DataUnavailableError: nothing was found and the download failed. The message says where was looked.
        DataError: the folder to download to is there, without digitStruct.mat.
    """
    roots = data_folders(data_root)
    inner = (Path("SVHN", part), Path(part), Path("SVHN", part, part), Path(part, part))
    folders = [root / folder for root in dict.fromkeys(roots) for folder in inner]
    for folder in folders:
        if (folder / _DIGIT_STRUCT).is_file():
            return folder
    target = roots[0] / "SVHN" / part
    if target.exists():
        raise DataError(f"{target}: no {_DIGIT_STRUCT}, which names the digits. Add it, or delete the folder.")
    try:
        _download(part, target)
    except Exception as error:  # torchvision raises whatever its transport raises
        raise DataUnavailableError(
            f"SVHN's {part} part was not found in {', '.join(map(str, folders))}, and downloading "
            f"{URL}/{part}.tar.gz failed ({type(error).__name__}: {error}). Unpack that file in DIR/SVHN, so that there is "
            f"DIR/SVHN/{part}/{_DIGIT_STRUCT}, and pass data_root=DIR (--data-root DIR) or set HSAL_DATA=DIR; or use "
            "source='house-numbers', which needs no network."
        ) from error
    return target


def _download(part: str, target: Path) -> None:
    from hsal_env.data.torchvision_import import import_torchvision

    fetch = import_torchvision().datasets.utils.download_and_extract_archive
    with temporary_folder(target) as staging:
        fetch(f"{URL}/{part}.tar.gz", str(staging), md5=MD5[part])
        if not target.exists():  # another process may have been first
            os.rename(staging / part, target)


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every PNG file in a folder."""
    with os.scandir(folder) as entries:
        stats = {
            entry.name: entry.stat() for entry in entries if entry.name.lower().endswith(".png") and entry.is_file()
        }
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _key(folder: Path, images: dict[str, tuple[int, int]]) -> str:
    """A short hash by which a change of the folder is noticed."""
    stat = (folder / _DIGIT_STRUCT).stat()
    stamp = (_LAYOUT, str(folder.resolve()), stat.st_size, stat.st_mtime_ns, sorted(images.items()))
    return hashlib.sha256(repr(stamp).encode()).hexdigest()[:20]
