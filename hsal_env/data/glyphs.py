"""Glyphs: the single digits that canvases are made of.

There are two sources. ``mnist`` is torchvision's MNIST. ``digits`` are scikit-learn's 1,797 handwritten digits of 8x8 px, which
come with that package and need no network. In both, train, validation and test glyphs are disjoint (decision D1).
"""

from __future__ import annotations

import gzip
import math
import os
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from hsal_env.data.resize import bilinear_resize
from hsal_env.errors import ConfigError, DataError, DataUnavailableError
from hsal_env.storage.files import as_path, temporary_folder

GLYPH_PX = 28
NUM_CLASSES = 10
GlyphSource = Literal["auto", "mnist", "digits"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
GlyphPolicy = Literal["disjoint", "paper"]

_MNIST_MARGIN_PX = 4
_MNIST_VALIDATION = 5_000  # the last glyphs of MNIST's training file
_DIGITS_TRAIN, _DIGITS_VALIDATION = 1_197, 200  # contiguous, so that few writers are shared; the last 400 are test
_INNER_FOLDERS = (Path("MNIST", "raw"), Path("raw"), Path(), Path("MNIST"), Path("mnist-dataset"))
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# CRC-32 of MNIST's files without gzip, by their length in bytes
_PLAIN_CHECKSUMS = {47_040_016: 0xE9F4D8B3, 60_008: 0xE0CB4AD2, 7_840_016: 0x91373BDF, 10_008: 0x4AB9EFF9}


class Glyphs(NamedTuple):
    """One split of one source.

    Attributes:
        images: uint8 ``[N, 28, 28]``; ink is bright.
        labels: int64 ``[N]`` in ``0..9``.
        source: what the pixels are: ``"mnist"`` or ``"digits"``.
    """

    images: np.ndarray
    labels: np.ndarray
    source: str


def cache_folder() -> Path:
    """``$HSAL_CACHE``, else ``$XDG_CACHE_HOME/hsal``, else ``~/.cache/hsal``.

    Raises:
        ConfigError: that can be no path, or the user has no home.
    """
    if os.environ.get("HSAL_CACHE"):
        return as_path(os.environ["HSAL_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return as_path(os.environ["XDG_CACHE_HOME"]) / "hsal"
    try:
        return Path.home() / ".cache" / "hsal"
    except RuntimeError as error:
        raise ConfigError(
            f"There is no cache folder ({error}). Set HSAL_CACHE to a folder for features and data."
        ) from error


def data_folders(data_root: str | None = None) -> list[Path]:
    """Where data sets are looked for: ``data_root``, ``$HSAL_DATA`` and the cache folder, those that are given.

    Raises:
        ConfigError: one can be no path, or none is given and the user has no home.
    """
    given = [as_path(root) for root in (data_root, os.environ.get("HSAL_DATA")) if root]
    try:
        return [*given, cache_folder()]
    except ConfigError:
        if not given:
            raise
        return given


def load_glyphs(
    source: GlyphSource, split: Split, data_root: str | None = None, policy: GlyphPolicy = "disjoint"
) -> Glyphs:
    """Load the glyphs of one split.

    Args:
        source: ``"mnist"``, ``"digits"``, or ``"auto"``: MNIST where it can be had, else digits and a warning.
        split: ``"train"``, ``"val"`` or ``"test"``.
        data_root: where MNIST lies or is downloaded to. None: ``$HSAL_DATA``, else the cache folder.
        policy: ``"disjoint"``: no glyph is in two splits (D1). ``"paper"``: every split has all training glyphs, as in the first
            author's generator, so that test canvases share digits with training canvases.

    Raises:
        ConfigError: an unknown source, split or policy.
        DataUnavailableError: ``source="mnist"``, and MNIST is neither found nor can it be downloaded.
        DataError: an MNIST file is damaged. This is an error with ``"auto"``, too.
    """
    for name, value, known in (
        ("source", source, get_args(GlyphSource)),
        ("split", split, SPLITS),
        ("glyphs", policy, get_args(GlyphPolicy)),
    ):
        if value not in known:
            raise ConfigError(f"Expected {name} to be one of {', '.join(known)}; got {value!r}.")
    if source == "auto":
        source = _auto_source(data_root)
    return _digits(split, policy) if source == "digits" else _mnist(split, policy, data_root)


@cache
def _auto_source(data_root: str | None) -> GlyphSource:
    """What ``"auto"`` means in this process: it is tried once, and warns once."""
    try:
        find_mnist(data_root)
    except DataUnavailableError as error:
        warnings.warn(
            f"source='auto' uses scikit-learn's digits instead of MNIST, so scores are not MNIST scores. {error}",
            stacklevel=3,
        )
        return "digits"
    return "mnist"


@cache
def _digits(split: Split, policy: GlyphPolicy) -> Glyphs:
    from sklearn.datasets import load_digits  # heavy, and only this source needs it

    bunch = load_digits()
    small = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8] from 0..16
    ink = bilinear_resize(small, GLYPH_PX - 2 * _MNIST_MARGIN_PX)  # MNIST's frame, so that one model reads both
    images = np.pad(ink, ((0, 0), (_MNIST_MARGIN_PX,) * 2, (_MNIST_MARGIN_PX,) * 2))
    labels = bunch.target.astype(np.int64)
    train_end, validation_end = _DIGITS_TRAIN, _DIGITS_TRAIN + _DIGITS_VALIDATION
    if policy == "paper":
        part = slice(0, validation_end)
    else:
        part = {
            "train": slice(0, train_end),
            "val": slice(train_end, validation_end),
            "test": slice(validation_end, None),
        }[split]
    return _frozen(images[part], labels[part], "digits")


@cache
def _mnist(split: Split, policy: GlyphPolicy, data_root: str | None) -> Glyphs:
    images, labels = _read_mnist(find_mnist(data_root), "test" if split == "test" and policy == "disjoint" else "train")
    if policy == "disjoint" and split != "test":
        part = slice(-_MNIST_VALIDATION) if split == "train" else slice(-_MNIST_VALIDATION, None)
        images, labels = images[part], labels[part]
    return _frozen(images, labels, "mnist")


def _frozen(images: np.ndarray, labels: np.ndarray, source: str) -> Glyphs:
    """Read-only arrays: they are shared by every environment of the process."""
    images, labels = np.ascontiguousarray(images), np.ascontiguousarray(labels)
    images.flags.writeable = labels.flags.writeable = False
    return Glyphs(images, labels, source)


# --- MNIST on disk ----------------------------------------------------------------------------------------------------


@cache
def find_mnist(data_root: str | None = None) -> Path:
    """The folder that holds MNIST's four IDX files, gzipped or not. They are downloaded if they are nowhere.

    Looks in ``data_root``, ``$HSAL_DATA`` and the cache folder, and in ``MNIST/raw``, ``raw``, ``MNIST`` and Kaggle's
    ``mnist-dataset`` of each. Otherwise torchvision downloads to the first of them. A file may be spelled
    ``train-images.idx3-ubyte``, and lie in a folder of its own name, as in Kaggle's archives.

    Raises:
        DataUnavailableError: nothing was found and the download failed. The message says where was looked.
    """
    roots = data_folders(data_root)
    folders = [root / inner for root in dict.fromkeys(roots) for inner in _INNER_FOLDERS]
    names = [name for pair in _IDX_FILES.values() for name in pair]
    looked = []
    for folder in folders:
        missing = [name for name in names if not _idx_path(folder, name)]
        if not missing:
            return folder
        looked.append(f"{folder} (no {', no '.join(missing)})" if len(missing) < len(names) else str(folder))
    target = roots[0] / "MNIST" / "raw"
    try:
        _download(target)
    except Exception as error:  # torchvision raises whatever its transport raises
        raise DataUnavailableError(
            f"MNIST was not found in {', '.join(looked)}, and downloading it failed "
            f"({type(error).__name__}: {error}). Put its four *-ubyte or *-ubyte.gz files in DIR/MNIST/raw and pass "
            f"data_root=DIR (--data-root DIR) or set HSAL_DATA=DIR; or use source='digits', which needs no network."
        ) from error
    return target


def _download(target: Path) -> None:
    """Download MNIST's files to another folder first, so that no process finds half a file in ``target``."""
    from hsal_env.data.torchvision_import import import_torchvision

    target.mkdir(parents=True, exist_ok=True)
    with temporary_folder(target) as staging:
        import_torchvision().datasets.MNIST(str(staging), download=True)
        for path in (staging / "MNIST" / "raw").iterdir():
            path.replace(target / path.name)


def _idx_path(folder: Path, name: str) -> Path | None:
    spellings = (name, name.replace("-idx", ".idx"))  # Yann LeCun's and Kaggle's
    inside = (folder, *(folder / spelling for spelling in spellings))
    paths = (where / f"{spelling}{end}" for where in inside for spelling in spellings for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _read_mnist(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    image_path, label_path = (_idx_path(folder, name) for name in _IDX_FILES[part])
    assert image_path and label_path  # find_mnist looked
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or images.shape[1:] != (GLYPH_PX, GLYPH_PX):
        raise DataError(
            f"{image_path}: expected images of 28x28, got shape {images.shape}. Delete the file and fetch it again."
        )
    if labels.ndim != 1 or len(labels) != len(images):
        raise DataError(f"{label_path}: expected {len(images)} labels for {image_path.name}, got shape {labels.shape}.")
    if labels.max(initial=0) >= NUM_CLASSES:
        raise DataError(
            f"{label_path}: expected labels in 0..9, got {labels.max()}. Delete the file and fetch it again."
        )
    return images, labels.astype(np.int64)


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes, gzipped (``.gz``) or not.

    Raises:
        DataError: not an IDX file of bytes, cut off, with bytes left over, or broken gzip; or, without gzip and its checksum, as
            long as a file of MNIST and of other content.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Delete the file and fetch it again.") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError(
            f"{path}: expected an IDX file of unsigned bytes, got a header of {raw[:4]!r}. Delete the file and fetch it again."
        )
    if path.suffix != ".gz" and zlib.crc32(raw) != _PLAIN_CHECKSUMS.get(len(raw), zlib.crc32(raw)):
        raise DataError(
            f"{path}: is as long as a file of MNIST, and differs from it. It is damaged, or holds other images. Delete the file "
            "and fetch it again."
        )
    shape = tuple(np.frombuffer(raw, ">u4", count=raw[3], offset=4).tolist())
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if body.size != math.prod(shape):
        raise DataError(
            f"{path}: the header announces {shape}, {math.prod(shape)} bytes; got {body.size}. Fetch the file again."
        )
    return body.reshape(shape)
