"""Where an agent looked when it named an object, held against the boxes of the objects. Boxes are for measuring only.

The measures are of meta-steps that name an object: those that say stop name none. An object is looked at by its first glimpse,
at a place on the image: the centre of the cell, or where the object of the cell is (:mod:`hsal_env.perception.places`). The
weight of a mask is normalised: all its cells together have 1. A cell's weight fills its area evenly, see
:meth:`hsal_env.perception.grid.Grid.areas`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hsal_env.perception.finding import held_by_axis
from hsal_env.perception.grid import Grid

HALF = 0.5
"""A mask is high in the cells above this share of its peak."""


class Where(NamedTuple):
    """The measures of B episodes of M meta-steps, float64 ``[B, M]``; NaN where nothing was named or boxes are unknown.

    Attributes:
        pointing: 1 if the first glimpse lies in a box of the named label that no earlier name has used up, else 0. A name uses
            up the box that its glimpse lies in; of several such boxes the one whose centre is nearest. NaN without glimpses.
        mask_in_box: the share of the mask's weight in that box; without one, in the box of that label, not used up, that has
            most of it; 0 if there is none.
        focus: the share of the mask's weight in the box of any label that has most of it; 0 if there is no box.
        several: 1 if the cells where the mask is above half its peak have their centres in two boxes or more, else 0.
    """

    pointing: np.ndarray
    mask_in_box: np.ndarray
    focus: np.ndarray
    several: np.ndarray


def where(
    named: np.ndarray,
    places_px: np.ndarray,
    masks: np.ndarray,
    labels: np.ndarray,
    boxes: np.ndarray,
    grid: Grid,
    image_px: tuple[int, int],
) -> Where:
    """Measure the meta-steps of B episodes. Boxes are used up in the order of the M meta-steps.

    Args:
        named: the labels named, int64 ``[B, M]``; -1: none.
        places_px: where the first glimpse of each meta-step looks, as (row, col) in px ``[B, M, 2]``; NaN: no glimpse.
        masks: the masks M_t ``[B, M, H, W]``, of any scale.
        labels: of the objects, int64 ``[B, N]``, padded with -1.
        boxes: of the objects, int64 ``[B, N, 4]`` as (row, col, height, width) in px; -1: unknown. An episode in which the box
            of an object is unknown has NaN everywhere.
        grid: where the cells lie.
        image_px: (h, w) of the image.

    Example:
        >>> grid, boxes = Grid((5, 5), (10, 10), (10, 10)), np.array([[[0, 0, 10, 10], [0, 10, 10, 5]]])
        >>> masks = np.array([[[[3.0, 1.0]], [[0.0, 1.0]]]])  # two meta-steps, a map of one row
        >>> looks = grid.centres(np.array([[0, 0]]), columns=2)
        >>> found = where(np.array([[7, 7]]), looks, masks, np.array([[7, 7]]), boxes, grid, (10, 20))
        >>> found.pointing, found.mask_in_box  # the second glimpse is in a box that was used up
        (array([[1., 0.]]), array([[0.75, 0.5 ]]))
    """
    objects = labels >= 0
    known = ~(objects & (boxes[..., 2] < 0)).any(axis=1)  # [B]
    middle = boxes[..., :2] + boxes[..., 2:] / 2
    areas = covered_by_axis(boxes, grid, image_px, (masks.shape[2], masks.shape[3]))
    centres = held_by_axis(boxes, grid, (masks.shape[2], masks.shape[3]))
    found = Where(*(np.full(named.shape, np.nan) for _ in Where._fields))
    free, lanes = objects.copy(), np.arange(len(named))
    for step in range(named.shape[1]):
        mask = masks[:, step].astype(np.float64)
        inside = np.where(objects, _within(mask, areas), 0) / _whole(mask)  # [B, N]
        bright = np.where(objects, _within(mask > HALF * mask.max(axis=(1, 2), keepdims=True), centres), 0) > 0
        wanted = free & (labels == named[:, step, None])
        place = places_px[:, step, None]  # [B, 1, 2]
        pointed = wanted & ((place >= boxes[..., :2]) & (place < boxes[..., :2] + boxes[..., 2:])).all(axis=2)  # [B, N]
        share = np.where(wanted, inside, 0).max(axis=1, initial=0)
        right = pointed.any(axis=1)
        if right.any():
            box = np.where(pointed, np.square(place - middle).sum(axis=2), np.inf).argmin(axis=1)
            share = np.where(right, inside[lanes, box], share)
            free[lanes[right], box[right]] = False
        counts = known & (named[:, step] >= 0)
        for values, these, value in (
            (found.pointing, counts & ~np.isnan(place).any(axis=(1, 2)), right),
            (found.mask_in_box, counts, share),
            (found.focus, counts, inside.max(axis=1, initial=0)),
            (found.several, counts, bright.sum(axis=1) > 1),
        ):
            values[these, step] = value[these]
    return found


def box_shares(mask: np.ndarray, boxes: np.ndarray, grid: Grid, image_px: tuple[int, int]) -> np.ndarray:
    """The share of the weight of each mask ``[B, H, W]`` in each of the boxes ``[B, N, 4]``: float64 ``[B, N]``."""
    mask = mask.astype(np.float64)
    return _within(mask, covered_by_axis(boxes, grid, image_px, mask.shape[1:])) / _whole(mask)


def covered_by_axis(
    boxes: np.ndarray, grid: Grid, image_px: tuple[int, int], map_size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The share of the area of each cell in each box ``[B, N, 4]`` is R_bnr C_bnc: R ``[B, N, H]`` and C ``[B, N, W]``.

    The area of a cell ends where the image does. A cell beside the image has none, and no share.
    """
    shares = grid.areas(image_px, (map_size[0], map_size[1]), image_px)
    found = []
    for axis, (share, pixels) in enumerate(zip(shares, image_px, strict=True)):
        upto = np.pad(
            share.cumsum(axis=1), ((0, 0), (1, 0))
        )  # [cells, pixels + 1]: the share before each edge of pixels
        begin = boxes[..., axis].clip(0, pixels)
        end = (boxes[..., axis] + boxes[..., axis + 2]).clip(0, pixels)
        found.append(np.moveaxis((upto[:, end] - upto[:, begin]).clip(min=0), 0, -1))
    return found[0], found[1]


def summary(parts: Sequence[Where], known: bool) -> dict[str, float | None]:
    """The mean of each measure over all meta-steps that name an object; None where no meta-step has a value.

    Args:
        parts: the measures of the episodes.
        known: whether an object has a known box. If none has, all means are None, also with names in images without objects.
    """
    found: dict[str, float | None] = {}
    for name in Where._fields:
        values = np.concatenate([getattr(part, name).ravel() for part in parts]) if parts else np.empty(0)
        values = values[~np.isnan(values)]
        found[name] = float(values.mean()) if known and len(values) else None
    return found


def _within(weights: np.ndarray, by_axis: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Sums ``[B, N]`` of the weights of cells ``[B, H, W]``, of which R_bnr C_bnc counts."""
    rows, cols = by_axis
    return ((weights.astype(np.float64) @ cols.swapaxes(1, 2).astype(np.float64)) * rows.swapaxes(1, 2)).sum(axis=1)


def _whole(mask: np.ndarray) -> np.ndarray:
    """The weight ``[B, 1]`` of each mask; 1 of a mask that is zero everywhere, whose shares are 0."""
    total = mask.sum(axis=(1, 2))[:, None]
    return np.where(total > 0, total, 1)
