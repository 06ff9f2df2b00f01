"""Test a trained agent on held-out canvases and print the table.

python train/evaluate_agent.py mnist-multiset                        # a bundled agent
python train/evaluate_agent.py runs/x/checkpoint.pt --episodes 1000 --json table.json
python train/evaluate_agent.py mnist-multiset --min-objects 6 --max-objects 6 --max-size-px 33
python train/evaluate_agent.py runs/x/checkpoint.pt --images FOLDER --split all  # on your own images
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from hsal_env.command_line import run_command


@dataclass(frozen=True)
class Args:
    """Test a trained agent."""

    agent: Annotated[str, tyro.conf.Positional]
    """a bundled agent's name, the folder of a run, or the path of a checkpoint.pt"""
    split: str = "test"
    """train, val or test; for your own images also all"""
    seed: int = 0
    """seed of the canvases"""
    episodes: int = 10_000
    """number of canvases"""
    source: str | None = None
    """auto, mnist, digits, house-numbers or svhn; default: the source of the agent's training (digits where MNIST is missing)"""
    data_root: str | None = None
    """folder of the data sets"""
    images: str | None = None
    """folder of your own images and what is in them; default: the one that the agent was trained on, if any"""
    min_objects: int | None = None
    """fewest objects in an image; default: as in the agent's training"""
    max_objects: int | None = None
    """most objects in an image; default: as in the agent's training"""
    max_size_px: int | None = None
    """height of the largest digit in px; default: as in the agent's training"""
    json: Path | None = None
    """file for the table as JSON"""
    picture: Path | None = None
    """PNG file for a picture of the first three episodes"""
    trust_names: bool = False
    """import and call any package.module:Name that the checkpoint names; only for files of people you trust"""


def main(args: Args) -> None:
    """Load the agent, test it, print the table, and write the files that were asked for."""
    from agents import bundled, load
    from agents.evaluation import evaluation_config, score_agent
    from agents.learning.provenance import versions
    from agents.reports.metrics_file import write_metrics
    from agents.reports.tables import format_table
    from agents.tracing import record
    from hsal_env.rendering import draw_traces, save_picture
    from hsal_env.storage.files import check_writable_file, writing

    loaded = load(args.agent, trust=args.trust_names)
    changed = {
        name: value
        for name in ("min_objects", "max_objects", "max_size_px")
        if (value := getattr(args, name)) is not None
    }
    env = loaded.env_on(args.split, args.source, args.data_root, args.images, **changed)
    for output in filter(None, (args.json, args.picture)):
        check_writable_file(output)
    config = evaluation_config(env, args.split, args.episodes, args.seed)
    results = {
        "source": env.source,
        "agent": args.agent if args.agent in bundled() else None,
        "trained_on": loaded.source,
        **changed,
        "split": args.split,
        "seed": args.seed,
        "test": score_agent(loaded.agent, config),
        "versions": versions(),
    }
    print(format_table(results))
    if args.json:
        write_metrics(args.json, results)
    if args.picture:
        with writing(args.picture):
            save_picture(draw_traces(record(loaded.agent, config, np.arange(min(3, config.size)))), args.picture)


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
