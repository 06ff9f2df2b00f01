"""A report on training runs: one HTML page, which opens without a network.

    python train/report.py runs/mine
    python train/report.py results/mnist-multiset results/mnist-multiset-faithful --output compared.html
    python train/report.py mnist-multiset --episodes 200  # a bundled agent

Runs that differ only by their seed share a row. If a row has an agent, the page also shows its errors, its scan paths, and its
best, typical and worst episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hsal_env.command_line import run_command
from hsal_env.errors import ConfigError

if TYPE_CHECKING:
    from agents.checkpoint import Loaded
    from hsal_env.trace import Trace

_BATCH = 100


@dataclass(frozen=True)
class Args:
    """Write a report on training runs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """folders of runs, folders that hold seed-N, or names of bundled agents"""
    output: Path = Path("report.html")
    """file of the page"""
    episodes: int = 1_000
    """canvases that the first agent of each row plays for the page; 0: none"""
    split: str = "val"
    """split of these canvases; use test only after all choices are made"""
    source: str | None = None
    """auto, mnist, digits, house-numbers or svhn; default: the source of the agent's training (digits where MNIST is missing)"""
    data_root: str | None = None
    """folder of the data sets"""
    trust_names: bool = False
    """import and call any package.module:Name that the checkpoint names; only for files of people you trust"""


def main(args: Args) -> None:
    """Read the runs, let their agents play, and write the page.

    Raises:
        ConfigError: no run, a negative number of episodes, or a bundled agent and no episodes.
        DataError: see :func:`agents.reports.runs.gather`.
        CheckpointError: a damaged checkpoint, or the page cannot be written.
    """
    import hsal_env
    from agents import checkpoint
    from agents.reports.page import ReportRow, page
    from agents.reports.runs import gather, group, names, of_bundled
    from hsal_env.storage.files import write_text

    if not args.runs:
        raise ConfigError("Expected at least one run; got none. Name folders or bundled agents, see --help.")
    if args.episodes < 0:
        raise ConfigError(f"Expected --episodes of at least 0; got {args.episodes}.")
    groups = group(gather(args.runs))
    rows = []
    for name, runs in zip(names(groups), groups, strict=True):
        with_agent = [run for run in runs if run.checkpoint]
        traces: list[Trace] = []
        if not args.episodes and not runs[0].metrics:
            raise ConfigError(f"{name}: expected --episodes above 0; got 0. The report itself tests a bundled agent.")
        if with_agent and args.episodes:
            first = with_agent[0]
            loaded = checkpoint.load(Path(str(first.checkpoint)), trust=args.trust_names)
            if not first.metrics:
                runs = [of_bundled(first, loaded, loaded.env_on("test", args.source, args.data_root), args.episodes)]
            traces = play(loaded, args, name)
        rows.append(ReportRow(name, runs, traces, args.split))
    write_text(args.output, page(rows, hsal_env.__version__))
    print(f"The report is in {args.output}")


def play(loaded: Loaded, args: Args, name: str) -> list[Trace]:
    """Record an agent's episodes, with a progress bar."""
    import numpy as np
    from tqdm import tqdm

    from agents.evaluation import evaluation_config
    from agents.tracing import record

    config = evaluation_config(loaded.env_on(args.split, args.source, args.data_root), args.split, args.episodes)
    traces: list[Trace] = []
    with tqdm(total=config.size, desc=f"record, {name}", unit="episode") as bar:
        for start in range(0, config.size, _BATCH):
            found = record(loaded.agent, config, np.arange(start, min(start + _BATCH, config.size)))
            traces += [trace._replace(states={}) for trace in found]  # the page does not need them, and they are large
            bar.update(len(found))
    return traces


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
