"""Where on an image the object of a cell is, measured on that image.

An activation model that learned from labels alone may give an object a cell beside it, and the side and the distance may depend
on the object. In the image turned by 180 degrees, that side is the other one. Let x be where the object is, and ``x + d`` where
the map is high. The map of the turned image, turned back, is high at ``x - d``, and x is in the middle. That works as long as d
is at most half a cell. It usually is: the mean of d over many images, which :mod:`agents.supervised.centring` takes from the same
idea, is in the grid already.

A cell's centre tells a place to half a cell only. The maps of copies of the image that are shifted by half a cell lie between
the cells of the first; the centre of mass of all of them is finer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hsal_env.perception.grid import Grid

_STEPS = 2
_ONE_CELL = 1 + 1e-9  # the next cell's centre is at 1, up to rounding


class Views(NamedTuple):
    """The saliency of B images at n places: of shifted copies (0), and of shifted copies of the turned image (1).

    Attributes:
        saliency: float64 ``[2, B, n]``.
        points: the places on the image, as (row, col) in px ``[2, n, 2]``. Those of the turned image are turned back.
    """

    saliency: np.ndarray
    points: np.ndarray


def views(saliency: Callable[[np.ndarray], np.ndarray], images: np.ndarray, grid: Grid) -> Views:
    """The maps of four copies of each image and of the turned one, shifted by none or half a cell along rows and columns.

    What a shift leaves empty is filled with the image's edge.

    Args:
        saliency: gives the maps ``[B, H, W]`` of images like ``images``.
        images: uint8 ``[B, h_px, w_px]`` or ``[B, h_px, w_px, 3]``.
        grid: where the cells lie.
    """
    size = images.shape[1:3]
    down, right = ({0, round(step / 2)} for step in grid.stride_px)
    room = [(0, 0), (0, max(down)), (0, max(right)), (0, 0)][: images.ndim]
    maps, points = [], []
    for turned in (False, True):
        wide = np.pad(images[:, ::-1, ::-1] if turned else images, room, mode="edge")
        for row in sorted(down):
            for col in sorted(right):
                found = saliency(np.ascontiguousarray(wide[:, row : row + size[0], col : col + size[1]]))
                at = grid.centres(np.arange(found[0].size), found.shape[2]) + np.array((row, col))
                maps.append(found.reshape(len(found), -1).astype(np.float64))
                points.append(np.array(size) - at if turned else at)
    half = len(maps) // 2
    return Views(
        np.stack([np.concatenate(part, axis=1) for part in (maps[:half], maps[half:])]),
        np.stack([np.concatenate(part) for part in (points[:half], points[half:])]),
    )


def places_px(seen: Views, cells: np.ndarray, grid: Grid, columns: int) -> np.ndarray:
    """Where the objects of cells are: ``x = (p + q) / 2`` with ``p = m_0(m_0(c))`` and ``q = m_1(m_1(p))``.

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
            for _ in range(_STEPS):
                away = (points - place[lane, :, None]) / grid.stride_px  # [M, n, 2], in cells
                near = (np.square(away).sum(axis=2) <= _ONE_CELL) * mass
                total = near.sum(axis=1, keepdims=True)
                place[lane] = np.where(total > 0, near @ points / np.where(total > 0, total, 1), place[lane])
        found.append(place.copy())
    return (found[0] + found[1]) / 2
