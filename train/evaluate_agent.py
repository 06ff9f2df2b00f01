"""Test a trained agent on held-out canvases and print the table.

python train/evaluate_agent.py runs/x/checkpoint.pt --split test --episodes 10000 --json table.json
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from hsal_env.errors import CheckpointError, HSALError


@dataclass(frozen=True)
class Args:
    """Test a trained agent."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """a checkpoint.pt"""
    split: str = "test"
    """train, val or test"""
    seed: int = 0
    """which canvases"""
    episodes: int = 10_000
    """how many"""
    source: str | None = None
    """mnist or digits; default: what the agent was trained on"""
    data_root: str | None = None
    """where MNIST lies"""
    json: Path | None = None
    """also write the table here"""
    picture: Path | None = None
    """also draw the first three episodes here, as PNG"""


def main(args: Args) -> None:
    """Load, test, print, and write."""
    from agents.checkpoint import load
    from agents.evaluation import evaluate, evaluation_config, record
    from agents.report import format_table, versions
    from hsal_env.data import load_glyphs
    from hsal_env.files import replacing
    from hsal_env.rendering import draw_episodes, save_picture

    loaded = load(args.checkpoint)
    source = load_glyphs(args.source or loaded.source, args.split, args.data_root).source  # what "auto" turns out to be
    env = dataclasses.replace(loaded.env, source=source, data_root=args.data_root)
    config = evaluation_config(env, args.split, args.episodes, args.seed)
    results = {
        "source": source,
        "trained_on": loaded.source,
        "split": args.split,
        "seed": args.seed,
        "test": evaluate(loaded.agent, config),
        "versions": versions(),
    }
    print(format_table(results))

    def write_table(path: Path) -> None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n")

    def write_picture(path: Path) -> None:
        save_picture(draw_episodes(record(loaded.agent, config, np.arange(min(3, args.episodes)))), path)

    for path, write in ((args.json, write_table), (args.picture, write_picture)):
        try:
            if path:
                write(path)
        except OSError as error:
            raise CheckpointError(f"Cannot write {path}: {error}.") from error


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except HSALError as error:
        sys.exit(f"error: {error}")
