"""Train an activation model (paper section 3, "Saliency Model") on labels alone, without boxes or an order.

    python train/pretrain_perception.py --output compact.pt  # on multisets of digits
    python train/pretrain_perception.py --objects ten --init compact.pt --passes 16 --learning-rate 3e-3 --output compact-ten.pt
    python train/pretrain_perception.py --objects single --passes 8 --output compact-single.pt
    python train/pretrain_perception.py --objects crowded --init compact-ten.pt --output-stride 8 --output fine.pt
    python train/pretrain_perception.py --objects single --architecture resnet34 --objective classify --output resnet34.pt

:mod:`agents.supervised.pretraining` describes the objectives. The output is a model file, for ``--activation FILE.pt`` and
``gymnasium.make(..., activation="FILE.pt")``; a JSON file of arguments and accuracies is written beside it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agents.supervised import Objective
from hsal_env.command_line import run_command
from hsal_env.config import EnvConfig
from hsal_env.errors import ConfigError, DivergenceError
from hsal_env.fields import MOST_COEFFICIENT, MOST_COUNTED, check_at_most, check_fields
from hsal_env.perception import Architecture
from hsal_env.storage.claims import claim_file
from hsal_env.storage.files import write_text

if TYPE_CHECKING:
    from agents.supervised.pretraining import Pretrainer, Supply

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


_CHECKED_EVERY = 50  # updates; an accelerator is waited for at each check


@dataclass
class Args:
    """Pretrain an activation model."""

    output: Path = Path("compact.pt")
    """the model file to write, FILE.pt; FILE.json with arguments and accuracies is written beside it"""
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
    architecture: Architecture = "compact"
    """compact: a small network; resnet18 and resnet34: torchvision's"""
    output_stride: int | None = None
    """px from one cell to the next: 16 (7x7 cells), 8 (14x14) or 4 (28x28) for compact; 32, 16 or 8 for a resnet; default: as
    init has it, else the largest"""
    init: str | None = None
    """bundled model or model file to start from, or scratch (random weights); default: the published weights of the
    architecture, or scratch where there are none"""
    objective: Objective = "count"
    """count: learn all labels of an image; classify: the paper's, learn one of them at a time"""
    passes: int = 18
    """passes over num_canvases canvases, which are new in each pass (SVHN: in a new order)"""
    num_canvases: int = 60_000
    """canvases in a pass"""
    batch_size: int = 128
    """canvases in a batch"""
    learning_rate: float = 4e-3
    """peak of the one-cycle schedule (AdamW)"""
    weight_decay: float = 0.01
    """weight decay of AdamW"""
    sharp_coef: float = 0.2
    """weight of the penalty on cells whose saliency is neither 0 nor 1 (count only)"""
    warp_px: float = 3.0
    """largest amplitude of the smooth random displacements of a training canvas"""
    canvas_px: int = 100
    """side of the images"""
    mnist_share: float = 0.85
    """share of the canvases that have MNIST's digits; the others have scikit-learn's"""
    val_canvases: int = 2_000
    """canvases for the accuracy after every pass"""
    test_canvases: int = 10_000
    """canvases of each source and look for the accuracy at the end"""
    device: str = "auto"
    """cpu, cuda, or auto (cuda where there is one)"""
    seed: int = 0
    """seed of weights and canvases"""
    data_root: str | None = None
    """folder of MNIST or SVHN; default: $HSAL_DATA, else the cache folder"""


def supplies(args: Args, split: str, seed: int) -> dict[str, dict[str, Supply]]:
    """The canvases of a split, by source and look. With another ``seed`` they are laid out differently from an environment's."""
    from agents.supervised.pretraining import Supply

    kind = args.objects.removeprefix("long-").removesuffix("-single")
    colour = kind in ("house-numbers", "svhn")
    sources = {kind: 1.0} if colour else {"mnist": args.mnist_share, "digits": 1 - args.mnist_share}
    return {
        source: {
            look: Supply(
                EnvConfig.from_kwargs(
                    {
                        "source": source,
                        "split": split,
                        "seed": 1_000 * (place + 1) + seed,
                        "data_root": args.data_root,
                        "canvas_px": args.canvas_px,
                        **kwargs,
                    }
                ),
                of_source * share,
            )
            for place, (look, (kwargs, share)) in enumerate(LOOKS[args.objects].items())
        }
        for source, of_source in sources.items()
    }


def check(args: Args) -> None:
    """Refuse arguments that do not fit.

    Raises:
        ConfigError: an unknown choice, a number outside its range, or an output that is no .pt file.
    """
    check_fields(args)
    check_at_most(args, seed=(1 << 32) - 1, passes=MOST_COUNTED, num_canvases=MOST_COUNTED)
    check_at_most(args, learning_rate=MOST_COEFFICIENT, weight_decay=MOST_COEFFICIENT)
    least = min(args.passes, args.val_canvases, args.test_canvases)
    if least < 1 or not 1 <= args.batch_size <= args.num_canvases:
        raise ConfigError(
            "Expected passes, val_canvases and test_canvases of at least 1 and 1 <= batch_size <= num_canvases; got "
            f"{args.passes}, {args.val_canvases}, {args.test_canvases}, {args.batch_size}, {args.num_canvases}."
        )
    if args.output.suffix != ".pt":
        raise ConfigError(
            f"Expected --output as FILE.pt, since --activation recognises a model file by its suffix; got {args.output}."
        )
    if args.seed < 0 or args.learning_rate <= 0 or args.weight_decay < 0:
        raise ConfigError(
            "Expected a seed of at least 0, a learning_rate above 0 and a weight_decay of at least 0; got "
            f"{args.seed}, {args.learning_rate}, {args.weight_decay}."
        )
    if not 0 <= args.mnist_share <= 1:
        raise ConfigError(f"Expected --mnist-share between 0 and 1; got {args.mnist_share}.")


def main(args: Args) -> None:
    """Train, test, save.

    Raises:
        ConfigError: see :func:`check`; or the device is unknown or not there.
        CheckpointError: ``init`` is no model file of the architecture, or the output cannot be written.
        DivergenceError: the loss or its gradient is not finite; the output is left as it was.
        DataUnavailableError: the images or the published weights of the architecture were not found and cannot be downloaded.
    """
    check(args)

    import torch
    from tqdm import tqdm

    from agents.learning.distributed import ALONE
    from agents.learning.provenance import versions
    from agents.supervised import pretraining
    from hsal_env.perception.model_file import save_model
    from hsal_env.perception.registry import initial_model

    device = ALONE.device(args.device)
    _claim = claim_file(args.output)
    torch.manual_seed(args.seed)
    training = [supply for looks in supplies(args, "train", args.seed).values() for supply in looks.values()]
    held_out = {split: supplies(args, split, 99) for split in ("val", "test")}
    channels = training[0].config.image_shape[2]
    model = initial_model(args.architecture, args.init, in_channels=channels, output_stride=args.output_stride)
    net = pretraining.Pretrainer(model.requires_grad_(True)).to(device).train()

    def accuracy(config: EnvConfig, canvases: int) -> dict[str, float]:
        return pretraining.accuracy(net, config, canvases, args.objective)

    start = time.perf_counter()
    for epoch, loss in enumerate(train(net, training, args, device)):
        val = {
            source: accuracy(next(iter(looks.values())).config, args.val_canvases)
            for source, looks in held_out["val"].items()
        }
        tqdm.write(f"pass {epoch + 1}: loss {loss:.4f}, validation {val}, {time.perf_counter() - start:.0f} s")
        save_model(args.output, args.architecture, net.model)
    seconds = time.perf_counter() - start
    results = {
        "test": {
            source: {look: accuracy(supply.config, args.test_canvases) for look, supply in looks.items()}
            for source, looks in held_out["test"].items()
        },
        "seconds": seconds,
        "images_per_second": args.passes * (args.num_canvases // args.batch_size) * args.batch_size / seconds,
        "device": device,
        "threads": torch.get_num_threads(),
        "args": {
            **dataclasses.asdict(args),
            "output": args.output.name,
            "init": args.init and Path(args.init).name,
            "data_root": None,
        },
        "versions": versions(),
    }
    tqdm.write(f"test: {results['test']}")
    write_text(args.output.with_suffix(".json"), json.dumps(results, indent=2) + "\n")


def train(net: Pretrainer, training: list[Supply], args: Args, device: str) -> Iterator[float]:
    """Train ``net`` with AdamW and a one-cycle schedule. Yields the last loss of each pass."""
    import torch
    from torch import nn
    from tqdm import tqdm

    from agents.supervised import pretraining
    from hsal_env.perception.examples import to_images
    from hsal_env.perception.precision import has_matrix_unit

    optimiser = torch.optim.AdamW(net.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    steps = args.num_canvases // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, args.learning_rate, total_steps=args.passes * steps, pct_start=0.15
    )
    supply = pretraining.batches(training, args.batch_size, args.passes * steps, args.seed)
    for epoch in range(args.passes):
        finite = torch.ones((), dtype=torch.bool, device=device)
        for step in tqdm(range(1, steps + 1), desc=f"pass {epoch + 1}/{args.passes}", mininterval=10):
            canvases, label_counts = next(supply)
            counts = torch.from_numpy(label_counts).float()
            images = pretraining.warped(to_images(canvases, net.model.in_channels).to(device), args.warp_px)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=has_matrix_unit(device)):
                loss = net.loss(images, counts, args.objective, args.sharp_coef)
            optimiser.zero_grad()
            loss.backward()
            grad_norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            finite = finite & loss.detach().isfinite() & grad_norm.isfinite()
            if (step % _CHECKED_EVERY == 0 or step == steps) and not finite:
                raise DivergenceError(
                    f"Training diverged: the loss or its gradient is not finite in pass {epoch + 1}, at update {step} of {steps} "
                    f"or a little before. {args.output} is as it was. Try a lower learning rate than {args.learning_rate:g} "
                    "(--learning-rate)."
                )
        yield loss.item()


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
