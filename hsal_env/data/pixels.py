"""Pixels of images of your own: files, arrays, tensors and Pillow's images, as one array of grey or RGB bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from hsal_env.data.labels import on_host
from hsal_env.errors import DataError
from hsal_env.storage.checksums import check_png

_PLAIN_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # modes that lose nothing when read as grey or RGB
_WANTED = "Expected images as one array uint8 [N, h, w] or [N, h, w, 3], N > 0"
_AXES = "A grey axis of length 1 may be there, and colour may come first, [N, 3, h, w], as torch has it."


def read_images(images: Any) -> np.ndarray:
    """Images as one read-only array uint8 ``[N, h, w]`` or ``[N, h, w, 3]``.

    Args:
        images: an array or tensor uint8 ``[N, h, w]``, ``[N, h, w, 1 or 3]`` or ``[N, 1 or 3, h, w]``; or a list, or a column of
            pandas, of such images, of Pillow's images or of paths, which may mix grey and colour.

    Raises:
        DataError: another dtype or shape, images of several sizes, or a file that cannot be read.
    """
    items = images if isinstance(images, list | tuple) else _array(images)
    listed = not isinstance(items, np.ndarray) or (items.ndim == 1 and items.dtype.kind in "OU")
    if listed and len(items):
        names = [str(x) if isinstance(x, str | os.PathLike) else f"image {i}" for i, x in enumerate(items)]
        return stacked((_pixels(item, name) for item, name in zip(items, names, strict=True)), names)
    array = np.asarray(items)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.size:
        raise _refused(array)
    array = _arranged(array)
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array


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
                "all images to one size."
            )
        if one.ndim == images.ndim:
            images = images[..., None].repeat(3, axis=3)
        images[i] = one if one.ndim == images.ndim - 1 else one[..., None]
    images.flags.writeable = False
    return images


def read_image(file: str) -> np.ndarray:
    """Read a PNG or JPEG file as uint8 ``[h, w]`` (grey) or ``[h, w, 3]`` (RGB).

    Raises:
        DataError: the file cannot be read, or is neither 8-bit grey nor RGB.
    """
    try:
        content = Path(file).read_bytes()
        check_png(content)
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            upright = ImageOps.exif_transpose(image)  # a camera may have stored it turned
            return _plain(upright, image, file)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file}: cannot be read as PNG or JPEG ({type(error).__name__}: {error}). Repair it, or remove its line from "
            "labels.csv."
        ) from error


def _plain(image: Image.Image, told: Image.Image, name: str) -> np.ndarray:
    mode = told.mode if "transparency" not in told.info else f"{told.mode} with transparency"
    if mode not in _PLAIN_MODES:
        raise DataError(f"{name}: expected 8-bit grey or RGB; got mode {mode}. Convert it, for example to RGB.")
    return np.array(image.convert(_PLAIN_MODES[mode]))


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
