"""How an activation model is trained (paper section 3, "Saliency Model"): on labels alone, without boxes or an order.

There are two objectives. ``count`` is the default. Each cell of the volume stands for ``s_ij = sum_c V_cij**2 / D`` objects, and
a linear classifier W of its column says of which class. The expected counts are fitted to the counts ``n_c`` of the image:

    lambda_c = sum_ij s_ij softmax(W V_ij)_c,    loss = sum_c (lambda_c - n_c log(lambda_c + 0.001)) / sqrt(max(1, sum_c n_c))

This is the negative log-likelihood of Poisson counts. The term ``sharp_coef sum_ij s_ij |1 - s_ij|`` is added. With it an object
becomes one cell with s = 1 instead of two cells with s = 1/2, so that an agent that visits the peaks of the map meets each
object once. It pulls low cells to 0, where they have no gradient, so on photographs its weight rises only when the network has
begun to see (:func:`risen`).

``classify`` is the paper's (section 5, "Implementation Details"): the cross-entropy of ``softmax(W mean_ij V_ij)`` to one of the
labels of the image. That label is drawn anew each time the image is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, interpolate, one_hot

from agents.supervised import Objective
from hsal_env import functional as F
from hsal_env.config import EnvConfig
from hsal_env.data.augmentation import FiniteSource, Varied
from hsal_env.data.canvases import CanvasSource
from hsal_env.multiset import label_counts
from hsal_env.perception.activation import ActivationModel
from hsal_env.perception.examples import to_images


class Pretrainer(nn.Module):
    """An activation model with a linear classifier W of its columns.

    Args:
        model: the activation model to be trained.
        classes: C, the number of classes.
    """

    def __init__(self, model: ActivationModel, classes: int = 10) -> None:
        super().__init__()
        self.model, self.classes = model, classes
        self.classifier = nn.Linear(model.saliency_channels, classes)

    def volume(self, images: Tensor) -> Tensor:
        """V ``[B, D, H, W]``, float32: those channels that the saliency map is made of."""
        return self.model(images)[:, : self.model.saliency_channels].float()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[B, 1 or 3, h_px, w_px]`` to s ``[B, H, W]`` and the log-probabilities of each cell ``[B, H, W, C]``."""
        volume = self.volume(images)
        log_probs = self.classifier(volume.permute(0, 2, 3, 1)).float().log_softmax(dim=-1)
        return F.sum_of_squares(volume) / self.model.saliency_channels, log_probs

    def pooled(self, images: Tensor) -> Tensor:
        """Scores of the whole image, ``W mean_ij V_ij``, ``[B, C]``."""
        return self.classifier(self.volume(images).mean(dim=(2, 3))).float()

    def loss(self, images: Tensor, counts: Tensor, objective: Objective, sharp_coef: float) -> Tensor:
        """The loss of ``objective``, a mean over images.

        Args:
            images: ``[B, 1 or 3, h_px, w_px]`` in [0, 1], on the device of the network.
            counts: n ``[B, C]``, on the CPU.
            objective: see the head of this file.
            sharp_coef: see there.
        """
        if objective == "classify":
            return classification_loss(self.pooled(images), counts)
        saliency, log_probs = self(images)
        return counting_loss(saliency, log_probs, counts.to(saliency.device), sharp_coef)


def counting_loss(saliency: Tensor, log_probs: Tensor, counts: Tensor, sharp_coef: float) -> Tensor:
    """The objective ``count`` (see the head of this file), a mean over images.

    Args:
        saliency: s ``[B, H, W]``.
        log_probs: log-probabilities of the classes in each cell ``[B, H, W, C]``.
        counts: n ``[B, C]``.
        sharp_coef: weight of the term that makes cells 0 or 1.
    """
    expected = expected_counts(saliency, log_probs)
    poisson = (expected - counts * (expected + 1e-3).log()).sum(dim=1) / counts.sum(dim=1).clamp(min=1).sqrt()
    between = (saliency * (1 - saliency).abs()).sum(dim=(1, 2))
    return (poisson + sharp_coef * between).mean()


def risen(done: float, start: float, end: float) -> float:
    """What has risen evenly from 0 at ``start`` to 1 at ``end``, when ``done`` of a training is done, all in [0, 1]."""
    if done >= end:
        return 1.0
    return (done - start) / (end - start) if done > start else 0.0


def expected_counts(saliency: Tensor, log_probs: Tensor) -> Tensor:
    """``lambda_c = sum_ij s_ij p_ij(c)`` ``[B, C]``, from s ``[B, H, W]`` and log p ``[B, H, W, C]``."""
    return (saliency[..., None] * log_probs.exp()).sum(dim=(1, 2))


def classification_loss(scores: Tensor, counts: Tensor) -> Tensor:
    """The objective ``classify`` (see the head of this file), a mean over images.

    Args:
        scores: of the whole images ``[B, C]``.
        counts: n ``[B, C]``, on the CPU. Images without objects have no label to draw, and a loss of 0.
    """
    labelled = counts.sum(dim=1) > 0
    if not labelled.any():
        return scores.sum() * 0
    drawn = torch.multinomial(counts[labelled], 1).squeeze(1).to(scores.device)
    return cross_entropy(scores[labelled.to(scores.device)], drawn, reduction="sum") / len(counts)


def warped(images: Tensor, warp_px: float) -> Tensor:
    """Displace the pixels of each image ``[B, C, h_px, w_px]`` smoothly and at random, so that strokes bend, turn and stretch.

    The displacements are normal at 5x5 points and interpolated bicubically between them. Their standard deviation is drawn
    uniformly from 0 to ``warp_px`` for each image.
    """
    lanes, size_px = len(images), images.shape[-1]
    amplitude = torch.rand(lanes, 1, 1, 1) * warp_px * 2 / size_px  # grid_sample measures in half images
    bend = interpolate(torch.randn(lanes, 2, 5, 5) * amplitude, images.shape[2:], mode="bicubic", align_corners=True)
    still = affine_grid(torch.eye(2, 3).expand(lanes, 2, 3), list(images.shape), align_corners=False)
    return grid_sample(images, (still + bend.permute(0, 2, 3, 1)).to(images.device), align_corners=False)


def resized(images: Tensor, scale: float) -> Tensor:
    """Images ``[B, C, h_px, w_px]`` with sides of ``scale`` times as many px, rounded."""
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[2:]]
    return interpolate(images, size, mode="bilinear", antialias=True)


class Supply(NamedTuple):
    """Canvases to learn from.

    Attributes:
        config: which canvases.
        share: their share of all canvases that are learned from, in [0, 1].
    """

    config: EnvConfig
    share: float


def batches(
    supplies: Sequence[Supply], size: int, count: int, seed: int, first: int = 0, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """``count`` batches of ``size`` images, uint8, with their label counts ``[B, C]``, int64, from batch ``first`` on.

    A thread composes each batch while the batch before it is in use. With ``share`` (r, N) every N-th image of a batch is made,
    from its r-th on: process r of N has these, of every source.
    """
    rank, processes = share
    rng = np.random.default_rng(seed)
    classes = supplies[0].config.classes
    sources = [endless(supply.config, seed) for supply in supplies]
    met = [0] * len(supplies)

    def compose(drawn: list[int], begin: list[int]) -> tuple[np.ndarray, np.ndarray]:
        places = np.cumsum([0, *drawn[:-1]])  # in the batch
        parts = [
            source.compose(own)
            for source, start, wanted, place in zip(sources, begin, drawn, places.tolist(), strict=True)
            if (own := range(start + (rank - place) % processes, start + wanted, processes))
        ]
        images = np.concatenate([part.images for part in parts])
        return images, np.concatenate([label_counts(part.labels, classes) for part in parts])

    with ThreadPoolExecutor(1) as thread:
        ahead = None
        for step in range(count + 1):
            ready = ahead.result() if ahead else None
            ahead = None
            if step < count:
                drawn = rng.multinomial(size, [supply.share for supply in supplies]).tolist()
                if step >= first:
                    ahead = thread.submit(compose, drawn, met.copy())
                met = [before + new for before, new in zip(met, drawn, strict=True)]
            if ready:
                yield ready


def endless(config: EnvConfig, seed: int) -> CanvasSource:
    """The canvases of ``config``; if their number is fixed, again and again, each time in a new order."""
    return Varied(cast(FiniteSource, config.canvases), None, seed) if config.is_finite else config.canvases


@torch.no_grad()
def accuracy(
    net: Pretrainer, config: EnvConfig, count: int = 10_000, objective: Objective = "count", scale: float = 1.0
) -> dict[str, float]:
    """Accuracy on held-out canvases, at most ``count`` of them and :func:`resized`.

    Returns:
        Of the objective ``count``: ``counts``, the share of canvases whose rounded expected counts are right; ``peaks``, that of
        those whose cells of more than half the highest saliency, each with the best class of its classifier, give the right
        multiset; and ``count_error``, the mean of ``|lambda_c - n_c|`` over canvases and classes. Of the objective
        ``classify``: ``label``, the share of canvases that hold the label with the best score.
    """
    net.eval()
    device = net.classifier.weight.device
    count = min(count, config.size)
    names = ("label",) if objective == "classify" else ("counts", "peaks", "count_error")
    sums = np.zeros(len(names))
    for start in range(0, count, 64):
        batch = config.canvases.compose(range(start, min(start + 64, count)))
        true = torch.from_numpy(label_counts(batch.labels, net.classes)).to(device)
        images = resized(to_images(batch.images, net.model.in_channels).to(device), scale)
        if objective == "classify":
            sums[0] += int((true.gather(1, net.pooled(images).argmax(dim=1, keepdim=True)) > 0).sum())
            continue
        saliency, log_probs = net(images)
        named = one_hot(log_probs.argmax(dim=-1), net.classes)
        peaks = (named * (F.normalise(saliency) > 0.5)[..., None]).sum(dim=(1, 2))
        expected = expected_counts(saliency, log_probs)
        right = [int((found == true).all(dim=1).sum()) for found in (expected.round(), peaks)]
        sums += [*right, float((expected - true).abs().mean(dim=1).sum())]
    net.train()
    return dict(zip(names, (sums / count).round(4).tolist(), strict=True))
