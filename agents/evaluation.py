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
from agents.rollout import Rollout, collect
from hsal_env import multiset, where
from hsal_env.config import EnvConfig
from hsal_env.data.canvases import CanvasBatch
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


def score_agent(
    agent: Actor, config: EnvConfig, device: str = "cpu", progress: bool = True, locate: bool = True
) -> dict[str, Any]:
    """Test an agent on every canvas of ``config``.

    Args:
        agent: the agent.
        config: the environment, see :func:`evaluation_config`.
        device: where the agent is.
        progress: whether a progress bar is shown.
        locate: whether the measures of :mod:`hsal_env.where` are made. They need the boxes, so the canvases are composed again.

    Returns:
        The scores of :func:`hsal_env.multiset.scores`, the errors of :func:`hsal_env.multiset.count_errors`, and

        - ``pointing``, ``mask_in_box``, ``focus``, ``several``: the means over the named objects of
          :class:`hsal_env.where.Where`; None where boxes are unknown or nothing was named, and ``pointing`` without glimpses;
        - ``attn_saliency``: the mean raw saliency at the agent's glimpses; None without glimpses;
        - ``attn_saliency_ratio``: that mean divided by the one of uniformly drawn glimpses (S3); None without glimpses;
        - ``by_count``: what :func:`scores_by_count` returns.
    """
    lanes = min(_LANES, config.size)
    generator = torch.Generator(device).manual_seed(config.seed)  # for agents that draw even when greedy
    env = make_env(config, lanes, device)
    predicted, true, looks, glimpses = [], [], np.zeros(2), 0
    places, known = [], False
    starts = range(0, config.size, lanes)
    for start in tqdm(starts, desc=f"evaluate, {config.split}", disable=not progress):
        fresh = min(lanes, config.size - start)
        indices = np.minimum(np.arange(start, start + lanes), config.size - 1)
        rollout = collect(env, agent, indices, True, generator, masks=locate)
        predicted.append(rollout.predicted[:fresh].cpu().numpy())
        true.append(rollout.trajectory.example.counts[:fresh].cpu().numpy())
        looks += rollout.looks[:fresh].double().sum(dim=0).cpu().numpy()
        glimpses += int(rollout.glimpses[:fresh].sum())
        if locate:
            canvases = env.simulation.examples.compose(indices[:fresh])
            known |= bool((canvases.boxes >= 0).any())
            places.append(_located(rollout, env, canvases))
    named, counts = np.concatenate(predicted), np.concatenate(true)
    return {
        **multiset.scores(named, counts),
        **multiset.count_errors(named, counts, config.label_names),
        **(where.summary(places, known) if locate else {}),
        "attn_saliency": looks[0] / glimpses if glimpses else None,
        "attn_saliency_ratio": looks[0] / looks[1] if looks[1] else None,
        "by_count": scores_by_count(named, counts),
    }


def _located(rollout: Rollout, env: HSALVectorEnv, canvases: CanvasBatch) -> where.Where:
    """Where the agent looked in the first lanes, which hold ``canvases``."""
    trajectory, lanes, config = rollout.trajectory, len(canvases.labels), env.simulation.config
    assert rollout.masks is not None
    labels = torch.where(trajectory.live & (trajectory.labels < config.classes), trajectory.labels, -1)
    cells = trajectory.locations[:, 0] if config.glimpses else torch.full_like(labels, -1)
    if ((canvases.labels >= 0) & (canvases.boxes[..., 2] < 0)).any(axis=1).all():
        cells = torch.full_like(labels, -1)  # no image has boxes to hold their places against
    return where.where(
        labels.T[:lanes].cpu().numpy(),
        env.simulation.examples.places_px(canvases.images, cells.T[:lanes].cpu().numpy()),
        rollout.masks.transpose(0, 1)[:lanes].cpu().numpy(),
        canvases.labels,
        canvases.boxes,
        env.simulation.examples.grid,
        config.image_shape[:2],
    )


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


def blind_guess(train: EnvConfig, test: EnvConfig) -> dict[str, Any]:
    """Scores of guesses without looking, which 10,000 training canvases decide.

    Returns:
        The scores of :func:`hsal_env.multiset.scores` and the errors of :func:`hsal_env.multiset.count_errors` of the multiset
        that is most frequent in training; and under ``mean_counts`` these errors of another guess: of each class its mean count
        in training, rounded to a whole number.
    """
    from hsal_env.perception.examples import Examples

    plain = train.unvaried
    few = dataclasses.replace(plain, features="lazy", num_examples=min(10_000, plain.size))
    seen, true = (
        multiset.label_counts(Examples(config).compose(np.arange(config.size)).labels, config.classes)
        for config in (few, dataclasses.replace(test, features="lazy"))
    )
    often, mean = (
        np.broadcast_to(guess, true.shape)
        for guess in (multiset.most_frequent(seen), np.rint(seen.mean(axis=0)).astype(np.int64))
    )
    names = test.label_names
    return {
        **multiset.scores(often, true),
        **multiset.count_errors(often, true, names),
        "mean_counts": multiset.count_errors(mean, true, names),
    }
