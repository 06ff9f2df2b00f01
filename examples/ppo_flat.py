"""Learn the flat view with PPO and action masking: one file, in the manner of CleanRL, to read from top to bottom.

    python examples/ppo_flat.py                            # MNIST Multiset
    python examples/ppo_flat.py --source digits --seed 1   # needs no download
    python examples/ppo_flat.py --env-id HSAL-MNISTSingle-v0 --total-timesteps 100000 --save policy.pt

The policy knows nothing of hierarchies: every decision, attention, location or label, is one of H W + C + 1 actions, and
``action_mask`` says which. It has no memory; the saliency map, suppressed where it has been, tells it what is left.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.distributions import Categorical

import hsal_env  # noqa: F401, registers the ids
from hsal_env.errors import HSALError

Envs = gymnasium.vector.VectorEnv[Any, Any, Any]
Observation = dict[str, Tensor]
Policy = Callable[[Observation], Tensor]


def parse() -> argparse.Namespace:
    """The command line; hyper-parameters have CleanRL's names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--env-id", default="HSAL-MNISTMultiset-v0")
    add("--source", help="mnist, digits or auto; default: the id's")
    add("--num-examples", type=int, default=20_000, help="training canvases")
    add("--test-episodes", type=int, default=1_000, help="test canvases, one episode each")
    add("--seed", type=int, default=0)
    add("--save", metavar="FILE", help="write the policy's weights here")
    add("--total-timesteps", type=int, default=300_000)
    add("--learning-rate", type=float, default=2e-3)
    add("--num-envs", type=int, default=64)
    add("--num-steps", type=int, default=64, help="steps of each environment in a roll-out")
    add("--gamma", type=float, default=0.5, help="small: rewards come at once, but for attention's")
    add("--gae-lambda", type=float, default=0.95)
    add("--num-minibatches", type=int, default=8)
    add("--update-epochs", type=int, default=8)
    add("--clip-coef", type=float, default=0.2)
    add("--ent-coef", type=float, default=0.01)
    add("--vf-coef", type=float, default=0.5)
    add("--max-grad-norm", type=float, default=0.5)
    args = parser.parse_args()
    if args.total_timesteps < args.num_envs * args.num_steps:
        parser.error(f"--total-timesteps must be at least one roll-out, {args.num_envs * args.num_steps}.")
    if args.save and not Path(args.save).parent.is_dir():
        parser.error(f"--save: there is no folder {Path(args.save).parent}.")
    return args


class Agent(nn.Module):
    """Actor and critic, two hidden layers each."""

    def __init__(self, envs: Envs, hidden: int = 256) -> None:
        super().__init__()
        space = envs.single_observation_space
        assert isinstance(space, gymnasium.spaces.Dict)
        self.parts = {name: part for name, part in space.items() if name != "action_mask"}
        size = sum(gymnasium.spaces.flatdim(part) for part in self.parts.values())

        def network(outputs: int, scale: float) -> nn.Sequential:
            last = nn.Linear(hidden, outputs)
            last.weight.data.mul_(scale)
            return nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)

        self.actor = network(gymnasium.spaces.flatdim(envs.single_action_space), scale=0.01)  # nearly uniform at first
        self.critic = network(1, scale=1.0)

    def encode(self, observation: Observation) -> Tensor:
        """Maps and glimpse as they are, discrete parts one-hot: ``[N, size]``."""
        return torch.cat(
            [
                nn.functional.one_hot(observation[name], int(part.n)).float()
                if isinstance(part, gymnasium.spaces.Discrete)
                else observation[name]
                for name, part in self.parts.items()
            ],
            dim=1,
        )

    def policy(self, x: Tensor, mask: Tensor) -> Categorical:
        """The distribution over allowed actions; ``mask`` ``[N, actions]`` is 1 where one is allowed."""
        return Categorical(logits=self.actor(x).masked_fill(mask == 0, -torch.inf))

    def value(self, x: Tensor) -> Tensor:
        """State values ``[N]``."""
        return self.critic(x).squeeze(-1)

    def greedy(self, observation: Observation) -> Tensor:
        """The most probable allowed actions ``[N]``."""
        return self.policy(self.encode(observation), observation["action_mask"]).logits.argmax(dim=1)


def random_policy(observation: Observation) -> Tensor:
    """Any allowed action."""
    return observation["action_mask"].float().multinomial(1).squeeze(1)


def stop_at_once(observation: Observation) -> Tensor:
    """Attend to the most salient cell, look where the priority is highest, and say stop: blind, but not clumsy."""
    attends, names = observation["phase"] == 0, observation["action_mask"][:, -1] == 1
    cell = torch.where(attends[:, None], observation["saliency"], observation["priority"]).argmax(dim=1)
    return torch.where(names, observation["action_mask"].shape[1] - 1, cell)


def advantages(
    rewards: Tensor, values: Tensor, done: Tensor, next_value: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """Generalised advantage estimates ``A_t = r_t + gamma V_{t+1} - V_t + gamma lambda A_{t+1}``, ``[T, N]``.

    ``done[t]``: step t ended an episode, so what follows belongs to another one and counts as 0. That holds for truncation
    too: the number of labels is limited by the task, not by us, and nothing lies beyond it.
    """
    out = torch.zeros_like(rewards)
    following = torch.zeros_like(next_value)
    for t in reversed(range(len(rewards))):
        alive = (~done[t]).float()
        following = rewards[t] + gamma * next_value * alive - values[t] + gamma * gae_lambda * following * alive
        out[t], next_value = following, values[t]
    return out


@torch.no_grad()
def play(envs: Envs, policy: Policy) -> tuple[float, float]:
    """Mean return and share of exact matches of one episode in every lane, on as many canvases."""
    observation, _ = envs.reset(options={"index": range(envs.num_envs)})
    returns = exact = torch.zeros(envs.num_envs)
    ended = torch.zeros(envs.num_envs, dtype=torch.bool)
    while not ended.all():
        observation, reward, terminated, truncated, info = envs.step(policy(observation))
        returns = returns + reward  # without autoreset a lane that has ended earns 0
        exact = exact + info.get("exact_match", 0.0)  # 0 but where an episode ends
        ended = terminated | truncated
    return float(returns.mean()), float(exact.mean())


def main() -> None:
    """Learn, then compare with policies that did not."""
    args = parse()
    torch.manual_seed(args.seed)
    task: dict[str, Any] = {"action_mode": "flat", "features": "store", "output": "torch"}
    if args.source:
        task["source"] = args.source
    # SAME_STEP: a step that ends an episode returns the next one's first observation, so every step is a decision
    envs = gymnasium.make_vec(
        args.env_id, args.num_envs, num_examples=args.num_examples, autoreset_mode=AutoresetMode.SAME_STEP, **task
    )
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    observation, info = envs.reset(seed=args.seed)
    print(f"{args.env_id} on {info['source'][0]}, seed {args.seed}")
    start, finished = time.perf_counter(), []
    num_iterations = args.total_timesteps // (args.num_envs * args.num_steps)
    for iteration in range(1, num_iterations + 1):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - (iteration - 1) / num_iterations)

        # roll out
        rows = []
        with torch.no_grad():
            for _ in range(args.num_steps):
                x, mask = agent.encode(observation), observation["action_mask"]
                policy = agent.policy(x, mask)
                action = policy.sample()
                observation, reward, terminated, truncated, info = envs.step(action)
                rows.append((x, mask, action, policy.log_prob(action), reward, terminated | truncated, agent.value(x)))
                if "final_info" in info:
                    final, ended = info["final_info"], info["_final_info"]
                    scores = (final["return_location"] + final["return_label"], final["exact_match"])
                    finished += torch.stack(scores, dim=1)[ended].tolist()
            next_value = agent.value(agent.encode(observation))
        x, mask, action, old_log_prob, reward, done, value = (torch.stack(parts) for parts in zip(*rows, strict=True))
        advantage = advantages(reward, value, done, next_value, args.gamma, args.gae_lambda)
        batch = [part.flatten(0, 1) for part in (x, mask, action, old_log_prob, advantage, advantage + value)]

        # learn
        for _ in range(args.update_epochs):
            for chosen in torch.randperm(len(batch[0])).chunk(args.num_minibatches):
                x, mask, action, old_log_prob, advantage, target = (part[chosen] for part in batch)
                policy = agent.policy(x, mask)
                ratio = (policy.log_prob(action) - old_log_prob).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                pg_loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
                v_loss = 0.5 * (agent.value(x) - target).square().mean()
                loss = pg_loss + args.vf_coef * v_loss - args.ent_coef * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        if iteration % max(1, num_iterations // 15) == 0 or iteration == num_iterations:
            mean_return, exact = torch.tensor(finished or [[torch.nan, torch.nan]]).mean(dim=0).tolist()
            steps = iteration * args.num_envs * args.num_steps
            speed = f"({steps / (time.perf_counter() - start):,.0f} steps/s)"
            print(f"{steps:>9,} steps   return {mean_return:6.2f}   exact match {exact:.3f}   {speed}", flush=True)
            finished = []

    # test: other canvases, made of digits that occur in no training canvas
    envs = gymnasium.make_vec(
        args.env_id,
        args.test_episodes,
        split="test",
        num_examples=args.test_episodes,
        autoreset_mode=AutoresetMode.DISABLED,
        **task,
    )
    print(f"{args.test_episodes:>9,} test episodes")
    policies = {"learned, greedy": agent.greedy, "random": random_policy, "stop at once": stop_at_once}
    for name, choose in policies.items():
        mean_return, exact = play(envs, choose)
        print(f"{name:>15}   return {mean_return:6.2f}   exact match {exact:.3f}")
    if args.save:
        torch.save({"args": vars(args), "model": agent.state_dict()}, args.save)


if __name__ == "__main__":
    try:
        main()
    except (HSALError, gymnasium.error.Error) as error:
        sys.exit(f"error: {error}")
