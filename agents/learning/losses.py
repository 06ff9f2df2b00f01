"""The objectives. Each returns a dict of terms, scalars to be minimised after weighting.

Sums run over the decisions of an episode, means over episodes (the paper's 1/B sum_b). Labels are rewarded at
meta-steps 1..m; meta-step m + 1, ``final``, carries the cross-entropy to "stop" (L4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.config import Estimator
from agents.trajectory import Evaluation, Trajectory, taken
from hsal_env import functional as F


def reinforce(
    trajectory: Trajectory, evaluation: Evaluation, advantage: Tensor, estimator: Estimator
) -> dict[str, Tensor]:
    """REINFORCE with a value baseline (paper section 4.2; L1), in three forms.

    - ``"sampled"``, the paper's: ``-log p(a) A``, A detached.
    - ``"exact"``: ``-sum_a p(a) r(a)``. The reward of every action is known, so the expectation need not be sampled;
      its gradient is what the sampled form estimates for immediate credit.
    - ``"log"``: as ``"exact"`` for locations; for labels ``-log sum_a p(a) s(a)``, s = (1 + r) / 2 in {0, 1}, minus the
      log-probability of a rewarded label. The same optima; its gradient, ``grad E[s] / E[s]``, does not vanish where
      success is still rare.

    Args:
        trajectory: the decisions taken.
        evaluation: their scores.
        advantage: ``[M, k + 1, B]``, see :func:`agents.learning.returns.advantages`.
        estimator: one of the three.
    """
    if estimator == "sampled":
        log_probs = taken(trajectory, evaluation)
        location, label = -log_probs[:, :-1] * advantage[:, :-1], -log_probs[:, -1] * advantage[:, -1]
    else:
        location = -(evaluation.location_log_probs.exp() * evaluation.location_rewards).sum(-1)
        if estimator == "exact":
            label = -(evaluation.label_log_probs.exp() * evaluation.label_rewards).sum(-1)
        else:
            success = ((1 + evaluation.label_rewards) / 2 + 1e-6).log()  # bounded where no label is rewarded
            label = -(evaluation.label_log_probs + success).logsumexp(-1)
    return {
        "location": _per_episode(location, trajectory.live[:, None]),
        "label": _per_episode(label, _named(trajectory)),
    } | _common(trajectory, evaluation, advantage)


def ppo(trajectory: Trajectory, evaluation: Evaluation, advantage: Tensor, clip_coef: float) -> dict[str, Tensor]:
    """PPO's clipped surrogate ``-min(rho A, clip(rho, 1 - c, 1 + c) A)``, ``rho = p(a) / p_old(a)``.

    Args:
        trajectory: the decisions taken.
        evaluation: their scores under the current policy.
        advantage: ``[M, k + 1, B]``, detached.
        clip_coef: c.
    """
    ratio = (taken(trajectory, evaluation) - trajectory.log_probs).exp()
    surrogate = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantage)
    return {
        "location": _per_episode(surrogate[:, :-1], trajectory.live[:, None]),
        "label": _per_episode(surrogate[:, -1], _named(trajectory)),
    } | _common(trajectory, evaluation, advantage)


def cross_entropy(trajectory: Trajectory, evaluation: Evaluation) -> dict[str, Tensor]:
    """The paper's baseline: ``-log p(y_t)`` for labels in a fixed, freshly shuffled order; glimpses earn nothing (L6).

    Args:
        trajectory: collected with that order forced, see :func:`shuffled_labels`.
        evaluation: its scores.
    """
    label = -evaluation.label_log_probs.gather(-1, trajectory.labels[..., None]).squeeze(-1)
    return {"label": _per_episode(label, _named(trajectory)), "stop": _stop(trajectory, evaluation)}


def multiset_loss(trajectory: Trajectory, evaluation: Evaluation, advantage: Tensor) -> dict[str, Tensor]:
    """The authors' follow-up (Welleck et al., NeurIPS 2018): cross-entropy to the uniform distribution over A_i.

    ``-sum_c q_c log p_c``, q_c the share of label c in the multiset of labels still remaining; all else as
    ``reinforce(..., "exact")``.

    Args:
        trajectory: the decisions taken.
        evaluation: their scores.
        advantage: as for :func:`reinforce`.
    """
    remaining = [trajectory.example.counts]
    for label in trajectory.labels[:-1]:
        remaining.append(F.take(remaining[-1], label))
    share = torch.stack(remaining).float()
    share = share / share.sum(dim=-1, keepdim=True).clamp(min=1)
    label = -(share * evaluation.label_log_probs[..., :-1]).sum(dim=-1)
    terms = reinforce(trajectory, evaluation, advantage, "exact")
    return terms | {"label": _per_episode(label, _named(trajectory))}


def shuffled_labels(counts: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Each lane's labels in random order, then stop. ``[B, C]`` counts to ``[steps, B]``."""
    lanes, classes = counts.shape
    repeated = torch.full((lanes, steps), classes)
    for lane, row in enumerate(counts.cpu()):
        labels = torch.arange(classes).repeat_interleave(row)
        repeated[lane, : len(labels)] = labels[torch.randperm(len(labels), generator=generator)]
    return repeated.T.contiguous().to(counts.device)


def _common(trajectory: Trajectory, evaluation: Evaluation, advantage: Tensor) -> dict[str, Tensor]:
    """Stop, value and (negative) entropy terms. The value regresses to A + V, the reward itself if gamma = 0."""
    rewarded = torch.cat(
        [trajectory.live[:, None].expand_as(trajectory.locations), _named(trajectory)[:, None]], dim=1
    )  # [M, k + 1, B]
    entropies = torch.cat(
        [_entropy(evaluation.location_log_probs), _entropy(evaluation.label_log_probs)[:, None]], dim=1
    )
    error = evaluation.values - (advantage + trajectory.values)
    return {
        "stop": _stop(trajectory, evaluation),
        "value": _per_episode(
            error.square(), trajectory.live[:, None]
        ),  # at the last label too: others look ahead to it
        "entropy": _per_episode(-entropies, rewarded),
    }


def _stop(trajectory: Trajectory, evaluation: Evaluation) -> Tensor:
    return _per_episode(-evaluation.label_log_probs[..., -1], trajectory.live & trajectory.final)


def _named(trajectory: Trajectory) -> Tensor:
    """bool ``[M, B]``: meta-steps whose label is rewarded."""
    return trajectory.live & ~trajectory.final


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)


def _per_episode(terms: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, terms, 0.0).sum() / terms.shape[-1]
