"""A trace: one recorded episode, decision by decision. Pictures, scan-path measures, reports and files are made from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hsal_env import functional as F
from hsal_env.config import Rules
from hsal_env.dynamics import State


class Trace(NamedTuple):
    """One episode of N decisions, in order. Map and label fields are as the decision found them; NaN stands for unknown.

    Attributes:
        image: uint8 ``[h_px, w_px]`` or ``[h_px, w_px, 3]``.
        source: what its pixels are: ``"mnist"``, ``"digits"``, ``"custom"``.
        canvas_index: which canvas of the split.
        labels: the true multiset, int64 ``[m]`` in 0..C - 1, in no meaningful order.
        boxes: their objects' boxes, int64 ``[m, 4]`` as (row, col, height, width) in px; -1 where unknown.
        num_classes: C.
        glimpses: k.
        terminated: the episode came to its end.
        truncated: it was cut off.
        meta_step: int64 ``[N]`` from 0 on.
        phase: int64 ``[N]``; 0: attention, 1..k: a location, k + 1: a label.
        saliency: S_t ``[N, H, W]`` in [0, 1].
        mask: M_t ``[N, H, W]``, that of the meta-step; at phase 0 the one that was placed.
        priority: P_t ``[N, H, W]`` in [0, 1], likewise.
        alpha, beta, row, col: mixture of the mask ``[N, K]`` each, see :class:`hsal_env.functional.Mixture`.
        location: int64 ``[N]``, the cell looked at; -1 at other phases.
        label: int64 ``[N]``, the label named, C = stop; -1 at other phases.
        reward: ``[N]``.
        remaining: int64 ``[N, C]``, labels not yet named.
        log_prob: ``[N]`` of the location or label under the policy.
        value: ``[N]``, the baseline.
        entropy: ``[N]`` of the policy, in nats.
        location_probs: ``[N, H W]`` of every location, at phases 1..k.
        label_probs: ``[N, C + 1]`` of every label and stop, at phase k + 1.
        states: the agent's recurrent states after the decision, ``[N, ...]`` by name; {} where there is no agent.
    """

    image: np.ndarray
    source: str
    canvas_index: int
    labels: np.ndarray
    boxes: np.ndarray
    num_classes: int
    glimpses: int
    terminated: bool
    truncated: bool
    meta_step: np.ndarray
    phase: np.ndarray
    saliency: np.ndarray
    mask: np.ndarray
    priority: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    row: np.ndarray
    col: np.ndarray
    location: np.ndarray
    label: np.ndarray
    reward: np.ndarray
    remaining: np.ndarray
    log_prob: np.ndarray
    value: np.ndarray
    entropy: np.ndarray
    location_probs: np.ndarray
    label_probs: np.ndarray
    states: dict[str, np.ndarray]

    @property
    def map_size(self) -> tuple[int, int]:
        """(H, W) in cells."""
        return self.saliency.shape[1], self.saliency.shape[2]

    @property
    def meta_steps(self) -> int:
        """Meta-steps begun."""
        return int(self.meta_step[-1]) + 1 if len(self.meta_step) else 0

    @property
    def named(self) -> np.ndarray:
        """The labels named, in order, stop not counted, int64."""
        return self.label[(self.label >= 0) & (self.label < self.num_classes)]

    @property
    def exact_match(self) -> bool:
        """Whether the named multiset is the true one."""
        return sorted(self.named.tolist()) == sorted(self.labels.tolist())


class Scores(NamedTuple):
    """What an agent said of one decision of B lanes, for a trace.

    Attributes:
        attention: raw mixture parameters ``[B, 4K]``.
        log_prob: ``[B]``.
        value: ``[B]``.
        log_probs: of every location or label ``[B, n]``; None where the agent does not say.
        states: recurrent states after it, ``[B, ...]`` by name.
    """

    attention: Tensor
    log_prob: Tensor
    value: Tensor
    log_probs: Tensor | None
    states: dict[str, Tensor]


class Recorder:
    """Collects the states that B lanes pass through from reset on, and makes traces of them.

    Args:
        rules: of the environment.
        num_classes: C.
        state: the first one.
    """

    def __init__(self, rules: Rules, num_classes: int, state: State) -> None:
        self.rules, self.num_classes = rules, num_classes
        self._states: list[State] = [_light(state)]
        self._scores: list[Scores | None] = []

    def add(self, state: State, scores: Scores | None = None) -> None:
        """What a decision led to, and what the agent said of it."""
        self._states.append(_light(state))
        self._scores.append(scores)

    def trace(
        self,
        lane: int,
        image: np.ndarray,
        labels: np.ndarray,
        boxes: np.ndarray,
        source: str,
        decisions: int | None = None,
        terminated: bool = False,
        truncated: bool = False,
    ) -> Trace:
        """The trace of one lane.

        Args:
            lane: which.
            image: its canvas.
            labels: its label list, padding of -1 left out or not.
            boxes: as many boxes.
            source: what its pixels are.
            decisions: how many belong to the episode; None: all.
            terminated: it came to its end.
            truncated: it was cut off.
        """
        forbidden = [int(state.forbidden[lane]) for state in self._states]  # such a decision has changed nothing
        until = len(self._scores) if decisions is None else decisions
        steps = [n for n in range(until) if forbidden[n] == forbidden[n + 1]]
        before = [self._states[n] for n in steps]
        after = [self._states[n + 1] for n in steps]
        phase = np.array([int(state.phase[lane]) for state in before], np.int64)
        attends, names = phase == 0, phase == self.rules.glimpses + 1
        size = tuple(self._states[0].saliency.shape[1:])
        cells, classes, count = size[0] * size[1], self.num_classes, len(steps)

        def rows(states: Sequence[State], name: str, shape: tuple[int, ...] = ()) -> np.ndarray:
            if not states:
                return np.zeros((0, *shape), np.float32)
            return np.stack([getattr(state, name)[lane].detach().cpu().numpy() for state in states])

        placed = [late if attend else early for early, late, attend in zip(before, after, attends, strict=True)]
        scores = [self._scores[n] for n in steps]
        returns = [np.float64(state.returns[lane].sum().item()) for state in before[:1] + after]
        meta_step = rows(before, "meta_step").astype(np.int64)
        known = labels >= 0
        return Trace(
            image=image,
            source=source,
            canvas_index=int(self._states[0].example.canvas_index[lane]),
            labels=labels[known],
            boxes=boxes[known],
            num_classes=classes,
            glimpses=self.rules.glimpses,
            terminated=terminated,
            truncated=truncated,
            meta_step=meta_step,
            phase=phase,
            saliency=rows(before, "saliency", size),
            mask=rows(placed, "mask", size),
            priority=rows(placed, "priority", size),
            **self._mixture(scores, meta_step, lane, size),
            location=np.where(attends | names, -1, rows(after, "last_location")).astype(np.int64),
            label=np.where(names, rows(after, "last_label"), -1).astype(np.int64),
            reward=np.diff(returns) if count else np.zeros(0),
            remaining=rows(before, "remaining", (classes,)).astype(np.int64),
            log_prob=np.where(attends, np.nan, _numbers(scores, "log_prob", lane)),
            value=np.where(attends, np.nan, _numbers(scores, "value", lane)),
            entropy=np.array([_entropy(s, lane) for s in scores]),
            location_probs=_probabilities(scores, lane, ~attends & ~names, cells),
            label_probs=_probabilities(scores, lane, names, classes + 1),
            states=_states(scores, lane),
        )  # fmt: skip

    def _mixture(
        self, scores: Sequence[Scores | None], meta_step: np.ndarray, lane: int, size: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        placed = [s.attention[lane] if s is not None else None for s in scores]
        if not placed or placed[0] is None:
            blank = np.full((len(placed), self.rules.components), np.nan)
            return dict.fromkeys(F.Mixture._fields, blank)
        firsts = [int(np.flatnonzero(meta_step == t)[0]) for t in meta_step]  # the decision that placed its mask
        raw = torch.stack([placed[first] for first in firsts])  # type: ignore[misc]  # one says it, all say it
        parts = F.mixture(raw, (size[0], size[1]), self.rules.coordinates, self.rules.beta)
        return {name: part.detach().cpu().numpy() for name, part in parts._asdict().items()}


def _light(state: State) -> State:
    """Without the volume, by far the largest part, and what a given policy remembers."""
    return state._replace(example=state.example._replace(volume=state.example.volume[:, :0]), memory=())


def _numbers(scores: Sequence[Scores | None], name: str, lane: int) -> np.ndarray:
    return np.array([np.nan if part is None else float(getattr(part, name)[lane]) for part in scores])


def _entropy(scores: Scores | None, lane: int) -> float:
    if scores is None or scores.log_probs is None:
        return float("nan")
    log_probs = scores.log_probs[lane]
    return float(-(log_probs.exp() * log_probs).sum())


def _probabilities(scores: Sequence[Scores | None], lane: int, at: np.ndarray, width: int) -> np.ndarray:
    found = np.full((len(scores), width), np.nan, np.float32)
    for n, part in enumerate(scores):
        if at[n] and part is not None and part.log_probs is not None:
            found[n] = part.log_probs[lane].exp().cpu().numpy()
    return found


def _states(scores: Sequence[Scores | None], lane: int) -> dict[str, np.ndarray]:
    known = [part for part in scores if part is not None]
    if not known or len(known) < len(scores):
        return {}
    return {name: np.stack([part.states[name][lane].cpu().numpy() for part in known]) for name in known[0].states}
