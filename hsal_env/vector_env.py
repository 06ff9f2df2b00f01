"""The native vector environment: N lanes in one batch.

Each lane equals a single environment to the bit, as long as ``components`` H W is below 400 and no network is given to the view;
``docs/environments/programs.md`` says why, and what rounds differently beyond that.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from hsal_env.config import EnvConfig
from hsal_env.dynamics import Example, State, rebuilt
from hsal_env.errors import ConfigError
from hsal_env.memory import require_memory
from hsal_env.policies import Policy
from hsal_env.rendering import draw_frame
from hsal_env.simulation import Simulation, reset_options
from hsal_env.spaces import require_action_mask
from hsal_env.trace.recorder import Recorder

_LANE_BYTES = 1_000  # its generator alone takes that; Simulation counts maps and volumes


class HSALVectorEnv(VectorEnv[dict[str, Any], Any, Any]):
    """N lanes of :class:`hsal_env.env.HSALEnv`, stepped together.

    Args:
        num_envs: N, the number of lanes.
        render_mode: None or ``"rgb_array"`` (one picture per lane).
        output: ``"numpy"``, or ``"torch"``: observations, rewards and infos are tensors.
        device: where the state lives. A device other than ``"cpu"`` needs ``output="torch"``. Steps do not wait for such a
            device while auto-reset is disabled, so the ranges of actions are not checked there. ``phase`` is observed on the CPU
            everywhere.
        policy: as in :class:`hsal_env.env.HSALEnv`.
        autoreset_mode: as in Gymnasium. ``DISABLED``: a lane that has ended goes on with reward 0 and keeps its flags until
            ``reset`` starts it again, with all lanes or by ``options["reset_mask"]``.
        max_episode_steps: episodes are truncated after so many steps, as by the wrapper ``TimeLimit`` that ``gymnasium.make``
            puts around a single environment. None or -1: no such limit.
        config: fields of :class:`hsal_env.config.EnvConfig`.

    ``reset(seed=s)`` seeds lane i with s + i; ``options={"index": array}`` picks the canvases. Infos have the layout of
    Gymnasium's ``SyncVectorEnv``, and ``call``, ``get_attr``, ``set_attr``, ``np_random`` and ``np_random_seed`` answer as there.

    Raises:
        UnknownArgumentError: an unknown argument. It is a ConfigError, and a TypeError.
        ConfigError: a value outside its range.
        DataError: the data are missing or damaged.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - as in the base class
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        render_mode: str | None = None,
        output: str = "numpy",
        device: str = "cpu",
        policy: Policy | str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        **config: Any,
    ) -> None:
        if not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ConfigError(f"Expected num_envs as a whole number of at least 1; got {num_envs!r}.")
        require_memory(num_envs * _LANE_BYTES, f"num_envs={num_envs}")  # before features are computed
        if output not in ("numpy", "torch"):
            raise ConfigError(f"Expected output 'numpy' or 'torch'; got {output!r}.")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
            on_cpu = torch.device(device).type == "cpu"
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"Expected a known device and autoreset_mode; got {device!r}, {autoreset_mode!r}: {error}."
            ) from error
        if output == "numpy" and not on_cpu:
            raise ConfigError(f"device={device!r} needs output='torch'; numpy arrays live on the CPU.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(
                f"Expected render_mode None or 'rgb_array'; got {render_mode!r}. A window shows a single environment."
            )
        if max_episode_steps is not None and (not isinstance(max_episode_steps, int) or max_episode_steps < 1):
            if max_episode_steps != -1:
                raise ConfigError(f"Expected max_episode_steps of at least 1, None or -1; got {max_episode_steps!r}.")
            max_episode_steps = None
        self.max_episode_steps = max_episode_steps
        self.num_envs, self.render_mode, self.output = num_envs, render_mode, output
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.simulation = Simulation(EnvConfig.from_kwargs(config), device, policy, int(num_envs))
        self.single_action_space = self.simulation.view.action_space
        self.single_observation_space = self.simulation.view.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._source = np.full(num_envs, self.simulation.examples.source, dtype=object)
        self._draws = _Draws(num_envs, len(self.simulation.examples))
        self._state: State | None = None
        self._recorder: Recorder | None = None
        self._lent = False
        self._images: Tensor | None = None
        self._nowhere = torch.zeros(num_envs, dtype=torch.bool, device=self.simulation.device)
        self._terminated = self._truncated = self._nowhere
        self._elapsed = self._nowhere.long()  # steps of each lane's episode, counted where there is a limit

    @property
    def state(self) -> State:
        """The full state of all lanes, for learners that run in process.

        Raises:
            ResetNeeded: before the first reset.
        """
        self._lent = True
        return self._current

    @property
    def _current(self) -> State:
        if self._state is None:
            raise ResetNeeded("No episode has begun; call reset() before step() and render().")
        return self._state

    @property  # type: ignore[override]
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """The generator of each lane, which draws its canvases."""
        return self._draws.generators()

    @np_random.setter  # type: ignore[override]
    def np_random(self, value: Sequence[np.random.Generator]) -> None:
        self._draws.replace(value)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each lane's generator; -1 if it was replaced."""
        return self._draws.seeds()

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What an attribute is in each lane, or what a method answers for each: ``call("action_masks")``, ``call("render")``.

        Raises:
            AttributeError: there is no such attribute.
            ConfigError: ``reset`` or ``step``, which all lanes do together.
        """
        if name in ("reset", "step"):
            raise ConfigError(f"The lanes are one environment; call {name}() of it, with one batch for all of them.")
        found = getattr(self, f"single_{name}" if name in ("action_space", "observation_space") else name)
        answer = found(*args, **kwargs) if callable(found) else found
        if name in _BY_LANE and answer is not None:
            return tuple(answer)
        return (answer,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each lane, see :meth:`call`."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every lane to one value, or to the values of a list or tuple of N.

        Raises:
            ConfigError: another number of values; or they differ, where the lanes have the attribute in common.
        """
        listed = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(listed) != self.num_envs:
            raise ConfigError(f"Expected {self.num_envs} values of {name}, one for each lane; got {len(listed)}.")
        if name == "np_random":
            self.np_random = listed
        elif any(value is not listed[0] and value != listed[0] for value in listed):
            raise ConfigError(f"The lanes are one environment and have one {name}; got different values: {listed}.")
        else:
            setattr(self, name, listed[0])

    @torch.no_grad()
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode in every lane, or in those of ``options["reset_mask"]``.

        Raises:
            ConfigError: an unknown option, or one of the wrong length.
            DataError: an index is outside the split.
        """
        indices, mask = reset_options(options, "index", "reset_mask")
        for what, value in (("index", indices), ("reset_mask", mask)):
            if value is not None and np.shape(value) != (self.num_envs,):
                raise ConfigError(f"Expected options[{what!r}] of shape ({self.num_envs},); got {np.shape(value)}.")
        if mask is not None and np.asarray(mask).dtype != bool:
            raise ConfigError(f"Expected options['reset_mask'] of bool; got {np.asarray(mask).dtype}.")
        lanes = np.arange(self.num_envs) if mask is None else np.flatnonzero(mask)
        self._seed(seed, lanes)
        if not len(lanes):
            raise ConfigError("Expected options['reset_mask'] with at least one lane to start; got none.")
        if len(lanes) < self.num_envs and self._state is None:
            raise ConfigError("The first reset must start every lane; got a reset_mask.")
        self._restart(lanes, None if indices is None else np.asarray(indices)[lanes])
        begun = torch.from_numpy(lanes).to(self.simulation.device)
        self._terminated = self._terminated.index_fill(0, begun, False)
        self._truncated = self._truncated.index_fill(0, begun, False)
        started = None if mask is None else self._nowhere.index_fill(0, begun, True)
        return self._observe(), self._info(self._nowhere, started)

    @torch.no_grad()
    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Make one decision in every lane.

        Raises:
            ResetNeeded: before the first reset.
            ActionError: an action outside its space.
        """
        restarted = self.autoreset_mode is AutoresetMode.SAME_STEP  # lanes that ended have already begun again
        ended = self._nowhere if restarted else self._terminated | self._truncated
        state, reward, terminated, truncated, between = self.simulation.step(self._current, actions)
        by_rules = (terminated | truncated) & ~ended  # these lanes have metrics of an episode
        if self.max_episode_steps is not None:
            self._elapsed = self._elapsed + 1
            truncated = truncated | (self._elapsed >= self.max_episode_steps)
        if self.autoreset_mode is AutoresetMode.DISABLED:
            terminated, truncated = terminated & ~ended | self._terminated, truncated & ~ended | self._truncated
        else:
            terminated, truncated = terminated & ~ended, truncated & ~ended
        reward = torch.where(ended, 0.0, reward)
        self._state, self._terminated, self._truncated = state, terminated, truncated
        if self._recorder:
            for passed in (*between, state):
                self._recorder.add(passed)
            self._recorder.end(terminated, truncated)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and bool(ended.any()):
            self._restart(np.flatnonzero(ended.cpu()))
        now_ended = terminated | truncated
        info: dict[str, Any]
        if self.autoreset_mode is AutoresetMode.SAME_STEP and bool(now_ended.any()):
            info = {
                "final_obs": self._final_observations(now_ended),
                "final_info": self._info(by_rules, now_ended),
                "_final_obs": self._out(now_ended),
            }
            info["_final_info"] = info["_final_obs"]
            self._restart(np.flatnonzero(now_ended.cpu()))
            info |= self._info(self._nowhere)
        else:
            info = self._info(by_rules)
        return self._observe(), self._out(reward, np.float64), self._out(terminated), self._out(truncated), info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One RGB picture per lane, as :meth:`hsal_env.env.HSALEnv.render` gives it; None without a render mode.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self.render_mode is None:
            return None
        indices = self._current.example.canvas_index.cpu().numpy()
        assert self._recorder is not None
        return tuple(map(draw_frame, self.simulation.traces(self._recorder, indices)))

    def action_masks(self) -> np.ndarray:
        """bool ``[N, H W + C + 1]``.

        Raises:
            ConfigError: a view other than the flat and the controller view.
        """
        require_action_mask(self.simulation.view)
        return self.simulation.view.observe(self._current, self._images)["action_mask"].cpu().numpy().astype(bool)

    def _seed(self, seed: int | Sequence[int | None] | None, lanes: np.ndarray) -> None:
        given = np.ndim(seed) > 0  # type: ignore[arg-type]
        try:
            first = None if seed is None or given else operator.index(seed)  # type: ignore[arg-type]
            seeds = list(seed) if given else [None if first is None else first + i for i in range(self.num_envs)]  # type: ignore[arg-type]
            seeds = [None if one is None else operator.index(one) for one in seeds]
        except TypeError as error:
            raise ConfigError(f"Expected a whole number as seed, or one for each lane; got {seed!r}.") from error
        if len(seeds) != self.num_envs:
            raise ConfigError(f"Expected {self.num_envs} seeds; got {len(seeds)}.")
        for lane in lanes.tolist():
            self._draws.seed(lane, seeds[lane])

    def _restart(self, lanes: np.ndarray, indices: np.ndarray | None = None) -> None:
        if indices is None:
            indices = self._draws.take(lanes)
        self._place(lanes, indices)
        if self.max_episode_steps is not None:
            self._elapsed = self._elapsed.index_fill(0, torch.from_numpy(lanes).to(self.simulation.device), 0)
        if self._recorder:
            self._recorder.begin(self._current, lanes)
        elif self.render_mode is not None:
            self._recorder = Recorder(self.simulation.rules, self.simulation.config.classes, self._current)

    def _place(self, lanes: np.ndarray, indices: np.ndarray) -> None:
        fresh, images = self.simulation.start(indices)
        if len(lanes) == self.num_envs:
            self._state, self._images = fresh, images
            return
        into = torch.from_numpy(lanes).to(self.simulation.device)
        before, volume = self._current, self._current.example.volume
        shown = self.output == "torch" and self.simulation.config.shows_volume
        if self._lent or shown or volume.is_inference():
            # somebody may hold it; it is by far the largest part and not copied needlessly
            volume = volume.clone()
        volume.index_copy_(0, into, fresh.example.volume)
        self._lent = False
        example = Example(volume, *_scatter(tuple(before.example[1:]), tuple(fresh.example[1:]), into))
        self._state = State(example, *_scatter(tuple(before[1:]), tuple(fresh[1:]), into))
        if images is not None and self._images is not None:
            self._images = self._images.index_copy(0, into, images)

    def _final_observations(self, ended: Tensor) -> Any:
        """Gymnasium's layout: an array of one observation, or None, per lane."""
        parts = self._observe()
        if self.output == "torch":
            return parts
        lanes = np.full(self.num_envs, None, dtype=object)
        for lane in np.flatnonzero(ended):
            lanes[lane] = {name: value[lane] for name, value in parts.items()}
        return lanes

    def _observe(self) -> dict[str, Any]:
        parts = self.simulation.view.observe(self._current, self._images)
        return {name: self._out(value) for name, value in parts.items()}

    def _info(self, ended: Tensor, told: Tensor | None = None) -> dict[str, Any]:
        """Gymnasium's vector layout: an array per key, and under ``_key`` the lanes it holds for. It is 0 or None in others.

        Args:
            ended: the lanes whose episode has just ended by its rules: they have its metrics.
            told: the lanes to tell of; None: all.
        """
        everywhere = self._out(torch.ones_like(ended) if told is None else told)
        source = self._source.copy() if told is None else np.where(told.cpu().numpy(), self._source, np.array(None))
        info: dict[str, Any] = {"source": source, "_source": everywhere}
        for name, value in self.simulation.info(self._current).items():
            if told is not None:
                value = torch.where(told.view(-1, *[1] * (value.dim() - 1)), value, 0)
            info[name], info[f"_{name}"] = self._out(value), everywhere
        if not ended.is_cpu or bool(ended.any()):  # asking an accelerator would wait for it
            for name, value in self.simulation.episode_info(self._current).items():
                info[name], info[f"_{name}"] = self._out(torch.where(ended, value, 0.0)), self._out(ended)
        return info

    def _out(self, value: Tensor, dtype: Any = None) -> Any:
        if self.output == "torch":
            return value
        return np.array(value.numpy(), dtype=dtype)  # a copy: writing to it must not change the state


_BY_LANE = ("np_random", "np_random_seed", "render", "action_masks")  # what the vector environment answers lane by lane


class _Draws:
    """Which canvas each lane begins with: its own generator's ``integers(size)``, drawn several at a time.

    A generator that was handed out is drawn from one at a time, since its holder may draw from it, too.

    Args:
        lanes: number of lanes.
        size: number of canvases.
    """

    _AHEAD = 32

    def __init__(self, lanes: int, size: int) -> None:
        self._size = size
        self._rngs: list[np.random.Generator | None] = [None] * lanes
        self._seeds = [-1] * lanes
        self._before: list[Any] = [None] * lanes  # the state of each generator before it drew ahead
        self._shared = np.zeros(lanes, bool)
        self._drawn = np.zeros((lanes, self._AHEAD), np.int64)
        self._used = np.full(lanes, self._AHEAD)

    def seed(self, lane: int, seed: int | None) -> None:
        """Begin the sequence of a lane. None: go on with the one it has, or begin a random one."""
        if seed is not None or self._rngs[lane] is None:
            self._rngs[lane], self._seeds[lane] = seeding.np_random(seed)
            self._used[lane], self._shared[lane] = self._AHEAD, False

    def seeds(self) -> tuple[int, ...]:
        """The seed of each lane."""
        self._begin()
        return tuple(self._seeds)

    def generators(self) -> tuple[np.random.Generator, ...]:
        """The generator of each lane, where the draws so far have left it."""
        self._begin()
        for lane in np.flatnonzero(~self._shared).tolist():
            if self._used[lane] < self._AHEAD:
                self._rng(lane).bit_generator.state = self._before[lane]
                self._rng(lane).integers(self._size, size=self._used[lane])
                self._used[lane] = self._AHEAD
        self._shared[:] = True
        return tuple(map(self._rng, range(len(self._rngs))))

    def replace(self, rngs: Sequence[np.random.Generator]) -> None:
        """Draw from ``rngs`` from now on."""
        self._rngs, self._seeds = list(rngs), [-1] * len(rngs)
        self._used[:], self._shared[:] = self._AHEAD, True

    def _begin(self) -> None:
        """Begin a random sequence in lanes that have none."""
        for lane in range(len(self._rngs)):
            self.seed(lane, None)

    def _rng(self, lane: int) -> np.random.Generator:
        rng = self._rngs[lane]
        assert rng is not None  # the first reset seeds every lane
        return rng

    def take(self, lanes: np.ndarray) -> np.ndarray:
        """The next canvas of each of ``lanes``, which are all different."""
        for lane in lanes[self._used[lanes] == self._AHEAD].tolist():
            rng = self._rng(lane)
            if self._shared[lane]:
                self._drawn[lane, -1], self._used[lane] = rng.integers(self._size), self._AHEAD - 1
            else:
                self._before[lane] = rng.bit_generator.state
                self._drawn[lane], self._used[lane] = rng.integers(self._size, size=self._AHEAD), 0
        drawn: np.ndarray = self._drawn[lanes, self._used[lanes]]
        self._used[lanes] += 1
        return drawn


def _scatter(state: Any, fresh: Any, lanes: Tensor) -> Any:
    """A nested tuple of tensors with those of ``fresh`` at ``lanes``."""
    if isinstance(state, Tensor):
        return state.index_copy(0, lanes.to(state.device), fresh)
    return rebuilt(state, [_scatter(old, new, lanes) for old, new in zip(state, fresh, strict=True)])
