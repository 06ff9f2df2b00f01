"""Gymnasium spaces, and the translation of actions and observations between them and the tensors of the dynamics.

A *view* is how a learner sees the decision process. ``native`` has two levels. ``flat`` is a single Discrete with an action
mask, for agents that know no hierarchy. ``packed`` has two levels in a single Box. Views that make several decisions in one
step, or leave some to a given policy, are in :mod:`hsal_env.views`. Each of them can be seen through :class:`BoxesView`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from hsal_env import dynamics
from hsal_env import functional as F
from hsal_env.config import EnvConfig
from hsal_env.dynamics import Action, Outcome, State
from hsal_env.errors import ActionError, ConfigError

_FLOAT16_MAX = float(np.finfo(np.float16).max)  # volumes are stored in half precision


class View(Protocol):
    """The spaces of one lane, and the batched translation in both directions.

    Attributes:
        action_space: of one lane.
        observation_space: of one lane.
    """

    action_space: spaces.Space[Any]
    observation_space: spaces.Dict

    def begin(self, state: State) -> State:
        """From an initial state to the first one that the learner sees."""
        ...

    def step(self, state: State, action: Any) -> Outcome:
        """Apply one batched action of the learner.

        Raises:
            ActionError: an action outside its space.
        """
        ...

    def observe(self, state: State, images: Tensor | None) -> dict[str, Tensor]:
        """Batched observations."""
        ...

    def action_mask(self, state: State) -> Tensor | None:
        """int8 ``[B, n]`` of a Discrete(n) action: 1 where the phase allows it. None for other action spaces."""
        ...


class NativeView:
    """The two-level view.

    Action: Dict(attention Box [-1, 1] ``[4K]``, location Discrete(H W), label Discrete(C + 1), the last is stop). Phase 0 reads
    the attention, phases 1..k the location, phase k + 1 the label. The other parts are ignored and may be left out.

    Observation: Dict of saliency ``[H, W]``, priority ``[H, W]``, glimpse ``[D]``, last_location (H W = none),
    last_label (C + 1 = none), phase, and by configuration image uint8 ``[h_px, w_px, 1 or 3]`` and volume ``[D, H, W]``.

    Attributes:
        keys: the parts of the observation, without image and volume.
        vectors: whether maps and volume are observed as vectors, so that common feature extractors can read them.
    """

    keys: tuple[str, ...] = ("saliency", "priority", "glimpse", "last_location", "last_label", "phase")
    vectors = False

    def __init__(self, config: EnvConfig, channels: int, map_size: tuple[int, int]) -> None:
        self.config, self.rules, self.map_size = config, config.rules, map_size
        self.cells = map_size[0] * map_size[1]
        self.stop = config.classes
        self.glimpses = config.glimpses
        self.observation_space = self._observation_space(channels)
        self._seen = [name for name in self.observation_space if name != "action_mask"]
        self.action_space = self._action_space()

    def _action_space(self) -> spaces.Space[Any]:
        return spaces.Dict(
            attention=self._attention_space(),
            location=spaces.Discrete(self.cells),
            label=spaces.Discrete(self.stop + 1),
        )

    def _attention_space(self) -> spaces.Box:
        return spaces.Box(-1, 1, (4 * self.config.components,), np.float32)

    def _observation_space(self, channels: int) -> spaces.Dict:
        config = self.config
        maps = (self.cells,) if self.vectors else self.map_size
        limit = _FLOAT16_MAX * self.cells  # g_0 sums the volume over all cells
        known: dict[str, spaces.Space[Any]] = {
            "saliency": spaces.Box(0, 1, maps, np.float32),
            "priority": spaces.Box(0, 1, maps, np.float32),
            "glimpse": spaces.Box(-limit, limit, (channels,), np.float32),
            "last_location": spaces.Discrete(self.cells + 1),
            "last_label": spaces.Discrete(self.stop + 2),
            "phase": spaces.Discrete(self.rules.option_length),
        }
        parts = {name: known[name] for name in self.keys}
        if config.shows_image:
            parts["image"] = spaces.Box(0, 255, config.image_shape, np.uint8)
        if config.shows_volume:
            shape = (channels * self.cells,) if self.vectors else (channels, *self.map_size)
            parts["volume"] = spaces.Box(-_FLOAT16_MAX, _FLOAT16_MAX, shape, np.float32)
        return spaces.Dict(parts)

    def begin(self, state: State) -> State:
        """See :class:`View`."""
        return state

    def step(self, state: State, action: Any) -> Outcome:
        """See :class:`View`."""
        return dynamics.transition(state, self.decode(action, state), self.rules)

    def observe(self, state: State, images: Tensor | None) -> dict[str, Tensor]:
        """See :class:`View`."""
        apart: dict[str, Any] = {"image": images, "volume": state.example.volume}
        seen: dict[str, Tensor] = {name: apart[name] if name in apart else getattr(state, name) for name in self._seen}
        if self.vectors:
            seen |= {name: seen[name].flatten(1) for name in ("saliency", "priority", "volume") if name in seen}
        return seen

    def action_mask(self, state: State) -> Tensor | None:
        """See :class:`View`."""
        return None

    def decode(self, action: Any, state: State) -> Action:
        """A batched action Dict as an :class:`Action`. Only the parts that the phase of some lane reads are checked.

        Raises:
            ActionError: an action outside its space.
        """
        try:
            given = dict(action)
        except (TypeError, ValueError):
            raise ActionError(
                f"Expected an action Dict(attention, location, label); got {type(action).__name__} {action!r}."
            ) from None
        attends, looks, names = self._readers(state.phase)
        return Action(
            self._attention(given, state.returns, attends),
            read_discrete(given, "location", self.cells, state.meta_step, looks),
            read_discrete(given, "label", self.stop + 1, state.meta_step, names),
        )

    def _readers(self, phase: Tensor) -> tuple[bool | Tensor, bool | Tensor, bool | Tensor]:
        """Which lanes read the attention, the location and the label: True for all, False for none, or a bool ``[B]``."""
        last, common = self.glimpses + 1, dynamics.common_phase(phase)
        if common is not None:
            return common == 0, 0 < common < last, common == last
        return phase == 0, (phase > 0) & (phase < last), phase == last

    def _attention(self, given: dict[str, Any], like: Tensor, read: bool | Tensor) -> Tensor:
        shape = (len(like), 4 * self.config.components)
        if not _any(read):
            return like.new_zeros(()).expand(shape)
        attention = read_part(given, "attention", like.device)
        if attention.shape != shape:
            raise ActionError(f"Expected attention of shape {shape}; got {tuple(attention.shape)}.")
        attention = attention.float()
        if like.is_cpu and not float(attention.abs().max()) <= 1:  # "not" refuses NaN, too
            wrong = ~(attention.abs() <= 1).all(dim=1) & read
            if bool(wrong.any()):
                raise ActionError(f"Expected attention in [-1, 1]; got {attention[wrong][0].tolist()}.")
        return _where_read(read, raw_attention(attention))

    def _spotlight(self, cell: Tensor) -> Tensor:
        return F.spotlight(cell, self.map_size, self.config.components, self.config.coordinates)


class FlatView(NativeView):
    """One Discrete(H W + C + 1): first the cells, then the labels, then stop.

    At phase 0 a cell stands for a spotlight centred there, with all K Gaussians alike. At phases 1..k it is the location. At
    phase k + 1 a label is read. ``action_mask`` marks what the phase allows. A forbidden action earns -1 and changes nothing.
    Observations are vectors, so that common feature extractors can read them.
    """

    vectors = True

    def _action_space(self) -> spaces.Space[Any]:
        return spaces.Discrete(self.cells + self.stop + 1)

    def _observation_space(self, channels: int) -> spaces.Dict:
        parts = super()._observation_space(channels).spaces
        return spaces.Dict({**parts, "action_mask": spaces.MultiBinary(self.cells + self.stop + 1)})

    def action_mask(self, state: State) -> Tensor:
        """See :class:`View`."""
        names = (state.phase == self.glimpses + 1)[:, None]
        is_label = torch.arange(self.cells + self.stop + 1, device=names.device) >= self.cells
        return (names == is_label).to(state.saliency.device, torch.int8)

    def observe(self, state: State, images: Tensor | None) -> dict[str, Tensor]:
        """See :class:`View`."""
        return {"action_mask": self.action_mask(state), **super().observe(state, images)}

    def step(self, state: State, action: Any) -> Outcome:
        """See :class:`View`."""
        chosen = read_discrete({"action": action}, "action", self.cells + self.stop + 1, state.meta_step)
        is_label = chosen >= self.cells
        cell, label = torch.where(is_label, 0, chosen), torch.where(is_label, chosen - self.cells, 0)
        forbidden = is_label != (state.phase == self.glimpses + 1).to(is_label.device)
        if self.config.forbidden == "raise" and bool(forbidden.any()):
            raise ActionError(
                f"Expected an action that the mask allows; got {int(chosen[forbidden][0])} at phase "
                f"{int(state.phase[forbidden.cpu()][0])}. Choose among observation['action_mask'], as MaskablePPO does; or make "
                "the environment with forbidden='penalise'."
            )
        return dynamics.transition(state, Action(self._spotlight(cell), cell, label), self.rules, forbidden)


class PackedView(NativeView):
    """The two-level view for libraries without Dict actions: one Box of 4K + 2 numbers, ``(attention, location, label)``.

    Location and label are whole numbers, written as floats. Each phase reads its part, as in the native view. Observations are
    vectors. :class:`agents.sb3.HSALPolicy` acts on it.
    """

    vectors = True

    def _action_space(self) -> spaces.Space[Any]:
        attention = self._attention_space()
        return spaces.Box(
            np.append(attention.low, [0, 0]).astype(np.float32),
            np.append(attention.high, [self.cells - 1, self.stop]).astype(np.float32),
        )

    def decode(self, action: Any, state: State) -> Action:
        """See :class:`NativeView`."""
        packed = read_part({"action": action}, "action", state.saliency.device)
        width = 4 * self.config.components
        if packed.shape != (len(state.phase), width + 2):
            raise ActionError(f"Expected actions of shape {(len(state.phase), width + 2)}; got {tuple(packed.shape)}.")
        chosen = packed[:, width:].round().nan_to_num(-1).long()  # -1: refused where it is read
        return super().decode({"attention": packed[:, :width], "location": chosen[:, 0], "label": chosen[:, 1]}, state)


class BoxesView:
    """A view whose observation is a Dict of Box parts alone. Actions, rewards and episodes are those of ``view``.

    A Discrete part of n values, such as ``phase``, is one-hot: float32 ``[n]``. ``action_mask`` is an int8 Box in [0, 1]. The
    other parts stay as they are. All are on one device.

    Args:
        view: the view whose observations these are.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.action_space = view.action_space
        self.begin, self.step, self.action_mask = view.begin, view.step, view.action_mask
        parts = view.observation_space.spaces
        self._values = {name: int(part.n) for name, part in parts.items() if isinstance(part, spaces.Discrete)}
        self.observation_space = spaces.Dict({name: _box(part) for name, part in parts.items()})

    def observe(self, state: State, images: Tensor | None) -> dict[str, Tensor]:
        """See :class:`View`."""
        seen = self.view.observe(state, images)
        device = state.saliency.device
        for name, values in self._values.items():  # one_hot of torch checks the range, and would wait for the device
            seen[name] = (seen[name].to(device)[:, None] == torch.arange(values, device=device)).float()
        return seen


def _box(part: spaces.Space[Any]) -> spaces.Space[Any]:
    match part:
        case spaces.Discrete():
            return spaces.Box(0, 1, (int(part.n),), np.float32)
        case spaces.MultiBinary():
            return spaces.Box(0, 1, part.shape, np.int8)
        case _:
            return part


def attention_action(raw: Tensor) -> Tensor:
    """The action in [-1, 1] that means the ``raw`` numbers of :func:`hsal_env.functional.mixture`: them over ``RAW_LIMIT``."""
    return raw / F.RAW_LIMIT


def raw_attention(action: Tensor) -> Tensor:
    """The raw numbers that an attention ``action`` means: the inverse of :func:`attention_action`."""
    return action * F.RAW_LIMIT


def read_part(given: dict[str, Any], name: str, device: torch.device) -> Tensor:
    """A part of a batched action as a tensor.

    Raises:
        ActionError: the part is missing, or holds no real numbers.
    """
    if name not in given:
        raise ActionError(f"Expected the action to hold {name!r} at this phase; got only {sorted(map(str, given))}.")
    try:
        value = torch.as_tensor(given[name], device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ActionError(f"Expected numbers for {name}; got {given[name]!r}.") from error
    if value.is_complex():
        raise ActionError(f"Expected real numbers for {name}; got {value.dtype}.")
    return value


def read_discrete(given: dict[str, Any], name: str, bound: int, like: Tensor, read: bool | Tensor = True) -> Tensor:
    """A part of a batched action that holds whole numbers in 0..bound - 1, int64 ``[B]``. It is 0 in lanes that do not read it.

    Args:
        given: the batched action.
        name: the name of the part.
        bound: its values are smaller than this. They are checked on the CPU only: a check elsewhere would wait for the device.
        like: ``[B]`` on the device where the part is wanted.
        read: which lanes read the part: bool ``[B]`` on the CPU, or True for all, or False for none.

    Raises:
        ActionError: see :func:`read_part`; or another kind, shape or range of numbers.
    """
    if not _any(read):
        return torch.zeros_like(like, dtype=torch.int64)
    value = read_part(given, name, like.device)
    if value.is_floating_point() or value.shape != like.shape:
        raise ActionError(
            f"Expected integer {name} of shape {tuple(like.shape)}; got {value.dtype} of {tuple(value.shape)}."
        )
    value = value.long()
    if like.is_cpu and not _within(value, bound):
        outside = ((value < 0) | (value >= bound)) & read
        if bool(outside.any()):
            raise ActionError(f"Expected {name} in 0..{bound - 1}; got {int(value[outside][0])}.")
    return _where_read(read, value)


def _within(value: Tensor, bound: int) -> bool:
    """Whether all values are in 0..bound - 1."""
    least, most = value.aminmax()
    return int(least) >= 0 and int(most) < bound


def _any(read: bool | Tensor) -> bool:
    return bool(read.any()) if isinstance(read, Tensor) else read


def _where_read(read: bool | Tensor, value: Tensor) -> Tensor:
    """``value`` ``[B, ...]``, zeros in lanes that are not read."""
    if not isinstance(read, Tensor):
        return value
    return torch.where(read.to(value.device).view(-1, *[1] * (value.dim() - 1)), value, 0)


def require_action_mask(view: View) -> None:
    """Refuse a view without action mask.

    Raises:
        ConfigError: ``action_mask`` is not observed.
    """
    if "action_mask" not in view.observation_space.spaces:
        raise ConfigError(
            "action_masks() needs action_mode='flat' or 'controller'; the other views have no action mask."
        )
