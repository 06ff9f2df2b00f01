"""The environment ids: a table and one loop. Entry points are strings, so that the import is quick."""

from __future__ import annotations

from typing import Any

from gymnasium.envs.registration import register, registry

_SOURCES = {"MNIST": "auto", "Digits": "digits"}
_TASKS = {"Single": "single", "Set": "set", "Multiset": "multiset"}
_TEN = {
    "task": "multiset",
    "min_objects": 10,
    "max_objects": 10,
    "min_size_px": 20,
    "max_size_px": 20,
    "activation": "compact-ten",
}

_HOUSE = {"activation": "compact-house-numbers"}
_SVHN = {"activation": "compact-svhn"}

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    f"HSAL-{name}{task}-v0": {"source": source, "task": key}
    for name, source in _SOURCES.items()
    for task, key in _TASKS.items()
} | {
    "HSAL-MNISTMultiset10-v0": {"source": "auto", **_TEN},
    "HSAL-HouseNumbersSingle-v0": {"source": "house-numbers", "task": "single", **_HOUSE},
    "HSAL-HouseNumbersMultiset-v0": {"source": "house-numbers", "task": "multiset", **_HOUSE},
    "HSAL-SVHNSingle-v0": {"source": "svhn", "task": "single", **_SVHN},
    "HSAL-SVHNMultiset-v0": {"source": "svhn", "task": "multiset", **_SVHN},
    "HSAL-Custom-v0": {"source": "custom", "split": "all"},
}
"""Keyword arguments of each id. These and all others can be changed in ``gymnasium.make``."""

_POLICY: dict[str, Any] = {"policy": "agents.policies:mnist_multiset", "update": "peak"}
VIEW_ARGUMENTS: dict[str, dict[str, Any]] = {
    "flat": {},
    "option": _POLICY,
    "controller": {"components": 25, **_POLICY},
    "macro": {},
}
"""What each view needs. Where that is a given policy, it is the bundled agent, with its update and its number of Gaussians."""
VIEW_ENVIRONMENTS: dict[str, dict[str, Any]] = {
    f"HSAL-MNISTMultiset{mode.title()}-v0": {**ENVIRONMENTS["HSAL-MNISTMultiset-v0"], "action_mode": mode, **kwargs}
    for mode, kwargs in VIEW_ARGUMENTS.items()
}
"""One task in the views of :mod:`hsal_env.views`."""


def plain_id(env_id: Any) -> Any:
    """``env_id`` without the module in it: ``gymnasium.make("hsal_env:ID")`` imports that and makes ``ID``.

    Example:
        >>> plain_id("hsal_env:HSAL-MNISTSet-v0")
        'HSAL-MNISTSet-v0'
    """
    return env_id.removeprefix("hsal_env:") if isinstance(env_id, str) else env_id


def register_all() -> None:
    """Register every id; doing it twice is harmless."""
    for env_id, kwargs in {**ENVIRONMENTS, **VIEW_ENVIRONMENTS}.items():
        if env_id not in registry:
            register(
                id=env_id,
                entry_point="hsal_env.env:HSALEnv",
                vector_entry_point="hsal_env.vector_env:HSALVectorEnv",
                kwargs=kwargs,
            )
