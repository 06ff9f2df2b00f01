"""Frames per second that SB3's PPO collects through HSALVecEnv and through DummyVecEnv, side by side in one run.

    python benchmarks/sb3_throughput.py --num-envs 64 --json FILE

Both play the flat view of HSAL-DigitsMultiset-v0 (no network needed), features in the store; the two take turns, so that a
noisy machine is noisy to both. A frame is one step of one environment, collected with PPO's policy; no updates are counted.
Measured with a policy that has learned nothing, whose forbidden actions put the lanes out of step (the batched environment's
worst case), and with one that has learned for a minute, as in all but the beginning of a run.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import ratio, taking_turns, write_numbers

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

CONFIG: dict[str, Any] = {"source": "digits", "num_examples": 2_000, "features": "store", "action_mode": "flat"}


def collector(env: VecEnv, steps: int, weights: Any) -> Any:
    """Something that collects ``steps`` steps of every environment with the policy ``weights``."""
    from stable_baselines3 import PPO

    model = PPO("MultiInputPolicy", env, n_steps=steps, batch_size=steps * env.num_envs, seed=0)
    model.policy.load_state_dict(weights)
    _, callback = model._setup_learn(1)
    callback.on_training_start({}, {})
    return partial(model.collect_rollouts, env, callback, model.rollout_buffer, steps)


def side_by_side(envs: dict[str, VecEnv], steps: int, turns: int, weights: Any) -> dict[str, float]:
    """Median frames/s of each, and the median ratio of a turn's two times."""
    collect = {name: collector(env, steps, weights) for name, env in envs.items()}
    seconds = taking_turns(collect, turns)
    rates = {name: env.num_envs * steps / statistics.median(seconds[name]) for name, env in envs.items()}
    return {**rates, "ratio": ratio(seconds["HSALVecEnv"], seconds["DummyVecEnv"])}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="SB3's PPO through HSALVecEnv and through DummyVecEnv.")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="steps of every environment in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--learn", type=int, default=100_000, help="steps of learning before the second measurement")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    from agents.sb3 import HSALVecEnv
    from hsal_env.env import HSALEnv

    envs = {
        "HSALVecEnv": HSALVecEnv("HSAL-DigitsMultiset-v0", args.num_envs, **CONFIG),
        "DummyVecEnv": DummyVecEnv([partial(HSALEnv, task="multiset", **CONFIG)] * args.num_envs),
    }
    learner = PPO("MultiInputPolicy", envs["HSALVecEnv"], n_steps=64, batch_size=512, n_epochs=4, gamma=0.9, seed=0)
    results = {"untrained": side_by_side(envs, args.steps, args.turns, learner.policy.state_dict())}
    learner.learn(args.learn)
    results["trained"] = side_by_side(envs, args.steps, args.turns, learner.policy.state_dict())
    print(f"{args.num_envs} environments, {torch.get_num_threads()} threads, median of {args.turns} turns, frames/s")
    for name, found in results.items():
        print(f"  {name:<10}" + "".join(f"{key:>12} {value:8,.{int(key == 'ratio')}f}" for key, value in found.items()))
    write_numbers(args.json, {"num_envs": args.num_envs, **results})


if __name__ == "__main__":
    main()
