"""What both levels share: one-hot inputs, and an encoder with a recurrent cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot

from hsal_env.memory import require_memory


def one_hot_or_zeros(index: Tensor, size: int) -> Tensor:
    """``index`` ``[B]`` as one-hot float ``[B, size]``. Where it equals ``size``, which means none, all are zeros."""
    return one_hot(index, size + 1)[:, :-1].float()


class EncodedGRU(nn.Module):
    """``e = W_encode x``, ``h = GRU(e, h_before)``: an encoder without a nonlinearity, then a recurrent cell.

    The encoder and the GRU's input product are two linear maps in a row. Where the same weights meet many inputs, the two
    matrices are multiplied first (:meth:`folded`). This halves the work and computes the same function, up to rounding.

    Args:
        inputs: size of x.
        hidden: size of e and h.

    Raises:
        ConfigError: the weights do not fit the memory.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        require_memory(
            4 * hidden * (inputs + 6 * hidden), f"a recurrent network of {hidden} units over {inputs} inputs"
        )
        self.encode = nn.Linear(inputs, hidden)
        self.gru = nn.GRUCell(hidden, hidden)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight ``W_ih W_encode`` ``[3 hidden, inputs]`` and bias ``W_ih b_encode + b_ih``, with gradient."""
        weight_ih, bias_ih = self.gru.weight_ih, self.gru.bias_ih
        with torch.autocast(weight_ih.device.type, enabled=False):
            return weight_ih @ self.encode.weight, weight_ih @ self.encode.bias + bias_ih

    def step(self, x: Tensor, state: Tensor | None, folded: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Take one step and return the new state ``[B, hidden]``. It is float32, even if products are computed in bfloat16.

        Args:
            x: ``[B, inputs]``.
            state: ``[B, hidden]``. None means zeros, and saves their product.
            folded: what :meth:`folded` returned. None: both matrices are applied.
        """
        gru = self.gru
        given = linear(x, *folded) if folded else linear(self.encode(x), gru.weight_ih, gru.bias_ih)
        kept = gru.bias_hh if state is None else linear(state, gru.weight_hh, gru.bias_hh)
        (r, z, n), (r_kept, z_kept, n_kept) = given.float().chunk(3, dim=-1), kept.float().chunk(3, dim=-1)
        reset, update = (r + r_kept).sigmoid(), (z + z_kept).sigmoid()
        new = (n + reset * n_kept).tanh()
        return new - update * new if state is None else new + update * (state - new)
