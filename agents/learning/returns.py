"""Credit for decisions: advantages from rewards (decision L2), and the rewards of the upper level."""

from __future__ import annotations

from collections.abc import Callable

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


def upper_rewards(label_log_probs: Tensor, label_rewards: Tensor, final: Tensor | None = None) -> Tensor:
    """What a meta-step is worth to the level that placed its mask: ``p(a rewarded label) - 1``, in [-1, 0].

    p is the controller's distribution at the end of the meta-step. So the mask is judged by what the controller makes of it, and
    not by the one label that it happened to draw. Less 1, the best is 0, as after the end of an episode. There is no gradient.

    Args:
        label_log_probs: ``[..., C + 1]``.
        label_rewards: ``[..., C + 1]``: what each label would earn.
        final: in the teacher protocol bool ``[...]``, the lanes at their meta-step m + 1, where stop is right and no label earns
            anything (L4). None in the free protocol.

    Example:
        >>> probabilities, earned = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([1.0, 1.0, -1.0])  # two labels and stop
        >>> upper_rewards(probabilities.log(), earned), upper_rewards(probabilities.log(), 0 * earned, torch.tensor(True))
        (tensor(-0.2500), tensor(-0.7500))
    """
    right = label_rewards > 0
    if final is not None:
        right = torch.cat([right[..., :-1], right[..., -1:] | final[..., None]], dim=-1)
    return torch.where(right, label_log_probs.detach().exp(), 0.0).sum(dim=-1) - 1


def standardised(advantage: Tensor, live: Tensor, total: Callable[[Tensor], Tensor] = lambda values: values) -> Tensor:
    """Advantages less their mean, over their standard deviation, where ``live``; 0 elsewhere.

    Args:
        advantage: ``[M, B]``.
        live: bool ``[M, B]``.
        total: adds up the numbers of all processes, :meth:`agents.learning.distributed.Processes.total`.

    Example:
        >>> standardised(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[-1.,  1.,  0.]])
    """
    known = torch.where(live, advantage, 0.0).double()
    count, sums, squares = total(torch.stack([live.sum().double(), known.sum(), known.square().sum()]))
    mean = sums / count.clamp(min=1)
    deviation = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
    return torch.where(live, (known - mean) / deviation.clamp(min=1e-8), 0.0).to(advantage.dtype)
