"""Decisions per second of the native environments under a random policy, beside Gymnasium's CartPole, in one run.

    python benchmarks/env_throughput.py --json FILE

Measured in turns, with 1,024 lanes:

- ``torch_1024``: tensors out, as our learners play: all lanes from reset, until the last has ended, and again;
- ``torch_1024_autoreset``, ``numpy_1024``: tensors and arrays out, lanes that end begin anew in the same step;
- ``single``: the single environment;
- ``cartpole_1024``: Gymnasium's native vector CartPole, which begins anew too.

Ours play HSAL-DigitsMultiset-v0 (no network needed): features in the store, the full native observation without the image. A
decision is one step of one lane whose episode has not ended: attention, location or label. Resets are in the time. The random
actions are drawn beforehand, for CartPole too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

from measuring import write_numbers

ENV_ID = "HSAL-DigitsMultiset-v0"
CONFIG: dict[str, Any] = {"num_examples": 10_000, "features": "store", "include_image": False}
_DRAWN = 64  # batches of random actions, taken in turn


def batched(lanes: int, output: str, autoreset: str) -> Callable[[int], int]:
    """Something that steps the vector environment so many times, and says how many decisions that was."""
    import gymnasium
    import torch

    import hsal_env  # noqa: F401

    env: Any = gymnasium.make_vec(ENV_ID, num_envs=lanes, output=output, autoreset_mode=autoreset, **CONFIG)
    env.action_space.seed(0)
    drawn = [env.action_space.sample() for _ in range(_DRAWN)]
    if output == "torch":
        drawn = [{name: torch.as_tensor(part) for name, part in action.items()} for action in drawn]
    if autoreset != "Disabled":
        return _stepper(env, cycle(drawn))
    actions = cycle(drawn)
    env.reset(seed=0)

    def run(steps: int) -> int:
        decisions = done = 0
        while done < steps:
            env.reset()
            ended = torch.zeros(lanes, dtype=torch.bool)
            while not bool(ended.all()):
                decisions += lanes - int(ended.sum())
                _, _, terminated, truncated, _ = env.step(next(actions))
                ended, done = terminated | truncated, done + 1
        return decisions

    return run


def single() -> Callable[[int], int]:
    """The single environment, reset when an episode ends."""
    import gymnasium

    import hsal_env  # noqa: F401

    env = gymnasium.make(ENV_ID, disable_env_checker=True, **CONFIG)
    env.action_space.seed(0)
    actions = cycle([env.action_space.sample() for _ in range(_DRAWN)])
    env.reset(seed=0)

    def run(steps: int) -> int:
        for _ in range(steps):
            *_, terminated, truncated, _ = env.step(next(actions))
            if terminated or truncated:
                env.reset()
        return steps

    return run


def cartpole(lanes: int) -> Callable[[int], int]:
    """Gymnasium's own vector CartPole."""
    import gymnasium

    env = gymnasium.make_vec("CartPole-v1", num_envs=lanes, vectorization_mode="vector_entry_point")
    env.action_space.seed(0)
    return _stepper(env, cycle([env.action_space.sample() for _ in range(_DRAWN)]))


def _stepper(env: Any, actions: Any) -> Callable[[int], int]:
    env.reset(seed=0)

    def run(steps: int) -> int:
        for _ in range(steps):
            env.step(next(actions))
        return steps * int(env.num_envs)

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Decisions per second of the environments, beside CartPole.")
    parser.add_argument("--lanes", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="approximate length of a turn of each")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: one per core")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # before torch is imported
    import torch

    torch.set_num_threads(args.threads)
    runs = {
        f"torch_{args.lanes}": batched(args.lanes, "torch", "Disabled"),
        f"torch_{args.lanes}_autoreset": batched(args.lanes, "torch", "SameStep"),
        f"numpy_{args.lanes}": batched(args.lanes, "numpy", "SameStep"),
        "single": single(),
        f"cartpole_{args.lanes}": cartpole(args.lanes),
    }
    steps: dict[str, int] = {}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():  # how many steps a turn takes, after a warm-up
        run(20)
        start = time.perf_counter()
        run(20)
        steps[name] = max(1, round(20 * args.seconds / (time.perf_counter() - start)))
    for _ in range(args.turns):
        for name, run in runs.items():
            start = time.perf_counter()
            decisions = run(steps[name])
            rates[name].append(decisions / (time.perf_counter() - start))
    print(f"decisions/s, {args.threads} thread(s), median of {args.turns} turns (least to most)")
    for name, found in rates.items():
        print(f"  {name:<22} {statistics.median(found):>12,.0f}   ({min(found):,.0f} to {max(found):,.0f})")
    write_numbers(args.json, {name: statistics.median(found) for name, found in rates.items()})


if __name__ == "__main__":
    main()
