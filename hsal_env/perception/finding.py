"""How well saliency maps find objects with known boxes, measured by their local maxima and by the order of their cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import label, maximum_filter
from scipy.stats import rankdata

from hsal_env.errors import DataError
from hsal_env.perception.grid import Grid

HIGH = 0.5
"""A local maximum is high from this share of the range of its map on, from the lowest value (0) to the highest (1)."""


class Finding(NamedTuple):
    """How well each of B maps finds the objects.

    Attributes:
        objects: number of objects in the image, int64 ``[B]``.
        found: number of objects with a local maximum in their box, int64 ``[B]``.
        spurious: number of local maxima outside of all boxes, int64 ``[B]``.
        found_high: like ``found``, counting only high maxima (:data:`HIGH`).
        spurious_high: like ``spurious``, counting only high maxima.
        auc: see :func:`area_under_curve`, float64 ``[B]``.
    """

    objects: np.ndarray
    found: np.ndarray
    spurious: np.ndarray
    found_high: np.ndarray
    spurious_high: np.ndarray
    auc: np.ndarray

    def summary(self) -> dict[str, float | None]:
        """Means over all maps: ``found...`` as a share of all objects, ``spurious...`` per image, ``auc`` where it is defined.

        A value is None if there are no objects, or no map has an ``auc``.
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
    """Compare maps with the boxes of the objects.

    An object holds the cells whose centres lie in its box, see :func:`cells_held`. It is found if one of them is a local maximum,
    so an object that holds no cell is not found. A maximum in several boxes counts for each of these objects.

    Args:
        maps: ``[B, H, W]``.
        boxes: ``[B, N, 4]`` as (row, col, height, width) in px, padded with -1.
        grid: where the cells lie.

    Raises:
        DataError: the shapes do not fit each other, there are no maps, or a value is not finite.
    """
    if maps.ndim != 3 or not maps.size or boxes.ndim != 3 or boxes.shape[::2] != (len(maps), 4):
        raise DataError(f"Expected maps [B, H, W] with B > 0 and boxes [B, N, 4]; got {maps.shape} and {boxes.shape}.")
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
    """Which cells have their centre (y, x) in each box ``[B, N, 4]``: bool ``[B, N, H, W]``; none for padding.

    The condition is ``row <= y < row + height``, and the same for columns.
    """
    rows, cols = held_by_axis(boxes, grid, map_size)
    inside: np.ndarray = rows[..., None] & cols[..., None, :]
    return inside


def held_by_axis(boxes: np.ndarray, grid: Grid, map_size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows and which columns of cells :func:`cells_held` takes: bool ``[B, N, H]`` and ``[B, N, W]``."""
    found = []
    for axis in (0, 1):
        centres = grid.first_px[axis] + np.arange(map_size[axis]) * grid.stride_px[axis]
        corner, size = boxes[..., axis, None], boxes[..., axis + 2, None]
        found.append((centres >= corner) & (centres < corner + size))
    return found[0], found[1]


def local_maxima(maps: np.ndarray) -> np.ndarray:
    """Cells of ``[B, H, W]`` that exceed all of their eight neighbours, bool.

    A plateau is a set of touching cells of one value. If it exceeds every cell that it touches, one of its cells is a maximum:
    the one nearest to their mean, and the first in reading order of several as near. A constant map has none.
    """
    lane_by_lane = np.zeros((3, 3, 3), int)
    lane_by_lane[1] = 1  # a cell touches its eight neighbours, and nothing in another map
    top = maps == maximum_filter(maps, footprint=lane_by_lane, mode="nearest")  # no neighbour is higher
    beside = maximum_filter(np.where(top, -np.inf, maps), footprint=lane_by_lane, mode="nearest")
    plateaus, count = label(top, lane_by_lane)
    found = np.zeros(count + 1, bool)
    found[1:] = True
    found[plateaus[top & (beside == maps)]] = False  # a plateau goes on in a cell that has a higher neighbour
    constant = np.ptp(maps, axis=(1, 2)) == 0
    cells = np.argwhere(found[plateaus] & ~constant[:, None, None])
    own = plateaus[tuple(cells.T)]
    size = np.bincount(own, minlength=count + 1)
    total = np.stack([np.bincount(own, weights=place, minlength=count + 1) for place in cells[:, 1:].T], axis=1)
    # size times the distance from the mean: whole numbers, so that equal distances are equal
    away = np.square(cells[:, 1:] * size[own, None] - total[own]).sum(axis=1)
    nearest_first = np.lexsort((away, own))
    _, first = np.unique(own[nearest_first], return_index=True)
    maxima = np.zeros(maps.shape, bool)
    maxima[tuple(cells[nearest_first[first]].T)] = True
    return maxima


def area_under_curve(maps: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The chance that a positive cell of ``[B, H, W]`` has a higher value than another cell; equal values count half.

    That is the area under the ROC curve (hits over false alarms as a threshold goes down), from the rank sum R of the n positive
    cells among n + m: ``(R - n (n + 1) / 2) / (n m)``. NaN where all cells are of one kind.
    """
    kind = positive.reshape(len(maps), -1)
    ranks = rankdata(maps.reshape(len(maps), -1), axis=1)  # from 1; equal values share the mean of theirs
    hits, others = kind.sum(axis=1), (~kind).sum(axis=1)
    areas = (np.where(kind, ranks, 0).sum(axis=1) - hits * (hits + 1) / 2) / np.maximum(hits * others, 1)
    return np.where(hits * others > 0, areas, np.nan)
