"""Finished runs, read from their files, and which of them differ only by their seed."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agents import BUNDLED_FOLDER, bundled
from agents.reports.metrics_file import checksum, read_metrics
from agents.reports.paper import TABLE_1
from hsal_env.data.sources import ARGUMENTS
from hsal_env.errors import DataError
from hsal_env.multiset import SCORES
from hsal_env.storage.files import as_path

if TYPE_CHECKING:
    from agents.checkpoint import Loaded
    from hsal_env.config import EnvConfig

_OF_TASK = (*ARGUMENTS, "max_objects", "source", "split", "seed")  # the canvases; other fields are rules
_SVHN_TESTED = 10_000  # photographs; SVHN has 13,068 for testing
_WHERE = ("pointing", "mask_in_box", "focus", "several")
_OF_MACHINE = ("data_root", "images", "output_dir")
_OF_TABLE = ("agent", "trained_on", "min_objects", "max_objects", "max_size_px", "split")  # of hsal-evaluate --json


class FinishedRun(NamedTuple):
    """A finished run.

    Attributes:
        row: the name of its row: the folder that holds its ``seed-N``, or the run's own folder.
        name: the name of the run, which begins with its row.
        metrics: the content of metrics.json; empty for a bundled agent.
        progress: the columns of progress.csv, with None where a row has no number; empty without that file.
        checkpoint: the file of its agent; None: there is none.
    """

    row: str
    name: str
    metrics: dict[str, Any]
    progress: dict[str, list[float | None]]
    checkpoint: Path | None

    @property
    def config(self) -> dict[str, Any]:
        """The settings by flat names, without the seed and without the folders of the machine that ran it."""
        own = {name: self.metrics[name] for name in _OF_TABLE if self.metrics.get(name) is not None}
        settings = self.metrics.get("config", own)
        kept = {name: value for name, value in settings.items() if name != "seed"}
        return {k: v for k, v in flat(kept).items() if k.split("/")[-1] not in _OF_MACHINE}

    @property
    def seed(self) -> int | None:
        """The learner's seed; None: unknown."""
        return self.metrics.get("config", {}).get("seed")

    @property
    def curve(self) -> tuple[str, list[float]]:
        """The unit in which progress.csv counts, and the position of each row, in thousands."""
        if "steps" in self.progress:
            return "steps of its view, thousands", [(value or 0.0) / 1000 for value in self.progress["steps"]]
        batch = self.config.get("learner/batch_size", 1)
        updates = self.progress.get("update", [])
        return "training images, thousands", [(value or 0.0) * batch / 1000 for value in updates]

    @property
    def task(self) -> dict[str, Any]:
        """The settings that say which canvases the run was tested on."""
        of_env = {f"env/{name}" for name in _OF_TASK} | {"env_id", *_OF_TABLE} - {"agent"}
        return {"images": self.metrics.get("source")} | {k: v for k, v in self.config.items() if k in of_env}

    @property
    def method(self) -> dict[str, Any]:
        """The other settings: the agent, and how it learned."""
        task = self.task
        return {name: value for name, value in self.config.items() if name not in task}

    @property
    def paper(self) -> tuple[float, float] | None:
        """(macro-F1, 0-1) of this task in the paper's table 1; None: the table does not have it."""
        config = self.metrics.get("config", {})
        env, algorithm = config.get("env", {}), config.get("learner", {}).get("algorithm")
        learned = "reinforce" if algorithm == "ppo" else algorithm
        if self.metrics.get("source") == "svhn" and env.get("task") == "multiset":
            # the paper tested on all photographs
            tested = sum(part["episodes"] for part in self.metrics.get("test", {}).get("by_count", {}).values())
            return TABLE_1.get(("svhn", learned)) if tested >= _SVHN_TESTED else None
        least, most = env.get("min_objects"), env.get("max_objects") or 4
        sizes = [env.get(name) for name in ("min_size_px", "max_size_px", "canvas_px")]
        if self.metrics.get("source") != "mnist" or (least, most) != (1, 4) or sizes != [20, 50, 100]:
            return None
        return TABLE_1.get((env.get("task"), learned))


def gather(names: Sequence[str]) -> list[FinishedRun]:
    """Read runs.

    Args:
        names: folders of training runs, folders that hold a ``seed-N`` for each run, or names of bundled agents.

    Raises:
        DataError: there is no such run; metrics.json is missing, damaged or without test scores; progress.csv is damaged; or
            a run was named twice.
    """
    runs: list[FinishedRun] = []
    for name in names:
        folder = as_path(name)
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
    """Read one run from its folder.

    Raises:
        DataError: see :func:`gather`.
    """
    path = folder / "metrics.json"
    try:
        metrics, of_progress = read_metrics(path)
        _check(metrics)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds no finished run: {path.name} is missing. Finish it with hsal-train --resume, or "
            "name another folder."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged, or no command of HSAL wrote it: {error!r}. Run it again, or leave it out."
        ) from error
    whole = folder.resolve()
    row = whole.parent.name if whole.name.startswith("seed-") else whole.name
    name = f"{row}/{whole.name}" if whole.name.startswith("seed-") else row
    checkpoint = folder / "checkpoint.pt"
    return FinishedRun(
        row,
        name,
        metrics,
        _progress(folder / "progress.csv", of_progress),
        checkpoint if checkpoint.is_file() else None,
    )


_NUMBER = (int, float)


def _check(metrics: Any) -> None:
    """Hold what a report reads of metrics.json against the types that our commands write.

    Raises:
        KeyError, TypeError, ValueError, OverflowError, RecursionError: it differs.
    """
    if not isinstance(metrics, dict):
        raise TypeError("it holds no table")
    test = metrics["test"]
    _hold(metrics, dict, "test", "blind_guess", "config", "versions")
    _hold(metrics, str, "source")
    _hold(metrics, list, "command")
    _hold(metrics, _NUMBER, "train_seconds", "episodes")
    _ = metrics["source"], [test[name] + 0 for name in SCORES]
    _hold(test, _NUMBER, *SCORES, "attn_saliency", "attn_saliency_ratio", *_WHERE)
    _hold(test, dict, "by_count")
    guess = metrics.get("blind_guess", {})
    _hold(guess, _NUMBER, *SCORES)
    _hold(guess, dict, "mean_counts")
    for part in (test, guess, guess.get("mean_counts", {})):
        _hold(part, _NUMBER, "total_error")
        _hold(part, dict, "count_error")
        if "count_error" in part:
            errors = part["count_error"]
            _hold(errors, dict, "by_class")
            _hold(errors["by_class"], _NUMBER, *errors["by_class"])
            _hold(errors, _NUMBER, "mean")
            _ = errors["mean"] + sum(errors["by_class"].values())
    _ = [guess[name] + 0 for name in SCORES if name in guess]
    for count, part in test.get("by_count", {}).items():
        if not (count.isascii() and count.isdigit() and len(count) < 6):
            raise ValueError(f"by_count tells of {count!r:.40} objects")
        _hold({count: part}, dict, count)
        _hold(part, _NUMBER, "episodes", "exact_match")
        _ = part["episodes"] + 0, part["exact_match"] + 0
    config = metrics.get("config", {})
    _hold(config, dict, "env", "learner")
    _hold(config, int, "seed")
    _hold(config.get("env", {}), str, "task")
    _hold(config.get("learner", {}), str, "algorithm")
    _hold(config.get("learner", {}), _NUMBER, "batch_size")
    _ = flat(metrics)  # it may be nested too deeply


def _hold(part: dict[str, Any], kind: type | tuple[type, ...], *names: str) -> None:
    """Those of ``names`` that ``part`` has are of a kind; numbers are finite, or None where they are unknown."""
    for name in names:
        value = part.get(name)
        unknown = value is None and (name not in part or kind in (int, _NUMBER))
        if not unknown and (not isinstance(value, kind) or isinstance(value, bool)):
            raise TypeError(f"{name} is {value!r:.60}")
        if isinstance(value, int | float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}")


def _progress(path: Path, expected: str | None) -> dict[str, list[float | None]]:
    if not path.exists():
        return {}
    try:
        text = path.read_text()
        if expected not in (None, checksum(text)):
            raise ValueError("it does not match its checksum in metrics.json")
        lines = list(csv.DictReader(io.StringIO(text), strict=True))
        names = list(lines[0]) if lines else []
        if not {"update", "steps"} & set(names):
            raise ValueError("it has neither a column update nor a column steps")
        found = {name: [_number(line[name]) for line in lines] for name in names}
        if any(None in line or None in line.values() for line in lines):
            raise ValueError("a line has another length than the first")
        return found
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path} is damaged: {error}. Delete it to get a report without curves of this run.") from error


def _number(text: str | None) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def group(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Groups of runs that differ only by their seed, in the order of the first run of each."""
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
    """Groups of rows that test one method on different tasks: the numbers of the rows, in the order of the first of each."""
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
    """A name for each row: its folder's name, or its runs' names where several rows share a folder."""
    found = [list(dict.fromkeys(run.row for run in row)) for row in rows]
    often = Counter(name for row in found for name in row)
    return [
        ", ".join(part if all(often[name] == 1 for name in part) else [run.name for run in row])
        for part, row in zip(found, rows, strict=True)
    ]


def of_bundled(run: FinishedRun, loaded: Loaded, env: EnvConfig, episodes: int) -> FinishedRun:
    """The run of the bundled agent ``loaded``, with its scores on test canvases of ``env``, ``episodes`` many."""
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
