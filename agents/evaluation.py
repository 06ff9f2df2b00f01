"""Tests of an agent on held-out canvases.

The agent takes its most probable actions until it says stop. It may name at most max_objects + 1 labels.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from tqdm import tqdm

from agents.protocol import Actor
from agents.rollout import collect
from hsal_env import multiset
from hsal_env.config import EnvConfig
from hsal_env.data.custom import CustomSplit
from hsal_env.vector_env import HSALVectorEnv

_LANES = 500


def make_env(config: EnvConfig, lanes: int, device: str = "cpu") -> HSALVectorEnv:
    """The environment for :func:`agents.rollout.collect`: the native view as tensors, without auto-reset and images."""
    plain = dataclasses.replace(config, action_mode="native", include_image=False, boxes=False)
    return HSALVectorEnv(
        lanes, output="torch", device=device, autoreset_mode=AutoresetMode.DISABLED, **dataclasses.asdict(plain)
    )


def evaluation_config(config: EnvConfig, split: str, episodes: int, seed: int = 0) -> EnvConfig:
    """The environment to test an agent on that was trained on ``config``: canvases of ``split``, free protocol."""
    return dataclasses.replace(
        config,
        split=cast(CustomSplit, split),
        num_examples=episodes,
        seed=seed,
        protocol="free",
        features="store",
        action_mode="native",
    )


def score_agent(agent: Actor, config: EnvConfig, device: str = "cpu", progress: bool = True) -> dict[str, Any]:
    """Test an agent on every canvas of ``config``.

    Returns:
        The scores of :func:`hsal_env.multiset.scores`, and

        - ``attn_saliency``: the mean raw saliency at the agent's glimpses; None without glimpses;
        - ``attn_saliency_ratio``: that mean divided by the one of uniformly drawn glimpses (S3); None without glimpses;
        - ``by_count``: what :func:`scores_by_count` returns.
    """
    lanes = min(_LANES, config.size)
    generator = torch.Generator(device).manual_seed(config.seed)  # for agents that draw even when greedy
    env = make_env(config, lanes, device)
    predicted, true, looks, glimpses = [], [], np.zeros(2), 0
    starts = range(0, config.size, lanes)
    for start in tqdm(starts, desc=f"evaluate, {config.split}", disable=not progress):
        fresh = min(lanes, config.size - start)
        rollout = collect(env, agent, np.minimum(np.arange(start, start + lanes), config.size - 1), True, generator)
        predicted.append(rollout.predicted[:fresh].cpu().numpy())
        true.append(rollout.trajectory.example.counts[:fresh].cpu().numpy())
        looks += rollout.looks[:fresh].double().sum(dim=0).cpu().numpy()
        glimpses += int(rollout.glimpses[:fresh].sum())
    named, counts = np.concatenate(predicted), np.concatenate(true)
    return {
        **multiset.scores(named, counts),
        "attn_saliency": looks[0] / glimpses if glimpses else None,
        "attn_saliency_ratio": looks[0] / looks[1] if looks[1] else None,
        "by_count": scores_by_count(named, counts),
    }


def scores_by_count(named: np.ndarray, counts: np.ndarray) -> dict[str, dict[str, float]]:
    """``episodes``, ``exact_match`` and ``macro_f1`` for each number of objects, from the counts named and true ``[B, C]``."""
    sizes = counts.sum(1)
    by_count = {}
    for size in np.unique(sizes).tolist():
        part = multiset.scores(named[sizes == size], counts[sizes == size])
        by_count[str(size)] = {"episodes": int((sizes == size).sum())} | {
            name: part[name] for name in ("exact_match", "macro_f1")
        }
    return by_count


def blind_guess(train: EnvConfig, test: EnvConfig) -> dict[str, float]:
    """Scores of a guess without looking: always the multiset that is most frequent among 10,000 training canvases."""
    from hsal_env.multiset import label_counts
    from hsal_env.perception.examples import Examples

    plain = dataclasses.replace(train, augment="none")
    few = dataclasses.replace(plain, features="lazy", num_examples=min(10_000, plain.size))
    seen, true = (
        label_counts(Examples(config).compose(np.arange(config.size)).labels, config.classes)
        for config in (few, dataclasses.replace(test, features="lazy"))
    )
    return multiset.scores(np.broadcast_to(multiset.most_frequent(seen), true.shape), true)
