"""The saliency model of Hou and Zhang: a place is salient if it belongs to what is unusual in the spectrum of the image.

X. Hou, L. Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nnf

from hsal_env.perception.saliency import ImageSaliency

_SIDE_PX = 64
_ROUNDING = _SIDE_PX / 12**0.5 / 255  # amplitude that rounding to 8 bits adds to a spectrum


class SpectralResidual(ImageSaliency):
    """``S = g * |F^-1[exp(R + iP)]|**2`` with the residual ``R = L - h * L`` of the log-amplitude L and the phase P, at 64 px.

    ``exp(R + iP)`` is computed as the spectrum times ``exp(-h * L)``. h is the mean over 3x3 neighbours; it wraps round because a
    spectrum is periodic. g is a Gaussian. Rounding pixels to 8 bits causes noise. Its amplitude is added to every amplitude, so
    that the noise does not count where the spectrum is empty. A constant image gives zeros.

    Args:
        smooth_px: standard deviation of g, in px of the resized image.
    """

    def __init__(self, smooth_px: float = 2.5) -> None:
        self.smooth_px = smooth_px

    def pixel_map(self, image: Tensor) -> Tensor:
        """An image ``[C, h_px, w_px]`` in [0, 1] to its map ``[h, w]``, 64 px on the longer side."""
        grey = image.mean(dim=0)
        size = [max(1, round(length * _SIDE_PX / max(grey.shape))) for length in grey.shape]
        if bool(grey.amax() == grey.amin()):
            return torch.zeros(size)
        spectrum = torch.fft.fft2(_interpolated(grey, size))
        log_amplitude = (spectrum.abs() + _ROUNDING).log()
        usual = nnf.avg_pool2d(nnf.pad(log_amplitude[None, None], (1, 1, 1, 1), mode="circular"), 3, stride=1)[0, 0]
        return self._smooth(torch.fft.ifft2(spectrum * (-usual).exp()).abs().square())

    def _smooth(self, maps: Tensor) -> Tensor:
        reach = int(3 * self.smooth_px)
        weights = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * self.smooth_px**2))
        weights = weights / weights.sum()
        padded = nnf.pad(maps[None, None], (reach, reach, reach, reach), mode="replicate")
        return nnf.conv2d(nnf.conv2d(padded, weights[None, None, :, None]), weights[None, None, None])[0, 0]


def _interpolated(grey: Tensor, size: list[int]) -> Tensor:
    return nnf.interpolate(grey[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
