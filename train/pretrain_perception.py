"""Train an activation model (paper section 3, "Saliency Model") on labels alone, without boxes or an order.

    python train/pretrain_perception.py --output compact.pt  # on multisets of digits
    python train/pretrain_perception.py --objects ten --init compact.pt --passes 16 --learning-rate 3e-3 --output compact-ten.pt
    python train/pretrain_perception.py --objects single --passes 8 --output compact-single.pt
    python train/pretrain_perception.py --objects crowded --init compact-ten.pt --output-stride 8 --output fine.pt
    python train/pretrain_perception.py --objects single --architecture resnet34 --objective classify --output resnet34.pt
    python train/pretrain_perception.py --images FOLDER --init compact-house-numbers --output mine.pt
    torchrun --nproc-per-node 2 train/pretrain_perception.py --output compact.pt  # in two processes, with one thread each

:mod:`agents.supervised.pretraining` describes the objectives. The output is a model file, for ``--activation FILE.pt`` and
``gymnasium.make(..., activation="FILE.pt")``; a JSON file of arguments and accuracies is written beside it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hsal_env.command_line import require_agents, run_command
from hsal_env.config import EnvConfig
from hsal_env.data.annotations import ImagesFormat
from hsal_env.data.augmentation import Augment
from hsal_env.data.fitting import FitMode
from hsal_env.errors import ConfigError

require_agents()

from agents.config import PretrainConfig

if TYPE_CHECKING:
    from agents.supervised.pretraining import Supply

_TEN = {"min_objects": 10, "max_objects": 10, "min_size_px": 20, "max_size_px": 20}
_SMALL = {**_TEN, "min_size_px": 12}
LOOKS: dict[str, dict[str, tuple[dict[str, Any], float]]] = {
    "multiset": {
        "plain": ({}, 0.65),
        "crowded": ({"max_objects": 9, "max_size_px": 33}, 0.15),
        "ten": (_TEN, 0.2),
    },
    "ten": {"ten": (_TEN, 1.0)},
    "crowded": {"ten": (_TEN, 0.5), "small": (_SMALL, 0.5)},
    "single": {
        "plain": ({"task": "single"}, 0.5),
        "crowded": ({"task": "single", "clutter": 4, "clutter_px": 14}, 0.25),
        "most crowded": ({"task": "single", "max_size_px": 33, "clutter": 12, "clutter_px": 14}, 0.25),
    },
    "house-numbers": {"plain": ({}, 1.0)},
    "long-house-numbers": {"plain": ({}, 0.5), "long": ({"min_objects": 4}, 0.5)},
    "house-numbers-single": {"plain": ({"task": "single"}, 1.0)},
    "svhn": {"plain": ({}, 1.0)},
    "svhn-single": {"plain": ({"task": "single"}, 1.0)},
}
"""Canvases to learn from, by look: arguments of the environment, and the share of all canvases.

The crowded looks of single objects have large crops as clutter, in place of neighbouring objects.
"""


@dataclass(frozen=True)
class Args(PretrainConfig):
    """Pretrain an activation model."""

    objects: Literal[
        "multiset",
        "ten",
        "crowded",
        "single",
        "house-numbers",
        "long-house-numbers",
        "house-numbers-single",
        "svhn",
        "svhn-single",
    ] = "multiset"
    """multiset: canvases of 1 to 10 digits; ten: of 10 small digits; crowded: of 10 digits as small or smaller; single: of
    one digit, as the paper fine-tunes its network; house-numbers: synthetic numbers in colour; long-house-numbers: the same,
    but every second number has 4 or 5 digits; svhn: photographs of numbers; ...-single: one digit of a number"""
    canvas_px: int = 100
    """side of the images"""
    mnist_share: float = 0.85
    """share of the canvases that have MNIST's digits; the others have scikit-learn's"""
    synthetic_share: float = 0.0
    """share of synthetic house numbers among the photographs of svhn"""
    extra: bool = False
    """learn from SVHN's part extra, too"""
    images: Path | None = None
    """folder of your own images to learn from, in place of objects, see docs/own-images.md"""
    images_format: ImagesFormat = "auto"
    """what says what its images hold: labels.csv (csv), coco, voc or yolo"""
    image_px: tuple[int, int] | None = None
    """rows and columns of your own images; default: the size that all have, or one that suits them"""
    fit: FitMode = "letterbox"
    """how they are brought to that size"""
    augment: Augment = "none"
    """how the images that are learned from are varied: not at all; turned a little (upright), or each digit of a canvas; of
    photographs also mirrored, or turned by any angle; (svhn) some beside another one"""
    overlaid: float = 0.0
    """share of your own images that another one is laid over; they have to be varied, too"""
    data_root: str | None = None
    """folder of MNIST or SVHN; default: $HSAL_DATA, else the cache folder"""
    resume: bool = False
    """go on after the last whole pass, if the output was begun with the same flags"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mnist_share", "synthetic_share"):
            if not 0 <= getattr(self, name) <= 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"Expected --{flag} between 0 and 1; got {getattr(self, name)}.")
        if self.images is not None and self.objects != Args.objects:
            raise ConfigError(f"Expected --objects or --images, not both; got {self.objects} and {self.images}.")
        if self.overlaid and self.images is None:
            raise ConfigError(f"Expected --overlaid with --images only; got {self.overlaid}.")


def supplies(args: Args, split: str, seed: int) -> dict[str, dict[str, Supply]]:
    """The canvases of a split, by source and look. With another ``seed`` they are laid out differently from an environment's."""
    from agents.supervised.pretraining import Supply

    def config(source: str, place: int, **kwargs: Any) -> EnvConfig:
        return EnvConfig.from_kwargs(
            {
                "source": source,
                "split": split,
                "seed": 1_000 * (place + 1) + seed,
                "data_root": args.data_root,
                **kwargs,
            }
        )

    if args.images is not None:
        taken = {"images_format": args.images_format, "image_px": args.image_px, "fit": args.fit}
        own = config("custom", 0, images=str(args.images), augment=args.augment, overlaid=args.overlaid, **taken)
        return {"custom": {"plain": Supply(own, 1.0)}}
    kind = args.objects.removeprefix("long-").removesuffix("-single")
    shares = (
        {kind: 1.0}
        if kind in ("house-numbers", "svhn")
        else {"mnist": args.mnist_share, "digits": 1 - args.mnist_share}
    )
    varied: dict[str, Any] = {"augment": args.augment}
    if kind == "svhn":
        varied["extra"] = args.extra
        if split == "train" and args.synthetic_share:
            shares = {"svhn": 1 - args.synthetic_share, "house-numbers": args.synthetic_share}
    synthetic = "house-numbers" if kind == "svhn" else None  # its images come in all the variety there is
    return {
        source: {
            look: Supply(
                config(source, place, canvas_px=args.canvas_px, **kwargs, **(varied if synthetic != source else {})),
                of_source * share,
            )
            for place, (look, (kwargs, share)) in enumerate(LOOKS[args.objects].items())
        }
        for source, of_source in shares.items()
        if of_source
    }


def main(args: Args) -> None:
    """Train, test, save.

    Raises:
        ConfigError, CheckpointError, DataUnavailableError, DivergenceError: see
            :class:`agents.supervised.features.Pretraining`.
        ProcessError: see :func:`agents.learning.distributed.joined`.
        DataError: see :class:`hsal_env.config.EnvConfig`.
    """
    from agents.learning.distributed import joined
    from agents.supervised.features import Images, Pretraining

    training = [supply for looks in supplies(args, "train", args.seed).values() for supply in looks.values()]
    held_out = {split: supplies(args, split, 99) for split in ("val", "test")}
    told = {
        **dataclasses.asdict(args),
        "output": args.output.name,
        "init": args.init and Path(args.init).name,
        "images": args.images and args.images.name,
        "data_root": None,
    }
    del told["resume"]
    if args.images:
        told["images_digest"] = training[0].config.data.digest
    with joined(args.device) as processes:
        Pretraining(args, Images(training, held_out), told, args.resume, processes).run()


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
