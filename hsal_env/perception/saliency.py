"""Saliency models f_S: (image, activation volume) -> raw saliency map (paper section 3, "Saliency Model").

This file holds the paper's own model and simple ones to put in its place (section 5.2, "Saliency Map Input"). Longer ones have
files of their own. ``docs/perception.md`` describes all of them, and how to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hsal_env import functional as F
from hsal_env.errors import DataError
from hsal_env.perception.grid import Grid

if TYPE_CHECKING:
    from hsal_env.config import EnvConfig

Readable = Literal["boxes", "indices", "grid", "config"]
"""What a model may ask for by its attribute ``reads``."""
READABLE: tuple[Readable, ...] = get_args(Readable)


class SaliencyModel:
    """What the environment asks of a saliency model.

    A model of your own need not inherit from this class: anything that can be called like it will do, see
    :class:`CallableSaliency`. The environment normalises the map.

    Attributes:
        needs_images: whether it reads the images; if not, it is given None for them.
        reads: what else it is given, as keywords of these names.

    The names are:

    - ``boxes``: of the objects, int64 ``[B, N, 4]`` as (row, col, height, width) in px, padded with -1;
    - ``indices``: of the canvases in their split, int64 ``[B]``;
    - ``grid``: the :class:`hsal_env.perception.grid.Grid`, where cells lie on the image;
    - ``config``: the :class:`hsal_env.config.EnvConfig`. ``config.image_shape`` is the size of the image, with or without
      images; ``config.split`` and ``config.size`` are those of the canvases.
    """

    needs_images: bool = True
    reads: tuple[Readable, ...] = ()

    def __call__(self, images: Tensor | None, volume: Tensor, *_: Any, **read: Any) -> Tensor:
        """``[B, C, h_px, w_px]`` in [0, 1] and ``[B, D, H, W]`` to ``[B, H, W]``, finite and non-negative.

        C is ``in_channels`` of the activation model, D its ``saliency_channels``. The map of an image must not depend on the
        other images of its batch.
        """
        raise NotImplementedError


class CallableSaliency(SaliencyModel):
    """A function or another object as a saliency model.

    Args:
        call: is called like a :class:`SaliencyModel`. Its attributes ``needs_images`` and ``reads`` count where it has them.
    """

    def __init__(self, call: Callable[..., Tensor]) -> None:
        self.call = call
        self.needs_images = getattr(call, "needs_images", SaliencyModel.needs_images)
        self.reads = getattr(call, "reads", SaliencyModel.reads)

    def __call__(self, images: Tensor | None, volume: Tensor, *_: Any, **read: Any) -> Tensor:
        """See :class:`SaliencyModel`."""
        return self.call(images, volume, **read)


def to_cells(maps: Iterable[Tensor], grid: Grid, image_px: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    """Average maps of whole images over the areas of the cells, see :meth:`Grid.areas`.

    Args:
        maps: ``[h, w]`` each; they may have another resolution than the image.
        grid: where the cells lie.
        image_px: (h, w) of the image.
        map_size: (H, W) in cells.

    Returns:
        float32 ``[B, H, W]``; 0 in cells that lie beside the image.
    """
    cells = []
    for pixels in maps:  # one at a time: in a batch a matrix product may round differently
        rows, columns = (
            torch.from_numpy(share) for share in grid.areas(image_px, map_size, (pixels.shape[0], pixels.shape[1]))
        )
        cells.append(rows @ pixels.double() @ columns.T)
    return torch.stack(cells).float()


class ImageSaliency(SaliencyModel):
    """A saliency model of the image alone: the mean of :meth:`pixel_map` over the area of each cell."""

    reads = ("grid",)

    def __call__(self, images: Tensor | None, volume: Tensor, *, grid: Grid) -> Tensor:
        """See :class:`SaliencyModel`."""
        assert images is not None
        image_px, map_size = (images.shape[2], images.shape[3]), (volume.shape[2], volume.shape[3])
        # one at a time: in a batch a convolution may round differently, and the other lanes must not matter
        return to_cells((self.pixel_map(image) for image in images), grid, image_px, map_size)

    def pixel_map(self, image: Tensor) -> Tensor:
        """An image ``[C, h_px, w_px]`` in [0, 1] to its map ``[h, w]`` of any resolution, finite and non-negative."""
        raise NotImplementedError


class SumOfSquares(SaliencyModel):
    """The paper's model: ``S_ij = sum_c V_cij**2``."""

    needs_images = False

    def __call__(self, images: Tensor | None, volume: Tensor) -> Tensor:
        """See :class:`SaliencyModel`."""
        return F.sum_of_squares(volume)


class SumOfMagnitudes(SaliencyModel):
    """``S_ij = sum_c |V_cij|``: the attention map of Zagoruyko and Komodakis (ICLR 2017) with p = 1; the paper's has p = 2."""

    needs_images = False

    def __call__(self, images: Tensor | None, volume: Tensor) -> Tensor:
        """See :class:`SaliencyModel`."""
        return volume.abs().sum(dim=1)


class Brightness(ImageSaliency):
    """The mean of the pixels in each cell, in [0, 1]."""

    def pixel_map(self, image: Tensor) -> Tensor:
        """See :class:`ImageSaliency`."""
        return image.mean(dim=0)


class CentrePrior(SaliencyModel):
    """A control that ignores the image: a Gaussian about its middle, where photographers often place objects.

    ``S_ij = exp(-1/2 [((y_i - h/2) / (h/4))**2 + ((x_j - w/2) / (w/4))**2])`` with the cell's centre (y_i, x_j) in px. The
    standard deviations are a quarter of the height and of the width.
    """

    needs_images = False
    reads = ("grid", "config")

    def __call__(self, images: Tensor | None, volume: Tensor, *, grid: Grid, config: EnvConfig) -> Tensor:
        """See :class:`SaliencyModel`."""
        cells, middle = _centres(grid, volume), np.array(config.image_shape[:2]) / 2
        return _gaussians(cells, middle[None], middle[None] / 2).repeat(len(volume), 1, 1)


class Uniform(SaliencyModel):
    """A control in which nothing stands out: 1 in every cell but the last (bottom right), which is 0.

    The environment would normalise a constant map to zeros (S2). Then S, P and the reward for glimpses would be zero everywhere,
    and the agent could not see where it has looked. So one cell has to be lower than the others. After normalisation it is 0,
    however little lower it is.
    """

    needs_images = False

    def __call__(self, images: Tensor | None, volume: Tensor) -> Tensor:
        """See :class:`SaliencyModel`."""
        maps = torch.ones_like(volume[:, 0])
        maps[:, -1, -1] = 0
        return maps


class Boxes(SaliencyModel):
    """An oracle that knows the boxes: a Gaussian for each object, about the cell nearest to the centre of its box.

    ``S_ij = max_n exp(-1/2 [((y_i - y_n) / (h_n/4))**2 + ((x_j - x_n) / (w_n/4))**2])``, where (y_n, x_n) is the centre of the
    cell nearest to the centre of box n, and h_n and w_n are the height and width of that box. Two objects with the same nearest
    cell have one peak. The oracle shows how well an agent can do if the saliency map finds every object.
    """

    needs_images = False
    reads = ("boxes", "grid")

    def __call__(self, images: Tensor | None, volume: Tensor, *, boxes: Tensor, grid: Grid) -> Tensor:
        """See :class:`SaliencyModel`."""
        cells = _centres(grid, volume)  # [H, W, 2]
        maps = []
        for lane in boxes.numpy():
            lane = lane[lane[:, 2] > 0]
            middle = lane[:, :2] + lane[:, 2:] / 2
            nearest = np.square(cells.reshape(-1, 1, 2) - middle).sum(axis=2).argmin(axis=0)
            maps.append(_gaussians(cells, cells.reshape(-1, 2)[nearest], lane[:, 2:] / 4))
        return torch.stack(maps)


def known_boxes(labels: np.ndarray, boxes: np.ndarray) -> Tensor:
    """The boxes ``[B, N, 4]`` of the objects whose ``labels`` are ``[B, N]`` (-1: no object), as a tensor.

    Raises:
        DataError: the box of an object is unknown.
    """
    if ((labels >= 0) & (boxes[..., 2] < 0)).any():
        raise DataError(
            "This saliency model reads the boxes of the objects, which are unknown for these images. Choose another model."
        )
    return torch.from_numpy(boxes)


def _centres(grid: Grid, volume: Tensor) -> np.ndarray:
    """The centres (row, col) of all cells in px, ``[H, W, 2]``."""
    rows, columns = volume.shape[2:]
    return grid.centres(np.arange(rows * columns), columns).reshape(rows, columns, 2)


def _gaussians(cells: np.ndarray, middle: np.ndarray, width: np.ndarray) -> Tensor:
    """The maximum ``[H, W]`` of N Gaussians at ``cells`` ``[H, W, 2]``; their means ``middle`` and ``width`` are ``[N, 2]``."""
    exponent = -np.square((cells[..., None, :] - middle) / width).sum(axis=3) / 2  # [H, W, N]
    return torch.from_numpy(np.exp(exponent).max(axis=2, initial=0).astype(np.float32))
