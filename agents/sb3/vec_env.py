"""The batched environment as a Stable-Baselines3 ``VecEnv``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from agents.protocol import World
from hsal_env import ENVIRONMENTS, VIEW_ENVIRONMENTS
from hsal_env.errors import ConfigError
from hsal_env.registration import plain_id
from hsal_env.vector_env import HSALVectorEnv


class HSALVecEnv(VecEnv):
    """Our vector environment as a Stable-Baselines3 ``VecEnv``. N lanes are stepped in one batch, so SB3 runs at batched speed.

    A lane begins a new episode in the step in which the old one ends. The info of that step holds ``terminal_observation``,
    ``TimeLimit.truncated``, and ``is_success`` (the exact match). ``set_options({"index": i})`` picks a canvas for the next
    ``reset``.

    Args:
        env_id: a registered id. ``hsal_env:ID`` will do, too.
        num_envs: N.
        kwargs: arguments of the environment. ``action_mode`` is ``"flat"``, unless they or the id name another.

    Raises:
        ConfigError: the id is not registered; ``action_mode`` is ``"native"``, whose Dict actions SB3 does not have; or
            ``output``, ``device`` or ``autoreset_mode`` is given.
    """

    def __init__(self, env_id: str, num_envs: int = 1, **kwargs: Any) -> None:
        known = {**ENVIRONMENTS, **VIEW_ENVIRONMENTS}
        env_id = plain_id(env_id)
        if not isinstance(env_id, str) or env_id not in known:
            raise ConfigError(
                f"Expected one of the ids {', '.join(known)}; got {env_id!r}. HSALVecEnv makes the vector environment itself."
            )
        if given := sorted({"output", "device", "autoreset_mode"} & set(kwargs)):
            raise ConfigError(f"HSALVecEnv decides {', '.join(given)} itself: SB3 reads numpy; leave it out.")
        kwargs = {"action_mode": "flat", **known[env_id], **kwargs}
        if kwargs["action_mode"] == "native":
            raise ConfigError(
                "Stable-Baselines3 has no Dict actions; expected action_mode flat, packed, option, controller or macro, "
                "got native. HSALPolicy acts on 'packed'."
            )
        env: Any = gym.make_vec(env_id, num_envs=num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)
        self.env: HSALVectorEnv = env.unwrapped
        self._actions: Any = None
        super().__init__(num_envs, self.env.single_observation_space, self.env.single_action_space)

    @property
    def world(self) -> World:
        """What an agent must know about this environment to be built for it."""
        return World.of(self.env.simulation.examples)

    def reset(self) -> dict[str, np.ndarray]:
        """Start an episode in every lane, with the seeds and options that were set before."""
        chosen = [options.get("index") for options in self._options]
        if any(set(options) - {"index"} for options in self._options) or (None in chosen and set(chosen) != {None}):
            raise ConfigError(f"Expected the option index for every lane, or no option; got {self._options}.")
        options = None if None in chosen else {"index": np.array(chosen)}
        seeds = None if set(self._seeds) == {None} else list(self._seeds)
        observations, info = self.env.reset(seed=seeds, options=options)
        self.reset_infos = self._infos(info)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions until :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take one step in every lane."""
        observations, rewards, terminated, truncated, info = self.env.step(self._actions)
        infos = self._infos(info)
        dones = terminated | truncated
        for lane in np.flatnonzero(dones).tolist():
            ended = self._infos(info["final_info"], [lane])[0]
            infos[lane] = {
                **ended,
                "terminal_observation": info["final_obs"][lane],
                "TimeLimit.truncated": bool(truncated[lane] & ~terminated[lane]),
                "is_success": bool(ended.get("exact_match", False)),  # missing after max_episode_steps
            }
        return observations, rewards.astype(np.float32), dones, infos

    def _infos(self, info: dict[str, Any], lanes: Iterable[int] | None = None) -> list[dict[str, Any]]:
        parts = {
            name: (part, info[f"_{name}"])
            for name, part in info.items()
            if f"_{name}" in info and not name.startswith("final_")
        }
        every = range(self.num_envs) if lanes is None else lanes
        return [{name: part[lane] for name, (part, holds) in parts.items() if holds[lane]} for lane in every]

    def close(self) -> None:
        """Release the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the vector environment, once per lane.

        Raises:
            AttributeError: there is no such attribute. Only views with a mask have ``action_masks``.
        """
        if attr_name == "action_masks" and "action_mask" not in self.env.single_observation_space.spaces:  # type: ignore[attr-defined]
            raise AttributeError("This view has no action mask.")
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the vector environment.

        Raises:
            ConfigError: ``indices`` are not all lanes. The lanes are one environment.
        """
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ConfigError("The lanes of HSALVecEnv are one environment; set attributes for all of them.")
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call a method of the vector environment that returns one value per lane, such as ``action_masks`` or ``render``.

        Raises:
            ConfigError: the method returns something else.
        """
        answer = getattr(self.env, method_name)(*args, **kwargs)
        if not isinstance(answer, np.ndarray | tuple | list) or len(answer) != self.num_envs:
            raise ConfigError(
                f"env_method is for methods that answer for every lane; {method_name} gave {type(answer).__name__}."
            )
        return [answer[lane] for lane in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """False for every lane. Wrappers of VecEnv, such as ``VecMonitor``, wrap all lanes together."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> list[np.ndarray | None]:
        """A picture of every lane, or None without a render mode."""
        return list(self.env.render() or [None] * self.num_envs)


def monitored(env_id: str, num_envs: int, **kwargs: Any) -> VecMonitor:
    """:class:`HSALVecEnv` in a ``VecMonitor``, which reports returns and lengths to SB3's logger."""
    return VecMonitor(HSALVecEnv(env_id, num_envs, **kwargs))
