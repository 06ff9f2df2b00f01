"""Stable-Baselines3: the batched environment as a VecEnv, the paper's agent as a policy, any agent of ours as a model.

    env = HSALVecEnv("HSAL-MNISTMultiset-v0", num_envs=64, features="store")
    MaskablePPO("MultiInputPolicy", env).learn(100_000)                   # any algorithm of SB3, on the flat view

    env = HSALVecEnv("HSAL-MNISTMultiset-v0", num_envs=64, features="store", action_mode="packed", components=25)
    RecurrentPPO(HSALPolicy, env, gamma=0.0).learn(1_000_000)             # the paper's agent, trained by SB3's own loop
    env = HSALVecEnv("HSAL-MNISTMultiset-v0", num_envs=64, action_mode="packed", components=25, update="peak")
    evaluate_policy(SB3Agent(agents.load("mnist-multiset").agent), env)   # a trained agent under SB3's tools

No other package of HSAL imports SB3. Only ``HSALPolicy`` needs sb3-contrib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.sb3.playing import SB3Agent
from agents.sb3.vec_env import HSALVecEnv

if TYPE_CHECKING:
    from agents.sb3.policy import HSALPolicy

__all__ = ["HSALPolicy", "HSALVecEnv", "SB3Agent"]

_OF_POLICY = ("HSALPolicy", "_any_rate")  # SB3 models that version 0.1 saved look for both in this module


def __getattr__(name: str) -> Any:
    """Import the policy only when it is asked for, because its base class is in sb3-contrib.

    Raises:
        AttributeError: there is no such name.
        ImportError: sb3-contrib is not installed.
    """
    if name not in _OF_POLICY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from agents.sb3 import policy
    except ModuleNotFoundError as error:
        raise ImportError(f'{name} needs sb3-contrib: pip install "hsal[sb3]".') from error
    return getattr(policy, name)
