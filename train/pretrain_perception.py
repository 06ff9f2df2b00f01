"""Train the activation model on single-object canvases, as the paper fine-tunes its own (section 3, "Saliency Model").

    python train/pretrain_perception.py --output compact.pt

A classifier reads the volume through its own saliency: ``logits = W sum_ij (S_ij / sum S) V_ij`` with
``S = sum_c V_c**2``, so that what is salient is what tells the label. Two small penalties shape the map for an agent
that will visit its peaks: the area ``sum_ij S_ij / max S`` (one object, few cells) and ``log(max S / D)**2`` (every
object equally high, D channels of unit mean square). No boxes, no second object, no order is used.

The output is a weights file for ``hsal_env/perception/weights`` and, beside it, a JSON of arguments and accuracies.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from agents.report import versions
from hsal_env import functional as F
from hsal_env.data import CanvasConfig, Canvases, load_glyphs
from hsal_env.errors import ConfigError, HSALError
from hsal_env.files import replacing
from hsal_env.perception.activation import CompactResNet
from hsal_env.perception.examples import to_images


@dataclass
class Args:
    """Pretrain the compact activation model."""

    output: Path = Path("compact.pt")
    """where the weights go"""
    passes: int = 14
    """passes over num_canvases canvases, fresh ones in each"""
    num_canvases: int = 60_000
    """canvases in a pass"""
    batch_size: int = 128
    """canvases in a batch"""
    learning_rate: float = 4e-3
    """peak of the one-cycle schedule (AdamW)"""
    weight_decay: float = 0.01
    """AdamW's"""
    area_coef: float = 0.01
    """weight of the saliency map's area"""
    height_coef: float = 0.02
    """weight of the squared log height of the saliency map's peak"""
    mnist_share: float = 0.8
    """share of canvases from MNIST; the others are from scikit-learn's digits"""
    distractor_share: float = 0.5
    """share of canvases with larger crops as clutter (4 of 14 px), a stand-in for neighbours"""
    seed: int = 0
    """seed of weights and canvases"""
    data_root: str | None = None
    """where MNIST lies"""


class Pretrainer(nn.Module):
    """The activation model under a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.model = CompactResNet()
        self.classifier = nn.Linear(self.model.channels, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 1, 100, 100]`` to logits ``[B, 10]`` and raw saliency ``[B, 7, 7]``."""
        volume = self.model(images).float()
        saliency = F.sum_of_squares(volume)
        weights = saliency / (saliency.sum(dim=(1, 2), keepdim=True) + 1e-6)
        return self.classifier(F.initial_glimpse(weights, volume)), saliency


def stream(args: Args, split: str, source: str, distractors: bool, seed: int) -> Canvases:
    """Single-object canvases of a source and split."""
    look = CanvasConfig(task="single", max_objects=1, **({"clutter": 4, "clutter_px": 14} if distractors else {}))
    return Canvases(load_glyphs(source, split, args.data_root), look, seed=seed, stream=10 + distractors)


@torch.no_grad()
def accuracy(net: Pretrainer, canvases: Canvases, count: int = 10_000) -> dict[str, float]:
    """Share of right labels on held-out canvases, and the saliency map's mean area in cells of peak height."""
    net.eval()
    right, area = 0, 0.0
    for start in range(0, count, 500):
        batch = canvases.compose(range(start, min(start + 500, count)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, saliency = net(to_images(batch.images, net.model.in_channels))
        right += int((logits.argmax(1).numpy() == batch.labels[:, 0]).sum())
        area += float((saliency / saliency.amax(dim=(1, 2), keepdim=True)).sum())
    net.train()
    return {"accuracy": right / count, "area_cell": area / count}


def main(args: Args) -> None:
    """Train, test, save.

    Raises:
        ConfigError: fewer than one pass, one canvas a batch, or one batch a pass.
    """
    if args.passes < 1 or not 1 <= args.batch_size <= args.num_canvases:
        raise ConfigError(
            "Expected passes of at least 1 and 1 <= batch_size <= num_canvases; got "
            f"{args.passes}, {args.batch_size}, {args.num_canvases}."
        )
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    net = Pretrainer()
    optimiser = torch.optim.AdamW(net.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    steps = args.num_canvases // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, args.learning_rate, total_steps=args.passes * steps, pct_start=0.15
    )
    train = {(s, d): stream(args, "train", s, d, args.seed) for s in ("mnist", "digits") for d in (False, True)}
    start = time.perf_counter()
    cursor = dict.fromkeys(train, 0)
    for epoch in range(args.passes):
        for _ in tqdm(range(steps), desc=f"pass {epoch + 1}/{args.passes}", mininterval=10):
            from_mnist = rng.random(args.batch_size) < args.mnist_share
            crowded = rng.random(args.batch_size) < args.distractor_share
            parts = []
            for (source, distractors), canvases in train.items():
                count = int(((from_mnist == (source == "mnist")) & (crowded == distractors)).sum())
                first = cursor[source, distractors]
                parts.append(canvases.compose(range(first, first + count)))
                cursor[source, distractors] += count
            images = to_images(np.concatenate([part.images for part in parts]), net.model.in_channels)
            labels = torch.from_numpy(np.concatenate([part.labels[:, 0] for part in parts]))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits, saliency = net(images)
            peak = saliency.amax(dim=(1, 2))
            area = (saliency / (peak[:, None, None] + 1e-6)).sum(dim=(1, 2)).mean()
            height = (peak / net.model.channels + 1e-6).log().square().mean()
            loss = cross_entropy(logits.float(), labels) + args.area_coef * area + args.height_coef * height
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        val = {s: accuracy(net, stream(args, "val", s, False, seed=99), 2_000) for s in ("mnist", "digits")}
        tqdm.write(f"pass {epoch + 1}: loss {loss.item():.4f}, validation {val}, {time.perf_counter() - start:.0f} s")
        with replacing(args.output) as path:
            torch.save(net.model.state_dict(), path)
    results = {
        "test": {s: accuracy(net, stream(args, "test", s, False, seed=99)) for s in ("mnist", "digits")},
        "seconds": time.perf_counter() - start,
        "args": {**dataclasses.asdict(args), "output": args.output.name, "data_root": None},
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
