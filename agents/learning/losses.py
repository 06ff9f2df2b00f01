"""The objectives. Each returns a dict of terms: scalars that are weighted, added up and minimised.

A term is the sum over the decisions of an episode, and the mean over episodes (the paper's 1/B sum_b). Labels are rewarded at
meta-steps 1..m. Meta-step m + 1, ``final``, has the cross-entropy to "stop" instead (L4).

The objectives differ in the reward that they read:

- :func:`reinforce` and :func:`ppo` read what the environment paid for each decision taken: ``trajectory.rewards``, through
  the advantage. They alone train a value baseline, since they alone read one.
- :func:`expected_reward`, :func:`expected_success` and :func:`multiset_loss` read what every location and label would earn,
  ``evaluation.location_rewards`` and ``evaluation.label_rewards``. ``agent.evaluate`` computes them anew, by the environment's
  own functions. The rewards paid are not in these losses. The actions taken only decide what is seen and remains next.
- :func:`assigned_success` reads ``evaluation.location_rewards`` alone; its labels are those of the image.
- :func:`cross_entropy` reads no reward.

:func:`upper_level` has the terms of an upper level that draws its attention. They are added to any of these.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from agents.trajectory import AttentionScores, Evaluation, Trajectory, taken
from hsal_env import functional as F


def reinforce(trajectory: Trajectory, evaluation: Evaluation, advantage: Tensor) -> dict[str, Tensor]:
    """REINFORCE with a value baseline (paper section 4.2; L1): ``-log p(a) A``, A detached.

    Args:
        trajectory: the decisions taken.
        evaluation: their scores.
        advantage: ``[M, k + 1, B]``: reward minus value if gamma = 0, see :func:`agents.learning.returns.advantages`.
    """
    log_probs = taken(trajectory, evaluation)
    return {
        **_policy(trajectory, -log_probs[:, :-1] * advantage[:, :-1], -log_probs[:, -1] * advantage[:, -1]),
        **_common(trajectory, evaluation, advantage),
    }


def expected_reward(trajectory: Trajectory, evaluation: Evaluation) -> dict[str, Tensor]:
    """Minus the expected reward of every decision, ``-sum_a p(a) r(a)``: the estimator ``"exact"``.

    The reward of every action is known, so the expectation need not be sampled. Its gradient is what :func:`reinforce`
    estimates with immediate credit (gamma = 0).

    Args:
        trajectory: the decisions taken.
        evaluation: the scores of all decisions, and what each would earn.
    """
    label = -(evaluation.label_log_probs.exp() * evaluation.label_rewards).sum(-1)
    return {
        **_policy(trajectory, _location_reward(evaluation), label),
        **_common(trajectory, evaluation),
    }


def expected_success(trajectory: Trajectory, evaluation: Evaluation) -> dict[str, Tensor]:
    """Minus the logarithm of a label's expected success: the estimator ``"log"``. Locations: as :func:`expected_reward`.

    ``-log sum_a p(a) s(a)``, where the success s = (1 + r) / 2 is 1 for a label that would be rewarded, and 0 for another. So it
    is minus the log-probability of naming a rewarded label. It has the optima of the expected reward. Its gradient
    ``-grad E[s] / E[s]`` does not vanish while success is rare.

    Args:
        trajectory: the decisions taken.
        evaluation: the scores of all decisions, and what each would earn.
    """
    success = ((1 + evaluation.label_rewards) / 2 + 1e-6).log()  # bounded where no label is rewarded
    label = -(evaluation.label_log_probs + success).logsumexp(-1)
    return {
        **_policy(trajectory, _location_reward(evaluation), label),
        **_common(trajectory, evaluation),
    }


def assigned_success(trajectory: Trajectory, evaluation: Evaluation) -> dict[str, Tensor]:
    """Minus the log-probability of the labels of an image, each at the meta-step that it suits: the estimator ``"assigned"``.

    ``-log p_t(y_t)``, where the labels y are in the order that is most probable, see :func:`best_order`. To
    :func:`expected_success` every label that remains is a success. So where one class outnumbers the others, naming it whatever
    is seen succeeds until the end of the episode, and the agent hardly learns to name others.
    Locations: as :func:`expected_reward`.

    Args:
        trajectory: the decisions taken.
        evaluation: the scores of all decisions, and what each would earn.
    """
    named = _named(trajectory)
    order = best_order(evaluation.label_log_probs.detach(), trajectory.example.counts, named)
    label = -evaluation.label_log_probs.gather(-1, order.clamp(min=0)[..., None]).squeeze(-1)
    return {
        **_policy(trajectory, _location_reward(evaluation), torch.where(order < 0, 0.0, label)),
        **_common(trajectory, evaluation),
    }


def best_order(log_probs: Tensor, counts: Tensor, named: Tensor) -> Tensor:
    """Of all orders of an image's labels, the one that ``argmax_y sum_t log p_t(y_t)`` is.

    Args:
        log_probs: of each label at each meta-step ``[M, B, C + 1]``.
        counts: how often each label is in the image ``[B, C]``.
        named: bool ``[M, B]``: the meta-steps that name a label.

    Returns:
        ``[M, B]``, int64; -1 at meta-steps that name none, or have none left to name.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]])  # of labels 0 and 1 at three meta-steps
        >>> best_order(p.log()[:, None], torch.tensor([[2, 1]]), torch.ones(3, 1, dtype=torch.bool)).squeeze(1)
        tensor([0, 1, 0])
    """
    order = torch.full(named.shape, -1)
    finite = log_probs.nan_to_num(nan=-1e4).clamp(min=-1e4)  # a training that diverged is told by its loss
    scores, classes = finite.cpu().numpy(), np.arange(counts.shape[1])
    for lane, (row, steps) in enumerate(zip(counts.cpu().numpy(), named.T.cpu().numpy(), strict=True)):
        labels, places = classes.repeat(row), steps.nonzero()[0]
        chosen, of_them = linear_sum_assignment(scores[places, lane][:, labels], maximize=True)
        order[places[chosen], lane] = torch.from_numpy(labels[of_them])
    return order.to(log_probs.device)


def ppo(trajectory: Trajectory, evaluation: Evaluation, advantage: Tensor, clip_coef: float) -> dict[str, Tensor]:
    """PPO's clipped surrogate ``-min(rho A, clip(rho, 1 - c, 1 + c) A)``, ``rho = p(a) / p_old(a)``.

    Args:
        trajectory: the decisions taken.
        evaluation: their scores under the current policy.
        advantage: ``[M, k + 1, B]``, detached.
        clip_coef: c.
    """
    surrogate = _clipped(taken(trajectory, evaluation) - trajectory.log_probs, advantage, clip_coef)
    return {
        **_policy(trajectory, surrogate[:, :-1], surrogate[:, -1]),
        **_common(trajectory, evaluation, advantage),
    }


def upper_level(
    trajectory: Trajectory, scores: AttentionScores, advantage: Tensor, returns: Tensor, clip_coef: float | None = None
) -> dict[str, Tensor]:
    """Terms of an upper level that draws its attention: its policy, its value and its (negative) entropy.

    They are added to any of the other objectives. The policy's is REINFORCE, ``-log p(a) A``; or PPO's surrogate, as in
    :func:`ppo`. Their gradient reaches the upper level alone, since a draw has none.

    Args:
        trajectory: the decisions taken, with ``attention``.
        scores: of the draws, ``[M, B]`` each.
        advantage: ``[M, B]``, detached.
        returns: what the value regresses to ``[M, B]``.
        clip_coef: PPO's c. None: REINFORCE.
    """
    assert trajectory.attention is not None
    if clip_coef is None:
        policy = -scores.log_probs * advantage
    else:
        policy = _clipped(scores.log_probs - trajectory.attention.log_probs, advantage, clip_coef)
    terms = {"upper": policy, "upper_value": (scores.values - returns).square(), "upper_entropy": -scores.entropies}
    return {name: _per_episode(term, trajectory.live) for name, term in terms.items()}


def cross_entropy(trajectory: Trajectory, evaluation: Evaluation) -> dict[str, Tensor]:
    """The paper's baseline: ``-log p(y_t)``, where the labels y are in a freshly shuffled order. Glimpses earn nothing (L6).

    Args:
        trajectory: decisions with the labels forced to that order, see :func:`shuffled_labels`.
        evaluation: their scores.
    """
    label = -evaluation.label_log_probs.gather(-1, trajectory.labels[..., None]).squeeze(-1)
    return {"label": _per_episode(label, _named(trajectory)), "stop": _stop(trajectory, evaluation)}


def multiset_loss(trajectory: Trajectory, evaluation: Evaluation) -> dict[str, Tensor]:
    """The loss of the authors' later paper (Welleck et al., NeurIPS 2018): cross-entropy to the labels that remain.

    ``-sum_c q_c log p_c``, where q_c is the share of label c in the multiset of labels not named yet. All other terms are those
    of :func:`expected_reward`.

    Args:
        trajectory: the decisions taken.
        evaluation: the scores of all decisions, and what each would earn.
    """
    remaining = [trajectory.example.counts]
    for label in trajectory.labels[:-1]:
        remaining.append(F.take(remaining[-1], label))
    share = torch.stack(remaining).float()
    share = share / share.sum(dim=-1, keepdim=True).clamp(min=1)
    label = -(share * evaluation.label_log_probs[..., :-1]).sum(dim=-1)
    return {
        **_policy(trajectory, _location_reward(evaluation), label),
        **_common(trajectory, evaluation),
    }


def shuffled_labels(counts: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Each lane's labels in random order, and after them stop: counts ``[B, C]`` to labels ``[steps, B]``."""
    lanes, classes = counts.shape
    repeated = torch.full((lanes, steps), classes)
    for lane, row in enumerate(counts.cpu()):
        labels = torch.arange(classes).repeat_interleave(row)
        repeated[lane, : len(labels)] = labels[torch.randperm(len(labels), generator=generator)]
    return repeated.T.contiguous().to(counts.device)


def _clipped(log_ratio: Tensor, advantage: Tensor, clip_coef: float) -> Tensor:
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantage)


def _policy(trajectory: Trajectory, location: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Terms of locations ``[M, k, B]`` and labels ``[M, B]``, where these are rewarded."""
    return {
        "location": _per_episode(location, trajectory.live[:, None]),
        "label": _per_episode(label, _named(trajectory)),
    }


def _location_reward(evaluation: Evaluation) -> Tensor:
    """Minus the expected reward of locations, ``[M, k, B]``."""
    return -(evaluation.location_log_probs.exp() * evaluation.location_rewards).sum(-1)


def _common(trajectory: Trajectory, evaluation: Evaluation, advantage: Tensor | None = None) -> dict[str, Tensor]:
    """Stop and (negative) entropy terms, of labels and of locations; and a value term for objectives that read an advantage.

    The value regresses to A + V: the reward itself if gamma = 0.
    """
    terms = {"stop": _stop(trajectory, evaluation)}
    if advantage is not None:
        error = evaluation.values - (advantage + trajectory.values)
        # the last label has a value too: with gamma > 0, earlier decisions read it
        terms["value"] = _per_episode(error.square(), trajectory.live[:, None])
    return {
        **terms,
        "entropy": _per_episode(-_entropy(evaluation.label_log_probs), _named(trajectory)),
        "location_entropy": _per_episode(-_entropy(evaluation.location_log_probs), trajectory.live[:, None]),
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
