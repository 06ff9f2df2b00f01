"""What the activation model learns from (paper section 3, "Saliency Model"): label multisets alone, no boxes, no order.

Each cell of the volume counts: how much, by its saliency ``s_ij = sum_c V_cij**2 / D``; what, by a linear classifier of
its column. The image's counts ``n_c`` are learned from their expectation

    lambda_c = sum_ij s_ij softmax(W V_ij)_c,    loss = sum_c (lambda_c - n_c log(lambda_c + 0.001)) / sqrt(sum_c n_c)

the negative log-likelihood of Poisson counts, plus ``sharp_coef sum_ij s_ij |1 - s_ij|``: an object is one cell of height 1,
not two of 1/2, so that an agent that visits the peaks of the map meets each object once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate, one_hot

from hsal_env import functional as F
from hsal_env.data import Canvases
from hsal_env.perception.activation import CompactResNet
from hsal_env.perception.examples import label_counts, to_images


class Pretrainer(nn.Module):
    """The activation model under a linear classifier of its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.model = CompactResNet()
        self.classifier = nn.Linear(self.model.channels, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 1, h_px, w_px]`` to saliency per channel ``[B, H, W]`` and log-probabilities ``[B, H, W, 10]``."""
        volume = self.model(images).float()
        log_probs = self.classifier(volume.permute(0, 2, 3, 1)).float().log_softmax(dim=-1)
        return F.sum_of_squares(volume) / self.model.channels, log_probs


def counting_loss(saliency: Tensor, log_probs: Tensor, counts: Tensor, sharp_coef: float) -> Tensor:
    """The objective in the head of this file, a mean over images.

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


def warped(images: Tensor, warp_px: float) -> Tensor:
    """Displace the pixels of each image ``[B, C, h_px, w_px]`` smoothly, by a random amplitude of up to ``warp_px``.

    Normal displacements at 5x5 points, interpolated bicubically: strokes bend, turn and stretch a little.
    """
    lanes, size_px = len(images), images.shape[-1]
    amplitude = torch.rand(lanes, 1, 1, 1) * warp_px * 2 / size_px  # grid_sample measures in half images
    bend = interpolate(torch.randn(lanes, 2, 5, 5) * amplitude, images.shape[2:], mode="bicubic", align_corners=True)
    still = affine_grid(torch.eye(2, 3).expand(lanes, 2, 3), list(images.shape), align_corners=False)
    return grid_sample(images, still + bend.permute(0, 2, 3, 1), align_corners=False)


@torch.no_grad()
def accuracy(net: Pretrainer, canvases: Canvases, count: int = 10_000) -> dict[str, float]:
    """On held-out canvases.

    Returns:
        ``counts``: share whose rounded expected counts are right; ``peaks``: share whose cells above half the highest,
        each named by its classifier, are the multiset.
    """
    net.eval()
    right = np.zeros(2)
    for start in range(0, count, 500):
        batch = canvases.compose(range(start, min(start + 500, count)))
        true = torch.from_numpy(label_counts(batch.labels))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            saliency, log_probs = net(to_images(batch.images, net.model.in_channels))
        named = one_hot(log_probs.argmax(dim=-1), true.shape[1])
        peaks = (named * (F.normalise(saliency) > 0.5)[..., None]).sum(dim=(1, 2))
        for which, found in enumerate((expected_counts(saliency, log_probs).round(), peaks)):
            right[which] += int((found == true).all(dim=1).sum())
    net.train()
    return dict(zip(("counts", "peaks"), (right / count).round(4).tolist(), strict=True))
