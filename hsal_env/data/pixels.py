"""Pixels of images of your own: files, arrays, tensors and Pillow's images, as one array of grey or RGB bytes."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import ExifTags, Image, ImageOps

from hsal_env.data.fitting import Fit
from hsal_env.data.labels import on_host
from hsal_env.errors import DataError
from hsal_env.storage.checksums import check_png

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_PLAIN_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # modes that lose nothing when read as grey or RGB
_PNG_MAY_BE_TURNED = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # else a PNG is as its head says
_WANTED = "Expected images as one array uint8 [N, h, w] or [N, h, w, 3], N > 0"
_AXES = "A grey axis of length 1 may be there, and colour may come first, [N, 3, h, w], as torch has it."


class ModeError(DataError):
    """An image is neither 8-bit grey nor RGB."""


class ImageRows(Protocol):
    """N images of one size, uint8 ``[N, h, w]`` or ``[N, h, w, 3]``: an array, or what reads its rows from disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, h, w)`` or ``(N, h, w, 3)``."""
        ...

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[np.ndarray]: ...
    def __getitem__(self, rows: Any) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images of one size, and what they were.

    Attributes:
        images: uint8 ``[N, h, w]`` or ``[N, h, w, 3]``.
        sizes: (h, w) of each image as it came, int64 ``[N, 2]``.
        digests: a hash of the pixels of each image as it came; in an image that is grey among others in colour, of the pixels
            repeated over the channels. None: :attr:`images` are as they came, and nobody has hashed them.
        fit: how they were brought to one size; None: they are as they came.
    """

    images: ImageRows
    sizes: np.ndarray
    digests: tuple[bytes, ...] | None = None
    fit: Fit | None = None


def read_images(images: Any, fit: Fit | None = None) -> Pixels:
    """Images as one read-only array uint8 ``[N, h, w]`` or ``[N, h, w, 3]``.

    Args:
        images: an array or tensor uint8 ``[N, h, w]``, ``[N, h, w, 1 or 3]`` or ``[N, 1 or 3, h, w]``; or a list, or a column of
            pandas, of such images, of Pillow's images or of paths, which may mix grey and colour.
        fit: brings all images to one size. None: they must have one.

    Raises:
        DataError: another dtype or shape, images of several sizes, or a file that cannot be read.
    """
    items = images if isinstance(images, list | tuple) else _array(images)
    listed = not isinstance(items, np.ndarray) or (items.ndim == 1 and items.dtype.kind in "OU")
    if listed and len(items):
        names = [str(x) if isinstance(x, str | os.PathLike) else f"image {i}" for i, x in enumerate(items)]
        pixels = (_pixels(item, name) for item, name in zip(items, names, strict=True))
        return _fitted(pixels, names, fit) if fit else _as_they_are(stacked(pixels, names))
    array = np.asarray(items)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.size:
        raise _refused(array)
    array = _arranged(array)
    if fit:
        return _fitted(array, [""] * len(array), fit)
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return _as_they_are(array)


def _as_they_are(array: np.ndarray) -> Pixels:
    return Pixels(array, np.tile(array.shape[1:3], (len(array), 1)))


def refitted(pixels: Pixels, fit: Fit) -> Pixels:
    """Images in another size, with the hashes that they have."""
    images = stacked((fit.pixels(image) for image in pixels.images), [""] * len(pixels.images))
    return Pixels(images, np.tile(pixels.images.shape[1:3], (len(images), 1)), tuple(digests(pixels)), fit)


def digests(pixels: Pixels) -> Sequence[bytes]:
    """A hash of each image, see :class:`Pixels`."""
    return [digest_of(image) for image in pixels.images] if pixels.digests is None else pixels.digests


def digest_of(image: np.ndarray) -> bytes:
    """A hash of the pixels of an image."""
    return hashlib.sha256(image.tobytes()).digest()


def in_colour(image: np.ndarray) -> np.ndarray:
    """An image ``[h, w]`` or ``[h, w, 3]`` as ``[h, w, 3]``."""
    return image if image.ndim == 3 else image[..., None].repeat(3, axis=2)


def _fitted(images: Iterable[np.ndarray], names: Sequence[str], fit: Fit) -> Pixels:
    sizes, plain, coloured = [], [], []

    def read() -> Iterator[np.ndarray]:
        for image in images:
            sizes.append(image.shape[:2])
            plain.append(digest_of(image))
            coloured.append(plain[-1] if image.ndim == 3 else digest_of(in_colour(image)))
            yield fit.pixels(image)

    array = stacked(read(), names)
    return Pixels(array, np.array(sizes, np.int64), tuple(coloured if array.ndim == 4 else plain), fit)


def stacked(pixels: Iterable[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Images uint8 ``[h, w]`` or ``[h, w, 3]`` as one array, in colour if one of them is.

    Raises:
        DataError: images of several sizes.
    """
    images: np.ndarray = np.empty(0, np.uint8)
    for i, one in enumerate(pixels):
        if not i:
            images = np.empty((len(names), *one.shape), np.uint8)
        if one.shape[:2] != images.shape[1:3]:
            height, width, rows, columns = *one.shape[:2], *images.shape[1:3]
            raise DataError(
                f"{names[i]}: expected {rows}x{columns} px (rows x columns), the size of {names[0]}; got {height}x{width}. Bring "
                "all images to one size: image_px=(ROWS, COLUMNS) does it."
            )
        if one.ndim == images.ndim:
            images = images[..., None].repeat(3, axis=3)
        images[i] = one if one.ndim == images.ndim - 1 else one[..., None]
    images.flags.writeable = False
    return images


def read_image(file: str) -> np.ndarray:
    """Read a PNG, JPEG, BMP, WebP or TIFF file as uint8 ``[h, w]`` (grey) or ``[h, w, 3]`` (RGB), upright as EXIF says.

    Raises:
        ModeError: the file is neither 8-bit grey nor RGB.
        DataError: the file cannot be read, or holds several images.
    """
    with _unreadable(file):
        content = Path(file).read_bytes()
        check_png(content)
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.format in ("TIFF", "WEBP") and getattr(image, "n_frames", 1) > 1:
                raise DataError(
                    f"{file}: expected one image; got {getattr(image, 'n_frames', 1)}. Save them as files of their own."
                )
            upright = ImageOps.exif_transpose(image)  # a camera may have stored it turned
            return _plain(upright, image, file)


def read_size(file: str) -> tuple[int, int, bool]:
    """(h, w) of an image upright, and whether it is in colour. Of most files only the head is read.

    Raises:
        ModeError, DataError: see :func:`read_image`.
    """
    with _unreadable(file), Image.open(file, formats=_FORMATS) as image:
        if image.format == "TIFF" or (image.format == "PNG" and _png_may_be_turned(file)):
            pixels = read_image(file)
            return pixels.shape[0], pixels.shape[1], pixels.ndim == 3
        colour = _plain_mode(image, file) == "RGB"
        turned = image.format != "PNG" and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        width, height = image.size
        return (width, height, colour) if turned else (height, width, colour)


@contextmanager
def _unreadable(file: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow raises many kinds for a damaged file
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file}: cannot be read as PNG, JPEG, BMP, WebP or TIFF ({type(error).__name__}: {error}). Repair or remove it."
        ) from error


def _png_may_be_turned(file: str) -> bool:
    content = Path(file).read_bytes()
    return any(word in content for word in _PNG_MAY_BE_TURNED)


def _plain_mode(image: Image.Image, name: str) -> str:
    mode = image.mode if "transparency" not in image.info else f"{image.mode} with transparency"
    if mode not in _PLAIN_MODES:
        raise ModeError(f"{name}: expected 8-bit grey or RGB; got mode {mode}. Convert it, for example to RGB.")
    return _PLAIN_MODES[mode]


def _plain(image: Image.Image, told: Image.Image, name: str) -> np.ndarray:
    return np.array(image.convert(_plain_mode(told, name)))


def _pixels(item: Any, name: str) -> np.ndarray:
    """One image of a list."""
    if isinstance(item, str | os.PathLike):
        return read_image(os.fspath(item))
    if isinstance(item, Image.Image):
        return _plain(item, item, name)
    array = _array(item)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        raise DataError(f"{name}: {_refused(array)}")
    return _arranged(array[None])[0]


def _array(values: Any) -> np.ndarray:
    try:
        return on_host(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{_WANTED}; got {type(values).__name__} of several shapes or kinds ({error}).") from error


def _arranged(array: np.ndarray) -> np.ndarray:
    """Images ``[N, h, w]``, ``[N, h, w, 1 or 3]`` or ``[N, 1 or 3, h, w]`` without a grey axis, colour last."""
    if array.ndim == 3:
        return array
    first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
    if first and last:
        raise DataError(
            f"{_WANTED}; got shape {array.shape}, whose colours may come first or last. Pad the images, so that no side has 1 or "
            "3 px."
        )
    if not first and not last:
        raise _refused(array)
    array = np.moveaxis(array, 1, 3) if first else array
    return array[..., 0] if array.shape[3] == 1 else array


def _refused(array: np.ndarray) -> DataError:
    if array.dtype != np.uint8:
        hint = " Scale them to 0..255 and convert with .astype(numpy.uint8)." if array.dtype.kind in "fiub" else ""
        return DataError(f"{_WANTED}; got {array.dtype} of shape {array.shape}.{hint}")
    return DataError(f"{_WANTED}; got shape {array.shape}. {_AXES}")
