"""From a folder of photographs that are labelled with what is in them, to an agent that names it and shows where it looked.

    python train/own_images.py FOLDER --output-dir DIR           # read, learn features, learn the agent, test, report
    python train/own_images.py FOLDER --output-dir DIR --resume  # go on where it stopped

DIR receives features.pt, checkpoint.pt, metrics.json, progress.csv, episodes.png, report.html and TensorBoard logs. Each step is
also a command of its own: pretrain_perception.py --images, ppo_or_reinforce.py --images, evaluate_agent.py, count_network.py
--images and report.py.
docs/own-images.md says which folders are read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from hsal_env.command_line import require_agents, run_command
from hsal_env.config import EnvConfig
from hsal_env.data.annotations import ImagesFormat, read_annotations
from hsal_env.data.augmentation import Augment
from hsal_env.data.custom import CustomSplit
from hsal_env.data.fitting import FitMode, suited_px
from hsal_env.data.glyphs import SPLITS
from hsal_env.data.pixels import read_size
from hsal_env.errors import CheckpointError, ConfigError, DataError
from hsal_env.perception import Architecture
from hsal_env.storage.files import as_path

require_agents()

from agents.config import BEST_AGENT, BEST_ENV, BEST_LEARNER, AgentConfig, LearnerConfig, PretrainConfig

if TYPE_CHECKING:
    from agents.learning.run import RunConfig

_FEW_IMAGES, _FEW_OBJECTS = 100, 20  # of the training share; below that a warning says that it may be too few
_PLENTY_TEST = 1_000_000
_LARGE_PX, _SUITED_PX = 80_000, 49_152  # rows times columns: images of more than the former are brought to the latter
_SMALL_PX, _FIRST_PX = 40_000, 36_000  # features of images of more than the former begin with images of the latter
_FEATURES_PX = 1_200_000_000  # that the features learn from, so that they take about as long whatever the size
_LEAST_IMAGES, _MOST_IMAGES = 24_000, 96_000
_PHOTOGRAPH_STRIDE_PX = 8
_AGENT_IMAGES, _AGENT_OBJECTS, _BATCH_SIZE = 10_000, 5, 128  # for more objects an image, fewer images
_SHARP_RAMP = (0.15, 0.5)  # earlier, the penalty puts out cells that have not learned yet what they show
_OVERLAID = 0.5
_LEARNER: dict[str, Any] = {**BEST_LEARNER, "estimator": "assigned"}  # one class may outnumber the others
_SCALE = 1.5  # that batches of photographs are shown larger or smaller by, at most


@dataclass(frozen=True)
class Args:
    """Learn from photographs of your own."""

    folder: Annotated[Path, tyro.conf.Positional]
    """folder of images and labels"""
    output_dir: Path = Path("runs/own-images")
    """where results go"""
    resume: bool = False
    """go on where an earlier start with the same flags stopped"""
    images_format: Annotated[ImagesFormat, tyro.conf.arg(aliases=["--format"])] = "auto"
    """what says what the images hold: labels.csv (csv), coco, voc or yolo"""
    image_px: tuple[int, int] | None = None
    """rows and columns that images are brought to; default: the size that all have, if it is small, or one that suits them"""
    fit: FitMode = "letterbox"
    """how they are brought to that size: whole (letterbox), filling (crop), or without their proportions (stretch)"""
    augment: Augment | Literal["auto"] = "auto"
    """how the training images are varied: not at all, turned a little (upright), also mirrored, or turned by any angle (for
    what is seen from above); auto: mirrored, but upright if the classes are single letters or digits"""
    overlaid: float | Literal["auto"] = "auto"
    """share of the training images that another one is laid over, so that classes are seen together that no image holds together;
    auto: 0.5 if images hold far fewer classes than chance would have, else 0"""
    architecture: Architecture = "compact"
    """activation model: compact, or resnet18 and resnet34, torchvision's"""
    init: str | None = None
    """bundled model or model file whose weights the features start from, scratch for random ones; default: compact-house-numbers
    for compact, ImageNet's weights for a resnet"""
    deeper: int | tuple[int, int] | None = None
    """more residual blocks after each of the last two stages of compact, or a number for each, so that a cell sees more of a
    large object; default: 0, but 1 where images are only turned a little (upright), as characters fill their line; or as init
    has it"""
    output_stride: int | None = None
    """px from one cell of the map to the next: 16, 8 or 4, and finer for smaller objects; default: 8 for compact, but 16 where
    images are only turned a little (upright), or as init has it"""
    feature_images: int | None = None
    """varied images that the features learn from; default: as many as hold 1.2 billion px, but 24,000 to 96,000, and twice
    that where some are laid over one another"""
    feature_passes: int = 8
    """passes that they are counted in; the features are measured and saved after each"""
    feature_learning_rate: float = 2e-3
    """peak of the schedule of the features"""
    feature_scale: float | Literal["auto"] = "auto"
    """each batch of theirs is shown larger or smaller by up to this factor; auto: 1.5, but 1 where images are only turned a
    little (upright), as characters fill their line"""
    agent_images: int | None = None
    """varied images that the agent learns from; default: 10,000, or as many as hold 50,000 objects"""
    agent_passes: int = 4
    """passes over them"""
    seed: int = 0
    """seed of weights, variations, order and samples"""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one"""

    def __post_init__(self) -> None:
        for name in ("feature_images", "feature_passes", "agent_images", "agent_passes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"Expected --{name.replace('_', '-')} of at least 1; got {value}.")


def main(args: Args) -> None:
    """Read, learn, test and report.

    Raises:
        ConfigError, DataError: the folder, or what is asked of it, does not fit.
        CheckpointError: the output cannot be written, or is of another start.
    """
    begun = next((name for name in ("features.pt", "checkpoint.pt") if (args.output_dir / name).exists()), None)
    if begun and not args.resume:
        raise CheckpointError(
            f"{args.output_dir} holds {begun} of an earlier start. Go on with --resume, or choose another --output-dir."
        )
    if args.resume and (args.output_dir / "report.html").is_file():
        print(f"{args.output_dir} is finished: see report.html. Choose another --output-dir to begin anew.")
        return
    env = read(args)
    print(told(env))
    check_amount(env)
    learn_features(args, env)
    results = learn_agent(args, env)
    results |= {"count_network": compare(args, env)}
    write_results(args, results)


def read(args: Args) -> EnvConfig:
    """The task: the training share of the folder, varied.

    Raises:
        ConfigError, DataError: see :class:`hsal_env.config.EnvConfig`.
    """
    env = EnvConfig(
        source="custom",
        images=str(args.folder),
        images_format=args.images_format,
        image_px=args.image_px or suited(args),
        fit=args.fit,
        split="train",
        seed=args.seed,
    )
    chosen = args.augment
    if chosen == "auto":
        chosen = "upright" if all(len(name) == 1 for name in class_names(env)) else "mirrored"
    env = dataclasses.replace(env, augment=chosen)
    overlaid = args.overlaid
    if overlaid == "auto":
        overlaid = _OVERLAID if chosen != "none" and classes_keep_apart(env) else 0.0
    return dataclasses.replace(env, overlaid=overlaid)


def classes_keep_apart(env: EnvConfig) -> bool:
    """Whether a training image tells little of what else may be in one: it holds far fewer classes than its objects allow.

    That is, over training images with n > 1 objects, the mean number of classes above 1 is less than half of what it is where
    each object is of class c with the class's share p_c whatever the others are, ``sum_c (1 - (1 - p_c)^n) - 1``. Features of
    such images learn to read an object off its neighbours.
    """
    labels = env.data.labels[env.data.part("train")]
    held = np.stack([(labels == c).sum(axis=1) for c in range(env.classes)], axis=1)  # [N, C]
    several = held[held.sum(axis=1) > 1]
    if not len(several):
        return False
    shares, n = held.sum(axis=0) / held.sum(), several.sum(axis=1)
    expected = (1 - (1 - shares) ** n[:, None]).sum(axis=1).mean()
    return bool((several > 0).sum(axis=1).mean() - 1 < (expected - 1) / 2)


def suited(args: Args) -> tuple[int, int] | None:
    """The size in which the images are learned from; None: that which they have, if all have it and it is small."""
    files = read_annotations(as_path(args.folder), args.images_format).files
    sizes = []
    for file in tqdm(files, desc="sizes", leave=False):
        with suppress(DataError):  # it will be left out, and counted
            sizes.append(read_size(str(file))[:2])
    if not sizes or (len({*sizes}) == 1 and math.prod(sizes[0]) <= _LARGE_PX):
        return None
    return suited_px(np.array(sizes), _SUITED_PX)


def class_names(env: EnvConfig) -> tuple[str, ...]:
    """The names of the classes, or their numbers as text."""
    return env.label_names or tuple(map(str, range(env.classes)))


def class_counts(env: EnvConfig, split: CustomSplit) -> np.ndarray:
    """The number of objects of each class in a split, ``[C]``."""
    labels = env.data.labels[env.data.part(split)]
    return np.bincount(labels[labels >= 0], minlength=env.classes)


def told(env: EnvConfig) -> str:
    """What the folder holds, in a few lines."""
    data = env.data
    rows, columns, channels = env.image_shape
    over = f"; {env.overlaid:.0%} of the training images have another laid over them" if env.overlaid else ""
    lines = [
        f"{len(data)} images of {rows}x{columns} px in {'colour' if channels == 3 else 'grey'}, varied: {env.augment}{over}"
    ]
    for split in SPLITS:
        counts = class_counts(env, split)
        found = ", ".join(f"{count} {name}" for name, count in zip(class_names(env), counts.tolist(), strict=True))
        lines.append(f"{split}: {len(data.part(split))} images, {counts.sum()} objects: {found}")
    return "\n".join(lines)


def check_amount(env: EnvConfig) -> None:
    """Warn where there are too few images to learn from or to measure on."""
    names, counts, size = class_names(env), class_counts(env, "train"), len(env.data.part("train"))
    if size < _FEW_IMAGES:
        warnings.warn(
            f"{size} training images are few: expect mistakes, and scores that say little. Some hundreds would be better.",
            stacklevel=2,
        )
    if (counts < _FEW_OBJECTS).any():
        rare = ", ".join(f"{names[i]} ({counts[i]})" for i in np.flatnonzero(counts < _FEW_OBJECTS))
        warnings.warn(f"Classes with few objects to learn from: {rare}. The agent may never name them.", stacklevel=2)


def first_scale(env: EnvConfig) -> float:
    """Size of the images that features begin with, as a share of that of all others: they learn from small ones sooner."""
    size_px = math.prod(env.image_shape[:2])
    return math.sqrt(_FIRST_PX / size_px) if size_px > _SMALL_PX else 1.0


def are_photographs(env: EnvConfig) -> bool:
    """Whether they are of things that may be mirrored. Others are of characters, which fill their line."""
    return env.augment not in ("none", "upright")


def starts_from_ours(args: Args) -> bool:
    """Whether the features start from a network that the package chooses."""
    return args.architecture == "compact" and args.init is None


def output_stride(args: Args, env: EnvConfig) -> int | None:
    """Px from cell to cell; None: as the first weights have it."""
    if args.output_stride is None and starts_from_ours(args) and are_photographs(env):
        return _PHOTOGRAPH_STRIDE_PX
    return args.output_stride


def deeper(args: Args, env: EnvConfig) -> int | tuple[int, int] | None:
    """More blocks of the network: a cell that sees much more than its object reads it off what is about it."""
    if args.deeper is None and starts_from_ours(args):
        return 0 if are_photographs(env) else 1
    return args.deeper


def scale(args: Args, env: EnvConfig) -> float:
    """How much larger or smaller the features see a batch: photographs of other people may be taken from nearer or farther."""
    if args.feature_scale == "auto":
        return _SCALE if are_photographs(env) else 1.0
    return args.feature_scale


def images_for_features(args: Args, env: EnvConfig) -> int:
    """How many varied images the features learn from; more where objects lie in ever new company, which takes longer to learn."""
    suited = _FEATURES_PX / math.prod(env.image_shape[:2]) * 2 / (1 + first_scale(env) ** 2)
    return args.feature_images or min(max(_LEAST_IMAGES, int(suited)), _MOST_IMAGES) * (2 if env.overlaid else 1)


def learn_features(args: Args, env: EnvConfig) -> None:
    """Train the activation model into features.pt, unless it is there."""
    output = args.output_dir / "features.pt"
    from agents.supervised.features import Images, Pretraining
    from agents.supervised.pretraining import Supply

    ours = starts_from_ours(args)
    batch_size = 16  # a few thousand updates teach more than a few hundred of larger batches
    config = PretrainConfig(
        output=output,
        architecture=args.architecture,
        output_stride=output_stride(args, env),
        deeper=deeper(args, env),
        padding="replicate" if ours else None,
        sharp_ramp=_SHARP_RAMP if are_photographs(env) else (0.0, 0.0),
        scale=scale(args, env),
        first_scale=first_scale(env),
        init="compact-house-numbers" if ours else args.init,
        passes=args.feature_passes,
        fixed_passes=args.feature_passes // 4 if are_photographs(env) else 0,
        num_canvases=max(batch_size, images_for_features(args, env) // args.feature_passes),
        batch_size=batch_size,
        learning_rate=args.feature_learning_rate,
        warp_px=0.0,
        device=args.device,
        seed=args.seed,
    )
    told = {
        **dataclasses.asdict(config),
        "output": output.name,
        "init": config.init and Path(config.init).name,
        "augment": env.augment,
        "overlaid": env.overlaid,
        "images_digest": env.data.digest,
    }
    finished = output.with_suffix(".json")
    if args.resume and finished.is_file():
        as_written = json.loads(json.dumps(told))  # tuples are lists there
        if json.loads(finished.read_text(encoding="utf-8"))["args"] != as_written:
            raise CheckpointError(
                f"{output} was learned with other flags or from other images. Go on with those it was started with, or choose "
                "another --output-dir."
            )
        return
    held_out = {
        split: {"custom": {"plain": Supply(dataclasses.replace(env, split=split), 1.0)}} for split in ("val", "test")
    }
    Pretraining(config, Images([Supply(env, 1.0)], held_out), told, args.resume).run()


def share_for_agent(env: EnvConfig) -> float:
    """The share of the usual number of images that suits the agent: of images with many objects fewer teach as much."""
    objects = class_counts(env, "train").sum()
    return min(1.0, _AGENT_OBJECTS * len(env.data.part("train")) / max(1, objects))


def run_config(args: Args, env: EnvConfig) -> RunConfig:
    """The settings of the agent's training."""
    from agents.learning.provenance import without_paths
    from agents.learning.run import RunConfig

    task = with_features(args, env)
    batch_size = max(1, round(_BATCH_SIZE * share_for_agent(env)))
    return RunConfig(
        folder=args.output_dir,
        env=task,
        agent_name="hsal",
        agent=AgentConfig(**BEST_AGENT, controller_state="carry", stop="median"),
        learner=LearnerConfig(
            **_LEARNER, batch_size=min(batch_size, task.num_examples or batch_size), passes=args.agent_passes
        ),
        seed=args.seed,
        device=args.device,
        command=["python", "train/own_images.py", *(told_folder(args, arg) for arg in without_paths(sys.argv[1:]))],
    )


def told_folder(args: Args, argument: str) -> str:
    """A word of the command line; of the folder, its name alone."""
    return args.folder.name if Path(argument) == args.folder else argument


def with_features(args: Args, env: EnvConfig) -> EnvConfig:
    """The task on the features of features.pt."""
    return dataclasses.replace(
        env,
        activation=str(args.output_dir / "features.pt"),
        features="store",
        places="turned" if are_photographs(env) else "cells",
        width_unit="cell",
        **BEST_ENV,
        num_examples=args.agent_images or round(_AGENT_IMAGES * share_for_agent(env)),
        protocol="teacher",
        include_image=False,
    )


def learn_agent(args: Args, env: EnvConfig) -> dict[str, Any]:
    """Train the agent and test it on the test share."""
    from agents.learning.run import Run

    begun = args.resume and (args.output_dir / "checkpoint.pt").is_file()
    run = Run(run_config(args, env), begun)
    run.train()
    return run.test(_PLENTY_TEST)


def compare(args: Args, env: EnvConfig) -> dict[str, Any]:
    """The scores of a network without attention that reads the same features."""
    from agents.evaluation import evaluation_config
    from agents.supervised.count_network import learn, score
    from hsal_env.perception.examples import Examples

    task = with_features(args, env)
    examples = Examples(task)
    net = learn(examples, "columns", 256, args.agent_passes, min(_BATCH_SIZE, len(examples)), 1e-3, args.seed)
    return score(net, Examples(evaluation_config(task, "test", _PLENTY_TEST)))


def write_results(args: Args, results: dict[str, Any]) -> None:
    """metrics.json again, with what was compared, and report.html."""
    from agents.reports.metrics_file import write_metrics
    from agents.reports.writing import Played, write_report

    features = json.loads((args.output_dir / "features.json").read_text(encoding="utf-8"))
    write_metrics(args.output_dir / "metrics.json", results | {"features": features})
    write_report([str(args.output_dir)], args.output_dir / "report.html", Played(split="test"))
    print(f"The report is in {args.output_dir / 'report.html'}")


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
