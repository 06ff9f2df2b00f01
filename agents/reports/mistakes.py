"""What an agent gets wrong, computed from the traces of its episodes.

The first mistake of an episode decides its kind. ``wrong label``: objects remained, and the agent named a label that was not
among them. ``early``: objects remained, and it stopped. ``late``: none remained, and it did not stop.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from hsal_env.errors import DataError
from hsal_env.trace import Trace
from hsal_env.where import box_shares

_SIZES_PX = (0, 20, 25, 30, 35, 40, 45, 51, math.inf)
_OVERLAPS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.001)


Kind = Literal["right", "wrong label", "early", "late"]
Shares: TypeAlias = dict[str, dict[str, float]]
"""By case: how many there are, and shares of them."""
Breakdown: TypeAlias = dict[str, Shares | float | None]
"""By name: a table, or one number of all episodes; None: no episode defines it."""


class Episode(NamedTuple):
    """The numbers of one episode that the tables need.

    Attributes:
        canvas_index: the canvas.
        true: counts of the true labels ``[C]``.
        named: counts of the labels that the agent named ``[C]``.
        kind: the kind of the episode.
        sizes_px: heights of the objects ``[m]``; -1 where unknown.
        overlaps: for each meta-step that should name an object, the largest share of its mask in one object's box; NaN where
            no boxes are known.
        hits: for each of these meta-steps, whether its label was right.
        confidence: the highest probability of a wrong label; 0 if no label was wrong.
        class_names: the names of the C labels; () where they have none.
    """

    canvas_index: int
    true: np.ndarray
    named: np.ndarray
    kind: Kind
    sizes_px: np.ndarray
    overlaps: list[float]
    hits: list[bool]
    confidence: float
    class_names: tuple[str, ...] = ()


def describe(trace: Trace) -> Episode:
    """The numbers of one recorded episode."""
    names = np.flatnonzero(trace.label >= 0)
    due, right = trace.remaining[names].sum(axis=1) > 0, trace.right[names]
    kind: Kind = "right"
    if not right.all():
        first = int((~right).argmax())
        stopped = trace.label[names[first]] == trace.num_classes
        kind = "late" if not due[first] else "early" if stopped else "wrong label"
    known = bool(len(trace.boxes)) and bool((trace.boxes >= 0).all())
    masks, overlaps = trace.mask[names[due]], np.full(int(due.sum()), math.nan)
    if known:
        boxes = np.broadcast_to(trace.boxes, (len(masks), *trace.boxes.shape))
        overlaps = box_shares(masks, boxes, trace.grid, (trace.image.shape[0], trace.image.shape[1])).max(axis=1)
    return Episode(
        canvas_index=trace.canvas_index,
        true=np.bincount(trace.labels, minlength=trace.num_classes),
        named=np.bincount(trace.named, minlength=trace.num_classes),
        kind=kind,
        sizes_px=trace.boxes[:, 2],
        overlaps=overlaps.tolist(),
        hits=right[due].tolist(),
        confidence=float(np.nan_to_num(np.exp(trace.log_prob[names[~right]])).max(initial=0.0)),
        class_names=trace.class_names,
    )


def breakdown(traces: Iterable[Trace]) -> Breakdown:
    """The tables of recorded episodes; see :func:`tables`."""
    return tables([describe(trace) for trace in traces])


def tables(episodes: Sequence[Episode]) -> Breakdown:
    """Shares by kind, number of objects, smallest size, label, and overlap of mask and box.

    Where no boxes are known, the tables that need them are left out.

    Raises:
        DataError: there are no episodes.
    """
    if not episodes:
        raise DataError("Expected at least one episode; got none.")
    right = np.array([e.kind == "right" for e in episodes])
    true, named = np.array([e.true for e in episodes]), np.array([e.named for e in episodes])
    objects = true.sum(1)
    both = np.minimum(true, named).sum(0)
    smallest = np.array([e.sizes_px.min(initial=2**31) for e in episodes])  # without objects: none
    smallest = np.where(objects > 0, smallest, -1)
    overlaps, hits = np.concatenate([e.overlaps for e in episodes]), np.concatenate([e.hits for e in episodes])
    overlaps, hits = overlaps[~np.isnan(overlaps)], hits[~np.isnan(overlaps)].astype(bool)
    found: Breakdown = {
        "episodes": len(episodes),
        "by kind": {kind: {"cases": count} for kind, count in Counter(e.kind for e in episodes).most_common()},
        "by number of objects": {
            str(n): {"cases": int((objects == n).sum()), "right": float(right[objects == n].mean())}
            for n in np.unique(objects)
        },
    }
    by_size = _binned(smallest, right, _SIZES_PX)
    if by_size:
        found["by smallest object, px"] = by_size
    words = episodes[0].class_names or [*map(str, range(true.shape[1]))]
    found["by label"] = {
        words[c]: {
            "cases": int(true[:, c].sum()),
            "recall": float(both[c] / max(1, true[:, c].sum())),
            "precision": float(both[c] / max(1, named[:, c].sum())),
        }
        for c in range(true.shape[1])
    }
    if len(overlaps):
        found["labels by share of the mask in the box most covered"] = _binned(overlaps, hits, _OVERLAPS)
        found["mean share, right labels"] = float(overlaps[hits].mean()) if hits.any() else None
        found["mean share, wrong labels"] = float(overlaps[~hits].mean()) if not hits.all() else None
    return found


def _binned(values: np.ndarray, right: np.ndarray, edges: tuple[float, ...]) -> Shares:
    found: Shares = {}
    for low, high in itertools.pairwise(edges):
        inside = (values >= low) & (values < high)
        if inside.any():
            found[f"{low:g} to {high:.3g}"] = {"cases": int(inside.sum()), "right": float(right[inside].mean())}
    return found
