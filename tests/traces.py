"""Traces made by hand."""

from typing import NamedTuple

import numpy as np

from hsal_env.perception.grid import Grid
from hsal_env.trace import Trace


class MetaStep(NamedTuple):
    """What happened in one: cells looked at, the label named, its probability, the maps."""

    locations: tuple[int, ...]
    label: int
    probability: float = 0.9
    mask: np.ndarray | None = None
    saliency: np.ndarray | None = None


def trace_of(
    steps: list[MetaStep],
    labels: list[int],
    boxes: list[list[int]] | None = None,
    map_size: tuple[int, int] = (7, 7),
    image: np.ndarray | None = None,
    num_classes: int = 10,
    grid: Grid | None = None,
    components: int = 2,
    **changes,
) -> Trace:
    """A whole episode; maps that are not given are drawn from the meta-step's number."""
    image = np.zeros((105, 105), np.uint8) if image is None else image
    glimpses = len(steps[0].locations)
    remaining = np.bincount(np.array(labels, np.int64), minlength=num_classes)
    rows: list[dict] = []
    for number, step in enumerate(steps):
        drawn = np.random.default_rng(number).random((3, *map_size)).astype(np.float32)
        for phase in range(glimpses + 2):
            looks, names = 0 < phase <= glimpses, phase == glimpses + 1
            right = step.label < num_classes and remaining[step.label] > 0
            right |= step.label == num_classes and not remaining.any()
            log_prob = np.log(step.probability) if looks or names else np.nan
            rows.append(
                {
                    "meta_step": number,
                    "phase": phase,
                    "saliency": drawn[0] if step.saliency is None else step.saliency,
                    "mask": drawn[1] if step.mask is None else step.mask,
                    "priority": drawn[2],
                    "attended": -1,
                    "location": step.locations[phase - 1] if looks else -1,
                    "label": step.label if names else -1,
                    "reward": (2.0 * right - 1) if names else 0.25 * looks,
                    "remaining": remaining.copy(),
                    "log_prob": np.float32(log_prob),
                    "value": np.float32(np.nan if phase == 0 else 0.5),
                    "entropy": np.float32(np.nan if phase == 0 else 0.1),
                    **{name: np.full(components, 0.5, np.float32) for name in ("alpha", "beta", "row", "col")},
                    "location_probs": np.full(map_size[0] * map_size[1], 1.0 if looks else np.nan, np.float32),
                    "label_probs": np.full(num_classes + 1, 1.0 if names else np.nan, np.float32),
                }
            )
        if step.label < num_classes and remaining[step.label]:
            remaining[step.label] -= 1
    stacked = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    grid = grid or Grid.of(None, image.shape[:2], map_size)
    stopped = steps[-1].label == num_classes
    known = {
        "image": image, "source": "digits", "canvas_index": 17, "grid": grid,
        "location_px": grid.centres(stacked["location"], map_size[1]),
        "labels": np.array(labels, np.int64), "boxes": np.array(boxes or [[-1] * 4] * len(labels), np.int64).reshape(-1, 4),
        "num_classes": num_classes, "glimpses": glimpses, "terminated": stopped, "truncated": not stopped,
        "states": {"hidden": np.arange(3.0 * len(rows), dtype=np.float32).reshape(-1, 3)},
        "saliency_left": np.full(map_size, 0.25, np.float32),
    }  # fmt: skip
    return Trace(**{**known, **stacked, **changes})
