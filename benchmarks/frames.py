"""Frames per second of ``render()``, beside the figure of the same moment, in one run on one core.

    python benchmarks/frames.py --json FILE

The environment plays random actions. At every decision ``render`` makes a frame of 400x400 px, which is what films show, and
``draw_trace`` draws the figure of the episode so far. The two take turns, and both begin with the environment's record. Seconds
of the clock count in the ratio; frames are also told per second of processor time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from measuring import ratio, taking_turns, write_numbers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Frames per second of render(), beside figures.")
    parser.add_argument("--env-id", default="HSAL-MNISTMultiset-v0")
    parser.add_argument("--frames", type=int, default=100, help="made by each in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    import gymnasium
    import torch

    import hsal_env
    from hsal_env.rendering import draw_trace

    torch.set_num_threads(1)
    env: Any = gymnasium.make(f"{hsal_env.__name__}:{args.env_id}", render_mode="rgb_array").unwrapped
    env.action_space.seed(0)
    env.reset(seed=0)
    processor: list[float] = []

    def play(draw: Any) -> None:
        spent = 0.0
        for _ in range(args.frames):
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            start = time.process_time()
            draw()
            spent += time.process_time() - start
            if terminated or truncated:
                env.reset()
        processor.append(spent)

    columns = env.simulation.rules.max_meta_steps
    seconds = taking_turns(
        {"frames": lambda: play(env.render), "figures": lambda: play(lambda: draw_trace(env.trace(), columns=columns))},
        args.turns,
    )
    found = {}
    for place, name in enumerate(seconds):
        found[name] = {
            "per_second_with_steps": args.frames / statistics.median(seconds[name]),
            "per_second_of_processor": args.frames / statistics.median(processor[2 + place :: 2]),
        }
        print(
            f"{name:<8} " + ", ".join(f"{value:,.1f} {what.replace('_', ' ')}" for what, value in found[name].items())
        )
    times = ratio(seconds["frames"], seconds["figures"])
    print(f"frames, with their steps, are {times:.1f} times as fast")
    write_numbers(args.json, {"env_id": args.env_id, "ratio": times, **found})


if __name__ == "__main__":
    main()
