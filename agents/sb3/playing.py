"""Our agents under the tools of Stable-Baselines3, and tests of its models on our environments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Protocol, runtime_checkable

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from agents.evaluation import scores_by_count
from agents.protocol import Actor, RecurrentState, World
from agents.sb3.vec_env import HSALVecEnv
from hsal_env import dynamics, multiset
from hsal_env.errors import ConfigError


@runtime_checkable
class _ActorOfWorld(Actor, Protocol):
    world: World


class SB3Agent:
    """An agent of ours on the packed view, with SB3's method ``predict``: for ``evaluate_policy``, callbacks and recorders.

    Args:
        agent: the agent. It must have an attribute ``world``, which must be the world of the environment.

    Raises:
        ConfigError: the agent lacks a method, or ``world``.
    """

    def __init__(self, agent: Actor) -> None:
        if not isinstance(agent, _ActorOfWorld):
            missing = [name for name in ("initial", "act", "world") if not hasattr(agent, name)]
            raise ConfigError(
                f"Expected an agent; {type(agent).__name__} lacks {', '.join(missing)}. A trained one is agents.load(NAME).agent."
            )
        self.agent, self.world = agent, agent.world

    @torch.no_grad()
    def predict(
        self,
        observation: dict[str, np.ndarray],
        state: RecurrentState = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, RecurrentState]:
        """Choose packed actions ``[N, 4K + 2]``, or ``[4K + 2]`` for a single observation.

        Returns:
            The actions, and the state to pass to the next call.

        Raises:
            ConfigError: the observation is of another view, or of another environment than the agent's.
        """
        if not {"phase", "saliency", "priority", "volume"} <= set(observation) or "action_mask" in observation:
            raise ConfigError(
                f"Expected an observation of the packed view; got {sorted(observation)}. Use action_mode='packed'."
            )
        cells = self.world.map_size[0] * self.world.map_size[1]
        sizes = np.shape(observation["saliency"])[-1], int(np.max(observation["phase"]))
        if sizes[0] != cells or sizes[1] > self.world.rules.glimpses + 1:
            raise ConfigError(
                f"Expected the packed view of an environment of {cells} cells and glimpses={self.world.rules.glimpses}, as the "
                f"agent was built for; got {np.shape(observation['saliency'])} and phase {sizes[1]}."
            )
        alone = np.ndim(observation["saliency"]) == 1
        seen = {
            name: torch.as_tensor(np.asarray(part)[None] if alone else part, device="cpu")
            for name, part in observation.items()
        }
        lanes = len(seen["saliency"])
        if seen["phase"].numel() != lanes:
            raise ConfigError("Expected whole numbers for phase; got Boxes. Make the environment with boxes=False.")
        for name in ("phase", "last_label", "last_location"):
            seen[name] = seen[name].reshape(lanes).long()
        for name in ("saliency", "priority"):
            seen[name] = seen[name].unflatten(1, self.world.map_size)
        fresh = self.agent.initial(lanes)
        if state is None:
            state = fresh
        elif episode_start is not None:
            state = dynamics.select(torch.as_tensor(np.atleast_1d(episode_start), device="cpu").bool(), fresh, state)
        decision = self.agent.act(seen, state, deterministic)
        zero = torch.zeros(lanes, 1, dtype=torch.float32, device="cpu")
        width = 4 * self.world.rules.components
        attention = decision.action.get("attention", zero.expand(lanes, width))
        chosen = [
            decision.action[name][:, None].float() if name in decision.action else zero
            for name in ("location", "label")
        ]
        packed = torch.cat([attention, *chosen], dim=1).numpy()
        return packed[0] if alone else packed, decision.state


Predict = Callable[..., tuple[np.ndarray, Any]]
"""``predict(observation, state, episode_start)`` returns actions and a state, as SB3's models do."""


def score(predict: Predict, env: HSALVecEnv, episodes: int) -> dict[str, Any]:
    """Play canvases 0 to ``episodes - 1``, once each.

    Returns:
        ``mean_return``; ``mean_length`` in steps of the view; the scores of :func:`hsal_env.multiset.scores`; and
        ``by_count``, see :func:`agents.evaluation.scores_by_count`.
    """
    returns, lengths = np.zeros(episodes), np.zeros(episodes)
    classes = env.env.simulation.config.classes
    named, true = np.zeros((episodes, classes), np.int64), np.zeros((episodes, classes), np.int64)
    for first in range(0, episodes, env.num_envs):
        lanes = np.minimum(np.arange(first, first + env.num_envs), episodes - 1)
        env.set_options([{"index": index} for index in lanes])
        observation, starts = env.reset(), np.ones(env.num_envs, bool)
        state: Any = None
        playing = np.append(True, lanes[1:] > lanes[:-1])  # the last canvas fills the lanes left over; it counts once
        while playing.any():
            actions, state = predict(observation, state, starts)
            env.step_async(actions)
            observation, rewards, starts, infos = env.step_wait()
            returns[lanes[playing]] += rewards[playing]
            lengths[lanes[playing]] += 1
            for lane in np.flatnonzero(playing & starts):
                named[lanes[lane]], true[lanes[lane]] = infos[lane]["predicted_counts"], infos[lane]["label_counts"]
            playing &= ~starts
    return {
        "mean_return": float(returns.mean()),
        "mean_length": float(lengths.mean()),
        **multiset.scores(named, true),
        "by_count": scores_by_count(named, true),
    }


def find_algorithm(name: str) -> Any:
    """An algorithm's class in stable_baselines3 or sb3_contrib.

    Raises:
        ConfigError: the algorithm is in sb3-contrib, which is not installed.
    """
    if hasattr(stable_baselines3, name):
        return getattr(stable_baselines3, name)
    try:
        return getattr(importlib.import_module("sb3_contrib"), name)
    except ModuleNotFoundError as error:
        raise ConfigError(f'{name} needs sb3-contrib: pip install "hsal[sb3]".') from error


def make_model(name: str, env: VecEnv, seed: int, kwargs: dict[str, Any], policy: Any = None) -> Any:
    """Make a model of the algorithm ``name``. Without ``policy`` it gets SB3's own policy for Dict observations."""
    policy = policy or ("MultiInputLstmPolicy" if name == "RecurrentPPO" else "MultiInputPolicy")
    return find_algorithm(name)(policy, env, seed=seed, **deepcopy(kwargs))  # A2C writes into its policy_kwargs


def greedy(model: Any, env: HSALVecEnv) -> Predict:
    """Play a model's most probable actions. If it takes an action mask, it gets one."""
    if "action_masks" in inspect.signature(model.predict).parameters:
        return lambda seen, state, starts: model.predict(
            seen, state, starts, deterministic=True, action_masks=np.stack(env.env_method("action_masks"))
        )
    return lambda seen, state, starts: model.predict(seen, state, starts, deterministic=True)


def at_random(env: HSALVecEnv, seed: int) -> Predict:
    """Play uniformly drawn actions. If the view has an action mask, only actions that it allows."""
    rng = np.random.default_rng(seed)
    batch: spaces.Space[Any] = env.env.action_space
    batch.seed(seed)

    def predict(seen: dict[str, np.ndarray], state: Any, starts: np.ndarray) -> tuple[np.ndarray, Any]:
        if "action_mask" in seen:
            return (rng.random(seen["action_mask"].shape) * seen["action_mask"]).argmax(axis=1), None
        return batch.sample(), None

    return predict


def stopping(env: HSALVecEnv) -> Predict:
    """In the flat view, look at the first cell until a label may be named, and then say stop."""
    stop = int(env.action_space.n) - 1  # type: ignore[attr-defined]

    def predict(seen: dict[str, np.ndarray], state: Any, starts: np.ndarray) -> tuple[np.ndarray, Any]:
        return np.where(seen["action_mask"][:, stop] > 0, stop, 0), None

    return predict
