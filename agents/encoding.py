"""Small pieces that both levels use."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import one_hot


def one_hot_or_zeros(index: Tensor, size: int) -> Tensor:
    """One-hot float ``[B, size]`` of ``index`` ``[B]``, zeros where it equals ``size`` ("none")."""
    return one_hot(index, size + 1)[:, :-1].float()


def recurrent(cell: nn.GRUCell, encoding: Tensor, state: Tensor) -> Tensor:
    """One step of a GRU whose state stays float32 when its products are computed in bfloat16."""
    return cell(encoding, state.to(encoding.dtype)).float()
