"""Trajectories: the decisions of a roll-out, stored for an update.

All lanes begin together, so decisions are stored by meta-step: M meta-steps, k glimpses, B lanes. The activation volume is
stored once per lane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hsal_env.dynamics import Example, rebuilt


class AttentionDraws(NamedTuple):
    """The decisions of the upper level, of an agent that draws its attention.

    Attributes:
        draws: what ``act`` said it drew: a tensor ``[M, B, ...]`` or a nested tuple of them. Only the agent looks inside.
        rewards: ``[M, B]``: see :func:`agents.learning.returns.upper_rewards`.
        log_probs: ``[M, B]``: log-probabilities of the draws under the policy that made them.
        values: ``[M, B]``: the state values that this policy estimated before it drew.
    """

    draws: Any
    rewards: Tensor
    log_probs: Tensor
    values: Tensor


class AttentionScores(NamedTuple):
    """Scores of drawn attention, with gradient: ``[B]`` at one meta-step, ``[M, B]`` of a trajectory.

    Attributes:
        log_probs: log-probability or log-density of what was drawn.
        values: estimate of the state's value before the draw.
        entropies: entropy of the distribution.
    """

    log_probs: Tensor
    values: Tensor
    entropies: Tensor


def each(function: Callable[..., Tensor], *parts: Any) -> Any:
    """Apply ``function`` to each tensor of a nested tuple; of several equally shaped ones, to the tensors that correspond."""
    first = parts[0]
    if isinstance(first, Tensor):
        return function(*parts)
    return rebuilt(first, [each(function, *part) for part in zip(*parts, strict=True)])


class Trajectory(NamedTuple):
    """The decisions of B lanes.

    Attributes:
        example: volume, raw saliency, counts and index of each lane.
        locations: int64 ``[M, k, B]``.
        labels: int64 ``[M, B]``.
        rewards: ``[M, k + 1, B]``: what the environment paid for the k locations and the label.
        log_probs: ``[M, k + 1, B]``: their log-probabilities under the policy that took them.
        values: ``[M, k + 1, B]``: the state values that this policy estimated.
        live: bool ``[M, B]``: the lane's episode had not ended before this meta-step.
        attention: the upper level's decisions; None: it does not draw.
    """

    example: Example
    locations: Tensor
    labels: Tensor
    rewards: Tensor
    log_probs: Tensor
    values: Tensor
    live: Tensor
    attention: AttentionDraws | None = None

    @property
    def final(self) -> Tensor:
        """bool ``[M, B]``: whether this is meta-step m + 1 of a lane of m objects, at which the agent should stop."""
        return torch.arange(len(self.labels), device=self.labels.device)[:, None] == self.example.counts.sum(dim=1)

    def lanes(self, chosen: Tensor) -> Trajectory:
        """The trajectory of the lanes with the indices ``chosen``."""
        example = Example(*(part[chosen] for part in self.example))
        attention = self.attention and each(lambda part: part[:, chosen], self.attention)
        parts = {name: getattr(self, name)[..., chosen] for name in self._fields[1:-1]}
        return Trajectory(example, **parts, attention=attention)


class Evaluation(NamedTuple):
    """What ``agent.evaluate(trajectory)`` returns, with gradient. Where a lane is not live, any finite numbers will do.

    Attributes:
        location_log_probs: ``[M, k, B, H W]``.
        label_log_probs: ``[M, B, C + 1]``.
        values: ``[M, k + 1, B]``.
        location_rewards: ``[M, k, B, H W]``: what each location would earn, without gradient.
        label_rewards: ``[M, B, C + 1]``: what each label would earn.
        attention: scores of the upper level's draws, ``[M, B]`` each; None: it does not draw.
    """

    location_log_probs: Tensor
    label_log_probs: Tensor
    values: Tensor
    location_rewards: Tensor
    label_rewards: Tensor
    attention: AttentionScores | None = None


def taken(trajectory: Trajectory, evaluation: Evaluation) -> Tensor:
    """Log-probabilities of the decisions taken, ``[M, k + 1, B]``."""
    location = evaluation.location_log_probs.gather(-1, trajectory.locations[..., None]).squeeze(-1)
    label = evaluation.label_log_probs.gather(-1, trajectory.labels[..., None]).squeeze(-1)
    return torch.cat([location, label[:, None]], dim=1)
