"""Train the activation model on single-object canvases, as the paper fine-tunes its own (section 3, "Saliency Model").

    python train/pretrain_perception.py --output compact.pt

A classifier reads the volume through its own saliency: ``logits = W sum_ij (S_ij / sum S) V_ij`` with
``S = sum_c V_c**2``, so that what is salient is what tells the label. Two small penalties shape the map for an agent
that will visit its peaks: the area ``sum_ij S_ij / max S`` (one object, few cells) and ``(log max S)**2`` (every object
equally high). No boxes, no second object, no order is used.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from hsal_env import functional as F
from hsal_env.data import CanvasConfig, Canvases, load_glyphs
from hsal_env.perception.activation import CompactResNet


@dataclass
class Args:
    """Pretrain the compact activation model."""

    output: Path = Path("compact.pt")
    """where the weights go"""
    passes: int = 30
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
    look = CanvasConfig(task="single", max_objects=1, **({"clutter": 4, "clutter_px": 14} if distractors else {}))
    return Canvases(load_glyphs(source, split, args.data_root), look, seed=seed, stream=10 + distractors)


def to_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images)[:, None].float() / 255


@torch.no_grad()
def accuracy(net: Pretrainer, canvases: Canvases, count: int = 10_000) -> dict[str, float]:
    net.eval()
    right, area = 0, 0.0
    for start in range(0, count, 500):
        batch = canvases.compose(range(start, start + 500))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, saliency = net(to_tensor(batch.images))
        right += int((logits.argmax(1).numpy() == batch.labels[:, 0]).sum())
        area += float((saliency / saliency.amax(dim=(1, 2), keepdim=True)).sum())
    net.train()
    return {"accuracy": right / count, "area_cell": area / count}


def save(state: dict, path: Path) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent or ".", prefix=path.name)
    os.close(handle)
    torch.save(state, name)
    os.replace(name, path)


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    net = Pretrainer()
    optimiser = torch.optim.AdamW(net.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    steps = args.num_canvases // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.learning_rate, total_steps=args.passes * steps, pct_start=0.15)
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
            images = to_tensor(np.concatenate([part.images for part in parts]))
            labels = torch.from_numpy(np.concatenate([part.labels[:, 0] for part in parts]))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits, saliency = net(images)
            peak = saliency.amax(dim=(1, 2))
            area = (saliency / (peak[:, None, None] + 1e-6)).sum(dim=(1, 2)).mean()
            height = (peak + 1e-6).log().square().mean()
            loss = cross_entropy(logits.float(), labels) + args.area_coef * area + args.height_coef * height
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        line = {s: accuracy(net, stream(args, "val", s, False, 99), 2_000) for s in ("mnist", "digits")}
        tqdm.write(f"pass {epoch + 1} loss {loss.item():.4f} {line} {time.perf_counter() - start:.0f} s")
        save(net.state_dict(), args.output.with_suffix(".partial.pt"))
    test = {s: accuracy(net, stream(args, "test", s, False, 99)) for s in ("mnist", "digits")}
    tqdm.write(f"test {test}")
    save(net.model.state_dict(), args.output)


if __name__ == "__main__":
    main(tyro.cli(Args))
