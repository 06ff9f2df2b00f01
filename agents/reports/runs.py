"""Finished runs as their files tell of them, and which of them differ by their seed alone."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agents import BUNDLED_FOLDER, bundled
from agents.reports.paper import TABLE_1
from hsal_env.data.sources import ARGUMENTS
from hsal_env.errors import DataError
from hsal_env.multiset import SCORES

if TYPE_CHECKING:
    from agents.checkpoint import Loaded
    from hsal_env.config import EnvConfig

_OF_TASK = (*ARGUMENTS, "max_objects", "source", "split", "seed")  # the canvases; other fields are rules
_SVHN_TESTED = 10_000  # photographs; SVHN has 13,068 for testing
_OF_MACHINE = ("data_root", "images", "output_dir")
_OF_TABLE = ("agent", "trained_on", "min_objects", "max_objects", "max_size_px", "split")  # of hsal-evaluate --json


class FinishedRun(NamedTuple):
    """One run.

    Attributes:
        row: the name of its row: of the folder that holds its ``seed-N``, else its own.
        name: its own, with that of its row.
        metrics: what metrics.json holds; {} of a bundled agent.
        progress: progress.csv by column; None where a row says nothing. {} without the file.
        checkpoint: its agent; None: it is not there.
    """

    row: str
    name: str
    metrics: dict[str, Any]
    progress: dict[str, list[float | None]]
    checkpoint: Path | None

    @property
    def config(self) -> dict[str, Any]:
        """Its settings, flat, less its seed and where files lay on the machine that ran it."""
        own = {name: self.metrics[name] for name in _OF_TABLE if self.metrics.get(name) is not None}
        settings = self.metrics.get("config", own)
        kept = {name: value for name, value in settings.items() if name != "seed"}
        return {k: v for k, v in flat(kept).items() if k.split("/")[-1] not in _OF_MACHINE}

    @property
    def seed(self) -> int | None:
        """Of the learner; None: unknown."""
        return self.metrics.get("config", {}).get("seed")

    @property
    def curve(self) -> tuple[str, list[float]]:
        """What the rows of progress.csv are counted in, and where each stands; in thousands."""
        if "steps" in self.progress:
            return "steps of its view, thousands", [(value or 0.0) / 1000 for value in self.progress["steps"]]
        batch = self.config.get("learner/batch_size", 1)
        updates = self.progress.get("update", [])
        return "training images, thousands", [(value or 0.0) * batch / 1000 for value in updates]

    @property
    def task(self) -> dict[str, Any]:
        """The part of the settings that says what it is tested on."""
        of_env = {f"env/{name}" for name in _OF_TASK} | {"env_id", *_OF_TABLE} - {"agent"}
        return {"images": self.metrics.get("source")} | {k: v for k, v in self.config.items() if k in of_env}

    @property
    def method(self) -> dict[str, Any]:
        """The rest of the settings: who learned, and how."""
        task = self.task
        return {name: value for name, value in self.config.items() if name not in task}

    @property
    def paper(self) -> tuple[float, float] | None:
        """(macro-F1, 0-1) in the paper's table 1, where it has this task."""
        config = self.metrics.get("config", {})
        env, algorithm = config.get("env", {}), config.get("learner", {}).get("algorithm")
        learned = "reinforce" if algorithm == "ppo" else algorithm
        if self.metrics.get("source") == "svhn" and env.get("task") == "multiset":
            # a few hundred photographs are no row of the paper's
            tested = sum(part["episodes"] for part in self.metrics.get("test", {}).get("by_count", {}).values())
            return TABLE_1.get(("svhn", learned)) if tested >= _SVHN_TESTED else None
        least, most = env.get("min_objects"), env.get("max_objects") or 4
        sizes = [env.get(name) for name in ("min_size_px", "max_size_px", "canvas_px")]
        if self.metrics.get("source") != "mnist" or (least, most) != (1, 4) or sizes != [20, 50, 100]:
            return None
        return TABLE_1.get((env.get("task"), learned))


def gather(names: Sequence[str]) -> list[FinishedRun]:
    """The runs of folders: of training runs, or of results with a ``seed-N`` for each run; or bundled agents by name.

    Raises:
        DataError: no such run; metrics.json is missing, damaged or without test scores; progress.csv is damaged; or a run
            was named twice.
    """
    runs: list[FinishedRun] = []
    for name in names:
        folder = Path(name)
        if name in bundled() and not folder.is_dir():
            runs.append(FinishedRun(f"{name} (bundled)", f"{name} (bundled)", {}, {}, BUNDLED_FOLDER / f"{name}.pt"))
            continue
        if not folder.is_dir():
            raise DataError(
                f"No run {name!r}: expected the folder of a training run, a folder with seed-N in it, or a bundled "
                f"agent's name ({', '.join(bundled())})."
            )
        seeds = sorted(filter(Path.is_dir, folder.glob("seed-*")), key=lambda path: (len(path.name), path.name))
        runs += [read(path) for path in ([folder] if (folder / "metrics.json").exists() else seeds or [folder])]
    for number, run in enumerate(runs):
        if any(run.metrics == other.metrics and run.checkpoint == other.checkpoint for other in runs[:number]):
            raise DataError(f"Expected every run once; got {run.name} twice. Leave one out.")
    return runs


def read(folder: Path) -> FinishedRun:
    """One run's folder.

    Raises:
        DataError: see :func:`gather`.
    """
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text())
        if not isinstance(metrics, dict):
            raise TypeError("it holds no table")
        _ = [float(metrics["test"][name]) for name in SCORES]
        _ = [float(part["exact_match"]) for part in metrics["test"].get("by_count", {}).values()]
        _ = metrics["source"], metrics.get("config", {}).items()
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds no finished run: {path.name} is missing. Finish it with hsal-train --resume, or "
            "name another folder."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged, or not written by a command of ours: {error!r}. Run it again, or leave it out."
        ) from error
    whole = folder.resolve()
    row = whole.parent.name if whole.name.startswith("seed-") else whole.name
    name = f"{row}/{whole.name}" if whole.name.startswith("seed-") else row
    checkpoint = folder / "checkpoint.pt"
    return FinishedRun(
        row, name, metrics, _progress(folder / "progress.csv"), checkpoint if checkpoint.is_file() else None
    )


def _progress(path: Path) -> dict[str, list[float | None]]:
    if not path.exists():
        return {}
    try:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file, strict=True))
        names = list(lines[0]) if lines else []
        if not {"update", "steps"} & set(names):
            raise ValueError("neither a column update nor one steps")
        found = {name: [_number(line[name]) for line in lines] for name in names}
        if any(None in line or None in line.values() for line in lines):
            raise ValueError("a line of another length than the first")
        return found
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path} is damaged: {error}. Delete it, and the report has no curves of this run.") from error


def _number(text: str | None) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def group(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Runs whose settings and images are equal but for the seed, together; in the order of the first of each."""
    rows: list[list[FinishedRun]] = []
    for run in runs:
        for row in rows:
            same = (row[0].config, row[0].metrics.get("source")) == (run.config, run.metrics.get("source"))
            if same and run.metrics and row[0].metrics:
                row.append(run)
                break
        else:
            rows.append([run])
    return rows


def methods(rows: Sequence[Sequence[FinishedRun]]) -> list[list[int]]:
    """Which rows are of one method on different tasks: their numbers, together; in the order of the first of each."""
    found: list[list[int]] = []
    for number, (run, *_) in enumerate(rows):
        for part in found:
            firsts = [rows[other][0] for other in part]
            if run.method and firsts[0].method == run.method and all(first.task != run.task for first in firsts):
                part.append(number)
                break
        else:
            found.append([number])
    return found


def names(rows: Sequence[Sequence[FinishedRun]]) -> list[str]:
    """A name for each row: that of its folder where this tells it from the others, else those of its runs."""
    found = [list(dict.fromkeys(run.row for run in row)) for row in rows]
    often = Counter(name for row in found for name in row)
    return [
        ", ".join(part if all(often[name] == 1 for name in part) else [run.name for run in row])
        for part, row in zip(found, rows, strict=True)
    ]


def of_bundled(run: FinishedRun, loaded: Loaded, env: EnvConfig, episodes: int) -> FinishedRun:
    """A bundled agent's run, whose agent is ``loaded``, with scores on so many test canvases of ``env``."""
    from agents import checkpoint
    from agents.evaluation import blind_guess, evaluation_config, score_agent  # torch: not before it is needed

    assert run.checkpoint
    config = evaluation_config(env, "test", episodes)
    settings = checkpoint.read(run.checkpoint)["run"]
    metrics = {
        "source": env.source,
        "episodes": episodes,
        "test": score_agent(loaded.agent, config),
        "blind_guess": blind_guess(env, config),
        "config": {name: settings[name] for name in ("env", "agent_name", "agent", "learner", "seed")},
    }
    return run._replace(metrics=metrics)


def flat(tree: dict[str, Any], head: str = "") -> dict[str, Any]:
    """Nested settings by names like ``"env/glimpses"``; lists as text."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{head}{name}/")
        else:
            found[head + name] = str(value) if isinstance(value, (list, tuple)) else value
    return found
