"""Where attention is needed: the same agents on every saliency map, on more objects than ever seen, and one departure at a time.

    python train/attention_table.py --list                        # the runs and their commands
    python train/attention_table.py --seeds 0 1 2                 # all that are missing; hours
    python train/attention_table.py --only policy/boxes           # those whose name holds these words

Every agent learns from the first 20,000 canvases, so that a run takes minutes. Results are added to
results/attention/attention.json after each run, and what is in it is not run again. make_results.py puts them as tables into
docs/attention.md, once that page is written.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from hsal_env.command_line import require_agents, run_command
from hsal_env.errors import CheckpointError, ConfigError
from hsal_env.storage.files import write_text

sys.path.insert(0, str(Path(__file__).parent))  # commands are run by a script beside this one
require_agents()

from reproduce import run

from agents.reports.statistics import spread

_ROOT = Path(__file__).resolve().parents[1]
_FEW = "--num-examples 20000"
_SET = "--env-id HSAL-MNISTSet-v0"
_WINNER = "--attention-policy winner-take-all --location-policy greedy"
_BROAD = "runs/models/single-classified.pt"
_BROAD_COMMAND = (
    "train/pretrain_perception.py --objects single --objective classify --init compact --num-canvases 12800 --passes 2 "
    f"--output {_BROAD}"
)
AGENTS = {
    "policy": f"{_FEW} --passes 4",
    "policy, exact": f"{_FEW} --passes 4 --estimator exact",
    "policy, sampled": f"{_FEW} --passes 4 --estimator sampled --ent-coef 0.03",
    "deterministic": f"{_FEW} --preset deterministic --passes 4",
    "as printed": f"{_FEW} --preset faithful",
    "winner-take-all": f"{_FEW} --passes 4 {_WINNER}",
    "winner-take-all, printed update": f"{_FEW} --passes 4 --update paper {_WINNER}",
    "uniform glimpses": f"{_FEW} --passes 4 --location-policy uniform",
    "RAM": f"{_FEW} --preset deterministic --passes 4 --agent hsal_ram:RAM",
    "count network": f"{_FEW} --passes 4",
    "count network on columns": f"{_FEW} --passes 4 --head columns",
}
"""The agents, and the flags that make them. The last two are networks without attention (count_network.py)."""
SALIENCY = ("sum-of-squares", "boxes", "itti-koch", "spectral-residual", "centre-prior", "uniform")
TASKS = {
    **{name: f"--saliency {name}" for name in SALIENCY},
    "broad features": f"--activation {_BROAD}",
    "set": _SET,
}
"""The tasks that agents learn: multisets on each saliency map and on features trained to classify; and sets."""
MORE_OBJECTS = (5, 6, 7, 9)
"""How many objects an agent is tested on that has learned on one to four, on sum-of-squares."""
DEPARTURES = {
    "policy": {
        "attention not drawn": "--attention-policy learned",
        "printed update": "--update paper",
        "9 Gaussians": "--components 9",
        "no location prior": "--location-prior 0",
        "no saliency prior": "--saliency-prior 0",
        "no return of the upper level": "--upper-gamma 0",
        "state carried over": "--controller-state carry",
        "location head not detached": "--no-detach-location-head",
    },
    "as printed": {
        "attention drawn, 25 Gaussians": "--attention-policy drawn --components 25",
        "peak update": "--update peak",
        "49 Gaussians on a grid": "--components 49 --attention-init grid",
        "location prior": "--location-prior 30",
        "usual first weights": "--priority-gain 1",
        "one learning rate": "--location-lr-scale 1",
        "exact reward": "--estimator exact",
        "log of the expected success": "--estimator log",
        "return": "--gamma 1",
        "state carried over": "--controller-state carry",
        "location head not detached": "--no-detach-location-head",
        "centred coordinates": "--coordinates centred",
        "unbounded width": "--beta exp",
        "mask divided by its peak": "--mask-scale peak",
        "saliency normalised again": "--renormalise-saliency",
    },
}
"""Each departure from the paper: taken away from the best agent, and added to the printed one. (For the objective see AGENTS.)"""
_MEASURES = ("exact_match", "macro_f1", "pointing", "focus", "several")


class Cell(NamedTuple):
    """One run: an agent trained on a task and tested, or tested again on more objects.

    Attributes:
        agent, task: names of :data:`AGENTS` and of :data:`TASKS`, ``"N objects"`` or a departure.
        trains: the words of the command that trains it, without seed and folder; () if it is another cell's agent.
        tests: the words that test it again, without agent and file.
    """

    agent: str
    task: str
    trains: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Agent and task."""
        return f"{self.agent}/{self.task}"


def cells() -> list[Cell]:
    """All of them, in the order of the page."""
    found = []
    for agent, flags in AGENTS.items():
        counts = agent.startswith("count network")
        script = "train/count_network.py" if counts else "train/ppo_or_reinforce.py"
        for task, more in TASKS.items():
            if counts and task in SALIENCY[1:]:
                continue  # it reads no saliency map
            given = "" if counts and task in SALIENCY else more
            found.append(Cell(agent, task, (script, *shlex.split(f"{flags} {given}"))))
        if not counts:
            found += [
                Cell(
                    agent, f"{n} objects", (), ("--min-objects", str(n), "--max-objects", str(n), "--max-size-px", "33")
                )
                for n in MORE_OBJECTS
            ]
    for agent, switches in DEPARTURES.items():
        for what, flags in switches.items():
            words = shlex.split(f"{AGENTS[agent]} {flags}")
            found.append(Cell(agent, what, ("train/ppo_or_reinforce.py", *words)))
    return found


@dataclass
class Args:
    """Where attention is needed: a table of agents and maps."""

    seeds: tuple[int, ...] = (0,)
    """seeds of the runs"""
    only: str = ""
    """run those whose name, AGENT/TASK, holds these words"""
    list: bool = False
    """print the runs that are missing, and their commands"""
    runs_dir: Path = Path("runs/attention")
    """folder for runs"""
    results: Path = Path("results/attention/attention.json")
    """the file that results are added to"""


def main(args: Args) -> None:
    """Run what is missing.

    Raises:
        ConfigError: no run has such a name, or a command failed.
        CheckpointError: the file of results is damaged or cannot be written.
    """
    chosen = [cell for cell in cells() if args.only in cell.name]
    if not chosen:
        raise ConfigError(f"No run is named like {args.only!r}. --list names them.")
    runs_dir = Path(os.path.relpath(args.runs_dir, _ROOT))  # relative, because runs record their commands
    known = read(args.results)
    missing = [(seed, cell) for seed in args.seeds for cell in chosen if key(cell, seed) not in known]
    if args.list:
        for seed, cell in missing:
            print(f"{cell.name}: python {shlex.join(command(cell, seed, runs_dir))}")
        return
    _let_ram_be_found()
    if any(_BROAD in word for _, cell in missing for word in cell.trains):
        _train_broad_features()
    for seed, cell in tqdm(missing, desc="runs"):
        file = _ROOT / runs_dir / folder_name(cell, seed) / "metrics.json"
        if not file.is_file():
            run(command(cell, seed, runs_dir))
        test = tested(file)
        known = read(args.results)  # another process may have added to it
        known[key(cell, seed)] = test
        write_text(args.results, json.dumps(dict(sorted(known.items())), indent=0) + "\n")


def tested(file: Path) -> dict[str, Any]:
    """The test scores in a metrics.json.

    Raises:
        ConfigError: the run was on other images than MNIST's.
        CheckpointError: the file is damaged.
    """
    from agents.reports.metrics_file import read_metrics

    try:
        metrics = read_metrics(file)[0]
        source, test = metrics["source"], {name: metrics["test"].get(name) for name in _MEASURES}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({error!r}). Delete it and run this again.") from error
    if source != "mnist":
        raise ConfigError(
            f"Expected {file.parent} to be a run on mnist; got {source}. Set HSAL_DATA to a folder that holds MNIST, delete the "
            "run, and run this again."
        )
    return test


def key(cell: Cell, seed: int) -> str:
    """How the file of results names a run."""
    return f"{cell.name}/{seed}"


def folder_name(cell: Cell, seed: int) -> str:
    """The folder of a run below that of all."""
    return f"{cell.name.replace(', ', '-').replace(' ', '-')}/seed-{seed}"


def command(cell: Cell, seed: int, runs_dir: Path) -> list[str]:
    """The words of the command that trains or tests, without the interpreter. ``runs_dir`` is relative to the checkout."""
    folder = runs_dir / folder_name(cell, seed)
    if cell.trains:
        resume = ["--resume"] if (_ROOT / folder / "checkpoint.pt").exists() else []
        return [*cell.trains, "--seed", str(seed), "--output-dir", str(folder), *resume]
    trained = runs_dir / folder_name(cell._replace(task="sum-of-squares"), seed)
    return [
        "train/evaluate_agent.py",
        str(trained),
        *cell.tests,
        "--trust-names",
        "--json",
        str(folder / "metrics.json"),
    ]


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The results so far: of each AGENT/TASK/SEED its measures.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        values = [row[name] for row in found.values() for name in _MEASURES]
        if not all(isinstance(value, int | float | None) for value in values):
            raise TypeError("a measure is no number")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}). Restore it, or delete it and run this again.") from error
    return found


def pages(found: dict[str, dict[str, Any]]) -> dict[str, tuple[list[dict[str, str]], tuple[str, ...]]]:
    """The tables of docs/attention.md: of each its rows and its columns. Numbers are means over the seeds that were run."""

    def of(agent: str, task: str, measure: str) -> list[float]:
        rows = [row for name, row in found.items() if name.rpartition("/")[0] == f"{agent}/{task}"]
        return [row[measure] for row in rows if row[measure] is not None]

    def text(agent: str, task: str, *measures: str) -> str:
        values = [of(agent, task, measure) for measure in measures]
        if not any(values):
            return ""
        if len(values) == 1:
            return spread(values[0])
        return " / ".join(f"{np.mean(value):.2f}" if value else "?" for value in values)

    objects = tuple(f"{n} objects" for n in MORE_OBJECTS)
    agents = [{"agent": agent} for agent in AGENTS]
    departures = [
        {
            "agent": agent,
            "departure": "" if what == "sum-of-squares" else what,
            "0-1": text(agent, what, "exact_match"),
            "focus / several": text(agent, what, "focus", "several"),
        }
        for agent, switches in DEPARTURES.items()
        for what in ("sum-of-squares", *switches)
    ]
    return {
        "scores": (
            [row | {task: text(row["agent"], task, "exact_match") for task in TASKS} for row in agents],
            ("agent", *TASKS),
        ),
        "places": (
            [
                row | {task: text(row["agent"], task, "focus", "several", "pointing") for task in TASKS}
                for row in agents[:-2]
            ],
            ("agent", *TASKS),
        ),
        "objects": (
            [row | {task: text(row["agent"], task, "exact_match") for task in objects} for row in agents[:-2]],
            ("agent", *objects),
        ),
        "departures": (departures, ("agent", "departure", "0-1", "focus / several")),
    }


def _train_broad_features() -> None:
    """Train them, unless that was done."""
    model = _ROOT / _BROAD
    if not model.with_suffix(".json").is_file():  # it is written last
        resume = ["--resume"] if model.with_suffix(".resume.pt").is_file() else []
        run([*shlex.split(_BROAD_COMMAND), *resume])


def _let_ram_be_found() -> None:
    """The package of the agent RAM lies in examples/; it need not be installed."""
    paths = [str(_ROOT / "examples" / "hsal_ram" / "src"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
