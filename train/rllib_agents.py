"""Train RLlib's PPO on a view of the environment, on this machine or on a Ray cluster.

    python train/rllib_agents.py                                        # flat view, action mask
    python train/rllib_agents.py --view multi-agent                     # a policy for each of the two levels
    python train/rllib_agents.py --num-env-runners 2                    # two processes play
    python train/rllib_agents.py --num-env-runners 32 --address auto    # the same on the cluster that this machine is part of

The output folder receives checkpoint/ (in RLlib's format), progress.csv (a row per iteration) and metrics.json (test scores). For
comparison, metrics.json also has the scores of a random policy on the same view and of one that says stop at once. This command
needs ray: pip install "hsal[rllib]".
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hsal_env import ENVIRONMENTS
from hsal_env.command_line import run_command
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError
from hsal_env.fields import check_at_most
from hsal_env.registration import VIEW_ARGUMENTS
from hsal_env.storage.claims import claim_folder
from hsal_env.storage.files import creating_folder, write_text, writing

VIEWS: dict[str, dict[str, Any]] = {"flat": {}, "multi-agent": {}, **VIEW_ARGUMENTS}
"""The views to train on, with the arguments that each needs of the environment."""


@dataclass(frozen=True)
class Args:
    """Train RLlib's PPO."""

    view: str = "flat"
    """flat, multi-agent (a policy for each level), option, controller or macro"""
    env_id: str = "HSAL-MNISTMultiset-v0"
    """id of the task"""
    address: str | None = None
    """address of a Ray cluster, or auto for the cluster of this machine; default: a small cluster is started here"""
    iterations: int = 50
    """number of iterations of sampling and learning"""
    num_env_runners: int = 0
    """number of processes that play; 0: the learner plays itself"""
    num_envs: int = 16
    """number of environments that each process plays at once"""
    train_batch_size: int = 4_096
    """steps in an iteration, summed over all environments"""
    minibatch_size: int = 512
    """steps in a minibatch of a gradient step"""
    seed: int = 0
    """seed of weights, samples and environments"""
    source: str | None = None
    """source of the images: auto, mnist, digits, house-numbers or svhn; default: that of the id"""
    data_root: str | None = None
    """folder of the data, on every machine"""
    num_examples: int | None = None
    """number of training canvases"""
    test_episodes: int = 500
    """number of test canvases"""
    output_dir: Path | None = None
    """folder for the results; default: runs/ENV-rllib-VIEW-SEED-TIME"""


def check(args: Args) -> None:
    """Check the flags.

    Raises:
        ConfigError: a view or id is unknown, or a number is outside its range.
    """
    if args.view not in VIEWS or args.env_id not in ENVIRONMENTS:
        raise ConfigError(
            f"Expected a view of {', '.join(VIEWS)} and an id of {', '.join(ENVIRONMENTS)}; got {args.view!r} and "
            f"{args.env_id!r}."
        )
    least = {"iterations": 1, "num_env_runners": 0, "num_envs": 1, "minibatch_size": 1, "seed": 0, "test_episodes": 1}
    for name, bound in {**least, "train_batch_size": args.minibatch_size}.items():
        if getattr(args, name) < bound:
            raise ConfigError(f"Expected --{name.replace('_', '-')} of at least {bound}; got {getattr(args, name)}.")
    check_at_most(args, **dict.fromkeys((*least, "train_batch_size"), (1 << 32) - 1))


def main(args: Args) -> None:
    """Train, test, and write the results.

    Raises:
        ConfigError: see :func:`check`; or no cluster answers at the address; or ray is not installed.
        CheckpointError: the folder already holds a run, another process writes in it, or it cannot be written.
    """
    check(args)
    try:
        from agents import rllib  # torch: not before --help
    except ImportError as error:
        raise ConfigError(f'{error}. This command needs ray: pip install "hsal[rllib]".') from error
    from agents.learning.provenance import resources, versions, without_paths
    from agents.reports.metrics_file import write_metrics
    from agents.reports.tables import format_return

    name = f"{args.env_id}-rllib-{args.view}-{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = args.output_dir or Path("runs") / name
    given = {name: getattr(args, name) for name in ("source", "data_root") if getattr(args, name) is not None}
    task = {"features": "store", **given}
    training = {**VIEWS[args.view], **task, "num_examples": args.num_examples}
    held_out = {**task, "split": "test", "num_examples": args.test_episodes}
    # a finite source may hold fewer
    test_episodes = EnvConfig.from_kwargs({**ENVIRONMENTS[args.env_id], **held_out}).size

    results: dict[str, Any] = {}
    with rllib.session(args.address, num_cpus=max(2, args.num_env_runners + 1)):
        _claim = claim_folder(folder)
        if (folder / "metrics.json").exists() or (folder / "checkpoint").exists():
            raise CheckpointError(f"{folder} holds a finished run; choose another --output-dir.")
        write_text(folder / "progress.csv", "")
        started = time.perf_counter()
        rllib.make_env(
            args.env_id, args.view, training
        ).close()  # computes the features once, for all processes of this machine
        test = rllib.make_env(args.env_id, args.view, {**VIEWS[args.view], **held_out})
        flat = rllib.make_env(args.env_id, "flat", held_out)
        results["feature_seconds"] = time.perf_counter() - started
        for name, env, choose in (
            ("random", test, rllib.at_random(test, args.seed)),
            ("stop_at_once", flat, rllib.stopping(flat)),
        ):
            results[name] = rllib.score(env, choose, test_episodes)
            print(format_return(name, results[name]))
        sizes = {"train_batch_size_per_learner": args.train_batch_size, "minibatch_size": args.minibatch_size}
        config = rllib.ppo_config(
            args.env_id, args.view, training, args.num_env_runners, args.num_envs, args.seed, **sizes
        )
        algorithm = config.build_algo()
        results["steps"], results["train_seconds"] = train(algorithm, rllib.train_once, args.iterations, folder)
        results["test"] = rllib.score(test, rllib.greedy(algorithm, test), test_episodes)
        print(format_return("test", results["test"]))
        with writing(folder), creating_folder(folder / "checkpoint") as path:
            algorithm.save_to_path(path.absolute())
        algorithm.stop()
    not_recorded = ("output_dir", "data_root")
    results |= {
        "source": next(iter(test.reset()[1].values()))["source"],
        **resources(),
        "config": {name: value for name, value in dataclasses.asdict(args).items() if name not in not_recorded},
        "versions": {**versions(), "ray": version("ray")},
        "command": ["python", "train/rllib_agents.py", *without_paths(sys.argv[1:])],
    }
    write_metrics(folder / "metrics.json", results)
    print(f"Results are in {folder}")


def train(
    algorithm: Any, train_once: Callable[[Any], dict[str, float]], iterations: int, folder: Path
) -> tuple[float, float]:
    """Learn, with a row of progress.csv and a line after every iteration. Returns the steps and the seconds."""
    from agents.reports.tables import comma_separated

    rows: list[dict[str, float]] = []
    started = time.perf_counter()
    for iteration in range(1, iterations + 1):
        row = train_once(algorithm)
        rows.append({"iteration": iteration, "seconds": time.perf_counter() - started, **row})
        write_text(folder / "progress.csv", comma_separated(rows))
        mean = "no episode ended" if math.isnan(row["mean_return"]) else f"mean return {row['mean_return']:.3f}"
        print(f"iteration {iteration}/{iterations}: {row['steps']:,} steps, {mean}", flush=True)
    return row["steps"], time.perf_counter() - started


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
