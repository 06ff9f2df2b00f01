"""A rival without attention: a supervised network that predicts the ten counts from the activation volume at once.

    python train/count_network.py                  # three layers over the whole volume
    python train/count_network.py --head columns   # three layers over each column, the same for all, summed over cells
    python train/count_network.py --env-id HSAL-Custom-v0 --images FOLDER --activation runs/own-images/features.pt

:class:`agents.supervised.count_network.CountNetwork` describes the heads. The network reads the same features and canvases as
the agents, by default in ten passes. The command writes the same metrics.json.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.config import MOST_HIDDEN
from agents.supervised import Head
from hsal_env import ENVIRONMENTS
from hsal_env.command_line import run_command
from hsal_env.config import EnvConfig
from hsal_env.data.annotations import ImagesFormat
from hsal_env.data.augmentation import Augment
from hsal_env.data.fitting import FitMode
from hsal_env.errors import ConfigError
from hsal_env.fields import MOST_COEFFICIENT, MOST_COUNTED, check_at_most


@dataclass
class Args:
    """Train and test a count network."""

    env_id: str = "HSAL-MNISTMultiset-v0"
    """environment whose canvases it learns from"""
    head: Head = "volume"
    """input of the network: the whole volume, or each column alone"""
    activation: str | None = None
    """activation model; default: the environment's own"""
    images: str | None = None
    """folder of your own images and what is in them (with --env-id HSAL-Custom-v0), see docs/own-images.md"""
    images_format: ImagesFormat = "auto"
    """what says what they hold: labels.csv (csv), coco, voc or yolo"""
    image_px: tuple[int, int] | None = None
    """rows and columns of your own images; default: the size that all have, or one that suits them"""
    fit: FitMode = "letterbox"
    """how they are brought to that size"""
    augment: Augment = "none"
    """how training photographs are varied: not at all, turned a little (upright), also mirrored, turned by any angle, or
    (svhn) some beside another one"""
    overlaid: float = 0.0
    """share of your own training images that another one is laid over"""
    extra: bool = False
    """learn from SVHN's part extra, too"""
    hidden: int = 512
    """units in each of the two hidden layers"""
    passes: int = 10
    """passes over the training canvases"""
    batch_size: int = 256
    """canvases in a batch"""
    learning_rate: float = 1e-3
    """peak of the one-cycle schedule (Adam)"""
    num_examples: int = 60_000
    """number of training canvases; there may be fewer"""
    test_episodes: int = 10_000
    """number of test canvases"""
    seed: int = 0
    """seed of the weights and of the order of canvases"""
    data_root: str | None = None
    """folder of the data sets"""
    output_dir: Path = Path("runs/count-network")
    """folder for metrics.json"""


_OF_IMAGES = ("activation", "images", "images_format", "image_px", "fit", "augment", "overlaid", "extra")


def task(args: Args) -> EnvConfig:
    """The environment whose training canvases the network learns from.

    Raises:
        ConfigError: an unknown id, a number that is too small, or fewer images than one batch.
    """
    if args.env_id not in ENVIRONMENTS:
        raise ConfigError(f"Unknown env id {args.env_id!r}. Expected one of {', '.join(ENVIRONMENTS)}.")
    if min(args.passes, args.batch_size, args.test_episodes, args.hidden) < 1 or args.num_examples < args.batch_size:
        raise ConfigError(
            "Expected passes, batch_size, test_episodes and hidden of at least 1, and num_examples of at least batch_size; got "
            f"{args.passes}, {args.batch_size}, {args.test_episodes}, {args.hidden}, and {args.num_examples}."
        )
    if args.seed < 0 or not 0 < args.learning_rate < math.inf:
        raise ConfigError(f"Expected seed >= 0 and learning_rate > 0; got {args.seed}, {args.learning_rate}.")
    check_at_most(args, hidden=MOST_HIDDEN, seed=(1 << 32) - 1, learning_rate=MOST_COEFFICIENT, passes=MOST_COUNTED)
    chosen = {name: value for name in _OF_IMAGES if (value := getattr(args, name)) != getattr(Args, name)}
    env = EnvConfig.from_kwargs(
        ENVIRONMENTS[args.env_id]
        | {
            **chosen,
            "split": "train",
            "data_root": args.data_root,
            "num_examples": args.num_examples,
            "features": "store",
        }
    )
    if env.size < args.batch_size:
        raise ConfigError(f"Expected at least batch_size={args.batch_size} images; got {env.size}. Lower --batch-size.")
    return env


def main(args: Args) -> None:
    """Train the network, test it, print the table, and write metrics.json.

    Raises:
        ConfigError: see :func:`task`.
        CheckpointError: the output folder cannot be written.
    """
    env = task(args)

    import torch

    from agents.evaluation import blind_guess, evaluation_config
    from agents.learning.provenance import resources, versions, without_paths
    from agents.reports.metrics_file import write_metrics
    from agents.reports.tables import format_table
    from agents.supervised.count_network import learn, score
    from hsal_env.perception.examples import Examples
    from hsal_env.storage.claims import claim_folder

    _claim = claim_folder(args.output_dir)
    start = time.perf_counter()
    examples = Examples(env)
    feature_seconds = time.perf_counter() - start
    start = time.perf_counter()
    net = learn(examples, args.head, args.hidden, args.passes, args.batch_size, args.learning_rate, args.seed)
    train_seconds = time.perf_counter() - start
    test = evaluation_config(env, "test", args.test_episodes)
    results: dict[str, Any] = {
        "source": examples.source,
        "test": score(net, Examples(test)),
        "blind_guess": blind_guess(env, test),
        "train_seconds": train_seconds,
        "feature_seconds": feature_seconds,
        **resources(),
        "threads": torch.get_num_threads(),
        "config": {
            **dataclasses.asdict(args),
            "activation": Path(env.activation).name if env.activation.endswith(".pt") else env.activation,
            "images": None,
            "output_dir": None,
            "data_root": None,
        },
        "versions": versions(),
        "command": ["python", "train/count_network.py", *without_paths(sys.argv[1:])],
    }
    print(format_table(results))
    write_metrics(args.output_dir / "metrics.json", results)


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
