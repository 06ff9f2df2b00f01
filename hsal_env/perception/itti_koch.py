"""The saliency model of Itti, Koch and Niebur: a place is salient if its intensity, colour or orientation stands out.

L. Itti, C. Koch, E. Niebur, "A Model of Saliency-Based Visual Attention for Rapid Scene Analysis", IEEE TPAMI 20(11), 1998.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as nnf

from hsal_env import functional as F
from hsal_env.perception.saliency import ImageSaliency

CENTRES, DELTAS, MAP_SCALE = (2, 3, 4), (3, 4), 4
ORIENTATIONS = (0, 45, 90, 135)
_CENTRE_PX = 64  # the longer side at scale 2, the finest scale that is used: that of an image of 256 px
_FLAT = 1e-3  # a map with a smaller range is flat; of the values 0..1 this is a quarter of a grey level
_REACH_PX = 4  # of the Gabor filters, from their centre to their edge
_LOW = 0.1  # local maxima below this share of the highest do not count


class IttiKoch(ImageSaliency):
    """``S = (N(I) + N(C) + N(O)) / 3``: the mean of the conspicuity maps of intensity, colour and orientation, at scale 4.

    As in the paper, centre-surround differences ``|F(c) - F(c + delta)|`` with c in 2, 3, 4 and delta in 3, 4 are each promoted
    by N (:func:`promote`) and added at scale 4. The map of each of the four orientations is promoted once more. These points
    differ from the paper or are left open there:

    - The longer side of the image is resized to 64 px at scale 2, so that all images have the scales of an image of 256 px, and
      scale 8 is one pixel.
    - The filter 1 3 3 1 halves a scale. It is centred between pixels.
    - Orientations are the magnitudes of pairs of Gabor filters (even and odd) with a wavelength of 4 px.
    - Colours are compared as ``|RG(c) - RG(s)|``. With the surround as printed, G - R for R - G, an image that is red all over
      would be salient everywhere, and red on green nowhere. A grey image has no colour.
    """

    def pixel_map(self, image: Tensor) -> Tensor:
        """An image ``[C, h_px, w_px]`` in [0, 1] to its map ``[h, w]``, 16 px on the longer side."""
        scales = _pyramid(_features(image))
        features = [torch.cat([scale, _orientations(scale[:1])]) for scale in scales]
        size = features[MAP_SCALE - CENTRES[0]].shape[1:]
        added = torch.zeros(len(features[0]), *size)
        for centre in CENTRES:
            fine = features[centre - CENTRES[0]]
            around = [_resized(features[centre + delta - CENTRES[0]], fine.shape[1:]) for delta in DELTAS]
            promoted = promote(
                (fine - torch.stack(around)).abs().flatten(0, 1)
            )  # each map on its own, all deltas at once
            added = added + _resized(promoted, size).unflatten(0, (len(DELTAS), -1)).sum(dim=0)
        intensity, colour, orientation = added.tensor_split([1, len(added) - len(ORIENTATIONS)])
        parts = [intensity, colour.sum(dim=0, keepdim=True), promote(orientation).sum(dim=0, keepdim=True)]
        return promote(torch.cat(parts)).mean(dim=0)


def promote(maps: Tensor) -> Tensor:
    """The operator N of the paper. It suppresses maps with many equal peaks and keeps maps with one high peak.

    Each map of ``[K, h, w]`` is scaled to the range 0..1 and multiplied by ``(1 - m)**2``, where m is the mean of all local
    maxima but the highest. A local maximum is a cell of at least 0.1 that none of its eight neighbours exceeds. A flat map
    gives zeros.
    """
    maps = F.normalise(maps, least=_FLAT)
    peaks = (maps == _highest_about(maps)) & (maps >= _LOW)
    others = peaks.sum(dim=(1, 2)) - 1
    mean = ((maps * peaks).sum(dim=(1, 2)) - 1) / others.clamp(min=1)
    return maps * torch.where(others > 0, 1 - mean, 1.0).square()[:, None, None]


def _features(image: Tensor) -> Tensor:
    """Intensity and, for an image in colour, red-green and blue-yellow, each from -1 to 1: ``[1 or 3, h, w]``."""
    intensity = image.mean(dim=0, keepdim=True)
    if len(image) != 3 or bool((image == image[:1]).all()):
        return intensity
    # hue does not depend on intensity; where the image is nearly black, hue is not visible and counts as 0
    red, green, blue = torch.where(intensity > 0.1 * intensity.amax(), image / intensity.clamp(min=1e-6) / 3, 0.0)
    opponents = (
        (red - (green + blue) / 2).clamp(min=0) - (green - (red + blue) / 2).clamp(min=0),
        (blue - (red + green) / 2).clamp(min=0) - ((red + green) / 2 - (red - green).abs() / 2 - blue).clamp(min=0),
    )
    return torch.cat([intensity, torch.stack(opponents)])


def _pyramid(features: Tensor) -> list[Tensor]:
    """Scales 2 to 8, ``[K, h, w]`` each."""
    longer = max(features.shape[1:])
    size = [max(1, round(length * _CENTRE_PX / longer)) for length in features.shape[1:]]
    scales = [_resized(features, size)]
    for _ in range(CENTRES[0], CENTRES[-1] + DELTAS[-1]):
        size = [(length + 1) // 2 for length in size]
        scales.append(_resized(scales[-1], size))
    return scales


def _orientations(intensity: Tensor) -> Tensor:
    """The strength of each of the four orientations: ``[1, h, w]`` to ``[4, h, w]``."""
    padded = nnf.pad(intensity[None], (_REACH_PX,) * 4, mode="replicate")
    even, odd = nnf.conv2d(padded, _gabors())[0].unflatten(0, (2, -1))
    return (even.square() + odd.square()).sqrt()


@cache
def _gabors() -> Tensor:
    """Gabor filters ``[8, 1, 9, 9]``: four even, then four odd; wavelength 4 px, a Gaussian envelope of 2 px."""
    away = torch.arange(-_REACH_PX, _REACH_PX + 1.0)
    envelope = torch.exp(-(away[:, None].square() + away.square()) / 8)
    angle = torch.tensor(ORIENTATIONS).deg2rad()[:, None, None]
    across = 2 * math.pi / 4 * (away * angle.cos() + away[:, None] * angle.sin())  # [4, 9, 9]
    even = envelope * across.cos()
    even = even - envelope * even.sum(dim=(1, 2), keepdim=True) / envelope.sum()  # the response to a flat image is 0
    both = torch.cat([even, envelope * across.sin()])
    return (both / both.abs().sum(dim=(1, 2), keepdim=True))[:, None]


def _resized(maps: Tensor, size: list[int] | torch.Size) -> Tensor:
    """Maps ``[K, h, w]`` at another size: interpolated linearly, with a triangle filter where they shrink."""
    return nnf.interpolate(maps[None], size=list(size), mode="bilinear", antialias=True)[0]


def _highest_about(maps: Tensor) -> Tensor:
    """The maximum over each cell of ``[K, h, w]`` and its eight neighbours."""
    padded = nnf.pad(maps, (1, 1, 1, 1), value=-1.0)  # max pooling is several times slower
    rows = torch.maximum(torch.maximum(padded[:, :-2], padded[:, 2:]), padded[:, 1:-1])
    return torch.maximum(torch.maximum(rows[..., :-2], rows[..., 2:]), rows[..., 1:-1])
