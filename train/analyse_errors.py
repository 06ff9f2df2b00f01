"""What a trained agent gets wrong: tables, and pictures of its worst episodes.

    python train/analyse_errors.py mnist-multiset --output-dir errors

Writes errors.json, errors.md and errors.png. Kinds of wrong episodes: ``wrong label``, a label that was not among the
remaining ones while there were any; otherwise ``early``, it stopped while something remained, or ``late``, it went on when
nothing did. Worst are the episodes with most labels too many or missing, then those most sure of themselves.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from hsal_env.data.glyphs import NUM_CLASSES
from hsal_env.errors import CheckpointError, ConfigError, HSALError

_STOP = NUM_CLASSES
_SIZES_PX = (0, 20, 25, 30, 35, 40, 45, 51, math.inf)
_OVERLAPS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.001)
_PICTURED = 20
_BATCH = 500


@dataclass(frozen=True)
class Args:
    """Break down the errors of a trained agent."""

    agent: Annotated[str, tyro.conf.Positional]
    """a bundled agent's name, or the path of a checkpoint.pt"""
    split: str = "val"
    """train, val or test; look at test errors only when nothing is chosen by them any more"""
    episodes: int = 5_000
    """how many"""
    source: str | None = None
    """mnist or digits; default: as for evaluate_agent.py"""
    data_root: str | None = None
    """where MNIST lies"""
    output_dir: Path = Path("errors")
    """where errors.json, errors.md and errors.png go"""


class Episode(NamedTuple):
    """What the tables are made from.

    Attributes:
        canvas_index: which canvas.
        true, named: label counts ``[C]``.
        kind: ``"right"``, ``"wrong label"``, ``"early"`` or ``"late"``.
        sizes_px: sides of the objects ``[n]``.
        overlaps: of each meta-step that should name an object, the share of its mask in the box most covered.
        hits: whether its label was rewarded.
        confidence: the highest probability of a label that earned -1; 0 without one.
    """

    canvas_index: int
    true: np.ndarray
    named: np.ndarray
    kind: str
    sizes_px: np.ndarray
    overlaps: list[float]
    hits: list[bool]
    confidence: float


def box_share(mask: np.ndarray, box: np.ndarray, canvas_px: int) -> float:
    """Share of a mask ``[H, W]`` that lies in a box (row, col, height, width) in px; cells are bands of the canvas."""

    def covered(start: float, length: float, cells: int) -> np.ndarray:
        edges = np.arange(cells + 1) * canvas_px / cells
        inside = np.minimum(edges[1:], start + length) - np.maximum(edges[:-1], start)
        return inside.clip(min=0) * cells / canvas_px

    weight = np.outer(covered(box[0], box[2], mask.shape[0]), covered(box[1], box[3], mask.shape[1]))
    return float((mask * weight).sum() / mask.sum())


def describe(index: int, steps: list[Any], boxes: np.ndarray, labels: list[int], canvas_px: int) -> Episode:
    """Sort one recorded episode."""
    true, named = np.bincount(labels, minlength=_STOP), np.zeros(_STOP, dtype=np.int64)
    kind, overlaps, hits, wrong = "right", [], [], []
    for step in steps:
        missing = np.maximum(true - named, 0).sum()
        hit = bool(step.reward > 0)
        if missing:
            overlaps.append(max(box_share(step.mask, box, canvas_px) for box in boxes))
            hits.append(hit)
        if not hit:
            wrong.append(step.probability)
            if kind == "right":
                kind = "late" if not missing else ("early" if step.label == _STOP else "wrong label")
        if step.label < _STOP:
            named[step.label] += 1
    return Episode(index, true, named, kind, boxes[:, 2], overlaps, hits, max(wrong, default=0.0))


def tables(episodes: list[Episode]) -> dict[str, Any]:
    """Shares by kind, number, size, class and overlap of mask and box."""
    right = np.array([e.kind == "right" for e in episodes])
    true, named = np.array([e.true for e in episodes]), np.array([e.named for e in episodes])
    objects, smallest = true.sum(1), np.array([e.sizes_px.min() for e in episodes])
    overlaps, hits = np.concatenate([e.overlaps for e in episodes]), np.concatenate([e.hits for e in episodes])
    both = np.minimum(true, named).sum(0)

    def binned(values: np.ndarray, ok: np.ndarray, edges: tuple[float, ...]) -> dict[str, dict[str, float]]:
        out = {}
        for low, high in itertools.pairwise(edges):
            inside = (values >= low) & (values < high)
            if inside.any():
                out[f"{low:g} to {high:.3g}"] = {"cases": int(inside.sum()), "right": float(ok[inside].mean())}
        return out

    return {
        "episodes": len(episodes),
        "by kind": {kind: {"cases": count} for kind, count in Counter(e.kind for e in episodes).most_common()},
        "by number of objects": {
            str(n): {"cases": int((objects == n).sum()), "right": float(right[objects == n].mean())}
            for n in np.unique(objects)
        },
        "by smallest object, px": binned(smallest, right, _SIZES_PX),
        "by label": {
            str(c): {
                "cases": int(true[:, c].sum()),
                "recall": float(both[c] / max(1, true[:, c].sum())),
                "precision": float(both[c] / max(1, named[:, c].sum())),
            }
            for c in range(_STOP)
        },
        "labels by share of the mask in the box most covered": binned(overlaps, hits, _OVERLAPS),
        "mean share, right labels": float(overlaps[hits].mean()) if hits.any() else None,
        "mean share, wrong labels": float(overlaps[~hits].mean()) if not hits.all() else None,
    }


def markdown(found: dict[str, Any], head: str) -> str:
    """The tables for people."""
    lines = [f"# {head}", ""]
    for name, part in found.items():
        if isinstance(part, dict) and part and isinstance(next(iter(part.values())), dict):
            columns = list(next(iter(part.values())))
            lines += ["", f"| {name} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
            for key, row in part.items():
                cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
                lines.append(f"| {key} | {' | '.join(cells)} |")
        else:
            lines += [""] if lines[-1].startswith("|") else []
            lines.append(f"- {name}: {f'{part:.3f}' if isinstance(part, float) else part}")
    return "\n".join(lines) + "\n"


def main(args: Args) -> None:
    """Run the agent, sort its episodes, write.

    Raises:
        ConfigError: fewer than one episode, or an agent trained on images of your own.
        CheckpointError: no such agent, or the folder cannot be written.
    """
    from agents import bundled, load
    from agents.evaluation import evaluation_config, record
    from hsal_env.files import replacing
    from hsal_env.perception.examples import Examples
    from hsal_env.rendering import draw_episodes, save_picture

    if args.episodes < 1:
        raise ConfigError(f"Expected --episodes of at least 1; got {args.episodes}.")
    loaded = load(args.agent)
    env = loaded.env_on(args.split, args.source, args.data_root)
    if env.is_custom:
        raise ConfigError(
            "Errors are broken down by the boxes of the objects, which are unknown of images of your own. Look at "
            "evaluate_agent.py --picture, or pass --source digits for an agent of ten classes."
        )
    config = evaluation_config(env, args.split, args.episodes)
    boxes = Examples(config).compose(np.arange(args.episodes)).boxes
    episodes = []
    for start in tqdm(range(0, args.episodes, _BATCH), desc="record"):
        indices = np.arange(start, min(start + _BATCH, args.episodes))
        for index, (canvas, steps, labels) in zip(indices, record(loaded.agent, config, indices), strict=True):
            episodes.append(describe(int(index), steps, boxes[index][: len(labels)], labels, len(canvas)))
    found = tables(episodes)
    name = args.agent if args.agent in bundled() else "An agent"
    text = markdown(found, f"{name}: {args.episodes} {args.split} canvases of {env.source}, greedy")
    print(text)
    worst = sorted(
        (e for e in episodes if e.kind != "right"),
        key=lambda e: (-np.abs(e.true - e.named).sum(), -e.confidence, e.canvas_index),
    )[:_PICTURED]
    try:
        for name, content in (("errors.json", json.dumps(found, indent=2) + "\n"), ("errors.md", text)):
            with replacing(args.output_dir / name) as path:
                path.write_text(content)
        (args.output_dir / "errors.png").unlink(missing_ok=True)
        if worst:
            picture = draw_episodes(record(loaded.agent, config, np.array([e.canvas_index for e in worst])))
            save_picture(picture, args.output_dir / "errors.png")
    except OSError as error:
        raise CheckpointError(f"Cannot write to {args.output_dir}: {error}.") from error


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except HSALError as error:
        sys.exit(f"error: {error}")
