"""Credit for decisions: advantages from rewards (decision L2)."""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(rewards: Tensor, values: Tensor, live: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates ``A_n = sum_j (gamma lambda)**j delta_{n+j}``, over locations and labels in order.

    ``delta_n = r_n + gamma V_{n+1} - V_n``, with V = 0 after the end. gamma = 0 gives the paper's immediate credit ``R - V``.
    lambda = 1 gives the discounted return minus V.

    Args:
        rewards: ``[M, k + 1, B]``.
        values: ``[M, k + 1, B]``.
        live: bool ``[M, B]``.
        gamma: discount in [0, 1].
        gae_lambda: lambda in [0, 1].

    Returns:
        ``[M, k + 1, B]``, with zeros where not live.

    Example:
        >>> rewards = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1)  # one meta-step: two glimpses and a label
        >>> values, live = torch.full((1, 3, 1), 0.5), torch.ones(1, 1, dtype=torch.bool)
        >>> advantages(rewards, values, live, gamma=0.0, gae_lambda=1.0).flatten()
        tensor([ 0.5000, -0.5000, -1.5000])
    """
    mask = live[:, None].expand_as(rewards).flatten(0, 1).float()  # [N, B]
    rewards_, values_ = rewards.flatten(0, 1) * mask, values.flatten(0, 1) * mask
    running = following = torch.zeros_like(rewards_[0])
    out = []
    for reward, value, alive in zip(rewards_.flip(0), values_.flip(0), mask.flip(0), strict=True):
        running = (reward + gamma * following - value + gamma * gae_lambda * running) * alive
        following = value
        out.append(running)
    return torch.stack(out[::-1]).view_as(rewards)
