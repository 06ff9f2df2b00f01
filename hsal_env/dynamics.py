"""The decision process, made of the equations in :mod:`hsal_env.functional`: a state, and a function per kind of decision.

A meta-step is k + 2 decisions: ``attend`` (the meta-controller's mask), k times ``look`` (a location), then ``name_object``
(a label or "stop"), which updates the saliency map. ``phase`` counts them: 0, 1..k, k + 1. The functions are pure and
differentiable. The environment calls them without gradient; to learn, an agent calls them again with gradient on the decisions
that were taken.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from hsal_env import functional as F
from hsal_env.rules import Rules


class Example(NamedTuple):
    """What a reset draws for B lanes: of each image what the perception models made of it, and its labels.

    :class:`hsal_env.perception.examples.Examples` makes it: the activation model gives V, the saliency model reads V.

    Attributes:
        volume: V, float32 ``[B, D, H, W]``.
        raw_saliency: saliency before it is normalised, float32 ``[B, H, W]``; the paper's is
            :func:`hsal_env.functional.sum_of_squares`.
        counts: the multiset of labels, int64 ``[B, C]``: how often each label occurs.
        canvas_index: int64 ``[B]``, the number of the image in its data set.
    """

    volume: Tensor
    raw_saliency: Tensor
    counts: Tensor
    canvas_index: Tensor


class State(NamedTuple):
    """The full state of B lanes. An agent observes S, P, the glimpse, the last location, the last label and the phase.

    The attributes from ``returns`` on are for statistics and for views. A view is another form of the same decisions, such as one
    flat action space (:mod:`hsal_env.views`).

    Attributes:
        example: constant through the episode.
        saliency: S_t ``[B, H, W]`` in [0, 1].
        raw_per_saliency: raw saliency divided by S_1 ``[B, H, W]``, 0 where S_1 is 0; constant through the episode.
        mask: M_t ``[B, H, W]``; zeros before ``attend``.
        priority: P_t ``[B, H, W]`` in [0, 1]; zeros before ``attend``.
        glimpse: the latest glimpse vector ``[B, D]``; zeros before ``attend``.
        locations: the cells glimpsed in this meta-step ``[B, k]``; the index H W stands for none yet.
        last_location: the last of them ``[B]``; H W stands for none yet.
        last_label: the label of the previous meta-step ``[B]``; C + 1 stands for none yet.
        remaining: how often each label is still to be named ``[B, C]``.
        predicted: how often each label was named ``[B, C]``.
        phase: ``[B]`` in 0..k + 1. It is always on the CPU, so that a branch on it does not wait for an accelerator.
        meta_step: finished meta-steps ``[B]``.
        returns: sums of the rewards so far ``[B, 2]``: of locations, and of labels.
        looks: two sums over the glimpses so far ``[B, 2]``: the raw saliency at them, and its mean over the map, which is what
            uniformly drawn glimpses would have on average (S3).
        forbidden: number of decisions so far that the view did not allow ``[B]``.
        memory: where a view leaves one of the two levels to a given policy, the recurrent state of that policy, any nested tuple.
            Else ().
    """

    example: Example
    saliency: Tensor
    raw_per_saliency: Tensor
    mask: Tensor
    priority: Tensor
    glimpse: Tensor
    locations: Tensor
    last_location: Tensor
    last_label: Tensor
    remaining: Tensor
    predicted: Tensor
    phase: Tensor
    meta_step: Tensor
    returns: Tensor
    looks: Tensor
    forbidden: Tensor
    memory: Any = ()


class Action(NamedTuple):
    """One decision for B lanes. The phase decides which part is read.

    Attributes:
        attention: the raw numbers of :func:`hsal_env.functional.mixture` ``[B, 4K]``.
        location: flat cell ``[B]``.
        label: ``[B]``; C is stop.
    """

    attention: Tensor
    location: Tensor
    label: Tensor


class Outcome(NamedTuple):
    """What a decision, or several in a row, led to.

    Attributes:
        state: the next state.
        reward: ``[B]``.
        terminated: bool ``[B]``: the episode ended by its rules.
        truncated: bool ``[B]``: the episode was cut off.
        between: the states on the way, if there were several decisions.
    """

    state: State
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    between: tuple[State, ...] = ()


def initial(example: Example, rules: Rules) -> State:
    """The state at reset: S_1 is the saliency normalised to [0, 1] (S2), nothing attended or named."""
    saliency = F.normalise(example.raw_saliency)
    blank = torch.zeros_like(saliency)
    lanes, channels = example.volume.shape[:2]
    classes = example.counts.shape[1]
    cells = saliency[0].numel()
    count = torch.zeros(lanes, dtype=torch.int64, device=saliency.device)
    return State(
        example=example,
        saliency=saliency,
        raw_per_saliency=example.raw_saliency / torch.where(saliency > 0, saliency, torch.inf),  # x / inf = 0
        mask=blank,
        priority=blank,
        glimpse=example.volume.new_zeros(lanes, channels),
        locations=count.new_full((lanes, rules.glimpses), cells),
        last_location=count.new_full((lanes,), cells),
        last_label=count.new_full((lanes,), classes + 1),
        remaining=example.counts,
        predicted=torch.zeros_like(example.counts),
        phase=torch.zeros(lanes, dtype=torch.int64, device="cpu"),
        meta_step=count,
        returns=saliency.new_zeros(lanes, 2),
        looks=saliency.new_zeros(lanes, 2),
        forbidden=count,
    )


def interface(attention: Tensor, saliency: Tensor, volume: Tensor, rules: Rules) -> tuple[Tensor, Tensor, Tensor]:
    """From raw ``attention`` ``[B, 4K]`` to the mask M_t and priority map P_t ``[B, H, W]``, and the glimpse g_0 ``[B, D]``."""
    map_size = (saliency.shape[1], saliency.shape[2])
    parameters = F.mixture(attention, map_size, rules.coordinates, rules.beta, rules.width_unit)
    mask = F.attention_mask(parameters, map_size, rules.mask_scale)
    return mask, F.priority(mask, saliency), F.initial_glimpse(mask, volume)


def attend(state: State, attention: Tensor, rules: Rules) -> State:
    """Place the mask: M_t from the raw ``attention`` ``[B, 4K]``, then P_t and g_0. Earns nothing."""
    mask, priority, glimpse = interface(attention, state.saliency, state.example.volume, rules)
    return state._replace(mask=mask, priority=priority, glimpse=glimpse, phase=state.phase + 1)


def common_phase(phase: Tensor) -> int | None:
    """The phase that all lanes are in; None if they differ."""
    if phase.numel() == 1:
        return int(phase)
    first = int(phase[0])
    return first if bool((phase == first).all()) else None


def raw_saliency_left(state: State) -> Tensor:
    """Raw saliency ``[B, H, W]`` without what the updates took away: in each cell ``raw S_t / S_1`` (S3).

    It is for statistics only and has no gradient.
    """
    left = state.saliency.detach() * state.raw_per_saliency
    return torch.minimum(left, state.example.raw_saliency)  # S_t exceeds S_1 only if S is normalised again


def look(state: State, location: Tensor, rules: Rules) -> Outcome:
    """Take a glimpse at ``location`` ``[B]``, which earns P there."""
    raw = raw_saliency_left(state).flatten(1)
    at = location[:, None]
    reward = F.location_rewards(state.priority).gather(1, at).squeeze(1)
    phase = common_phase(state.phase)
    if phase is None:
        which = state.phase.clamp(1, rules.glimpses) - 1  # lanes in another phase do not use the result
        slot = one_hot(which, rules.glimpses).bool().to(at.device)  # [B, k]
        locations = torch.where(slot, at, state.locations)
    else:
        locations = state.locations.slice_scatter(at, dim=1, start=phase - 1, end=phase)
    never = torch.zeros_like(reward, dtype=torch.bool)
    following = state._replace(
        glimpse=F.glimpse(state.example.volume, location),
        locations=locations,
        last_location=location,
        phase=state.phase + 1,
        returns=state.returns + pad(reward[:, None], (0, 1)),  # the first column
        looks=state.looks + torch.stack([raw.gather(1, at).squeeze(1), raw.mean(dim=1)], dim=1),
    )
    return Outcome(following, reward, never, never)


def is_final(state: State) -> Tensor:
    """bool ``[B]``: the lane is at its meta-step m + 1, where m is the number of its objects."""
    return state.meta_step == state.example.counts.sum(dim=1)


def label_rewards(state: State, rules: Rules) -> Tensor:
    """What each label, and stop, would earn in the protocol of ``rules``, ``[B, C + 1]``."""
    return F.label_rewards(state.remaining, is_final(state) if rules.protocol == "teacher" else None)


def name_object(state: State, label: Tensor, rules: Rules) -> Outcome:
    """Name ``label`` ``[B]`` (C is stop), update the saliency map, and end the meta-step.

    In the free protocol (L5) stop terminates the episode, and max_objects + 1 meta-steps without it truncate it. In the teacher
    protocol (L4) it terminates with meta-step m + 1, whatever is named.
    """
    classes, cells = state.remaining.shape[1], state.saliency[0].numel()
    meta_step = state.meta_step + 1
    if rules.protocol == "teacher":
        terminated = is_final(state)
        truncated = torch.zeros_like(terminated)
    else:
        terminated = label == classes
        truncated = ~terminated & (meta_step >= rules.max_meta_steps)
    reward = label_rewards(state, rules).gather(1, label[:, None]).squeeze(1)
    saliency = F.update_saliency(state.saliency, state.mask, state.locations, rules.update)
    saliency = F.normalise(saliency) if rules.renormalise_saliency else saliency
    blank = torch.zeros_like(saliency)
    following = state._replace(
        saliency=saliency,
        mask=blank,
        priority=blank,
        glimpse=torch.zeros_like(state.glimpse),
        locations=torch.full_like(state.locations, cells),
        last_location=torch.full_like(state.last_location, cells),
        last_label=label,
        remaining=F.take(state.remaining, label),
        predicted=state.predicted + (label[:, None] == torch.arange(classes, device=label.device)),
        phase=torch.zeros_like(state.phase),
        meta_step=meta_step,
        returns=state.returns + pad(reward[:, None], (1, 0)),  # the second column
    )
    return Outcome(following, reward, terminated, truncated)


# --- one decision of lanes that may be in different phases --------------------------------------------------------------


def rebuilt(like: Any, parts: list[Any]) -> Any:
    """``parts`` as a tuple of ``like``'s kind, named or plain."""
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def select(lanes: Tensor, if_true: Any, if_false: Any) -> Any:
    """Choose lane by lane between two equally shaped nested tuples of ``[B, ...]`` tensors."""
    if isinstance(if_true, Tensor):
        return (
            if_true
            if if_true is if_false
            else torch.where(lanes.to(if_true.device).view(-1, *[1] * (if_true.dim() - 1)), if_true, if_false)
        )
    return rebuilt(if_true, [select(lanes, a, b) for a, b in zip(if_true, if_false, strict=True)])


def _decide(phase: int, state: State, action: Action, rules: Rules) -> Outcome:
    """The kind of decision that ``phase`` asks for, in all lanes."""
    if phase == rules.glimpses + 1:
        return name_object(state, action.label, rules)
    if phase:
        return look(state, action.location, rules)
    nothing = torch.zeros_like(state.returns[:, 0])
    never = nothing.bool()
    return Outcome(attend(state, action.attention, rules), nothing, never, never)


def _forbid(forbidden: Tensor, state: State, outcome: Outcome, rules: Rules) -> Outcome:
    """``outcome``, but in ``forbidden`` lanes the state as it was and -1."""
    cost = torch.zeros_like(state.returns)
    cost[:, 1] = 1.0
    count = state.forbidden + 1
    stay = state._replace(forbidden=count, returns=state.returns - cost)
    too_many = count >= rules.option_length * rules.max_meta_steps
    return select(forbidden, Outcome(stay, -cost[:, 1], torch.zeros_like(too_many), too_many), outcome)


def transition(state: State, action: Action, rules: Rules, forbidden: Tensor | None = None) -> Outcome:
    """One decision of each lane, whatever its phase. Each kind of phase that occurs costs one call for all lanes.

    Args:
        forbidden: bool ``[B]``, lanes whose action their phase does not allow. They earn -1 and stay as they are. After as many
            such decisions as a whole episode has decisions they are truncated.
    """
    phase = common_phase(state.phase)
    if phase is not None:
        outcome = _decide(phase, state, action, rules)
    else:
        last = rules.glimpses + 1
        phases = torch.where(state.phase == last, last, state.phase.clamp(max=1))  # one of each kind: 0, 1, k + 1
        first, *others = phases.unique().tolist()
        outcome = _decide(first, state, action, rules)
        for other in others:
            outcome = select(phases == other, _decide(other, state, action, rules), outcome)
    return outcome if forbidden is None else _forbid(forbidden, state, outcome, rules)


def first_lanes(state: Any, count: int) -> Any:
    """The first ``count`` lanes of a nested tuple of ``[B, ...]`` tensors."""
    if isinstance(state, Tensor):
        return state if len(state) == count else state[:count]
    return rebuilt(state, [first_lanes(part, count) for part in state])
