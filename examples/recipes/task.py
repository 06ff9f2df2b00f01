"""What the recipes share: the environments that they learn in, and the test of what they learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

import hsal_env  # noqa: F401, registers the ids

ENV_ID = "HSAL-DigitsSingle-v0"
TASK: dict[str, Any] = {"action_mode": "flat", "boxes": True, "features": "store", "num_examples": 2_000}
"""One Discrete action, and observations of Boxes alone; features computed once, of 2,000 canvases."""

Choose = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Actions ``[N]`` for batched observations ``[N, ...]``."""


def make_vec(num_envs: int, autoreset_mode: AutoresetMode, **changes: Any) -> Any:
    """N training environments in one batch."""
    return gymnasium.make_vec(ENV_ID, num_envs, autoreset_mode=autoreset_mode, **{**TASK, **changes})


def exact_match(choose: Choose, episodes: int = 500) -> float:
    """Share of test canvases whose whole multiset is named, one episode each. Their digits occur in no training canvas."""
    envs = make_vec(episodes, AutoresetMode.DISABLED, split="test", num_examples=episodes)
    observation, _ = envs.reset(options={"index": range(episodes)})
    exact, ended = np.zeros(episodes), np.zeros(episodes, bool)
    while not ended.all():
        observation, _, terminated, truncated, info = envs.step(choose(observation))
        exact += info.get("exact_match", 0)  # 0 but where an episode ends
        ended = terminated | truncated
    return float(exact.mean())
