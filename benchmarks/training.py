"""Images per second that REINFORCE learns from, beside the machine's own rate of matrix products, in one run.

    python benchmarks/training.py --json FILE

The paper's sizes: states of 128 and 512, two glimpses, a map of 7x7 cells, 1 to 4 objects, 128 channels, 256 images in an
update. The arithmetic of an image is that of the network as printed, forward and backward, in every one of its five
meta-steps; updates and products of the controller's shape take turns. Three shares of the time are printed:

- ``arithmetic``: what that arithmetic would take at the machine's rate. Work that is spared counts as done, so it can exceed 1;
- ``products``: what the products that were carried out would take at that rate;
- ``environment`` and ``bookkeeping``: in the environment, and in neither environment, network nor optimiser.

Plays HSAL-DigitsMultiset-v0 (no network needed), features in the store. One thread, unless --threads says otherwise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from measuring import write_numbers

CONFIG: dict[str, Any] = {"source": "digits", "num_examples": 10_000, "features": "store", "protocol": "teacher"}
_PRODUCTS = 40  # of the controller's shape, in a turn


def arithmetic(learner: Any, env: Any) -> float:
    """Floating-point operations of an image, forward and backward: the network as printed, in every meta-step."""
    from torch import nn

    def products(part: nn.Module) -> int:
        layers = (nn.Linear, nn.GRUCell)
        return sum(w.numel() for m in part.modules() if isinstance(m, layers) for w in m.parameters() if w.dim() == 2)

    rules, agent = env.simulation.rules, learner.agent
    controller, label = agent.controller, agent.controller.label
    location = products(controller.location)
    of_meta_step = (
        products(agent.meta_controller)
        + rules.glimpses * (products(controller) - label.weight.numel())
        + (products(controller) - location)
    )
    return 3 * 2.0 * rules.max_meta_steps * of_meta_step


def timed(target: Any, name: str, seconds: dict[str, float], part: str) -> None:
    """Add the time that ``target.name`` takes to ``seconds[part]``."""
    function = getattr(target, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += time.perf_counter() - start

    setattr(target, name, run)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Images per second of training, beside the rate of matrix products.")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--components", type=int, default=5, help="Gaussians: 5 in the paper, 25 in the best preset")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # before torch is imported
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from agents.actor_critic import ActorCritic
    from agents.config import AgentConfig, LearnerConfig
    from agents.evaluation import make_env
    from agents.learning.learner import Learner
    from agents.protocol import World
    from hsal_env.config import EnvConfig

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    env = make_env(EnvConfig(components=args.components, **CONFIG), args.batch_size)
    agent = ActorCritic(World.of(env.simulation.examples), AgentConfig())
    learner = Learner(agent, LearnerConfig(batch_size=args.batch_size), num_updates=1_000)
    order = np.random.default_rng(0)

    def update() -> None:
        learner.update(env, order.choice(env.simulation.config.size, args.batch_size, replace=False))

    hidden = agent.controller.gru.weight_hh
    states = torch.rand(args.batch_size, hidden.shape[1])

    def multiply() -> None:
        for _ in range(_PRODUCTS):
            torch.nn.functional.linear(states, hidden.detach())

    for _ in range(3):
        update()
        multiply()
    with FlopCounterMode(display=False) as counter:
        update()
    carried_out = counter.get_total_flops()
    seconds: dict[str, float] = defaultdict(float)
    for target, name, part in (
        (env, "reset", "environment"),
        (env, "step", "environment"),
        (agent, "act", "network"),
        (agent, "evaluate", "network"),
        (torch.Tensor, "backward", "network"),
        (learner.optimiser, "step", "optimiser"),
    ):
        timed(target, name, seconds, part)
    updates, rates = [], []
    for _ in range(args.turns):
        start = time.perf_counter()
        update()
        updates.append(time.perf_counter() - start)
        start = time.perf_counter()
        multiply()
        rates.append(_PRODUCTS * 2 * args.batch_size * hidden.numel() / (time.perf_counter() - start))
    an_update, rate, total = statistics.median(updates), statistics.median(rates), sum(updates)
    results = {
        "images_per_second": args.batch_size / an_update,
        "gflop_per_second": rate / 1e9,
        "mflop_per_image": arithmetic(learner, env) / 1e6,
        "mflop_per_image_carried_out": carried_out / args.batch_size / 1e6,
        "arithmetic": arithmetic(learner, env) * args.batch_size / rate / an_update,
        "products": carried_out / rate / an_update,
        "environment": seconds["environment"] / total,
        "bookkeeping": 1 - sum(seconds.values()) / total,
    }
    print(f"REINFORCE, {args.batch_size} images in an update, {args.threads} thread(s), median of {args.turns} turns")
    for name, value in results.items():
        print(
            f"  {name.replace('_', ' '):<30} {value:8,.3f}"
            if value < 2
            else f"  {name.replace('_', ' '):<30} {value:8,.0f}"
        )
    write_numbers(args.json, results)


if __name__ == "__main__":
    main()
