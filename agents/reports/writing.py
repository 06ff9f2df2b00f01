"""Writing a report: reads the runs, lets their agents play, and makes the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import hsal_env
from agents import checkpoint
from agents.checkpoint import Loaded
from agents.evaluation import evaluation_config
from agents.reports.page import ReportRow, page
from agents.reports.runs import gather, group, names, of_bundled
from agents.tracing import record
from hsal_env.errors import ConfigError
from hsal_env.storage.files import write_text
from hsal_env.trace import Trace

_BATCH = 100


class Played(NamedTuple):
    """What the agents of a report play.

    Attributes:
        episodes: number of canvases; 0: none.
        split: their split.
        source: their source. None: that of the agent's training.
        data_root: folder of the data.
    """

    episodes: int = 1_000
    split: str = "val"
    source: str | None = None
    data_root: str | None = None


def write_report(runs: Sequence[str], output: Path, played: Played, trust: bool = False) -> None:
    """Write the page on ``runs``. The first agent of each row plays, with a progress bar.

    Args:
        runs: folders of runs, folders that hold seed-N, or names of bundled agents.
        output: file of the page.
        played: what they play.
        trust: see :func:`agents.checkpoint.load`.

    Raises:
        ConfigError: no run, a negative number of episodes, or a bundled agent and no episodes.
        DataError: see :func:`agents.reports.runs.gather`.
        CheckpointError: a damaged checkpoint, or the page cannot be written.
    """
    if not runs:
        raise ConfigError("Expected at least one run; got none. Name folders or bundled agents, see --help.")
    if played.episodes < 0:
        raise ConfigError(f"Expected --episodes of at least 0; got {played.episodes}.")
    groups = group(gather(runs))
    rows = []
    for name, members in zip(names(groups), groups, strict=True):
        with_agent = [run for run in members if run.checkpoint]
        traces: list[Trace] = []
        if not played.episodes and not members[0].metrics:
            raise ConfigError(f"{name}: expected --episodes above 0; got 0. The report itself tests a bundled agent.")
        if with_agent and played.episodes:
            first = with_agent[0]
            loaded = checkpoint.load(Path(str(first.checkpoint)), trust=trust)
            if not first.metrics:
                env = loaded.env_on("test", played.source, played.data_root)
                members = [of_bundled(first, loaded, env, played.episodes)]
            traces = _play(loaded, played, name)
        rows.append(ReportRow(name, members, traces, played.split))
    write_text(output, page(rows, hsal_env.__version__))


def _play(loaded: Loaded, played: Played, name: str) -> list[Trace]:
    env = loaded.env_on(played.split, played.source, played.data_root)
    config = evaluation_config(env, played.split, played.episodes)
    traces: list[Trace] = []
    with tqdm(total=config.size, desc=f"record, {name}", unit="episode") as bar:
        for start in range(0, config.size, _BATCH):
            found = record(loaded.agent, config, np.arange(start, min(start + _BATCH, config.size)))
            traces += [trace._replace(states={}) for trace in found]  # the page does not need them, and they are large
            bar.update(len(found))
    return traces
