"""Where the objects of a map's cells are, and whether it shows any: measured without boxes.

An activation model that was trained on labels alone may give an object a cell beside it, always on the same side: nothing in the
loss says where the cell should be. The side shows when the image is turned. Let x be where an object is, and ``x + d`` the centre
of its cell. In the image turned by 180 degrees the object is at ``(h, w) - x`` and its cell at ``(h, w) - x + d``; turned back,
that is ``x - d``. So d is half the difference between the two. The model keeps the measured d in ``first_px``, which then says
where the objects of its cells are (:class:`hsal_env.perception.grid.Grid`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hsal_env import functional as F
from hsal_env.perception.activation import ActivationModel
from hsal_env.perception.grid import Grid

_ALIKE = 0.2  # how much the sums of both maps may differ, as a share; beyond that, other objects were found
_LEAST = 10  # images


@torch.no_grad()
def displacement_px(model: ActivationModel, images: Tensor, batch_size: int = 50) -> tuple[float, float]:
    """How far from their objects the cells of ``model`` are: the mean of d over images, (row, col) in px.

    Of each image the centre of mass ``p = sum_ij S_ij x_ij / sum_ij S_ij`` is taken, where x_ij is the centre of cell (i, j), and
    p' of the image turned by 180 degrees; then ``d = (p + p' - (h, w)) / 2``. Images are left out if the sums of their two maps
    differ by more than a fifth.

    Args:
        model: S is the sum of squares of its volume.
        images: ``[N, C, h_px, w_px]`` in [0, 1], on the model's device.
        batch_size: images that are encoded at once.

    Returns:
        (0, 0) where fewer than ten images count.
    """
    size = (images.shape[2], images.shape[3])
    displaced = []
    for batch in images.split(batch_size):
        one, other = (_centres(model, part, size) for part in (batch, batch.flip(2, 3)))
        alike = (one[1] > 0) & ((one[1] - other[1]).abs() <= _ALIKE * one[1])
        displaced.append(((one[0] + other[0] - torch.tensor(size).to(one[0])) / 2)[alike])
    found = torch.cat(displaced)
    if len(found) < _LEAST:
        return 0.0, 0.0
    row, col = found.mean(dim=0).tolist()
    return row, col


def centre(model: ActivationModel, displacement_px: tuple[float, float], image_px: tuple[int, int]) -> None:
    """Let ``first_px`` of ``model`` say where the objects of its cells are.

    Args:
        model: a model that says ``first_px``.
        displacement_px: how far the cells are from them, in px of an image of ``image_px`` (h, w).
        image_px: see there.
    """
    first = Grid.of(model, image_px, (1, 1)).first_px
    scales = [1.0 if model.resized_px is None else model.resized_px / side for side in image_px]
    row, col = ((at - off) * scale for at, off, scale in zip(first, displacement_px, scales, strict=True))
    model.first_px = (row, col)
    model.arguments = {**model.arguments, "first_px": model.first_px}


@torch.no_grad()
def map_variation(model: ActivationModel, images: Tensor, batch_size: int = 50) -> float:
    """How much of the saliency maps depends on the image: ``sum_n |S_n - mean S|**2 / sum_n |S_n|**2``, from 0 to 1.

    It is 0 where the same cells are high whatever an image shows: such a map may fit the counts of images that hold about as
    many objects each, but nobody can attend by it. The maps of the bundled models have 0.3 (numbers of five digits, which fill
    their image) to 0.75 (digits at any place).

    Args:
        model, images, batch_size: as in :func:`displacement_px`. Maps of zeros alone have 0.
    """
    maps = torch.cat([_saliency(model, batch) for batch in images.split(batch_size)])
    return float((maps - maps.mean(dim=0)).square().sum() / maps.square().sum().clamp(min=1e-30))


def _saliency(model: ActivationModel, images: Tensor) -> Tensor:
    """S ``[B, H, W]``, float64."""
    return F.sum_of_squares(model(images)[:, : model.saliency_channels].float()).double()


def _centres(model: ActivationModel, images: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Centres of mass of the saliency maps in px ``[B, 2]``, and the sums of the maps ``[B]``."""
    saliency = _saliency(model, images)
    rows, columns = saliency.shape[1:]
    centres = Grid.of(model, size, (rows, columns)).centres(np.arange(rows * columns), columns)
    mass = saliency.flatten(1)
    return mass @ torch.from_numpy(centres).to(mass) / mass.sum(dim=1, keepdim=True), mass.sum(dim=1)
