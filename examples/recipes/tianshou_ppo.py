"""Tianshou's PPO. It steps single environments, so that it is slower than the recipes that take the batched one.

    pip install tianshou
    python examples/recipes/tianshou_ppo.py

Run with tianshou 2.0.1.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium
import numpy as np
import torch
from task import ENV_ID, TASK, exact_match
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import MLP, ActionReprNet
from torch import Tensor, nn

LANES, STEPS = 32, 64


class Encoder(nn.Module):
    """All parts of the observation but the mask, through two hidden layers."""

    def __init__(self, space: gymnasium.spaces.Dict, outputs: int) -> None:
        super().__init__()
        self.parts = [name for name in space if name != "action_mask"]
        size = sum(gymnasium.spaces.flatdim(space[name]) for name in self.parts)
        self.net = MLP(input_dim=size, output_dim=outputs, hidden_sizes=(256, 256))

    def forward(self, obs: Any) -> Tensor:
        """``[N, outputs]``."""
        return self.net(np.concatenate([np.asarray(obs[name]) for name in self.parts], axis=1))


class Actor(ActionReprNet):
    """Logits; what the mask forbids has none."""

    def __init__(self, space: gymnasium.spaces.Dict, actions: int) -> None:
        super().__init__()
        self.encoder = Encoder(space, actions)

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[Tensor, Any]:
        """Logits ``[N, actions]``, and a state that is not used."""
        return self.encoder(obs).masked_fill(torch.as_tensor(obs["action_mask"]) == 0, -1e9), state


def make() -> Any:
    """A single environment."""
    return gymnasium.make(ENV_ID, **TASK)


def main() -> None:
    """Learn, then test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-timesteps", type=int, default=120_000)
    total = parser.parse_args().total_timesteps
    torch.manual_seed(0)

    envs = DummyVectorEnv([make] * LANES)
    envs.seed(0)
    space, action_space = make().observation_space, make().action_space
    actor = Actor(space, int(action_space.n))
    algorithm = PPO(
        policy=DiscreteActorPolicy(actor=actor, action_space=action_space),
        critic=Encoder(space, 1),
        optim=AdamOptimizerFactory(lr=2e-3),
        gamma=0.5,
        ent_coef=0.01,
        max_grad_norm=0.5,
    )
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=Collector(algorithm, envs, VectorReplayBuffer(LANES * STEPS, LANES)),
            max_epochs=max(1, total // 20_000),
            epoch_num_steps=min(total, 20_000),
            collection_step_num_env_steps=LANES * STEPS,
            update_step_num_repetitions=8,
            batch_size=256,
            show_progress=False,
            verbose=False,
        )
    )

    @torch.no_grad()
    def greedy(seen: dict[str, np.ndarray]) -> np.ndarray:
        return actor(seen)[0].argmax(dim=1).numpy()

    print(f"test: exact match {exact_match(greedy):.3f}")


if __name__ == "__main__":
    main()
