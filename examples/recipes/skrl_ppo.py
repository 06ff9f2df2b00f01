"""skrl's PPO on the batched environment: a policy that masks its logits, and a value network.

    pip install skrl
    python examples/recipes/skrl_ppo.py

Run with skrl 2.1.1.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from skrl.agents.torch import ExperimentCfg
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from skrl.utils.spaces.torch import compute_space_size
from task import exact_match, make_vec
from torch import Tensor, nn

LANES, STEPS = 64, 64


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs)
    )  # fmt: skip


class Policy(CategoricalMixin, Model):
    """skrl flattens a Dict in the order of its names, so the first numbers are the action mask."""

    def __init__(self, space: spaces.Dict, actions: spaces.Discrete, device: torch.device) -> None:
        Model.__init__(self, observation_space=space, action_space=actions, device=device)
        CategoricalMixin.__init__(self)
        self.net = network(compute_space_size(space), int(actions.n))

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Tensor, dict[str, Any]]:
        """Logits ``[N, actions]``."""
        seen = inputs["observations"]
        logits = self.net(seen)
        return logits.masked_fill(seen[:, : logits.shape[1]] == 0, -1e9), {}


class Value(DeterministicMixin, Model):
    """State values."""

    def __init__(self, space: spaces.Dict, actions: spaces.Discrete, device: torch.device) -> None:
        Model.__init__(self, observation_space=space, action_space=actions, device=device)
        DeterministicMixin.__init__(self)
        self.net = network(compute_space_size(space), 1)

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Tensor, dict[str, Any]]:
        """Values ``[N, 1]``."""
        return self.net(inputs["observations"]), {}


def main() -> None:
    """Learn, then test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-timesteps", type=int, default=120_000)
    total = parser.parse_args().total_timesteps
    set_seed(0)

    # SAME_STEP: skrl takes each step's observation for the next decision's
    env = wrap_env(make_vec(LANES, AutoresetMode.SAME_STEP), wrapper="gymnasium", verbose=False)
    where = (env.observation_space, env.action_space, env.device)
    policy = Policy(*where)
    agent = PPO(
        models={"policy": policy, "value": Value(*where)},
        memory=RandomMemory(memory_size=STEPS, num_envs=LANES, device=env.device),
        observation_space=env.observation_space,
        action_space=env.action_space,
        device=env.device,
        cfg=PPO_CFG(
            rollouts=STEPS,
            learning_epochs=8,
            mini_batches=8,
            discount_factor=0.5,
            learning_rate=2e-3,
            entropy_loss_scale=0.01,
            value_loss_scale=0.5,
            experiment=ExperimentCfg(directory=tempfile.mkdtemp(), write_interval=0, checkpoint_interval=0),
        ),
    )
    SequentialTrainer(env=env, agents=agent, cfg={"timesteps": total // LANES, "headless": True}).train()

    @torch.no_grad()
    def greedy(seen: dict[str, np.ndarray]) -> np.ndarray:
        flat = torch.from_numpy(np.concatenate([seen[name] for name in sorted(seen)], axis=1, dtype=np.float32))
        return policy.compute({"observations": flat})[0].argmax(dim=1).numpy()

    print(f"test: exact match {exact_match(greedy):.3f}")


if __name__ == "__main__":
    main()
