"""The meta-controller turns the saliency map into attention (paper section 3, "Meta-Controller")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agents.config import grid_side
from agents.encoding import EncodedGRU, one_hot_or_zeros
from hsal_env import functional as F


class MetaController(EncodedGRU):
    """``x_t = [S_t, y_{t-1}]``, ``e_t = W_encode x_t``, ``h_t = GRU(e_t, h_{t-1})``, raw attention ``= W_attn h_t``.

    Args:
        cells: H W.
        labels: C + 1.
        components: K.
        hidden: size of encoding and state.
        grid: the raw centres start on a square grid, ``sigmoid(.) = (i + 1/2) / sqrt(K)``, and the weights four times as
            large.

    Attributes:
        state_size: size of the recurrent state h_t.

    Raises:
        ConfigError: ``grid`` is set and K is not a square number.
    """

    def __init__(self, cells: int, labels: int, components: int, hidden: int, grid: bool) -> None:
        super().__init__(cells + labels, hidden)
        self.labels, self.state_size = labels, hidden
        self.attention = nn.Linear(hidden, 4 * components)
        if grid:
            side = grid_side(components)
            centre = ((torch.arange(side) + 0.5) / side).logit()
            with torch.no_grad():
                self.attention.weight.mul_(4)
                self.attention.bias.zero_()
                self.attention.bias[2 * components :] = torch.cat([centre.repeat_interleave(side), centre.repeat(side)])

    def forward(self, saliency: Tensor, last_label: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            saliency: S_t ``[B, H, W]``.
            last_label: ``[B]``. C + 1 means none yet, and is encoded as zeros (C2).
            state: h_{t-1} ``[B, hidden]``.

        Returns:
            Raw attention ``[B, 4K]`` in [-8, 8], and h_t.
        """
        x = torch.cat([saliency.flatten(1), one_hot_or_zeros(last_label, self.labels)], dim=1)
        state = self.step(x, state)
        return self.attention(state).float().clamp(-F.RAW_LIMIT, F.RAW_LIMIT), state
