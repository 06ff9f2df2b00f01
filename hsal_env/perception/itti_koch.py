"""The saliency model of Itti, Koch and Niebur: what stands out in intensity, colour or orientation.

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
_CENTRE_PX = 64  # the longer side at scale 2, the first that is read: that of an image of 256 px
_FLAT = 1e-3  # of the range 0..1, a quarter of a grey value: a map that varies no more is flat
_REACH_PX = 4  # of the filters of orientation
_LOW = 0.1  # of the highest: a lower local maximum is none


class IttiKoch(ImageSaliency):
    """``S = (N(I) + N(C) + N(O)) / 3``, conspicuity in intensity, colour and orientation, at scale 4.

    As printed: centre-surround differences ``|F(c) - F(c + delta)|``, c in 2, 3, 4 and delta in 3, 4, each promoted by N
    (:func:`promote`) and added at scale 4; the four orientations are promoted once more on their own. Ours:

    - Scale 2 is the image at 64 px of its longer side, whatever it had, so that scale 8 is one pixel: as of 256 px.
    - Scales are halved by a triangle filter, 1 3 3 1, which is centred between pixels.
    - Orientations are the magnitudes of a pair of Gabor filters (even and odd) of 4 px wavelength.
    - Colours are compared as ``|RG(c) - RG(s)|``: with the printed surround, G - R for R - G, a plainly red image would be
      salient all over, and red on green not at all. A grey image has no colour.
    """

    def pixel_map(self, image: Tensor) -> Tensor:
        """``[C, h_px, w_px]`` in [0, 1] to ``[h, w]`` of 16 px on its longer side."""
        scales = _pyramid(_features(image))
        features = [torch.cat([scale, _orientations(scale[:1])]) for scale in scales]
        size = features[MAP_SCALE - CENTRES[0]].shape[1:]
        added = torch.zeros(len(features[0]), *size)
        for centre in CENTRES:
            fine = features[centre - CENTRES[0]]
            around = [_resized(features[centre + delta - CENTRES[0]], fine.shape[1:]) for delta in DELTAS]
            promoted = promote((fine - torch.stack(around)).abs().flatten(0, 1))  # one by one, all deltas at once
            added = added + _resized(promoted, size).unflatten(0, (len(DELTAS), -1)).sum(dim=0)
        intensity, colour, orientation = added.tensor_split([1, len(added) - len(ORIENTATIONS)])
        parts = [intensity, colour.sum(dim=0, keepdim=True), promote(orientation).sum(dim=0, keepdim=True)]
        return promote(torch.cat(parts)).mean(dim=0)


def promote(maps: Tensor) -> Tensor:
    """N: many equal peaks are wiped out, one that is higher than the others stays.

    Each of ``[K, h, w]`` is brought to the range 0..1 and multiplied by ``(1 - m)**2``, m the mean of all its local maxima but
    the highest: cells that none of their eight neighbours exceeds, of at least 0.1. A flat map gives zeros.
    """
    maps = F.normalise(maps, least=_FLAT)
    peaks = (maps == _highest_about(maps)) & (maps >= _LOW)
    others = peaks.sum(dim=(1, 2)) - 1
    mean = ((maps * peaks).sum(dim=(1, 2)) - 1) / others.clamp(min=1)
    return maps * torch.where(others > 0, 1 - mean, 1.0).square()[:, None, None]


def _features(image: Tensor) -> Tensor:
    """Intensity and, of an image in colour, red-green and blue-yellow, each between -1 and 1: ``[1 or 3, h, w]``."""
    intensity = image.mean(dim=0, keepdim=True)
    if len(image) != 3 or bool((image == image[:1]).all()):
        return intensity
    # hue is decoupled from intensity, and that of what is nearly black is not visible
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
    """How much of each orientation there is: ``[1, h, w]`` to ``[4, h, w]``."""
    padded = nnf.pad(intensity[None], (_REACH_PX,) * 4, mode="replicate")
    even, odd = nnf.conv2d(padded, _gabors())[0].unflatten(0, (2, -1))
    return (even.square() + odd.square()).sqrt()


@cache
def _gabors() -> Tensor:
    """Even, then odd Gabor filters of each orientation: ``[8, 1, 9, 9]``, wavelength 4 px, a Gaussian of 2 px."""
    away = torch.arange(-_REACH_PX, _REACH_PX + 1.0)
    envelope = torch.exp(-(away[:, None].square() + away.square()) / 8)
    angle = torch.tensor(ORIENTATIONS).deg2rad()[:, None, None]
    across = 2 * math.pi / 4 * (away * angle.cos() + away[:, None] * angle.sin())  # [4, 9, 9]
    even = envelope * across.cos()
    even = even - envelope * even.sum(dim=(1, 2), keepdim=True) / envelope.sum()  # answers nothing to a flat image
    both = torch.cat([even, envelope * across.sin()])
    return (both / both.abs().sum(dim=(1, 2), keepdim=True))[:, None]


def _resized(maps: Tensor, size: list[int] | torch.Size) -> Tensor:
    """``[K, h, w]`` at another size: interpolated linearly, averaged by a triangle where it shrinks."""
    return nnf.interpolate(maps[None], size=list(size), mode="bilinear", antialias=True)[0]


def _highest_about(maps: Tensor) -> Tensor:
    """Of each cell of ``[K, h, w]``: the highest of it and its eight neighbours."""
    padded = nnf.pad(maps, (1, 1, 1, 1), value=-1.0)  # pooling is several times slower
    rows = torch.maximum(torch.maximum(padded[:, :-2], padded[:, 2:]), padded[:, 1:-1])
    return torch.maximum(torch.maximum(rows[..., :-2], rows[..., 2:]), rows[..., 1:-1])
