"""Gymnasium spaces, actions in, observations out: the door between numpy and torch.

A *view* is how a learner sees the decision process. ``native`` is the two-level one; ``flat`` is a single Discrete with
an action mask, for agents that know nothing of hierarchies.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from hsal_env import functional as F
from hsal_env.config import EnvConfig
from hsal_env.dynamics import Action, State
from hsal_env.errors import ActionError

ATTENTION_SCALE = 8.0
"""An attention action in [-1, 1] times this gives the raw numbers of :func:`hsal_env.functional.mixture`. A power of
two, so that no rounding is involved; sigmoid and softmax are saturated at 8."""

_FLOAT16_MAX = float(np.finfo(np.float16).max)  # volumes are stored in half precision


class View(Protocol):
    """Spaces of one lane, and batched translation in both directions.

    Attributes:
        action_space: of one lane.
        observation_space: of one lane.
    """

    action_space: spaces.Space[Any]
    observation_space: spaces.Dict

    def decode(self, action: Any, phase: Tensor) -> tuple[Action, Tensor | None]:
        """Batched actions to an :class:`Action`, and which lanes chose one that the phase forbids (None: cannot happen).

        Raises:
            ActionError: outside the space.
        """
        ...

    def observe(self, state: State, images: Tensor | None) -> dict[str, Tensor]:
        """Batched observations."""
        ...


class NativeView:
    """The two-level view.

    Action: Dict(attention Box [-1, 1] ``[4K]``, location Discrete(H W), label Discrete(C + 1), the last is stop). Phase 0 reads
    the attention, phases 1..k the location, phase k + 1 the label; the other parts are ignored and may be left out.

    Observation: Dict of saliency ``[H, W]``, priority ``[H, W]``, glimpse ``[D]``, last_location (H W = none),
    last_label (C + 1 = none), phase, and by configuration image uint8 ``[h_px, w_px, 1 or 3]`` and volume ``[D, H, W]``.
    """

    def __init__(self, config: EnvConfig, channels: int, map_size: tuple[int, int]) -> None:
        self.config, self.map_size = config, map_size
        self.cells = map_size[0] * map_size[1]
        self.stop = config.classes
        self.glimpses = config.glimpses
        attention = spaces.Box(-1, 1, (4 * config.components,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.Dict(
            attention=attention, location=spaces.Discrete(self.cells), label=spaces.Discrete(self.stop + 1)
        )
        self.observation_space = self._observation_space(channels, self.map_size)

    def _observation_space(self, channels: int, maps: tuple[int, ...]) -> spaces.Dict:
        config = self.config
        limit = _FLOAT16_MAX * self.cells  # g_0 sums the volume over all cells
        parts: dict[str, spaces.Space[Any]] = {
            "saliency": spaces.Box(0, 1, maps, np.float32),
            "priority": spaces.Box(0, 1, maps, np.float32),
            "glimpse": spaces.Box(-limit, limit, (channels,), np.float32),
            "last_location": spaces.Discrete(self.cells + 1),
            "last_label": spaces.Discrete(self.stop + 2),
            "phase": spaces.Discrete(config.rules.option_length),
        }
        if config.shows_image:
            parts["image"] = spaces.Box(0, 255, config.image_shape, np.uint8)
        if config.include_volume:
            parts["volume"] = spaces.Box(-_FLOAT16_MAX, _FLOAT16_MAX, (channels, *self.map_size), np.float32)
        return spaces.Dict(parts)

    def observe(self, state: State, images: Tensor | None) -> dict[str, Tensor]:
        """See :class:`View`."""
        parts = {
            "saliency": state.saliency,
            "priority": state.priority,
            "glimpse": state.glimpse,
            "last_location": state.last_location,
            "last_label": state.last_label,
            "phase": state.phase,
        }
        if images is not None:
            parts["image"] = images
        if self.config.include_volume:
            parts["volume"] = state.example.volume
        return {name: parts[name] for name in self.observation_space if name in parts}

    def decode(self, action: Any, phase: Tensor) -> tuple[Action, None]:
        """See :class:`View`. Only the parts that some lane's phase reads are looked at and checked."""
        try:
            given = dict(action)
        except (TypeError, ValueError):
            raise ActionError(
                f"Expected an action Dict(attention, location, label); got {type(action).__name__} {action!r}."
            ) from None
        attends, names = phase == 0, phase == self.glimpses + 1
        looks = ~attends & ~names
        lanes = len(phase)
        attention = self._attention(given, attends, lanes)
        return Action(
            attention,
            self._discrete(given, "location", self.cells, looks, lanes),
            self._discrete(given, "label", self.stop + 1, names, lanes),
        ), None

    def _attention(self, given: dict[str, Any], read: Tensor, lanes: int) -> Tensor:
        width = 4 * self.config.components
        if not bool(read.any()):
            return torch.zeros(lanes, width, device=read.device)
        attention = _part(given, "attention", read.device)
        if attention.shape != (lanes, width):
            raise ActionError(f"Expected attention of shape {(lanes, width)}; got {tuple(attention.shape)}.")
        attention = attention.float()
        inside = (attention.abs() <= 1).all(dim=1)  # false for NaN
        if not bool((inside | ~read).all()):
            raise ActionError(f"Expected attention in [-1, 1]; got {attention[~inside & read][0].tolist()}.")
        return torch.where(read[:, None], attention * ATTENTION_SCALE, 0.0)

    @staticmethod
    def _discrete(given: dict[str, Any], name: str, bound: int, read: Tensor, lanes: int) -> Tensor:
        if not bool(read.any()):
            return torch.zeros(lanes, dtype=torch.int64, device=read.device)
        value = _part(given, name, read.device)
        if value.is_floating_point() or value.shape != (lanes,):
            raise ActionError(
                f"Expected integer {name} of shape {(lanes,)}; got {value.dtype} of {tuple(value.shape)}."
            )
        value = value.long()
        outside = ((value < 0) | (value >= bound)) & read
        if bool(outside.any()):
            raise ActionError(f"Expected {name} in 0..{bound - 1}; got {int(value[outside][0])}.")
        return torch.where(read, value, 0)


class FlatView(NativeView):
    """One Discrete(H W + C + 1): first the cells, then the labels, then stop.

    At phase 0 a cell means one spotlight centred there (all K Gaussians alike); at phases 1..k it is the location; at
    phase k + 1 a label is read. ``action_mask`` marks what the phase allows. A forbidden action earns -1 and changes
    nothing. Observations are vectors, so that stock feature extractors read them.
    """

    def __init__(self, config: EnvConfig, channels: int, map_size: tuple[int, int]) -> None:
        super().__init__(config, channels, map_size)
        self.action_space = spaces.Discrete(self.cells + self.stop + 1)
        parts = self._observation_space(channels, (self.cells,))
        self.observation_space = spaces.Dict({**parts, "action_mask": spaces.MultiBinary(int(self.action_space.n))})
        self._spotlights = F.spotlight(torch.arange(self.cells), map_size, config.components, config.coordinates).clamp(
            -ATTENTION_SCALE, ATTENTION_SCALE
        )

    def action_mask(self, phase: Tensor) -> Tensor:
        """int8 ``[B, H W + C + 1]``, 1 where the action is allowed."""
        names = (phase == self.glimpses + 1)[:, None]
        is_label = torch.arange(self.cells + self.stop + 1, device=phase.device) >= self.cells
        return (names == is_label).to(torch.int8)

    def observe(self, state: State, images: Tensor | None) -> dict[str, Tensor]:
        """See :class:`View`."""
        flat = state._replace(saliency=state.saliency.flatten(1), priority=state.priority.flatten(1))
        return {"action_mask": self.action_mask(state.phase), **super().observe(flat, images)}

    def decode(self, action: Any, phase: Tensor) -> tuple[Action, Tensor]:  # type: ignore[override]
        """See :class:`View`."""
        count = self.cells + self.stop + 1
        chosen = self._discrete(
            {"action": action}, "action", count, torch.ones_like(phase, dtype=torch.bool), len(phase)
        )
        is_label = chosen >= self.cells
        cell, label = torch.where(is_label, 0, chosen), torch.where(is_label, chosen - self.cells, 0)
        return Action(self._spotlights.to(phase.device)[cell], cell, label), is_label != (phase == self.glimpses + 1)


def _part(given: dict[str, Any], name: str, device: torch.device) -> Tensor:
    if name not in given:
        raise ActionError(f"Expected the action to hold {name!r} at this phase; got only {sorted(given)}.")
    try:
        return torch.as_tensor(given[name], device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ActionError(f"Expected numbers for {name}; got {given[name]!r}.") from error


VIEWS = {"native": NativeView, "flat": FlatView}
