"""What the activation model learns from (paper section 3, "Saliency Model"): labels alone, no boxes, no order.

``count``, the default: each cell of the volume counts: how much, by its saliency ``s_ij = sum_c V_cij**2 / D``; what, by a linear
classifier of its column. The image's counts ``n_c`` are learned from their expectation

    lambda_c = sum_ij s_ij softmax(W V_ij)_c,    loss = sum_c (lambda_c - n_c log(lambda_c + 0.001)) / sqrt(sum_c n_c)

the negative log-likelihood of Poisson counts, plus ``sharp_coef sum_ij s_ij |1 - s_ij|``: an object is one cell of height 1,
not two of 1/2, so that an agent that visits the peaks of the map meets each object once.

``classify``, the paper's (section 5, "Implementation Details"): cross-entropy of ``softmax(W mean_ij V_ij)`` to one of the
image's labels, drawn anew each time the image is met.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, interpolate, one_hot

from agents.supervised import Objective
from hsal_env import functional as F
from hsal_env.config import EnvConfig
from hsal_env.multiset import label_counts
from hsal_env.perception.activation import ActivationModel
from hsal_env.perception.examples import to_images


class Pretrainer(nn.Module):
    """An activation model under a linear classifier of its columns.

    Args:
        model: see :class:`hsal_env.perception.activation.ActivationModel`.
        classes: C.
    """

    def __init__(self, model: ActivationModel, classes: int = 10) -> None:
        super().__init__()
        self.model, self.classes = model, classes
        self.classifier = nn.Linear(model.saliency_channels, classes)

    def volume(self, images: Tensor) -> Tensor:
        """V, the channels that saliency is made of, float32 ``[B, D, H, W]``."""
        return self.model(images)[:, : self.model.saliency_channels].float()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 1 or 3, h_px, w_px]`` to saliency per channel ``[B, H, W]`` and log-probabilities ``[B, H, W, C]``."""
        volume = self.volume(images)
        log_probs = self.classifier(volume.permute(0, 2, 3, 1)).float().log_softmax(dim=-1)
        return F.sum_of_squares(volume) / self.model.saliency_channels, log_probs

    def pooled(self, images: Tensor) -> Tensor:
        """Scores of the whole image, ``W mean_ij V_ij``, ``[B, C]``."""
        return self.classifier(self.volume(images).mean(dim=(2, 3))).float()


def counting_loss(saliency: Tensor, log_probs: Tensor, counts: Tensor, sharp_coef: float) -> Tensor:
    """The objective ``count`` in the head of this file, a mean over images.

    Args:
        saliency: s ``[B, H, W]``.
        log_probs: ``[B, H, W, C]``.
        counts: n ``[B, C]``.
        sharp_coef: weight of the second term.
    """
    expected = expected_counts(saliency, log_probs)
    poisson = (expected - counts * (expected + 1e-3).log()).sum(dim=1) / counts.sum(dim=1).sqrt()
    between = (saliency * (1 - saliency).abs()).sum(dim=(1, 2))
    return (poisson + sharp_coef * between).mean()


def expected_counts(saliency: Tensor, log_probs: Tensor) -> Tensor:
    """``lambda_c = sum_ij s_ij p_ij(c)``, ``[B, C]``."""
    return (saliency[..., None] * log_probs.exp()).sum(dim=(1, 2))


def classification_loss(scores: Tensor, counts: Tensor) -> Tensor:
    """The objective ``classify`` in the head of this file, from scores and counts ``[B, C]``, at least one object each."""
    return cross_entropy(scores, torch.multinomial(counts, 1).squeeze(1).to(scores.device))


def warped(images: Tensor, warp_px: float) -> Tensor:
    """Displace the pixels of each image ``[B, C, h_px, w_px]`` smoothly, by a random amplitude of up to ``warp_px``.

    Normal displacements at 5x5 points, interpolated bicubically: strokes bend, turn and stretch a little.
    """
    lanes, size_px = len(images), images.shape[-1]
    amplitude = torch.rand(lanes, 1, 1, 1) * warp_px * 2 / size_px  # grid_sample measures in half images
    bend = interpolate(torch.randn(lanes, 2, 5, 5) * amplitude, images.shape[2:], mode="bicubic", align_corners=True)
    still = affine_grid(torch.eye(2, 3).expand(lanes, 2, 3), list(images.shape), align_corners=False)
    return grid_sample(images, (still + bend.permute(0, 2, 3, 1)).to(images.device), align_corners=False)


class Supply(NamedTuple):
    """Canvases to learn from.

    Attributes:
        config: which.
        share: how many of all.
    """

    config: EnvConfig
    share: float


def batches(supplies: Sequence[Supply], size: int, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """``count`` batches of ``size`` images uint8 and label counts int64 ``[B, C]``, each composed while the one before is used.

    An endless source gives fresh canvases each time; one that holds so many images and no more (SVHN) is gone through in a new
    order each time.
    """
    rng = np.random.default_rng(seed)
    classes = supplies[0].config.classes
    met = [0] * len(supplies)

    def indices(supply: Supply, first: int, wanted: int) -> np.ndarray:
        whole = np.arange(first, first + wanted)
        if not supply.config.is_finite:
            return whole
        rounds, places = np.divmod(whole, supply.config.size)
        orders = {
            r: np.random.default_rng([seed, r]).permutation(supply.config.size) for r in np.unique(rounds).tolist()
        }
        return np.array([orders[r][place] for r, place in zip(rounds.tolist(), places.tolist(), strict=True)])

    def compose(drawn: list[int], first: list[int]) -> tuple[np.ndarray, np.ndarray]:
        parts = [
            supply.config.canvases.compose(indices(supply, start, wanted))
            for supply, start, wanted in zip(supplies, first, drawn, strict=True)
            if wanted
        ]
        images = np.concatenate([part.images for part in parts])
        return images, np.concatenate([label_counts(part.labels, classes) for part in parts])

    with ThreadPoolExecutor(1) as thread:
        ahead = None
        for step in range(count + 1):
            ready = ahead.result() if ahead else None
            if step < count:
                drawn = rng.multinomial(size, [supply.share for supply in supplies]).tolist()
                ahead = thread.submit(compose, drawn, met.copy())
                met = [before + new for before, new in zip(met, drawn, strict=True)]
            if ready:
                yield ready


@torch.no_grad()
def accuracy(
    net: Pretrainer, config: EnvConfig, count: int = 10_000, objective: Objective = "count"
) -> dict[str, float]:
    """On held-out canvases, at most ``count``.

    Returns:
        ``counts``: share whose rounded expected counts are right; ``peaks``: share whose cells above half the highest, each
        named by its classifier, are the multiset. Under ``classify``: ``label``, share whose best label is in the image.
    """
    net.eval()
    device = net.classifier.weight.device
    count = min(count, config.size)
    names = ("label",) if objective == "classify" else ("counts", "peaks")
    right = np.zeros(len(names))
    for start in range(0, count, 64):
        batch = config.canvases.compose(range(start, min(start + 64, count)))
        true = torch.from_numpy(label_counts(batch.labels, net.classes)).to(device)
        images = to_images(batch.images, net.model.in_channels).to(device)
        if objective == "classify":
            right[0] += int((true.gather(1, net.pooled(images).argmax(dim=1, keepdim=True)) > 0).sum())
            continue
        saliency, log_probs = net(images)
        named = one_hot(log_probs.argmax(dim=-1), net.classes)
        peaks = (named * (F.normalise(saliency) > 0.5)[..., None]).sum(dim=(1, 2))
        for which, found in enumerate((expected_counts(saliency, log_probs).round(), peaks)):
            right[which] += int((found == true).all(dim=1).sum())
    net.train()
    return dict(zip(names, (right / count).round(4).tolist(), strict=True))
