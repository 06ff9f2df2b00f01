"""Records episodes of an agent: everything that it saw, did and said, decision by decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, overload

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents.evaluation import make_env
from agents.protocol import Actor, RecurrentState
from hsal_env.config import EnvConfig
from hsal_env.env import HSALEnv
from hsal_env.errors import ConfigError
from hsal_env.spaces import raw_attention
from hsal_env.trace import Trace
from hsal_env.trace.recorder import Recorder, Scores
from hsal_env.vector_env import HSALVectorEnv

Environment: TypeAlias = EnvConfig | gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]


@overload
def record(agent: Actor, env: Environment, index: int, deterministic: bool = True, seed: int = 0) -> Trace: ...
@overload
def record(
    agent: Actor, env: Environment, index: Sequence[int] | np.ndarray, deterministic: bool = True, seed: int = 0
) -> list[Trace]: ...
@torch.no_grad()
def record(
    agent: Actor,
    env: Environment,
    index: int | Sequence[int] | np.ndarray,
    deterministic: bool = True,
    seed: int = 0,
) -> Trace | list[Trace]:
    """Play one episode on each canvas and trace it.

    Args:
        agent: the agent that plays, on the CPU.
        env: an environment (single or vector, wrapped or not) or an :class:`EnvConfig`. Its canvases and rules are used; the
            environment itself is not stepped.
        index: number of a canvas, or several of them.
        deterministic: take the most probable actions. Otherwise actions are sampled.
        seed: seed of the samples.

    Returns:
        A trace; for several canvases a list of traces.

    Raises:
        ConfigError: the environment is not one of HSAL's.
        DataError: an index is outside the split.

    Example:
        >>> import agents
        >>> config = EnvConfig(source="digits", split="test", components=25, update="peak")  # no download
        >>> trace = record(agents.load("mnist-multiset").agent, config, index=0)
        >>> trace.image.shape, trace.map_size, trace.terminated
        ((100, 100), (7, 7), True)
    """
    config = env if isinstance(env, EnvConfig) else _config_of(env.unwrapped)
    indices = np.atleast_1d(np.asarray(index))
    lanes = make_env(config, len(indices))
    generator = torch.Generator("cpu").manual_seed(seed)
    observation, _ = lanes.reset(options={"index": indices})
    state = agent.initial(len(indices))
    recorder = Recorder(lanes.simulation.rules, config.classes, lanes.state)
    ended = torch.zeros(len(indices), dtype=torch.bool, device="cpu")
    blank = torch.zeros(len(indices), 4 * config.components, dtype=torch.float32, device="cpu")
    while not bool(ended.all()):
        decision = agent.act(observation, state, deterministic, generator)
        observation, _, terminated, truncated, _ = lanes.step(decision.action)
        state = decision.state
        attention = decision.action.get("attention")
        recorder.add(
            lanes.state,
            Scores(
                attention=blank if attention is None else raw_attention(attention),
                log_prob=decision.log_prob,
                value=decision.value,
                log_probs=decision.log_probs,
                states=_named(state),
                drew=decision.draws is not None,
                cell=getattr(decision.draws, "cell", None),
                entropy=decision.entropy,
            ),
        )
        recorder.end(terminated, truncated)
        ended = terminated | truncated  # held until the next reset
    traces = lanes.simulation.traces(recorder, indices)
    return traces if np.ndim(index) else traces[0]


def _config_of(env: object) -> EnvConfig:
    if not isinstance(env, HSALEnv | HSALVectorEnv):
        raise ConfigError(f"Expected an environment of HSAL or its EnvConfig; got {type(env).__name__}.")
    return env.simulation.config


def _named(state: RecurrentState) -> dict[str, Tensor]:
    """The parts ``[B, ...]`` of an agent's recurrent state, by name. Parts without a name are ``state``, ``state_0``, ..."""
    if isinstance(state, Tensor):
        return {"state": state}
    numbered = {f"state_{i}": part for i, part in enumerate(state)}
    parts = state._asdict() if hasattr(state, "_asdict") else numbered
    return {name: part for name, part in parts.items() if isinstance(part, Tensor)}
