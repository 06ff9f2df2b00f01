"""The pixels of a folder's images, decoded and fitted once and then read from the cache folder.

A store is found by the paths, times and sizes of the files and by what the images were asked to be. It holds the images that can
be read, in one size and with one number of channels, and of the others the reason.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from hsal_env.data.fitting import Fit, FitMode, suited_px
from hsal_env.data.glyphs import cache_folder
from hsal_env.data.left_out import BROKEN, MODE
from hsal_env.data.pixels import ModeError, Pixels, digest_of, in_colour, read_image, read_size
from hsal_env.errors import DataError
from hsal_env.storage.array_store import ArrayStore
from hsal_env.storage.filling import Record

_LAYOUT = 2  # version of the stored layout; another number decodes again
_BATCH = 64  # images that are decoded at a time
_SECONDS = 2  # after which progress is shown
_REASONS = ("", BROKEN, MODE)  # by what "problems" of the store hold
_FINE = 0


class StoredImages:
    """Rows of a store as images uint8 ``[N, h, w]`` or ``[N, h, w, 3]``, read from disk when they are asked for.

    Args:
        store: the store.
        rows: which of its images, ``[N]``.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, store: ArrayStore, rows: np.ndarray) -> None:
        self._store, self._rows = store, rows
        self.shape: tuple[int, ...] = (len(rows), *store.read([0], "pixels")["pixels"].shape[1:])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = np.atleast_1d(self._rows[rows])
        images = self._store.read(chosen, "pixels")["pixels"]
        return images if np.ndim(self._rows[rows]) else images[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class StoredFolder(NamedTuple):
    """What could be made of N files.

    Attributes:
        row: the row of each image among the stored ones, ``[N]``; -1: it cannot be used.
        problems: why it cannot, in words, by its place.
        sizes: (h, w) of each image as it came, ``[N, 2]``.
        fit: how they were brought to one size; None: they had one.
    """

    store: ArrayStore
    row: np.ndarray
    problems: dict[int, str]
    sizes: np.ndarray
    fit: Fit | None

    def pixels(self, chosen: np.ndarray) -> Pixels:
        """The images at ``chosen``, none of which is one that cannot be used."""
        rows = self.row[chosen]
        hashes = self.store.read_all("digests")
        return Pixels(
            StoredImages(self.store, rows), self.sizes[chosen], tuple(hashes[row].tobytes() for row in rows), self.fit
        )


def store_images(files: Sequence[Path], image_px: tuple[int, int] | None, fit: FitMode) -> StoredFolder:
    """Decode files and bring them to one size, or find what an earlier call has made of them.

    They are in colour if one of them is; grey is repeated over the channels then.

    Args:
        files: the images.
        image_px: (rows, columns). None: the size that all of them have, or else the one of
            :func:`hsal_env.data.fitting.suited_px`.
        fit: see :class:`hsal_env.data.fitting.Fit`.

    Raises:
        DataError: no image can be used, or the store cannot be written.
    """
    stamps = [(os.path.abspath(file), (status := file.stat()).st_mtime_ns, status.st_size) for file in files]
    key = hashlib.sha256(repr((_LAYOUT, stamps, image_px, fit)).encode()).hexdigest()[:20]
    store = ArrayStore.open(cache_folder() / "images" / key, lambda: _decode(files, image_px, fit), length=None)
    problems = store.read_all("problems")
    row = np.where(problems == _FINE, np.cumsum(problems == _FINE) - 1, -1)
    rows, columns = store.read_all("image_px")[0].tolist()
    return StoredFolder(
        store,
        row,
        {place: _REASONS[problems[place]] for place in np.flatnonzero(problems).tolist()},
        store.read_all("sizes").astype(np.int64),
        Fit((rows, columns), fit) if rows else None,
    )


class _Size(NamedTuple):
    """What the head of a file says, or why it cannot be used."""

    height: int
    width: int
    colour: bool
    problem: int
    said: str


def _size(file: Path) -> _Size:
    try:
        return _Size(*read_size(str(file)), _FINE, "")
    except DataError as error:
        return _Size(0, 0, False, _REASONS.index(MODE if isinstance(error, ModeError) else BROKEN), str(error))


def _decode(files: Sequence[Path], image_px: tuple[int, int] | None, mode: FitMode) -> Iterator[Record]:
    """The images that can be read, one batch at a time to save memory; and at the end what is known of all."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        read = [size for part in _batches(files, "sizes of images") for size in threads.map(_size, part)]
        fine = [size for size in read if not size.problem]
        if not fine:
            raise DataError(f"No image can be used. {read[0].said}")
        colour = any(size.colour for size in fine)
        sizes = np.array([(size.height, size.width) for size in read], np.int32)
        problems = np.array([size.problem for size in read], np.int32)
        if image_px is None and len(np.unique(sizes[problems == _FINE], axis=0)) > 1:
            image_px = suited_px(sizes[problems == _FINE])
        fit = Fit(image_px, mode) if image_px else None

        def one(place: int) -> tuple[np.ndarray, bytes] | None:
            if problems[place]:
                return None
            try:
                pixels = read_image(str(files[place]))
            except DataError:
                return None
            if pixels.shape[:2] != tuple(sizes[place]):
                return None
            pixels = in_colour(pixels) if colour else pixels
            return fit.pixels(pixels) if fit else pixels, digest_of(pixels)

        used = 0
        for part in _batches(range(len(files)), "images"):
            made = [*threads.map(one, part)]
            problems[[place for place, found in zip(part, made, strict=True) if not found and not problems[place]]] = (
                _REASONS.index(BROKEN)
            )
            if whole := [found for found in made if found]:
                used += len(whole)
                yield {
                    "pixels": np.stack([pixels for pixels, _ in whole]),
                    "digests": np.stack([np.frombuffer(digest, np.uint8) for _, digest in whole]),
                }
    if not used:
        raise DataError(f"No image can be used: {files[0]} and all others are damaged.")
    yield {"sizes": sizes, "problems": problems, "image_px": np.array([image_px or (0, 0)], np.int32)}


def _batches(items: Sequence[Any], desc: str) -> Iterator[Sequence[Any]]:
    with tqdm(total=len(items), desc=desc, delay=_SECONDS, mininterval=1) as bar:
        for first in range(0, len(items), _BATCH):
            yield items[first : first + _BATCH]
            bar.update(min(_BATCH, len(items) - first))
