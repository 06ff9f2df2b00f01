"""Train the activation model (paper section 3, "Saliency Model") on labels alone: no boxes, no order.

    python train/pretrain_perception.py --output compact.pt  # on multisets
    python train/pretrain_perception.py --objects ten --init compact.pt --passes 16 --learning-rate 3e-3 --output compact-ten.pt
    python train/pretrain_perception.py --objects single --passes 8 --output compact-single.pt  # as in the paper

The objective is described in :mod:`agents.pretraining`. The output is a weights file for ``hsal_env/perception/weights`` and,
beside it, a JSON of arguments and accuracies.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from hsal_env.data import CanvasConfig, Canvases, load_glyphs
from hsal_env.errors import ConfigError, HSALError
from hsal_env.files import replacing

_TEN = CanvasConfig("multiset", 10, 10, 20, 20)
LOOKS = {
    "multiset": {
        "plain": (CanvasConfig(), 0.65),
        "crowded": (CanvasConfig(max_objects=9, max_size_px=33), 0.15),
        "ten": (_TEN, 0.2),
    },
    "ten": {"ten": (_TEN, 1.0)},
    "single": {
        "plain": (CanvasConfig("single", 1, 1), 0.5),
        "crowded": (CanvasConfig("single", 1, 1, clutter=4, clutter_px=14), 0.25),
        "most crowded": (CanvasConfig("single", 1, 1, max_size_px=33, clutter=12, clutter_px=14), 0.25),
    },
}
"""Canvases to learn from, and their shares. Larger crops stand in for neighbours of single objects."""


@dataclass
class Args:
    """Pretrain the compact activation model."""

    output: Path = Path("compact.pt")
    """where the weights go"""
    objects: Literal["multiset", "ten", "single"] = "multiset"
    """multiset: canvases of 1 to 10 objects; ten: of 10 small ones; single: of one, as the paper fine-tunes its own"""
    init: Path | None = None
    """weights to start from"""
    passes: int = 18
    """passes over num_canvases canvases, fresh ones in each"""
    num_canvases: int = 60_000
    """canvases in a pass"""
    batch_size: int = 128
    """canvases in a batch"""
    learning_rate: float = 4e-3
    """peak of the one-cycle schedule (AdamW)"""
    weight_decay: float = 0.01
    """AdamW's"""
    sharp_coef: float = 0.2
    """weight of the penalty on cells between 0 and 1"""
    warp_px: float = 3.0
    """largest amplitude of the smooth random displacements of a training canvas"""
    mnist_share: float = 0.85
    """share of canvases from MNIST; the others are from scikit-learn's digits"""
    seed: int = 0
    """seed of weights and canvases"""
    data_root: str | None = None
    """where MNIST lies"""


def stream(args: Args, split: str, source: str, look: str, seed: int) -> Canvases:
    """Canvases of a source, split and look."""
    looks = LOOKS[args.objects]
    glyphs = load_glyphs(source, split, args.data_root)
    return Canvases(glyphs, looks[look][0], seed=seed, stream=10 + list(looks).index(look))


def main(args: Args) -> None:
    """Train, test, save.

    Raises:
        ConfigError: fewer than one pass, one canvas a batch, or one batch a pass.
        CheckpointError: ``init`` is not weights of the compact model.
    """
    import torch
    from torch import nn
    from tqdm import tqdm

    from agents import pretraining
    from agents.report import versions
    from hsal_env.perception.activation import load_compact
    from hsal_env.perception.examples import label_counts, to_images

    if args.passes < 1 or not 1 <= args.batch_size <= args.num_canvases:
        raise ConfigError(
            "Expected passes of at least 1 and 1 <= batch_size <= num_canvases; got "
            f"{args.passes}, {args.batch_size}, {args.num_canvases}."
        )
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    net = pretraining.Pretrainer()
    if args.init:
        net.model = load_compact(args.init)
    optimiser = torch.optim.AdamW(net.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    steps = args.num_canvases // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, args.learning_rate, total_steps=args.passes * steps, pct_start=0.15
    )
    sources = {"mnist": args.mnist_share, "digits": 1 - args.mnist_share}
    looks = LOOKS[args.objects]
    kinds = [(source, look) for source in sources for look in looks]
    train = [stream(args, "train", source, look, args.seed) for source, look in kinds]
    shares = [sources[source] * looks[look][1] for source, look in kinds]
    cursor = np.zeros(len(train), dtype=np.int64)
    start = time.perf_counter()
    for epoch in range(args.passes):
        for _ in tqdm(range(steps), desc=f"pass {epoch + 1}/{args.passes}", mininterval=10):
            drawn = rng.multinomial(args.batch_size, shares)
            parts = [
                canvases.compose(range(first, first + count))
                for canvases, first, count in zip(train, cursor, drawn, strict=True)
            ]
            cursor += drawn
            images = to_images(np.concatenate([part.images for part in parts]), net.model.in_channels)
            counts = torch.from_numpy(np.concatenate([label_counts(part.labels) for part in parts])).float()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                saliency, log_probs = net(pretraining.warped(images, args.warp_px))
            loss = pretraining.counting_loss(saliency, log_probs, counts, args.sharp_coef)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        val = {
            source: pretraining.accuracy(net, stream(args, "val", source, next(iter(looks)), seed=99), 2_000)
            for source in sources
        }
        tqdm.write(f"pass {epoch + 1}: loss {loss.item():.4f}, validation {val}, {time.perf_counter() - start:.0f} s")
        with replacing(args.output) as path:
            torch.save(net.model.state_dict(), path)
    results = {
        "test": {
            source: {look: pretraining.accuracy(net, stream(args, "test", source, look, seed=99)) for look in looks}
            for source in sources
        },
        "seconds": time.perf_counter() - start,
        "args": {
            **dataclasses.asdict(args),
            "output": args.output.name,
            "init": args.init and args.init.name,
            "data_root": None,
        },
        "versions": versions(),
    }
    tqdm.write(f"test: {results['test']}")
    with replacing(args.output.with_suffix(".json")) as path:
        path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (HSALError, OSError) as error:
        sys.exit(f"error: {error}")
