"""Bilinear resizing whose result is the same bit for bit in any batch and on any machine."""

from __future__ import annotations

from functools import cache

import numpy as np

_ONE = 256  # weights are multiples of 1/256


@cache
def bilinear_weights(in_px: int, out_px: int) -> np.ndarray:
    """Interpolation matrix ``[out_px, in_px]`` of a triangle filter, in units of 1/256; each row sums to 256.

    Output pixel centre ``c = (i + 1/2) in/out - 1/2``; weight ``max(0, 1 - |j - c| / s)`` with ``s = max(1, in/out)``,
    normalised: linear interpolation when enlarging, area-aware (antialiased) when shrinking.
    """
    scale = in_px / out_px
    centre = (np.arange(out_px) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(in_px)[None] - centre[:, None]) / max(1.0, scale))
    weights /= weights.sum(1, keepdims=True)
    units = np.floor(weights * _ONE)
    missing = (_ONE - units.sum(1)).astype(int)
    for row, count in enumerate(missing):  # what rounding took goes to the largest remainders
        units[row, np.argsort(units[row] - weights[row] * _ONE, kind="stable")[:count]] += 1
    units = units.astype(np.float32)
    units.flags.writeable = False
    return units


def bilinear_resize(images: np.ndarray, out_px: int) -> np.ndarray:
    """Resize uint8 ``[N, h, w]`` to uint8 ``[N, out_px, out_px]``.

    The result is exact: every product and sum is an integer below 255 * 256 * 256 < 2**24, which float32 holds without rounding,
    in whatever order a matrix product adds.
    """
    rows, columns = bilinear_weights(images.shape[1], out_px), bilinear_weights(images.shape[2], out_px)
    total = rows @ images.astype(np.float32) @ columns.T  # [N, out_px, out_px]
    return ((total + _ONE * _ONE // 2) / (_ONE * _ONE)).astype(np.uint8)
