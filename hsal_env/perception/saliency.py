"""Saliency models f_S: (image, activation volume) -> raw saliency map (paper section 3, "Saliency Model")."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from hsal_env import functional as F


class SaliencyModel(Protocol):
    """Anything callable like this. The environment normalises the map; it must be finite and non-negative.

    A model with the attribute ``needs_images = False`` is given None for them.
    """

    def __call__(self, images: Tensor | None, volume: Tensor) -> Tensor:
        """``[B, C, h_px, w_px]`` in [0, 1] and ``[B, D, H, W]`` to ``[B, H, W]``."""
        ...


class SumOfSquares:
    """The paper's: ``S_ij = sum_c V_cij**2``."""

    needs_images = False

    def __call__(self, images: Tensor | None, volume: Tensor) -> Tensor:
        """See :class:`SaliencyModel`."""
        return F.sum_of_squares(volume)
