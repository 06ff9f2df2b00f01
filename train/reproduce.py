"""Run any row of the results table again.

    python train/reproduce.py --list
    python train/reproduce.py mnist-multiset                 # all seeds of the row
    python train/reproduce.py mnist-multiset --seeds 3 4     # other seeds
    python train/reproduce.py svhn-multiset                  # trains its activation model first; needs SVHN

Each seed runs one command, whose run goes to runs/ROW/seed-N. An interrupted run is resumed, and a finished one is left as it
is. The run's metrics.json and progress.csv are copied to results/ROW/seed-N. Some rows need an activation model that the package
does not hold. It is trained first, into runs/models, once for all rows that use it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from hsal_env.command_line import run_command
from hsal_env.errors import CheckpointError, ConfigError
from hsal_env.storage.files import Terminated, write_text

_ROOT = Path(__file__).resolve().parents[1]


_EVALUATE = "evaluate_agent.py"
OWN_IMAGES = "own_images.py"
LEARNERS = "sb3_agents.py"
"""The scripts of the rows of photographs, and of other learners. These rows have their own tables."""


class Row(NamedTuple):
    """A row of the results table.

    Attributes:
        what: a short description.
        flags: the flags of its command, the same for every seed.
        seeds: the seeds that the command runs. The table shows the seeds that results/ holds.
        script: the name of its script in train/.
        source: the source that its images must come from. Without MNIST a script goes on with digits.
        model: the key in :data:`MODELS` of the activation model that must be trained first; None: the row needs none.
        folder: where $HSAL_DATA holds the photographs of own_images.py.
    """

    what: str
    flags: str = ""
    seeds: tuple[int, ...] = (0,)
    script: str = "ppo_or_reinforce.py"
    source: str = "mnist"
    model: str | None = None
    folder: str | None = None

    def command(self, seed: int, runs_dir: Path = Path("runs"), data_root: str | Path = "DATA") -> list[str]:
        """The command for one seed, without the interpreter and without the folder of its output."""
        seeded = [] if self.script == _EVALUATE else ["--seed", str(seed)]
        activation = ["--activation", str(model_file(self.model, runs_dir))] if self.model else []
        photographs = [str(Path(data_root, self.folder))] if self.folder else []
        return [f"train/{self.script}", *photographs, *shlex.split(self.flags), *activation, *seeded]

    @property
    def last(self) -> str:
        """The file that a run of it writes last."""
        return "report.html" if self.folder else "metrics.json"


def model_file(name: str, runs_dir: Path = Path("runs")) -> Path:
    """The file of a model of :data:`MODELS`."""
    return runs_dir / "models" / f"{name}.pt"


def model_command(name: str, runs_dir: Path = Path("runs")) -> list[str]:
    """The command that trains a model of :data:`MODELS`, without the interpreter."""
    return ["train/pretrain_perception.py", *shlex.split(MODELS[name]), "--output", str(model_file(name, runs_dir))]


_SVHN_RESNET = (
    "--objects svhn --canvas-px 224 --architecture resnet34 --batch-size 64 --num-canvases 30000 --learning-rate 5e-4"
)
MODELS = {
    "svhn-resnet34": f"{_SVHN_RESNET} --passes 12",
    "svhn-resnet34-faithful": f"{_SVHN_RESNET} --passes 12 --objective classify",
    "mnist-resnet34-faithful": (
        "--objects single --architecture resnet34 --objective classify --batch-size 64 --learning-rate 5e-4 --passes 2"
    ),
    "svhn-2000": (
        "--objects svhn --augment upright --init compact-house-numbers --deeper 1 --batch-size 64 --warp-px 0 "
        "--learning-rate 2e-3 --passes 20 --num-canvases 4096"
    ),
}
"""Activation models that the package does not hold, and the flags of pretrain_perception.py that train them."""


_DETERMINISTIC = "--preset deterministic"
_TEN = "--env-id HSAL-MNISTMultiset10-v0"
_SET = "--env-id HSAL-MNISTSet-v0"
_CROWDED = f"{_TEN} {_DETERMINISTIC} --min-size-px 12 --num-examples 15000"
_HOUSE = "--env-id HSAL-HouseNumbersMultiset-v0"
_SVHN = "--env-id HSAL-SVHNMultiset-v0"
_SVHN_PART = f"{_SVHN} --extra --augment upright"
_WINNER = "--attention-policy winner-take-all --location-policy greedy"
_SALIENCY = {
    "boxes": "of the true objects",
    "itti-koch": "by Itti, Koch and Niebur",
    "spectral-residual": "by Hou and Zhang",
    "centre-prior": "high in the middle",
    "uniform": "alike everywhere, but in a corner",
}
"""The saliency models with rows of their own, and what each is."""
_TEN_SEEDS = tuple(range(10))
ROWS = {
    "mnist-multiset": Row("drawn attention, expected success (log)", "", _TEN_SEEDS),
    "mnist-set": Row("drawn attention, expected success (log)", _SET, (0, 1, 2)),
    "mnist-multiset-deterministic": Row("deterministic attention, expected success (log)", _DETERMINISTIC, _TEN_SEEDS),
    "mnist-set-deterministic": Row(
        "deterministic attention, expected success (log)", f"{_SET} {_DETERMINISTIC}", (0, 1, 2)
    ),
    "mnist-multiset-cross-entropy": Row(
        "cross-entropy, shuffled order", f"{_DETERMINISTIC} --algorithm cross-entropy", (0, 1, 2)
    ),
    "mnist-set-cross-entropy": Row(
        "cross-entropy, shuffled order", f"{_SET} {_DETERMINISTIC} --algorithm cross-entropy"
    ),
    "mnist-multiset-faithful": Row("REINFORCE (sampled) as printed, on our features", "--preset faithful"),
    "mnist-set-faithful": Row("REINFORCE (sampled) as printed, on our features", f"{_SET} --preset faithful"),
    "mnist-multiset-faithful-cross-entropy": Row(
        "cross-entropy as printed, on our features", "--preset faithful --algorithm cross-entropy"
    ),
    "mnist-multiset-single-features": Row("features of single objects only", "--activation compact-single"),
    "mnist-multiset-ppo": Row("PPO", "--algorithm ppo"),
    "mnist-multiset-leaky": Row("test digits also in training canvases", f"{_DETERMINISTIC} --glyphs paper"),
    "mnist-multiset-4": Row("always 4 objects", f"{_DETERMINISTIC} --min-objects 4"),
    "mnist-multiset-10": Row("10 objects of 20 px", f"{_TEN} {_DETERMINISTIC}"),
    **{
        f"{agent}-on-{number}": Row(
            f"the agent for 1 to 4 objects, on {number}",
            f"{agent} --min-objects {number} --max-objects {number} --max-size-px 33",
            (0,),
            _EVALUATE,
        )
        for agent in ("mnist-multiset", "mnist-multiset-deterministic")
        for number in (5, 6, 7, 9)
    },
    "digits-multiset": Row("scikit-learn's digits", "--source digits", _TEN_SEEDS, source="digits"),
    "digits-multiset-deterministic": Row(
        "the same, deterministic attention", f"{_DETERMINISTIC} --source digits", _TEN_SEEDS, source="digits"
    ),
    "control-uniform-glimpses": Row("glimpses drawn uniformly", f"{_DETERMINISTIC} --location-policy uniform"),
    "control-winner-take-all": Row("masks on the most salient cell, glimpses on the peak of P", _WINNER, (0, 1, 2)),
    "control-winner-take-all-paper-update": Row(
        "the same, the saliency map updated as printed", f"{_DETERMINISTIC} {_WINNER}"
    ),
    "control-no-update": Row("saliency map never updated", f"{_DETERMINISTIC} --update none"),
    "control-no-glimpses": Row("covert glimpse only, k = 0", f"{_DETERMINISTIC} --glimpses 0"),
    **{
        f"saliency-{name}{ending}": Row(
            f"saliency {what}{', ' if how else ''}{how}", f"{flags} --saliency {name}".strip(), (0, 1, 2)
        )
        for name, what in _SALIENCY.items()
        for ending, how, flags in (
            ("", "", ""),
            ("-deterministic", "deterministic attention", _DETERMINISTIC),
            ("-winner-take-all", "winner-take-all", _WINNER),
        )
    },
    "rival-multiset-loss": Row("supervised by the multiset loss", f"{_DETERMINISTIC} --algorithm multiset-loss"),
    "rival-ram": Row("RAM, the package in examples/hsal_ram, installed", f"{_DETERMINISTIC} --agent hsal_ram:RAM"),
    "rival-count-network": Row("counts read off V, three layers", script="count_network.py", seeds=(0, 1, 2)),
    "rival-count-columns": Row(
        "counts read off the columns of V, three layers", "--head columns", (0, 1, 2), "count_network.py"
    ),
    "rival-count-network-set": Row("counts read off V, three layers", _SET, (0, 1, 2), "count_network.py"),
    "rival-count-columns-set": Row(
        "counts read off the columns of V, three layers", f"{_SET} --head columns", (0, 1, 2), "count_network.py"
    ),
    "crowded-7x7": Row("10 objects of 12 to 20 px, 7x7 cells", f"{_CROWDED} --activation compact-crowded"),
    "crowded-lower-level": Row(
        "the same, columns with lower-level activations", f"{_CROWDED} --activation compact-crowded-lower-level"
    ),
    "crowded-14x14": Row("the same, 14x14 cells", f"{_CROWDED} --activation compact-crowded-14x14"),
    "crowded-28x28": Row("the same, 28x28 cells", f"{_CROWDED} --activation compact-crowded-28x28"),
    "house-numbers": Row(
        "expected success (log) on synthetic house numbers",
        _HOUSE,
        _TEN_SEEDS,
        source="house-numbers",
    ),
    "house-numbers-deterministic": Row(
        "the same, deterministic attention",
        f"{_HOUSE} {_DETERMINISTIC}",
        _TEN_SEEDS,
        source="house-numbers",
    ),
    "house-numbers-cross-entropy": Row(
        "cross-entropy on synthetic house numbers",
        f"{_HOUSE} {_DETERMINISTIC} --algorithm cross-entropy",
        (0, 1, 2),
        source="house-numbers",
    ),
    "svhn": Row(
        "photographs: 2,000 and 6,602 to learn from, 4,421 to test on",
        _SVHN_PART,
        (0, 1, 2),
        source="svhn",
    ),
    "svhn-cross-entropy": Row(
        "cross-entropy, the same photographs",
        f"{_SVHN_PART} {_DETERMINISTIC} --algorithm cross-entropy",
        (0, 1, 2),
        source="svhn",
    ),
    "svhn-2000": Row(
        "features and agent from the 2,000 alone",
        f"{_SVHN} --augment upright",
        (0, 1, 2),
        source="svhn",
        model="svhn-2000",
    ),
    **{
        name: Row(what, flags, (0, 1, 2), OWN_IMAGES, "custom", folder=f"photographs/{name.replace('-', '_')}")
        for name, what, flags in (
            ("dice", "1 to 5 dice, by the pips on top", ""),
            ("handwritten-amounts", "amounts of 1 to 7 handwritten digits", ""),
            ("blood-cells", "1 to 30 blood cells of three kinds", "--output-stride 16"),
        )
    },
    "svhn-multiset": Row(
        "expected success (log), ResNet-34 that counts",
        f"{_SVHN} --canvas-px 224",
        (0, 1, 2),
        source="svhn",
        model="svhn-resnet34",
    ),
    "svhn-multiset-cross-entropy": Row(
        "cross-entropy, ResNet-34 that counts",
        f"{_SVHN} --canvas-px 224 {_DETERMINISTIC} --algorithm cross-entropy",
        (0, 1, 2),
        source="svhn",
        model="svhn-resnet34",
    ),
    "svhn-multiset-faithful": Row(
        "REINFORCE (sampled) and ResNet-34 as printed",
        f"{_SVHN} --canvas-px 224 --preset faithful",
        source="svhn",
        model="svhn-resnet34-faithful",
    ),
    "mnist-multiset-resnet34": Row(
        "REINFORCE (sampled) and ResNet-34 as printed", "--preset faithful", (0, 1, 2), model="mnist-resnet34-faithful"
    ),
    "sb3-ppo": Row("PPO, flat view", "ppo", (0, 1, 2), LEARNERS),
    "sb3-maskable-ppo": Row("PPO with action mask, flat view", "maskable-ppo", (0, 1, 2), LEARNERS),
    "sb3-recurrent-ppo": Row("PPO with LSTM, flat view", "recurrent-ppo", script=LEARNERS),
    "sb3-a2c": Row("A2C, flat view", "a2c", script=LEARNERS),
    "sb3-dqn": Row("DQN, flat view", "dqn", script=LEARNERS),
    "sb3-ppo-macro": Row("PPO, macro view", "ppo-macro --timesteps 200000", script=LEARNERS),
    "sb3-ppo-controller": Row("PPO with action mask, controller view", "ppo-controller", script=LEARNERS),
    "sb3-ppo-option": Row("PPO, option view", "ppo-option --timesteps 100000 --val-every 10000", script=LEARNERS),
    "sb3-sac": Row("SAC, option view", "sac --timesteps 20000 --val-every 2000", script=LEARNERS),
    "sb3-td3": Row("TD3, option view", "td3 --timesteps 20000 --val-every 2000", script=LEARNERS),
    "sb3-hsal": Row(
        "the paper's agent in RecurrentPPO", "hsal --timesteps 200000 --val-every 20000", (0, 1, 2), LEARNERS
    ),
}


@dataclass
class Args:
    """Run a row of the results table again."""

    row: Annotated[str | None, tyro.conf.Positional] = None
    """name of the row"""
    list: bool = False
    """print the rows and their commands"""
    seeds: tuple[int, ...] = ()
    """seeds to run; default: the seeds of the table"""
    runs_dir: Path = Path("runs")
    """folder for runs"""
    results_dir: Path = Path("results")
    """folder for metrics.json and progress.csv"""


def main(args: Args) -> None:
    """List the rows, or run one.

    Raises:
        ConfigError: there is no such row, seeds were given for a bundled agent, a command failed, or it ran on other data
            than the row's.
        CheckpointError: a metrics.json is damaged, or the results folder cannot be written.
    """
    from agents.reports.metrics_file import read_metrics

    if args.list:
        for name, row in ROWS.items():
            print(f"{name}: {row.what}")
            commands = [*([model_command(row.model)] if row.model else []), row.command(row.seeds[0])]
            print("\n".join(f"    python {shlex.join(command)}" for command in commands))
        return
    if args.row not in ROWS:
        raise ConfigError(f"Unknown row {args.row!r}. Expected one of {', '.join(ROWS)}.")
    if args.seeds and ROWS[args.row].script == _EVALUATE:
        raise ConfigError(f"{args.row} tests a bundled agent, which has only one seed. Leave out --seeds.")
    row, runs_dir = (
        ROWS[args.row],
        Path(os.path.relpath(args.runs_dir, _ROOT)),
    )  # relative, because runs record their commands
    if row.model and not (_ROOT / model_file(row.model, runs_dir)).with_suffix(".json").exists():  # written last
        run(model_command(row.model, runs_dir))
    data_root = Path(os.environ.get("HSAL_DATA", ".")).resolve()
    if row.folder and not (data_root / row.folder).is_dir():
        raise ConfigError(f"{args.row} needs a folder {row.folder} of photographs in the folder that $HSAL_DATA names.")
    for seed in args.seeds or row.seeds:
        folder = args.runs_dir / args.row / f"seed-{seed}"
        if not (folder / row.last).exists():
            resume = ["--resume"] if any((folder / name).exists() for name in ("checkpoint.pt", "features.pt")) else []
            places = ["--output-dir", str(folder.resolve()), *resume]
            if row.script == _EVALUATE:
                places = ["--json", str((folder / "metrics.json").resolve())]
            run([*row.command(seed, runs_dir, data_root), *places])
        try:
            source = read_metrics(folder / "metrics.json")[0]["source"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{folder / 'metrics.json'} is damaged ({error!r}). Delete it and run this again."
            ) from error
        if source != row.source:
            raise ConfigError(
                f"Expected {folder} to be a run on {row.source}; got {source}. It is not copied to {args.results_dir}. Set "
                "HSAL_DATA to a folder that holds the data, delete the run, and run this again."
            )
        for name in ("metrics.json", "progress.csv"):
            if (folder / name).exists():
                write_text(args.results_dir / args.row / f"seed-{seed}" / name, (folder / name).read_text())


def run(command: list[str]) -> None:
    """Run one of our scripts.

    Raises:
        ConfigError: it failed.
    """
    with subprocess.Popen([sys.executable, *command], cwd=_ROOT) as process:
        try:
            status = process.wait()
        except Terminated:
            process.terminate()  # it removes its temporary files; of Ctrl-C it hears itself
            raise
    if status:
        raise ConfigError(
            f"The command failed; its message is above. Run this again to go on: python {shlex.join(command)}"
        )


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
