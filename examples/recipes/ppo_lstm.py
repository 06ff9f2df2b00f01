"""PPO with an LSTM in one file, in the manner of CleanRL, on one flat Box: what any library sees after flattening.

    python examples/recipes/ppo_lstm.py

It needs only torch. CI runs it.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from task import TASK, exact_match, make_vec
from torch import Tensor, nn
from torch.distributions import Categorical

State = tuple[Tensor, Tensor]


class Agent(nn.Module):
    """An LSTM over the flat observation, whose first numbers are the action mask."""

    def __init__(self, size: int, actions: int, hidden: int = 128) -> None:
        super().__init__()
        self.actions = actions
        self.encoder = nn.Sequential(nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, hidden), nn.ReLU())
        self.lstm = nn.LSTM(hidden, hidden)
        self.actor, self.critic = nn.Linear(hidden, actions), nn.Linear(hidden, 1)
        self.actor.weight.data.mul_(0.01)  # nearly uniform at first

    def initial(self, lanes: int) -> State:
        """The LSTM's state at the start of an episode."""
        return torch.zeros(1, lanes, self.lstm.hidden_size), torch.zeros(1, lanes, self.lstm.hidden_size)

    def forward(self, seen: Tensor, begins: Tensor, state: State) -> tuple[Categorical, Tensor, State]:
        """Policies and values ``[T, N]`` of ``seen`` ``[T, N, size]``. The state is forgotten where an episode begins."""
        encoded, out = self.encoder(seen), []
        for x, fresh in zip(encoded, begins, strict=True):
            kept = (1.0 - fresh.float())[None, :, None]
            step, state = self.lstm(x[None], (state[0] * kept, state[1] * kept))
            out.append(step)
        memory = encoded + torch.cat(out)
        logits = self.actor(memory).masked_fill(seen[..., : self.actions] == 0, -torch.inf)
        return Categorical(logits=logits), self.critic(memory).squeeze(-1), state


def main() -> None:
    """Learn, then test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-timesteps", type=int, default=120_000)
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    # SAME_STEP: the step that ends an episode returns the next one's first observation, so every step is a decision
    envs = make_vec(args.num_envs, AutoresetMode.SAME_STEP)
    space = envs.single_observation_space

    def flat(observation: dict[str, np.ndarray]) -> Tensor:  # as gymnasium's FlattenObservation does, in one batch
        return torch.from_numpy(np.concatenate([observation[name] for name in space], axis=1, dtype=np.float32))

    agent = Agent(gymnasium.spaces.flatdim(space), int(envs.single_action_space.n))
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    seen, begins = flat(envs.reset(seed=args.seed)[0]), torch.ones(args.num_envs, dtype=torch.bool)
    state = agent.initial(args.num_envs)
    updates = args.total_timesteps // (args.num_envs * args.num_steps)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - update / updates)
        rows: list[Any] = []
        before, exact = state, []
        with torch.no_grad():
            for _ in range(args.num_steps):
                policy, value, state = agent(seen[None], begins[None], state)
                action = policy.sample()
                observation, reward, terminated, truncated, info = envs.step(action[0].numpy())
                done = torch.from_numpy(terminated | truncated)
                rows.append((seen, begins, action[0], policy.log_prob(action)[0], value[0], torch.tensor(reward), done))
                seen, begins = flat(observation), done
                if "final_info" in info:
                    exact += info["final_info"]["exact_match"][info["_final_info"]].tolist()
            following = agent(seen[None], begins[None], state)[1][0]
        obs, starts, actions, old, values, rewards, dones = (torch.stack(part) for part in zip(*rows, strict=True))

        # generalised advantage estimates, gamma 0.5 and lambda 0.95; nothing lies beyond the end of an episode
        advantages, advantage = torch.zeros_like(values), torch.zeros(args.num_envs)
        for t in reversed(range(args.num_steps)):
            alive = 1.0 - dones[t].float()
            advantage = rewards[t].float() + 0.5 * following * alive - values[t] + 0.5 * 0.95 * alive * advantage
            advantages[t], following = advantage, values[t]
        targets = advantages + values

        for _ in range(6):
            for lanes in torch.randperm(args.num_envs).chunk(8):  # whole sequences, from the states they began with
                policy, value, _ = agent(obs[:, lanes], starts[:, lanes], (before[0][:, lanes], before[1][:, lanes]))
                ratio = (policy.log_prob(actions[:, lanes]) - old[:, lanes]).exp()
                gain = advantages[:, lanes]
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                policy_loss = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
                value_loss = 0.5 * (value - targets[:, lanes]).square().mean()
                optimizer.zero_grad()
                (policy_loss + 0.5 * value_loss - 0.01 * policy.entropy().mean()).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        if update % 5 == 0 or update == updates - 1:
            steps = (update + 1) * args.num_envs * args.num_steps
            print(f"{steps:>8,} steps   exact match {np.mean(exact or [np.nan]):.3f}", flush=True)

    memory: list[State] = []

    @torch.no_grad()
    def greedy(observation: dict[str, np.ndarray]) -> np.ndarray:
        lanes = len(observation["phase"])
        begins = torch.full((1, lanes), not memory)
        policy, _, after = agent(flat(observation)[None], begins, memory.pop() if memory else agent.initial(lanes))
        memory.append(after)
        return policy.logits[0].argmax(dim=1).numpy()

    print(f"test: exact match {exact_match(greedy):.3f} ({TASK['num_examples']:,} training canvases)")


if __name__ == "__main__":
    main()
