"""Train the paper's agent: by expected success (the default), REINFORCE, PPO, cross-entropy or the multiset loss.

    python train/ppo_or_reinforce.py                               # MNIST Multiset
    python train/ppo_or_reinforce.py --algorithm ppo --seed 1
    python train/ppo_or_reinforce.py --preset faithful             # the agent and its learning as printed
    python train/ppo_or_reinforce.py --preset deterministic        # attention is a network's output, and learns through the label
    python train/ppo_or_reinforce.py --source digits               # no network needed
    python train/ppo_or_reinforce.py --env-id HSAL-Custom-v0 --images FOLDER --activation package.module:Name
    python train/ppo_or_reinforce.py --resume --output-dir runs/x  # go on where it stopped
    torchrun --nproc-per-node 4 train/ppo_or_reinforce.py          # four processes share every batch

The output folder receives checkpoint.pt, metrics.json, progress.csv, episodes.png and TensorBoard logs.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from hsal_env import ENVIRONMENTS
from hsal_env.command_line import rank, require_agents, run, with_paths
from hsal_env.config import ActionMode, EnvConfig, Features, Forbidden
from hsal_env.data.custom import CustomSplit
from hsal_env.errors import ConfigError
from hsal_env.registration import plain_id
from hsal_env.rules import RewardProtocol

require_agents()

from agents.config import (
    BEST_AGENT,
    BEST_ENV,
    BEST_LEARNER,
    DETERMINISTIC_AGENT,
    DETERMINISTIC_ENV,
    AgentConfig,
    LearnerConfig,
)

if TYPE_CHECKING:
    from agents.learning.distributed import Processes


@dataclass(frozen=True)
class TrainEnv(EnvConfig):
    """The training environment; what the trainer decides itself is hidden from the command line."""

    seed: Annotated[int, tyro.conf.arg(name="data-seed")] = 0
    """picks the canvases; --seed is the learner's"""
    split: tyro.conf.Suppress[CustomSplit] = "train"
    images: str | None = None
    """folder of your own images and what is in them (with --env-id HSAL-Custom-v0), see docs/own-images.md"""
    labels: tyro.conf.Suppress[None] = None
    labels_are: tyro.conf.Suppress[None] = None
    class_names: tyro.conf.Suppress[None] = None
    image_px: int | tuple[int, int] | None = None
    """rows and columns of your own images, or one number for a square; default: the size that all have, or one that suits them"""
    activation: str = "compact"
    """activation model: a name, a model file .pt, or package.module:Name, see docs/perception.md"""
    saliency: str = "sum-of-squares"
    """saliency model: a name, package.module:Name, or file:PATH of maps, see docs/perception.md"""
    features: tyro.conf.Suppress[Features] = "store"
    protocol: tyro.conf.Suppress[RewardProtocol] = "teacher"
    action_mode: tyro.conf.Suppress[ActionMode] = "native"
    forbidden: tyro.conf.Suppress[Forbidden] = "penalise"
    include_image: tyro.conf.Suppress[bool | None] = False
    include_volume: tyro.conf.Suppress[bool | None] = None
    boxes: tyro.conf.Suppress[bool] = False


@dataclass(frozen=True)
class Args:
    """Train an agent and test it on held-out canvases."""

    preset: str = "best"
    """best, deterministic, faithful or tiny: sets the defaults of the other flags"""
    env_id: str = "HSAL-MNISTMultiset-v0"
    """the environment, whose arguments the flags below override"""
    agent_name: Annotated[str, tyro.conf.arg(name="agent")] = "hsal"
    """an installed agent's name, or package.module:Name"""
    seed: int = 0
    """seed of weights, order of images and samples"""
    output_dir: Path | None = None
    """where results go; default: runs/ENV-ALGORITHM-SEED-TIME"""
    resume: bool = False
    """continue from the checkpoint in --output-dir"""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one"""
    val_episodes: int = 2_000
    """validation canvases, tested after every pass"""
    test_episodes: int = 10_000
    """test canvases, tested once at the end"""
    checkpoint_minutes: float = 3.0
    """how often to save; also after every pass"""
    log_every: int = 20
    """updates between two lines of progress.csv and TensorBoard"""
    env: tyro.conf.OmitArgPrefixes[TrainEnv] = field(default_factory=TrainEnv)
    agent: tyro.conf.OmitArgPrefixes[AgentConfig] = field(default_factory=AgentConfig)
    learner: tyro.conf.OmitArgPrefixes[LearnerConfig] = field(default_factory=LearnerConfig)


Defaults = dict[str, dict[str, Any]]  # of the dataclasses above: args, env, agent, learner

_FEW = {"val_episodes": 200, "test_episodes": 200, "log_every": 2}
PRESETS: dict[str, Defaults] = {
    "best": {"env": BEST_ENV, "agent": BEST_AGENT, "learner": {"passes": 4}},
    "deterministic": {"env": DETERMINISTIC_ENV, "agent": DETERMINISTIC_AGENT, "learner": {"passes": 4}},
    "faithful": {
        "agent": {"priority_gain": 24.0, "bfloat16": True},
        "learner": {
            "batch_size": 512,
            "passes": 8,
            "learning_rate": 2e-3,
            "location_lr_scale": 3.0,
            "ent_coef": 0.2,
            "location_ent_coef": 0.05,
            "last_location_ent_coef": 0.01,
        },
    },
    "tiny": {
        "args": _FEW,
        "env": {**BEST_ENV, "num_examples": 512},
        "agent": BEST_AGENT,
        "learner": {"batch_size": 64, "passes": 2},
    },
}
ALGORITHM_DEFAULTS: dict[str, dict[str, Any]] = {
    "reinforce": {**BEST_LEARNER, "passes": 2},
    "ppo": {"ent_coef": 0.03, "learning_rate": 2e-3, "update_epochs": 2, "num_minibatches": 1},
    "cross-entropy": {"learning_rate": 2e-3},
    "multiset-loss": {"learning_rate": 4e-3},
}
"""What suits each algorithm, under every preset but ``faithful``."""
BOTH_DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {("deterministic", "reinforce"): {"meta_lr_scale": 0.3}}
"""What suits an algorithm under one preset alone."""


def parse(argv: list[str]) -> Args:
    """The command line, over the preset's defaults, over the environment id's.

    Raises:
        ConfigError: an unknown preset or id, a value outside its range, or --resume without a folder.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="best")
    first.add_argument("--env-id", "--env_id", default="HSAL-MNISTMultiset-v0", type=plain_id)
    first.add_argument("--algorithm", default="reinforce")
    early, _ = first.parse_known_args(argv)
    for what, value, known in (("preset", early.preset, PRESETS), ("env id", early.env_id, ENVIRONMENTS)):
        if value not in known:
            raise ConfigError(f"Unknown {what} {value!r}. Expected one of {', '.join(known)}.")
    preset = PRESETS[early.preset]
    suited = {} if early.preset == "faithful" else ALGORITHM_DEFAULTS.get(early.algorithm, {})
    suited = suited | BOTH_DEFAULTS.get((early.preset, early.algorithm), {})
    default = Args(
        env=TrainEnv(**{**ENVIRONMENTS[early.env_id], **preset.get("env", {}), "split": "train"}),
        agent=AgentConfig(**preset.get("agent", {})),
        learner=LearnerConfig(**{"algorithm": early.algorithm, **preset["learner"], **suited}),
        **preset.get("args", {}),
    )
    args = with_paths(tyro.cli(Args, default=default, args=argv, console_outputs=rank() == 0))
    args = dataclasses.replace(args, env_id=early.env_id)
    if args.resume and args.output_dir is None:
        raise ConfigError("--resume needs --output-dir, the folder of the run to continue.")
    if args.test_episodes < 1:
        raise ConfigError(f"Expected --test-episodes of at least 1; got {args.test_episodes}.")
    return args


def main(args: Args) -> None:
    """Train, test, and write the results."""
    from agents.learning.distributed import joined  # torch: not before --help

    with joined(args.device) as processes:
        _train(args, processes)


def _train(args: Args, processes: Processes) -> None:
    from agents.learning.provenance import without_paths
    from agents.learning.run import Run, RunConfig

    launcher = ["python"] if processes.count == 1 else ["torchrun", "--nproc-per-node", str(processes.count)]
    name = f"{args.env_id}-{args.learner.algorithm}-{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    config = RunConfig(
        folder=args.output_dir or Path("runs") / name,
        env=EnvConfig(**dataclasses.asdict(args.env)),
        agent_name=args.agent_name,
        agent=args.agent,
        learner=args.learner,
        seed=args.seed,
        device=args.device,
        val_episodes=args.val_episodes,
        log_every=args.log_every,
        command=[*launcher, "train/ppo_or_reinforce.py", *without_paths(sys.argv[1:])],
    )
    training = Run(config, args.resume, processes)
    training.train(args.checkpoint_minutes)
    if processes.leads:
        training.test(args.test_episodes)


def cli() -> None:
    """Run on the command line's words."""
    line = "interrupted; continue with --resume and the same --output-dir"
    run(main, lambda: parse(sys.argv[1:]), line)


if __name__ == "__main__":
    cli()
