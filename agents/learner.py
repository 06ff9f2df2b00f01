"""One update of an agent from one batch of images: roll out, score, step the optimiser."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents import losses
from agents.config import LearnerConfig
from agents.returns import advantages
from agents.trajectory import Evaluation, Rollout, Trajectory, collect
from hsal_env.vector_env import HSALVectorEnv


def weights_cast_once(device: torch.device) -> torch.autocast:
    """Keep bfloat16 copies of weights for the whole block: autocast drops them where its outermost block ends."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=False)


class Learner:
    """Holds the optimiser; everything random is derived from (seed, step), so that resuming changes nothing.

    Args:
        agent: see :class:`agents.protocol.Agent`, an ``nn.Module``.
        config: how to learn.
        num_updates: length of the learning-rate schedule.
        seed: of samples and shuffles.
    """

    def __init__(self, agent: Any, config: LearnerConfig, num_updates: int, seed: int = 0) -> None:
        self.agent, self.config, self.num_updates, self.seed = agent, config, num_updates, seed
        self.optimiser = torch.optim.Adam(agent.parameters(), lr=config.learning_rate)
        self.step = 0

    def update(self, env: HSALVectorEnv, indices: np.ndarray) -> dict[str, float]:
        """Roll out on the canvases ``indices`` and learn from it. Returns what to log, see ``train/README.md``."""
        config = self.config
        entropy = self.seed * 1_000_003 + self.step
        device = env.simulation.device
        sampling = torch.Generator(device).manual_seed(entropy)
        shuffling = torch.Generator().manual_seed(entropy + (1 << 62))  # another stream
        forced = None
        if config.algorithm == "cross-entropy":
            env.reset(options={"index": indices})
            forced = losses.shuffled_labels(env.state.example.counts, env.simulation.rules.max_meta_steps, shuffling)
        with weights_cast_once(device):
            rollout = collect(env, self.agent, indices, generator=sampling, forced_labels=forced)
        learning_rate = config.learning_rate * self._schedule()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        terms: dict[str, Tensor] = {}
        grad_norm = torch.zeros((), device=device)
        for part, advantage in self._minibatches(rollout, shuffling):
            with weights_cast_once(device):
                evaluation = self.agent.evaluate(part)
            terms = self._terms(part, evaluation, advantage)
            loss = torch.stack([self._weight(name) * term for name, term in terms.items()]).sum()
            self.optimiser.zero_grad()
            loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(self.agent.parameters(), config.max_grad_norm)
            self.optimiser.step()
        self.step += 1
        return self._log(rollout, terms, float(grad_norm), learning_rate)

    def _minibatches(self, rollout: Rollout, generator: torch.Generator) -> list[tuple[Trajectory, Tensor]]:
        """(part of the lanes, their advantages) for every gradient step."""
        config, trajectory = self.config, rollout.trajectory
        advantage = advantages(trajectory.rewards, trajectory.values, trajectory.live, config.gamma, config.gae_lambda)
        if config.algorithm != "ppo":
            return [(trajectory, advantage)]
        lanes = trajectory.labels.shape[1]
        parts = []
        for _ in range(config.update_epochs):
            for chosen in torch.randperm(lanes, generator=generator).chunk(config.num_minibatches):
                chosen = chosen.to(advantage.device)
                parts.append((trajectory.lanes(chosen), advantage[..., chosen]))
        return parts

    def _terms(self, trajectory: Trajectory, evaluation: Evaluation, advantage: Tensor) -> dict[str, Tensor]:
        config = self.config
        if config.algorithm == "cross-entropy":
            return losses.cross_entropy(trajectory, evaluation)
        if config.algorithm == "ppo":
            return losses.ppo(trajectory, evaluation, advantage, config.clip_coef)
        if config.algorithm == "multiset-loss":
            return losses.multiset_loss(trajectory, evaluation, advantage)
        return losses.reinforce(trajectory, evaluation, advantage, config.estimator)

    def _weight(self, term: str) -> float:
        config = self.config
        return {
            "label": 1.0,
            "location": config.location_coef,
            "stop": config.stop_coef,
            "value": config.vf_coef,
            "entropy": config.ent_coef,
        }[term]

    def _schedule(self) -> float:
        done = self.step / self.num_updates
        if done < self.config.warmup:
            return (self.step + 1) / (self.config.warmup * self.num_updates + 1)
        return 0.5 * (1 + math.cos(math.pi * (done - self.config.warmup) / (1 - self.config.warmup + 1e-12)))

    def _log(
        self, rollout: Rollout, terms: dict[str, Tensor], grad_norm: float, learning_rate: float
    ) -> dict[str, float]:
        trajectory = rollout.trajectory
        named = trajectory.live & ~trajectory.final
        looked = trajectory.live[:, None].expand_as(trajectory.rewards[:, :-1])
        at, uniform = rollout.looks.sum(dim=0).tolist()
        return {
            **{f"loss/{name}": float(term.detach()) for name, term in terms.items()},
            "reward/label": float(trajectory.rewards[:, -1][named].mean()) if named.any() else 0.0,
            "reward/location": float(trajectory.rewards[:, :-1][looked].mean()) if looked.numel() else 0.0,
            "attention/saliency": at / max(1, int(rollout.glimpses.sum())),
            "attention/saliency_ratio": at / uniform if uniform else 0.0,
            "optimiser/grad_norm": grad_norm,
            "optimiser/learning_rate": learning_rate,
        }
