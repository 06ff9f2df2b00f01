"""Where on an image the object of a cell is, measured on that image.

An activation model that learned from labels alone may give an object a cell beside it, and the side and the distance may depend
on the object. In the image turned by 180 degrees, that side is the other one. Let x be where the object is, and ``x + d`` where
the map is high. The map of the turned image, turned back, is high at ``x - d``, and x is in the middle, whatever d is.
(:mod:`agents.supervised.centring` takes the mean of d over many images from the same idea.)

A cell's centre tells a place to half a cell only. The maps of copies of the image that are shifted by half a cell lie between
the cells of the first; the centre of mass of all of them is finer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from hsal_env import functional as F
from hsal_env.perception.grid import Grid


class Views(NamedTuple):
    """The saliency of B images at n places: of shifted copies (0), and of shifted copies of the turned image (1).

    Attributes:
        saliency: float64 ``[2, B, n]``.
        points: the places on the image, as (row, col) in px ``[2, n, 2]``. Those of the turned image are turned back.
    """

    saliency: np.ndarray
    points: np.ndarray


def views(encode: Callable[[np.ndarray], Tensor], images: np.ndarray, grid: Grid, channels: int) -> Views:
    """The maps of four copies of each image and of the turned one, shifted by none or half a cell along rows and columns.

    What a shift leaves empty is filled with the image's edge.

    Args:
        encode: gives the volumes ``[B, D, H, W]`` of images like ``images``.
        images: uint8 ``[B, h_px, w_px]`` or ``[B, h_px, w_px, 3]``.
        grid: where the cells lie.
        channels: of the volume, from the first on, whose sum of squares is the saliency.
    """
    size = images.shape[1:3]
    down, right = ({0, round(step / 2)} for step in grid.stride_px)
    room = [(0, 0), (0, max(down)), (0, max(right)), (0, 0)][: images.ndim]
    saliency, points = [], []
    for turned in (False, True):
        wide = np.pad(images[:, ::-1, ::-1] if turned else images, room, mode="edge")
        for row in sorted(down):
            for col in sorted(right):
                shifted = np.ascontiguousarray(wide[:, row : row + size[0], col : col + size[1]])
                found = F.sum_of_squares(encode(shifted)[:, :channels].float()).double()
                cells = np.arange(found[0].numel())
                at = grid.centres(cells, found.shape[2]) + np.array((row, col))
                saliency.append(found.flatten(1).numpy())
                points.append(np.array(size) - at if turned else at)
    half = len(saliency) // 2
    return Views(
        np.stack([np.concatenate(part, axis=1) for part in (saliency[:half], saliency[half:])]),
        np.stack([np.concatenate(part) for part in (points[:half], points[half:])]),
    )


def places_px(seen: Views, cells: np.ndarray, grid: Grid, columns: int) -> np.ndarray:
    """Where the objects of cells are: ``x = (p + q) / 2`` with ``p = m_0(c)`` and ``q = m_1(p)``.

    c is the centre of the cell, and ``m_v(z) = sum_y S_v(y) y / sum_y S_v(y)`` the centre of mass of view v over the places y
    that are at most one cell from z; z itself where all S are 0 there.

    Args:
        seen: of B images.
        cells: row-major, int64 ``[B, M]``; -1: none.
        grid: where the cells lie.
        columns: of the map.

    Returns:
        (row, col) in px, float64 ``[B, M, 2]``; NaN where there is no cell.
    """
    place = grid.centres(cells, columns)  # [B, M, 2]
    found = []
    for saliency, points in zip(seen.saliency, seen.points, strict=True):
        for lane, mass in enumerate(saliency):
            away = (points - place[lane, :, None]) / grid.stride_px  # [M, n, 2], in cells
            near = (np.square(away).sum(axis=2) <= 1) * mass
            total = near.sum(axis=1, keepdims=True)
            place[lane] = np.where(total > 0, near @ points / np.where(total > 0, total, 1), place[lane])
        found.append(place.copy())
    return (found[0] + found[1]) / 2
