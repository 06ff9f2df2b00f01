"""Scan-path measures of recorded episodes, each with two controls.

A fixation is a glimpse while a label remained to be named; later there is nothing left to find. A scan path consists of the
fixations of one episode in order, across meta-steps. A control replaces the cells of each scan path and keeps its length:

- ``uniform``: the cells are drawn uniformly from the map;
- ``centre``: the cells are drawn from the agent's fixations on all *other* images. These have the same bias towards the centre or
  any other place, but do not depend on this image. This is the shuffled control of Tatler, Baddeley and Gilchrist (2005, Visual
  correlates of fixation selection, Vision Research 45, 643-659); on the centre bias see Tatler (2007, Journal of Vision 7(14):4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from hsal_env.errors import DataError
from hsal_env.perception.finding import cells_held
from hsal_env.trace import Trace
from hsal_env.where import Where, where

_DRAWS = 10  # of each control, per scan path

MEASURES = {
    "saccade_length_cells": "distance between successive fixations, in cells; mean over all saccades",
    "saccade_length_px": "the same between the centres of the cells, in px of the image",
    "return_share": "share of fixations on a cell already fixated in the episode",
    "object_share": "share of fixations on a cell whose centre lies in an object's box",
    "object_mask_share": "share of the masks' mass at cells whose centre lies in an object's box; the controls use a flat mask "
    "and the mean of the masks on other images",
    "fixations_per_object": "fixations in an object's box, mean over objects",
    "saliency_order": "Spearman's rank correlation, over the cells fixated in an episode, between the order in which they were "
    "first fixated and the order of their saliency in S_1, highest first; mean over episodes",
}
"""What each measure is. It is NaN if it is undefined: no fixations, no boxes, or for ``centre`` no other image."""


class _Looked(NamedTuple):
    """What the measures read of one trace.

    Attributes:
        cells: the fixated cells in order ``[n]``, row-major.
        trace: the trace.
        inside: which cells each object's box holds, bool ``[m, H W]``; None without known boxes.
        masks: the masks placed while a label remained ``[meta-steps, H W]``.
    """

    cells: np.ndarray
    trace: Trace
    inside: np.ndarray | None
    masks: np.ndarray


def measures(traces: Sequence[Trace], rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """All measures of :data:`MEASURES`, by name.

    Args:
        traces: traces of one environment.
        rng: draws the controls.

    Returns:
        For each measure its values ``agent``, ``uniform`` and ``centre``.

    Raises:
        DataError: there are no traces, or their maps have different sizes.

    Example:
        >>> import agents
        >>> from agents.tracing import record
        >>> from hsal_env.config import EnvConfig
        >>> config = EnvConfig(source="digits", split="test", components=25, update="peak")
        >>> traces = record(agents.load("mnist-multiset").agent, config, [0, 1, 2])
        >>> found = measures(traces, np.random.default_rng(0))
        >>> found["object_share"]["agent"] > found["object_share"]["uniform"]  # it looks at objects
        True
    """
    sizes = sorted({trace.map_size for trace in traces})
    if len(sizes) != 1:
        raise DataError(f"Expected at least one trace, all of one map size; got sizes {sizes}.")
    looked = [_looked(trace) for trace in traces]
    paths = [part.cells for part in looked]
    everywhere = np.concatenate(paths)
    starts = np.cumsum([0, *map(len, paths)])
    cells = sizes[0][0] * sizes[0][1]

    def centre(number: int) -> np.ndarray:
        """Cells from the fixations of all other traces, as many as this trace has fixations: ``[draws, n]``."""
        own, others = len(paths[number]), len(everywhere) - len(paths[number])
        if not others or not own:
            return np.zeros((_DRAWS, 0), np.int64)
        drawn = rng.integers(others, size=(_DRAWS, own))
        return everywhere[np.where(drawn < starts[number], drawn, drawn + own)]

    scan_paths = {
        "agent": [path[None] for path in paths],
        "uniform": [rng.integers(cells, size=(_DRAWS, len(path))) for path in paths],
        "centre": [centre(number) for number in range(len(paths))],
    }
    found: dict[str, dict[str, float]] = {name: {} for name in MEASURES}
    for whose, drawn in scan_paths.items():
        for name, measure in _OF_PATHS.items():
            pairs = [measure(path, part) for part, several in zip(looked, drawn, strict=True) for path in several]
            total, count = np.sum(pairs, axis=0) if pairs else (0.0, 0.0)
            found[name][whose] = float(total / count) if count else float("nan")
    found["object_mask_share"] = _mask_shares(looked)
    return found


def located(trace: Trace) -> Where:
    """The measures of :mod:`hsal_env.where` of each whole meta-step of a trace, ``[M]`` each."""
    names = trace.label >= 0
    starts = np.flatnonzero(trace.phase == 0)[: names.sum()]
    first = trace.location_px[starts + 1] if trace.glimpses else np.full((len(starts), 2), np.nan)
    labels = np.where(trace.label < trace.num_classes, trace.label, -1)[names]
    named, places, masks, true, boxes = (
        part[None] for part in (labels, first, trace.mask[starts], trace.labels, trace.boxes)
    )
    found = where(named, places, masks, true, boxes, trace.grid, (trace.image.shape[0], trace.image.shape[1]))
    return Where(*(part[0] for part in found))


def _looked(trace: Trace) -> _Looked:
    due = trace.remaining.sum(axis=1) > 0
    known = bool(len(trace.boxes)) and bool((trace.boxes >= 0).all())
    placed = trace.mask[due & (trace.phase == 0)].reshape(-1, trace.saliency_left.size)
    held = cells_held(trace.boxes[None], trace.grid, trace.map_size)[0]  # [m, H, W]
    return _Looked(
        cells=trace.location[due & (trace.location >= 0)],
        trace=trace,
        inside=held.reshape(len(held), -1) if known else None,
        masks=placed,
    )


def _saccades(path: np.ndarray, trace: Trace, step: Sequence[float]) -> tuple[float, float]:
    places = np.stack(np.divmod(path, trace.map_size[1]), axis=1) * np.array(step)
    lengths = np.sqrt((np.diff(places, axis=0) ** 2).sum(axis=1))
    return float(lengths.sum()), len(lengths)


def _returns(path: np.ndarray, looked: _Looked) -> tuple[float, float]:
    return len(path) - len(np.unique(path)), len(path)


def _on_objects(path: np.ndarray, looked: _Looked) -> tuple[float, float]:
    if looked.inside is None:
        return 0.0, 0.0
    return float(np.asarray(looked.inside.any(axis=0))[path].sum()), len(path)


def _per_object(path: np.ndarray, looked: _Looked) -> tuple[float, float]:
    if looked.inside is None or not len(path):
        return 0.0, 0.0
    return float(looked.inside[:, path].sum()), len(looked.inside)


def _saliency_order(path: np.ndarray, looked: _Looked) -> tuple[float, float]:
    if not len(path):
        return 0.0, 0.0
    fixated, first = np.unique(path, return_index=True)
    saliency = looked.trace.saliency[0].reshape(-1)[fixated]
    if len(fixated) < 2 or (saliency == saliency[0]).all():
        return 0.0, 0.0
    return float(np.corrcoef(rankdata(first), rankdata(-saliency))[0, 1]), 1.0


# each gives a sum over one scan path and the number of its terms; both are added up over all scan paths
_OF_PATHS: dict[str, Callable[[np.ndarray, _Looked], tuple[float, float]]] = {
    "saccade_length_cells": lambda path, looked: _saccades(path, looked.trace, (1.0, 1.0)),
    "saccade_length_px": lambda path, looked: _saccades(path, looked.trace, looked.trace.grid.stride_px),
    "return_share": _returns,
    "object_share": _on_objects,
    "fixations_per_object": _per_object,
    "saliency_order": _saliency_order,
}


def _mask_shares(looked: Sequence[_Looked]) -> dict[str, float]:
    """Mean share of the masks' mass in boxes: the agent's masks, a flat mask, and the mean of the masks on other images."""
    shares = [part.masks / part.masks.sum(axis=1, keepdims=True) for part in looked]
    total, count = np.concatenate(shares).sum(axis=0), sum(map(len, shares))
    sums, cases = np.zeros(3), np.zeros(3)
    for part, own in zip(looked, shares, strict=True):
        if part.inside is None or not len(own):
            continue
        inside, others = part.inside.any(axis=0), count - len(own)
        sums[:2] += own[:, inside].sum(), len(own) * inside.mean()
        cases[:2] += len(own)
        if others:
            sums[2] += len(own) * ((total - own.sum(axis=0)) / others)[inside].sum()
            cases[2] += len(own)
    found = np.where(cases > 0, sums / np.maximum(cases, 1), np.nan)
    return dict(zip(("agent", "uniform", "centre"), found.tolist(), strict=True))
