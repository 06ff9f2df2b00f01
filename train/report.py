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
from typing import Annotated

import tyro

from hsal_env.command_line import run_command


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
        ConfigError, DataError, CheckpointError: see :func:`agents.reports.writing.write_report`.
    """
    from agents.reports.writing import Played, write_report

    played = Played(args.episodes, args.split, args.source, args.data_root)
    write_report(args.runs, args.output, played, args.trust_names)
    print(f"The report is in {args.output}")


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
