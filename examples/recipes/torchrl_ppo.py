"""TorchRL's PPO on the batched environment, with its own masked distribution.

    pip install torchrl
    python examples/recipes/torchrl_ppo.py

Run with torchrl 0.14.1 and tensordict 0.14.3.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from task import exact_match, make_vec
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import ActionMask, CatTensors, Compose, DTypeCastTransform, GymWrapper, TransformedEnv
from torchrl.modules import MLP, MaskedCategorical, ValueOperator
from torchrl.objectives import ClipPPOLoss

LANES, STEPS = 64, 64


def main() -> None:
    """Learn, then test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-timesteps", type=int, default=120_000)
    total = parser.parse_args().total_timesteps
    torch.manual_seed(0)

    # DISABLED: TorchRL starts lanes that have ended by itself, through options["reset_mask"]
    gym_env = make_vec(LANES, AutoresetMode.DISABLED)
    parts = [name for name in gym_env.single_observation_space if name != "action_mask"]
    env = TransformedEnv(
        GymWrapper(gym_env, categorical_action_encoding=True),
        Compose(
            CatTensors(parts, "observation", del_keys=False),
            DTypeCastTransform(torch.int8, torch.bool, in_keys=["action_mask"]),
            ActionMask(),  # random actions of the environment are allowed ones, too
        ),
    )
    env.set_seed(0)
    actions = int(gym_env.single_action_space.n)

    def network(outputs: int) -> MLP:
        return MLP(out_features=outputs, num_cells=[256, 256], activation_class=nn.ReLU)

    logits = TensorDictModule(network(actions), in_keys=["observation"], out_keys=["logits"])
    actor = ProbabilisticTensorDictSequential(
        logits,
        ProbabilisticTensorDictModule(
            in_keys={"logits": "logits", "mask": "action_mask"},
            out_keys=["action"],
            distribution_class=MaskedCategorical,
            return_log_prob=True,
        ),
    )
    critic = ValueOperator(network(1), in_keys=["observation"])
    with torch.no_grad():
        critic(actor(env.reset()))  # lazy layers learn their sizes
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01, critic_coeff=0.5, normalize_advantage=True)
    loss.make_value_estimator(gamma=0.5, lmbda=0.95)
    optimizer = torch.optim.Adam(loss.parameters(), lr=2e-3, eps=1e-5)

    collector = Collector(env, actor, frames_per_batch=LANES * STEPS, total_frames=total)
    for number, batch in enumerate(collector):
        for _ in range(8):
            with torch.no_grad():
                loss.value_estimator(batch)
            flat = batch.reshape(-1)
            for chosen in torch.randperm(len(flat)).chunk(8):
                losses = loss(flat[chosen])
                optimizer.zero_grad()
                sum(losses[name] for name in ("loss_objective", "loss_critic", "loss_entropy")).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        if number % 5 == 0:
            print(f"{(number + 1) * LANES * STEPS:>8,} steps   reward {batch['next', 'reward'].mean():.3f}", flush=True)
    collector.shutdown()

    @torch.no_grad()
    def greedy(seen: dict[str, np.ndarray]) -> np.ndarray:
        x = torch.cat([torch.from_numpy(seen[name]) for name in parts], dim=1)
        scores = logits(TensorDict({"observation": x}, batch_size=[len(x)]))["logits"]
        return scores.masked_fill(torch.from_numpy(seen["action_mask"]) == 0, -torch.inf).argmax(dim=1).numpy()

    print(f"test: exact match {exact_match(greedy):.3f}")


if __name__ == "__main__":
    main()
