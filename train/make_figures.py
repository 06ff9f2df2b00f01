"""Draw an agent's episodes like the paper's figures 2 and 12, and animate them.

    python train/make_figures.py mnist-multiset                      # figures/episodes.png and figures/episodes.gif
    python train/make_figures.py runs/x/checkpoint.pt --index 4 17 --format pdf mp4 npz
    python train/make_figures.py mnist-multiset --index 0 2 248 --output-dir docs    # the README's

The formats png, pdf (one page per episode), gif and mp4 hold pictures. npz, csv and parquet hold the traces (docs/traces.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hsal_env.command_line import run_command


@dataclass(frozen=True)
class Args:
    """Draw an agent's episodes."""

    agent: Annotated[str, tyro.conf.Positional]
    """a bundled agent's name, or the path of a checkpoint.pt"""
    output_dir: Path = Path("figures")
    """folder for episodes.png and the other files"""
    format: tuple[Literal["png", "pdf", "gif", "mp4", "npz", "csv", "parquet"], ...] = ("png", "gif")
    """formats of the files"""
    index: tuple[int, ...] = (0, 1, 2)
    """indices of the canvases in the split"""
    split: str = "test"
    """train, val or test; for your own images also all"""
    seed: int = 0
    """seed of the split's canvases"""
    source: str | None = None
    """auto, mnist, digits, house-numbers or svhn; default: the source of the agent's training (digits where MNIST is missing)"""
    data_root: str | None = None
    """folder of the data sets"""
    images: str | None = None
    """folder of your own images and labels.csv; default: the folder that the agent was trained on, if it was trained on one"""
    trust_names: bool = False
    """import and call any package.module:Name that the checkpoint names; only for files of people you trust"""


def main(args: Args) -> None:
    """Record the episodes and write them in every format.

    Raises:
        ConfigError: no canvas or no format was named, or a format needs a package that is not installed.
        DataError: an index lies outside the split.
        CheckpointError: there is no such agent, or the folder cannot be written.
    """
    import dataclasses

    import numpy as np

    from agents import load
    from agents.evaluation import evaluation_config
    from agents.tracing import record
    from hsal_env.errors import ConfigError
    from hsal_env.rendering import draw_traces, save_pdf, save_picture
    from hsal_env.rendering.animation import frames, save_animation
    from hsal_env.storage.files import writing
    from hsal_env.trace import save

    if not args.index or not args.format:
        raise ConfigError("Expected at least one canvas after --index and one format after --format; got none.")
    loaded = load(args.agent, trust=args.trust_names)
    env = loaded.env_on(args.split, args.source, args.data_root, args.images)
    config = dataclasses.replace(evaluation_config(env, args.split, 1, args.seed), num_examples=None, features="lazy")
    traces = record(loaded.agent, config, np.array(args.index))
    writers = {
        "png": lambda path: save_picture(draw_traces(traces), path),
        "pdf": lambda path: save_pdf(traces, path),
        "gif": lambda path: save_animation(frames(traces), path),
        "mp4": lambda path: save_animation(frames(traces), path),
    }
    for suffix in dict.fromkeys(args.format):
        path = args.output_dir / f"episodes.{suffix}"
        with writing(path):
            writers.get(suffix, lambda path: save(traces, path))(path)
        print(path)


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
