"""How well saliency maps find the objects, whose boxes are known: by their local maxima, and by the order of their cells."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hsal_env.errors import DataError
from hsal_env.perception.grid import Grid

HIGH = 0.5
"""Of the way from a map's lowest value to its highest: a local maximum from there on is high."""


class Finding(NamedTuple):
    """Of each map.

    Attributes:
        objects: how many there are, int64 ``[B]``.
        found: how many hold a local maximum, int64 ``[B]``.
        spurious: local maxima that no object holds, int64 ``[B]``.
        found_high: as ``found``, of high maxima (:data:`HIGH`) alone.
        spurious_high: as ``spurious``, of high maxima alone.
        auc: see :func:`area_under_curve`, float64 ``[B]``.
    """

    objects: np.ndarray
    found: np.ndarray
    spurious: np.ndarray
    found_high: np.ndarray
    spurious_high: np.ndarray
    auc: np.ndarray

    def summary(self) -> dict[str, float | None]:
        """``found...``: share of all objects; ``spurious...``: per image; ``auc``: mean over the images that have one.

        None where there is nothing to take a mean of.
        """
        objects, ranked = int(self.objects.sum()), self.auc[~np.isnan(self.auc)]
        return {
            "found": float(self.found.sum() / objects) if objects else None,
            "spurious": float(self.spurious.mean()),
            "found_high": float(self.found_high.sum() / objects) if objects else None,
            "spurious_high": float(self.spurious_high.mean()),
            "auc": float(ranked.mean()) if len(ranked) else None,
        }


def find_objects(maps: np.ndarray, boxes: np.ndarray, grid: Grid) -> Finding:
    """Compare maps ``[B, H, W]`` with boxes ``[B, N, 4]`` (row, col, height, width) px, padded with -1.

    An object holds a cell whose centre lies in its box: ``row <= y < row + height``, and so for columns. One that holds no
    cell counts as not found; a maximum that several hold counts for each.

    Raises:
        DataError: shapes that do not fit each other, no maps, or values that are not finite.
    """
    if maps.ndim != 3 or not maps.size or boxes.ndim != 3 or boxes.shape[::2] != (len(maps), 4):
        raise DataError(f"Expected maps [B, H, W], B > 0, and boxes [B, N, 4]; got {maps.shape} and {boxes.shape}.")
    if not np.isfinite(maps).all():
        raise DataError("Expected finite maps; got NaN or infinity.")
    held, maxima = cells_held(boxes, grid, maps.shape[1:]), local_maxima(maps)
    lowest, highest = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    high = maxima & (maps - lowest >= HIGH * (highest - lowest))
    anywhere = np.asarray(held.any(axis=1))

    def found_and_spurious(maxima: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (held & maxima[:, None]).any(axis=(2, 3)).sum(axis=1), (maxima & ~anywhere).sum(axis=(1, 2))

    objects, area = (boxes[..., 2] > 0).sum(axis=1), area_under_curve(maps, anywhere)
    return Finding(objects, *found_and_spurious(maxima), *found_and_spurious(high), area)


def cells_held(boxes: np.ndarray, grid: Grid, map_size: tuple[int, ...]) -> np.ndarray:
    """The cells whose centre lies in a box, of each box ``[B, N, 4]``: bool ``[B, N, H, W]``; none of padding."""
    centres = grid.centres(np.arange(map_size[0] * map_size[1]), map_size[1]).reshape(*map_size, 2)
    corner, size = boxes[:, :, None, None, :2], boxes[:, :, None, None, 2:]
    inside: np.ndarray = ((centres >= corner) & (centres < corner + size)).all(axis=4)
    return inside


def local_maxima(maps: np.ndarray) -> np.ndarray:
    """Cells of ``[B, H, W]`` that exceed all of their eight neighbours, bool.

    A plateau, touching cells of one value, is one maximum if it exceeds every cell that it touches: that of its cells which is
    nearest to the mean of them all, the first in reading order of several. A constant map has none.
    """
    exceeded = np.zeros(maps.shape, bool)
    for value in _beside(maps, -np.inf):
        exceeded |= value > maps
    plateau = np.broadcast_to(np.arange(maps[0].size).reshape(maps.shape[1:]), maps.shape)
    changing = True
    while changing:  # until all cells of a plateau know its last one, and whether any of them is exceeded
        last, higher = plateau, exceeded
        for value, label, below in zip(_beside(maps, np.nan), _beside(last, 0), _beside(higher, False), strict=True):
            same = value == maps
            plateau = np.where(same, np.maximum(plateau, label), plateau)
            exceeded = exceeded | (same & below)
        changing = not (np.array_equal(plateau, last) and np.array_equal(exceeded, higher))
    highest = ~exceeded & (np.ptp(maps, axis=(1, 2)) > 0)[:, None, None]
    maxima = np.zeros(maps.shape, bool)
    for lane in range(len(maps)):
        for label in np.unique(plateau[lane][highest[lane]]):
            own = np.argwhere(plateau[lane] == label)
            away = np.square(own * len(own) - own.sum(axis=0)).sum(
                axis=1
            )  # from the mean; whole numbers, so that ties are
            row, col = own[away.argmin()]
            maxima[lane, row, col] = True
    return maxima


def _beside(maps: np.ndarray, outside: Any) -> list[np.ndarray]:
    """The eight neighbours of every cell of ``[B, H, W]``."""
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)), constant_values=outside)
    rows, columns = maps.shape[1:]
    return [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3) if (i, j) != (1, 1)]


def area_under_curve(maps: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The chance that a positive cell of ``[B, H, W]`` has a higher value than another one, equal values counted half.

    That is the area under the curve of hits over false alarms as a threshold goes down. NaN where all cells are of one kind.
    """
    areas = np.full(len(maps), np.nan)
    for lane, (values, kind) in enumerate(
        zip(maps.reshape(len(maps), -1), positive.reshape(len(maps), -1), strict=True)
    ):
        hits, others = int(kind.sum()), int((~kind).sum())
        if hits and others:
            _, which, count = np.unique(values, return_inverse=True, return_counts=True)
            ranks = (np.cumsum(count) - (count - 1) / 2)[which]  # from 1; the mean of those that equal values share
            areas[lane] = (ranks[kind].sum() - hits * (hits + 1) / 2) / (hits * others)
    return areas
