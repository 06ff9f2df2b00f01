"""Train an algorithm of Stable-Baselines3 on a view that suits it, or the paper's agent by SB3's own loop.

    python train/sb3_agents.py maskable-ppo                     # flat view, action mask
    python train/sb3_agents.py ppo                              # flat view; a forbidden action earns -1
    python train/sb3_agents.py sac                              # option view: the bundled controller glimpses and names
    python train/sb3_agents.py hsal                             # the paper's agent as a policy of RecurrentPPO

The output folder receives model.zip (in SB3's format), progress.csv (validation scores) and metrics.json (test scores). For
comparison, metrics.json also has the scores of a random policy on the same view and of one that says stop at once.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from hsal_env import ENVIRONMENTS
from hsal_env.command_line import run_command
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError
from hsal_env.registration import VIEW_ARGUMENTS
from hsal_env.storage.claims import claim_folder
from hsal_env.storage.files import replacing, write_text, writing


class Setup(NamedTuple):
    """How an algorithm is used here.

    Attributes:
        name: name of its class in stable_baselines3 or sb3_contrib.
        view: the ``action_mode`` that it acts on.
        kwargs: arguments of its constructor, which replace SB3's defaults.
        num_envs: number of lanes.
        env: arguments of the environment.
    """

    name: str
    view: str
    kwargs: dict[str, Any]
    num_envs: int = 64
    env: dict[str, Any] = {}  # noqa: RUF012 - read only


_NET: dict[str, Any] = {"policy_kwargs": {"net_arch": [256, 256]}}
_ON_POLICY = {**_NET, "gamma": 0.9, "ent_coef": 0.01, "learning_rate": 1e-3}
_PPO = {**_ON_POLICY, "n_steps": 64, "batch_size": 512, "n_epochs": 4}
_OPTION = VIEW_ARGUMENTS["option"]
SETUPS = {
    "ppo": Setup("PPO", "flat", _PPO),
    "a2c": Setup("A2C", "flat", {**_ON_POLICY, "n_steps": 8}),
    "dqn": Setup(
        "DQN",
        "flat",
        {
            **_NET,
            "gamma": 0.9,
            "learning_rate": 1e-3,
            "learning_starts": 5_000,
            "buffer_size": 100_000,
            "batch_size": 256,
            "train_freq": 1,
            "gradient_steps": 4,
            "target_update_interval": 2_000,
            "exploration_fraction": 0.3,
        },
    ),
    "maskable-ppo": Setup("MaskablePPO", "flat", _PPO),
    "recurrent-ppo": Setup(
        "RecurrentPPO", "flat", {**_PPO, "policy_kwargs": {"net_arch": [256], "lstm_hidden_size": 128}}
    ),
    "ppo-macro": Setup("PPO", "macro", _PPO),
    "ppo-option": Setup(
        "PPO",
        "option",
        # SB3's default noise is as wide as the Box: rewards would hardly depend on the mask
        {
            **_PPO,
            "learning_rate": 3e-4,
            "ent_coef": 0.0,
            "policy_kwargs": {"net_arch": [256, 256], "log_std_init": -1.5},
        },
        env=_OPTION,
    ),
    "ppo-controller": Setup("MaskablePPO", "controller", _PPO, env=VIEW_ARGUMENTS["controller"]),
    "sac": Setup("SAC", "option", {"gamma": 0.9, "learning_starts": 2_000, "gradient_steps": 8}, 16, _OPTION),
    "td3": Setup("TD3", "option", {"gamma": 0.9, "learning_starts": 2_000, "gradient_steps": 8}, 16, _OPTION),
    "hsal": Setup(
        "RecurrentPPO",
        "packed",
        {
            "gamma": 0.0,
            "gae_lambda": 0.0,
            "ent_coef": 0.03,
            "learning_rate": 2e-3,
            "max_grad_norm": 1.0,
            "n_steps": 20,
            "batch_size": 5_120,
            "n_epochs": 2,
        },
        256,
        {"components": 49},
    ),
}


@dataclass(frozen=True)
class Args:
    """Train an algorithm of Stable-Baselines3."""

    algorithm: Annotated[str, tyro.conf.Positional]
    """ppo, a2c, dqn, maskable-ppo or recurrent-ppo (on the flat view), ppo-macro, ppo-option, ppo-controller, sac or td3 (on the
    option view), or hsal (the paper's agent)"""
    env_id: str = "HSAL-MNISTMultiset-v0"
    """id of the task"""
    timesteps: int = 500_000
    """steps of the view, summed over all lanes"""
    num_envs: int | None = None
    """number of lanes; default: what suits the algorithm"""
    seed: int = 0
    """seed of weights, samples and lanes"""
    source: str | None = None
    """source of the images: auto, mnist, digits, house-numbers or svhn; default: that of the id"""
    data_root: str | None = None
    """folder of the data"""
    num_examples: int | None = None
    """number of training canvases"""
    val_episodes: int = 500
    """number of validation canvases"""
    val_every: int = 50_000
    """steps between two validations"""
    test_episodes: int = 2_000
    """number of test canvases"""
    output_dir: Path | None = None
    """folder for the results; default: runs/ENV-ALGORITHM-SEED-TIME"""


def check(args: Args) -> None:
    """Check the flags.

    Raises:
        ConfigError: an algorithm or id is unknown, or a number is outside its range.
    """
    tasks = [env_id for env_id in ENVIRONMENTS if env_id != "HSAL-Custom-v0"]  # for images of your own use agents.sb3
    for what, value, names in (
        ("algorithm", args.algorithm, [*SETUPS]),
        ("task (the algorithm has its view)", args.env_id, tasks),
    ):
        if value not in names:
            raise ConfigError(f"Unknown {what} {value!r}. Expected one of {', '.join(names)}.")
    if args.num_envs is not None and args.num_envs < 1:
        raise ConfigError(f"Expected --num-envs of at least 1; got {args.num_envs}.")
    for name, least in (("seed", 0), ("timesteps", 1), ("val_episodes", 1), ("val_every", 1), ("test_episodes", 1)):
        if not least <= getattr(args, name) < 1 << 32:
            raise ConfigError(
                f"Expected --{name.replace('_', '-')} of at least {least} and below 2**32; got {getattr(args, name)}."
            )


def main(args: Args) -> None:
    """Train with validation, test, and write the results.

    Raises:
        ConfigError: see :func:`check`; or sb3-contrib is not installed.
        CheckpointError: the folder already holds a run, another process writes in it, or it cannot be written.
    """
    check(args)

    from agents import sb3  # torch: not before --help
    from agents.learning.provenance import resources, versions, without_paths
    from agents.reports.metrics_file import write_metrics
    from agents.reports.tables import format_return
    from agents.sb3 import playing
    from agents.sb3.vec_env import HSALVecEnv, monitored

    setup = SETUPS[args.algorithm]
    playing.find_algorithm(setup.name)  # raises before minutes of work if it is not installed
    name = f"{args.env_id}-{args.algorithm}-{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = args.output_dir or Path("runs") / name
    given = {name: getattr(args, name) for name in ("source", "data_root") if getattr(args, name) is not None}
    task = {"features": "store", **setup.env, **given, "action_mode": setup.view}
    fixed = {k: v for k, v in {**ENVIRONMENTS[args.env_id], **task}.items() if k != "policy"}
    val_episodes, test_episodes = (  # a finite source may hold fewer
        EnvConfig.from_kwargs({**fixed, "split": split, "num_examples": wanted}).size
        for split, wanted in (("val", args.val_episodes), ("test", args.test_episodes))
    )
    _claim = claim_folder(folder)
    if (folder / "metrics.json").exists():
        raise CheckpointError(f"{folder} holds a finished run; choose another --output-dir.")
    write_text(folder / "progress.csv", "")
    started = time.perf_counter()
    num_envs = setup.num_envs if args.num_envs is None else args.num_envs
    env = monitored(args.env_id, num_envs, **task, num_examples=args.num_examples)
    val = HSALVecEnv(args.env_id, min(val_episodes, 250), **task, split="val", num_examples=val_episodes)
    test = HSALVecEnv(args.env_id, min(test_episodes, 250), **task, split="test", num_examples=test_episodes)
    feature_seconds = time.perf_counter() - started
    policy = sb3.HSALPolicy if args.algorithm == "hsal" else None
    model = playing.make_model(setup.name, env, args.seed, setup.kwargs, policy)
    train_seconds = train(model, lambda: playing.score(playing.greedy(model, val), val, val_episodes), args, folder)
    with writing(folder), replacing(folder / "model.zip") as path:
        model.save(path)
    flat = {name: value for name, value in task.items() if name != "policy"} | {"action_mode": "flat"}
    stopping = HSALVecEnv(args.env_id, test.num_envs, **flat, split="test", num_examples=test_episodes)
    not_recorded = ("output_dir", "data_root")
    results = {
        "source": test.env.simulation.examples.source,
        "test": playing.score(playing.greedy(model, test), test, test_episodes),
        "random": playing.score(playing.at_random(test, args.seed), test, test_episodes),
        "stop_at_once": playing.score(playing.stopping(stopping), stopping, test_episodes),
        "steps": model.num_timesteps,
        "train_seconds": train_seconds,
        "feature_seconds": feature_seconds,
        **resources(),
        "config": {
            **{name: value for name, value in dataclasses.asdict(args).items() if name not in not_recorded},
            "setup": setup._asdict(),
        },
        "versions": versions(),
        "command": ["python", "train/sb3_agents.py", *without_paths(sys.argv[1:])],
    }
    for name in ("random", "stop_at_once", "test"):
        print(format_return(name, results[name]))
    write_metrics(folder / "metrics.json", results)
    print(f"Results are in {folder}")


def train(model: Any, validate: Callable[[], dict[str, Any]], args: Args, folder: Path) -> float:
    """Learn, with a row of progress.csv every ``val_every`` steps and at the end. Returns the seconds that it took."""
    from tqdm import tqdm

    from agents.reports.tables import comma_separated

    rows: list[dict[str, float]] = []
    bar = tqdm(total=args.timesteps, desc=args.algorithm, unit="step", unit_scale=True)
    started = time.perf_counter()

    def add_row() -> None:
        scores = validate()
        kept = {f"val/{name}": scores[name] for name in ("mean_return", "exact_match", "macro_f1")}
        rows.append({"steps": model.num_timesteps, "seconds": time.perf_counter() - started, **kept})
        bar.set_postfix(val_return=f"{scores['mean_return']:.2f}", exact_match=f"{scores['exact_match']:.3f}")
        write_text(folder / "progress.csv", comma_separated(rows))

    def every_step(local: dict[str, Any], _: dict[str, Any]) -> bool:
        bar.update(model.num_timesteps - bar.n)
        if model.num_timesteps >= args.val_every * (len(rows) + 1):
            add_row()
        return True

    model.learn(args.timesteps, callback=every_step)
    bar.close()
    seconds = time.perf_counter() - started
    if not rows or rows[-1]["steps"] < model.num_timesteps:
        add_row()
    return seconds


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
