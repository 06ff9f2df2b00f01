"""Recording: collects the states of the environment decision by decision, and makes traces of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hsal_env import dynamics
from hsal_env import functional as F
from hsal_env.dynamics import State
from hsal_env.perception.grid import Grid
from hsal_env.rules import Rules
from hsal_env.trace import Trace

_KEPT = (
    "saliency", "mask", "priority", "last_location", "last_label", "remaining", "returns", "phase", "meta_step",
)  # fmt: skip


class Scores(NamedTuple):
    """What an agent computed at one decision of B lanes, for a trace.

    Attributes:
        attention: raw mixture parameters ``[B, 4K]``.
        log_prob: log-probability of the location or label that was chosen, or of attention that was drawn ``[B]``, in nats.
        value: the baseline ``[B]``.
        log_probs: log-probabilities of all locations or all labels ``[B, n]``; None if the agent does not give them.
        states: recurrent states after the decision, ``[B, ...]`` by name.
        drew: whether attention is drawn. If not, a mask has no log-probability, value and entropy.
        cell: the cell that attention was drawn about ``[B]``; None if there is none.
        entropy: of the distribution of attention ``[B]``, in nats; None if the agent does not give it.
    """

    attention: Tensor
    log_prob: Tensor
    value: Tensor
    log_probs: Tensor | None
    states: dict[str, Tensor]
    drew: bool = False
    cell: Tensor | None = None
    entropy: Tensor | None = None


class Recorder:
    """Collects the states of B lanes from reset on, and makes traces of them.

    A decision changes the phase of its lane. A lane whose phase did not change has decided nothing: its action was forbidden, or
    it was another lane's turn.

    Args:
        rules: the rules of the environment.
        num_classes: C.
        state: the state after reset. If a given policy places the attention itself, that may be a state after its first mask.
    """

    def __init__(self, rules: Rules, num_classes: int, state: State) -> None:
        self.rules, self.num_classes = rules, num_classes
        self._states: list[dict[str, Tensor]] = []
        self._scores: list[Scores | None] = []  # at each place: of the decision that led to that state
        self._first = np.zeros(len(state.phase), np.int64)  # where each lane's episode begins
        self._last = np.full(len(state.phase), -1)  # where it ended; -1: not yet
        self._ends = np.zeros((2, len(state.phase)), bool)  # terminated, truncated
        self._stacked: _Stacked | None = None
        self.begin(state, np.arange(len(state.phase)))

    def add(self, state: State, scores: Scores | None = None) -> None:
        """Add the state after a decision, and what the agent computed at it."""
        self._append({name: getattr(state, name) for name in _KEPT}, scores)

    def begin(self, state: State, lanes: np.ndarray) -> None:
        """Begin an episode in ``lanes`` (indices). ``state`` is the state of all lanes."""
        if not len(lanes):
            return
        chosen = torch.zeros(len(state.phase), dtype=torch.bool, device="cpu")
        chosen[torch.from_numpy(lanes)] = True
        self._first[lanes], self._last[lanes], self._ends[:, lanes] = len(self._states), -1, False
        if bool((state.phase[chosen] > 0).any()):
            bare = state.example._replace(volume=state.example.volume[:, :0])
            fresh = dynamics.initial(bare, self.rules)
            self._append(
                {name: dynamics.select(chosen, getattr(fresh, name), getattr(state, name)) for name in _KEPT}, None
            )
        self.add(state)
        done = int(self._first.min())  # states before this one are needed by no lane
        del self._states[:done], self._scores[:done]
        self._first -= done
        self._last[self._last >= 0] -= done

    def end(self, terminated: Tensor, truncated: Tensor) -> None:
        """Say which episodes ended in the state that was added last, bool ``[B]``. Later states are left out of their traces."""
        ends = np.stack([terminated.cpu().numpy(), truncated.cpu().numpy()])
        new = ends.any(axis=0) & (self._last < 0)
        earlier, latest = (state["phase"].numpy() for state in self._states[-2:])
        attended = (earlier == 0) & (latest > 0)  # a given policy placed a mask after the label that ended the episode
        self._last[new], self._ends[:, new] = (len(self._states) - 1 - attended)[new], ends[:, new]

    def _append(self, state: dict[str, Tensor], scores: Scores | None) -> None:
        self._states.append(state)
        self._scores.append(scores)
        self._stacked = None

    def trace(
        self,
        lane: int,
        image: np.ndarray,
        labels: np.ndarray,
        boxes: np.ndarray,
        *,
        source: str,
        canvas_index: int,
        grid: Grid,
        class_names: tuple[str, ...] = (),
    ) -> Trace:
        """The trace of one lane.

        Args:
            lane: index of the lane.
            image: its image.
            labels: its labels; they may be padded with -1.
            boxes: a box for each of ``labels``.
            source: where the image comes from.
            canvas_index: index of the image in its split.
            grid: where the cells lie on the image.
            class_names: the names of the labels, if they have any.
        """
        if self._stacked is None:
            self._stacked = _Stacked(self._states, self._scores, self.rules, self.num_classes)
        whole, states, known = self._stacked, self._stacked.states, labels >= 0
        last = self._last[lane] if self._last[lane] >= 0 else len(self._states) - 1
        phases = states["phase"][self._first[lane] : last + 1, lane]
        after = self._first[lane] + 1 + np.flatnonzero(np.diff(phases))  # where the phase changed, a decision was made
        before = after - 1
        phase, meta_step = states["phase"][before, lane], states["meta_step"][before, lane]
        attends, names = phase == 0, phase == self.rules.glimpses + 1
        looks = ~attends & ~names
        placed, silent = np.where(attends, after, before), attends & ~whole.drew[after]
        attended = (
            after[np.searchsorted(meta_step, meta_step)] if len(after) else after
        )  # the state after the mask was placed
        returns = states["returns"][:, lane].sum(axis=1, dtype=np.float64)
        location = np.where(looks, states["last_location"][after, lane], -1)
        return Trace(
            image=image,
            source=source,
            canvas_index=canvas_index,
            grid=grid,
            labels=labels[known],
            boxes=boxes[known],
            num_classes=self.num_classes,
            glimpses=self.rules.glimpses,
            terminated=bool(self._ends[0, lane]),
            truncated=bool(self._ends[1, lane]),
            meta_step=meta_step,
            phase=phase,
            saliency=states["saliency"][before, lane],
            mask=states["mask"][placed, lane],
            priority=states["priority"][placed, lane],
            **{name: part[attended, lane] for name, part in whole.mixture.items()},
            location=location,
            location_px=grid.centres(location, states["saliency"].shape[3]),
            label=np.where(names, states["last_label"][after, lane], -1),
            reward=returns[after] - returns[before],
            remaining=states["remaining"][before, lane],
            log_prob=np.where(silent, np.nan, whole.log_prob[after, lane]),
            value=np.where(silent, np.nan, whole.value[after, lane]),
            entropy=np.where(attends, whole.attention_entropy[after, lane], whole.entropy[after, lane]),
            location_probs=np.where(looks[:, None], whole.location_probs[after, lane], np.nan),
            label_probs=np.where(names[:, None], whole.label_probs[after, lane], np.nan),
            states={name: part[after, lane] for name, part in whole.agent.items()},
            saliency_left=states["saliency"][last, lane],
            class_names=class_names,
            attended=np.where(attends, whole.cell[after, lane], -1),
        )


class _Stacked:
    """All states and scores, ``[N, B, ...]`` each."""

    def __init__(
        self, states: list[dict[str, Tensor]], scores: list[Scores | None], rules: Rules, num_classes: int
    ) -> None:
        self.states = {name: _numpy([state[name] for state in states]) for name in _KEPT}
        shape, map_size = self.states["phase"].shape, self.states["saliency"].shape[2:]
        said = [n for n, part in enumerate(scores) if part is not None]
        parts = [part for part in scores if part is not None]

        def spread(tensors: list[Tensor], at: list[int]) -> np.ndarray:
            values = _numpy(tensors)
            unsaid = np.nan if np.issubdtype(values.dtype, np.floating) else 0
            found = np.full((shape[0], *values.shape[1:]), unsaid, values.dtype)
            found[at] = values
            return found

        unknown = np.full(shape, np.nan, np.float32)
        self.log_prob = spread([part.log_prob for part in parts], said) if parts else unknown
        self.value = spread([part.value for part in parts], said) if parts else unknown
        self.drew = np.array([part is not None and part.drew for part in scores])
        self.cell = np.full(shape, -1)
        self.entropy, self.attention_entropy = unknown.copy(), unknown.copy()
        for n, part in zip(said, parts, strict=True):
            if part.cell is not None:
                self.cell[n] = part.cell.cpu().numpy()
            if part.entropy is not None:
                self.attention_entropy[n] = part.entropy.cpu().numpy()
        widths = {"location_probs": map_size[0] * map_size[1], "label_probs": num_classes + 1}
        for name, width in widths.items():
            found = np.full((*shape, width), np.nan, np.float32)
            for n, part in zip(said, parts, strict=True):
                if part.log_probs is not None and part.log_probs.shape[1] == width:
                    found[n] = part.log_probs.exp().cpu().numpy()
                    self.entropy[n] = torch.special.entr(part.log_probs.exp()).sum(dim=1).cpu().numpy()
            setattr(self, name, found)
        self.mixture = dict.fromkeys(F.Mixture._fields, np.full((*shape, rules.components), np.nan, np.float32))
        if parts:
            raw = torch.stack([part.attention for part in parts])  # [n, B, 4K]
            mixture = F.mixture(
                raw.flatten(0, 1), (map_size[0], map_size[1]), rules.coordinates, rules.beta, rules.width_unit
            )
            self.mixture = {
                name: spread(list(part.unflatten(0, raw.shape[:2])), said) for name, part in mixture._asdict().items()
            }
        self.agent = (
            {name: spread([part.states[name] for part in parts], said) for name in parts[0].states} if parts else {}
        )

    location_probs: np.ndarray
    label_probs: np.ndarray


def _numpy(tensors: list[Tensor]) -> np.ndarray:
    return torch.stack(tensors).detach().cpu().numpy()
