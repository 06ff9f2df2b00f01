"""Saliency maps from files, computed by other programs: ``saliency="file:PATH"``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hsal_env.errors import DataError
from hsal_env.perception.grid import Grid
from hsal_env.perception.saliency import SaliencyModel, to_cells
from hsal_env.storage.checksums import check_png
from hsal_env.storage.files import as_path

if TYPE_CHECKING:
    from hsal_env.config import EnvConfig

PREFIX = "file:"
_KINDS = (".npy", ".png")


class MapFiles(SaliencyModel):
    """Raw maps from files, found by the index of the canvas. Their values are any non-negative numbers.

    A map with as many rows and columns as the activation volume is used cell by cell. A map of another size is taken as a map of
    the whole image and averaged over the area of each cell.

    Args:
        path: an array ``.npy`` of real numbers ``[N, h, w]`` with a map for each canvas of the split; or a folder of
            ``INDEX.npy`` (``[h, w]``) or ``INDEX.png`` (grey, 8 or 16 bits). ``{split}`` in the path stands for the name of
            the split.
    """

    needs_images = False
    reads = ("indices", "grid", "config")

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(
        self, images: Tensor | None, volume: Tensor, *, indices: Tensor, grid: Grid, config: EnvConfig
    ) -> Tensor:
        """See :class:`hsal_env.perception.saliency.SaliencyModel`.

        Raises:
            DataError: a file is missing, cannot be read, holds too few maps, or holds values that are no saliency map.
        """
        path = as_path(self.path.replace("{split}", config.split))
        maps = [_checked(*found) for found in _read(path, indices.tolist(), config.size)]
        map_size = (volume.shape[2], volume.shape[3])
        return torch.cat(
            [
                part[None] if part.shape == map_size else to_cells([part], grid, config.image_shape[:2], map_size)
                for part in maps
            ]
        )


def _read(path: Path, indices: list[int], size: int) -> list[tuple[str, np.ndarray]]:
    """The map of each index, with its name for messages."""
    if path.is_dir():
        return [_read_one(path, index) for index in indices]
    if not path.exists():
        raise DataError(f"No saliency maps {path}. Expected an array .npy, or a folder of INDEX.npy or INDEX.png.")
    maps = _load(path)
    if maps.ndim != 3 or len(maps) < size:
        raise DataError(
            f"{path}: expected an array [N, h, w] of a map for each of the {size} canvases; got shape {maps.shape}."
        )
    return [(f"{path}, map {index}", maps[index]) for index in indices]


def _read_one(folder: Path, index: int) -> tuple[str, np.ndarray]:
    for path in (folder / f"{index}{kind}" for kind in _KINDS):
        if path.exists():
            return str(path), _load(path) if path.suffix == ".npy" else _load_picture(path)
    raise DataError(f"{folder} holds no map of canvas {index}. Expected {index}.npy or {index}.png.")


def _load(path: Path) -> np.ndarray:
    try:
        loaded: Any = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as an array ({error}). Write it with numpy.save.") from error
    if not isinstance(loaded, np.ndarray):
        raise DataError(f"{path}: expected one array; got several. Write it with numpy.save.")
    if isinstance(loaded, np.memmap) and path.stat().st_size != loaded.offset + loaded.nbytes:
        raise DataError(
            f"{path}: its header announces {loaded.dtype} of shape {loaded.shape}, less than the file holds. Write "
            "it again with numpy.save."
        )
    return loaded


def _load_picture(path: Path) -> np.ndarray:
    try:
        content = path.read_bytes()
        check_png(content)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            mode, pixels = image.mode, np.array(image)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise DataError(f"{path}: cannot be read as PNG ({type(error).__name__}: {error}).") from error
    if mode not in ("L", "I;16", "I"):
        raise DataError(f"{path}: expected grey of 8 or 16 bits; got mode {mode}. Convert it to grey.")
    return pixels


def _checked(name: str, values: np.ndarray) -> Tensor:
    if values.dtype.kind not in "fiub" or values.ndim != 2 or not values.size:
        raise DataError(f"{name}: expected numbers [h, w]; got {values.dtype} of shape {values.shape}.")
    plain = torch.from_numpy(np.array(values, np.float32))
    if not bool(plain.isfinite().all() & (plain >= 0).all()):
        raise DataError(f"{name}: expected finite values of at least 0; got {plain.amin():.4g}..{plain.amax():.4g}.")
    return plain
