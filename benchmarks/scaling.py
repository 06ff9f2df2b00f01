"""What time and memory cost as lanes, map, objects and canvases grow: a table and a plot.

    python benchmarks/scaling.py --quick
    python benchmarks/scaling.py --json FILE --plot benchmarks/scaling.png
    python benchmarks/scaling.py --rows canvases --canvases 1000000 --folder DIR            # 13 GB on disk, and half an hour
    python benchmarks/scaling.py --rows canvases --canvases 1000000 --folder DIR --pooled   # 13 GB, a few minutes: no model

Every point runs in a process of its own, whose peak memory is therefore its own. What stands beside a point is the smaller one
before it: ``growth`` is the exponent of cost between two sizes, 1 where it is proportional, below 1 where it grows more
slowly. One thread, but in the row of threads. Rows:

- ``lanes``: seconds of a step of the native vector environment (torch output, uniformly random policy, lanes that ended begin
  anew), and of a training update (REINFORCE, the paper's sizes), each for all lanes together;
- ``map``: the same step with 64 lanes, for maps of 7x7, 14x14 and 28x28 cells by an activation model that only averages squares;
- ``objects``: the same step with 64 lanes, for canvases of exactly 1 to 10 objects of 20 px, and 20 of 12 px;
- ``canvases``: seconds of filling the feature store and of opening it in another process, and processor seconds of both, without
  waiting for a disk or for other processes; megabytes on disk; microseconds of loading 256 random examples; peak memory of either
  process. With ``--pooled`` a model that costs nothing encodes them;
- ``threads``: the step and the update of 1,024 lanes, by so many threads;
- ``processes``: what ``torchrun`` makes of so many processes: seconds for 10,000 more images of an agent that trains, and for
  1,000 more of a feature network. The start and the features of the agent's images, which are stored before, do not count.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import write_numbers

ROOT = Path(__file__).parents[1]
ROWS = ("lanes", "map", "objects", "canvases", "pooled canvases", "threads", "processes")
CHOSEN = tuple(row for row in ROWS if "pooled" not in row)
"""What ``--rows`` takes; ``--pooled`` replaces canvases."""
EXAMPLES = 2_000
"""Canvases in the store, but in the row that grows it."""
_BYTES_PER_CANVAS, _BATCH = 12_600, 256


# --- one point, in a process of its own -------------------------------------------------------------------------------


def peak_megabytes() -> float:
    """Peak resident memory of this process."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def step_seconds(env: Any, lanes: int, least_seconds: float) -> float:
    """Median seconds of a step of all lanes under random actions."""
    import torch

    env.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    components, cells = env.simulation.rules.components, math.prod(env.simulation.examples.map_size)
    labels = env.simulation.examples.num_classes + 1
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < 12 or time.perf_counter() - begun < least_seconds:
        action = {
            "attention": torch.rand(lanes, 4 * components, generator=generator) * 2 - 1,
            "location": torch.randint(cells, (lanes,), generator=generator),
            "label": torch.randint(labels, (lanes,), generator=generator),
        }
        start = time.perf_counter()
        env.step(action)
        taken.append(time.perf_counter() - start)
    return statistics.mean(taken[4:])  # a mean: the steps of an episode differ, and those at its end draw anew


def vector_env(lanes: int, **config: Any) -> Any:
    """The environment whose steps are measured: features stored, so that a new episode composes nothing."""
    from hsal_env.vector_env import HSALVectorEnv

    plain = {"features": "store", "include_image": False, "num_examples": EXAMPLES, "source": "digits"}
    return HSALVectorEnv(lanes, output="torch", **{**plain, **config})


def of_lanes(lanes: int, seconds: float) -> dict[str, float]:
    """A point of ``lanes``."""
    import numpy as np

    from agents.actor_critic import ActorCritic
    from agents.config import AgentConfig, LearnerConfig
    from agents.evaluation import make_env
    from agents.learning.learner import Learner
    from agents.protocol import World
    from hsal_env.config import EnvConfig

    numbers = {"step_seconds": step_seconds(vector_env(lanes), lanes, seconds)}
    numbers["microseconds_per_decision"] = numbers["step_seconds"] / lanes * 1e6
    numbers["env_peak_megabytes"] = peak_megabytes()
    training = EnvConfig(
        source="digits", num_examples=EXAMPLES, features="store", protocol="teacher", include_image=False
    )
    env = make_env(training, lanes)
    agent = ActorCritic(World.of(env.simulation.examples), AgentConfig())
    learner = Learner(agent, LearnerConfig(batch_size=lanes), num_updates=1_000)
    indices = np.arange(lanes) % len(env.simulation.examples)
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < 3 or (len(taken) < 1_000 and time.perf_counter() - begun < seconds):
        start = time.perf_counter()
        learner.update(env, indices)
        taken.append(time.perf_counter() - start)
    return {**numbers, "update_seconds": statistics.median(taken[1:]), "peak_megabytes": peak_megabytes()}


def pooled(cells: int) -> Any:
    """An activation model that costs nothing: the mean brightness of ``cells`` by ``cells`` squares, in 128 channels."""
    from torch import Tensor, linspace, nn

    class Pooled(nn.Module):
        in_channels, channels = 1, 128

        def __init__(self) -> None:
            super().__init__()
            self.cells = cells  # an attribute: a store is found by them

        def forward(self, images: Tensor) -> Tensor:
            """``[B, 1, h_px, w_px]`` to ``[B, 128, cells, cells]``."""
            means = nn.functional.adaptive_avg_pool2d(images, self.cells)
            return means * linspace(0, 1, self.channels)[:, None, None]

    return Pooled()


def of_map(cells: int, seconds: float) -> dict[str, float]:
    """A point of ``map``: a map of ``cells`` by ``cells``."""
    lanes = 64
    env = vector_env(lanes, activation=pooled(cells), num_examples=min(EXAMPLES, 500))
    return per_decision(env, lanes, seconds)


def of_objects(objects: int, seconds: float) -> dict[str, float]:
    """A point of ``objects``."""
    lanes = 64
    size = 20 if objects <= 10 else 12  # px, so that there is room for them
    env = vector_env(lanes, min_objects=objects, max_objects=objects, min_size_px=size, max_size_px=size)
    return per_decision(env, lanes, seconds)


def per_decision(env: Any, lanes: int, seconds: float) -> dict[str, float]:
    """Time and memory of an environment alone."""
    step = step_seconds(env, lanes, seconds)
    return {"step_seconds": step, "microseconds_per_decision": step / lanes * 1e6, "peak_megabytes": peak_megabytes()}


def of_pooled_canvases(count: int, seconds: float) -> dict[str, float]:
    """A point of ``canvases`` whose activation model costs nothing, so that what is measured is the store."""
    return of_canvases(count, seconds, activation=pooled(7))


def of_canvases(count: int, seconds: float, **config: Any) -> dict[str, float]:
    """A point of ``canvases``: fills the store, or, where it is there, opens and reads it and draws an order."""
    import numpy as np

    import hsal_env.vector_env  # noqa: F401 - imports are not counted
    from hsal_env.data.glyphs import cache_folder, load_glyphs

    load_glyphs("digits", "train")
    fresh = not (cache_folder() / "features").exists()
    start, used = time.perf_counter(), time.process_time()
    env = vector_env(64, num_examples=count, **config)
    env.simulation.examples.wait_until_stored()
    opened, used = time.perf_counter() - start, time.process_time() - used
    env.reset(seed=0)
    order = np.random.default_rng(0).permutation(count)
    reads: list[float] = []
    begun = time.perf_counter()
    while len(reads) < 10 or time.perf_counter() - begun < seconds:
        chosen = np.sort(order[len(reads) * 256 % count :][:256])
        start = time.perf_counter()
        env.simulation.examples.load(chosen)
        reads.append(time.perf_counter() - start)
    held = sum(path.stat().st_size for path in cache_folder().rglob("*") if path.is_file())
    return {
        "fill_seconds" if fresh else "open_seconds": opened,
        "fill_processor_seconds" if fresh else "open_processor_seconds": used,
        "read_256_microseconds": statistics.median(reads) * 1e6,
        "disk_megabytes": held / 1e6,
        "fill_peak_megabytes" if fresh else "peak_megabytes": peak_megabytes(),
    }


def of_threads(threads: int, seconds: float) -> dict[str, float]:
    """A point of ``threads``."""
    import torch

    torch.set_num_threads(threads)
    return {name: cost for name, cost in of_lanes(1_024, seconds).items() if "seconds" in name}


def of_processes(processes: int, seconds: float) -> dict[str, float]:
    """A point of ``processes``: what a longer run of each command takes more than a short one."""
    images = _BATCH * (EXAMPLES // _BATCH)  # what is left of a pass is not played
    agent = (
        f"train/ppo_or_reinforce.py --source digits --num-examples {images} --batch-size {_BATCH} --val-episodes 8 "
        "--test-episodes 8 --passes"
    )
    features = (
        "train/pretrain_perception.py --mnist-share 0 --init scratch --passes 1 --val-canvases 8 --test-canvases 8"
    )
    more = max(1, round(seconds))
    passes = seconds_of_torchrun(processes, f"{agent} {1 + more}") - seconds_of_torchrun(processes, f"{agent} 1")
    batches = [seconds_of_torchrun(processes, f"{features} --num-canvases {1_280 * long}") for long in (1, 1 + more)]
    return {
        "seconds_of_10000_images": passes / (more * images) * 10_000,
        "seconds_of_1000_canvases": (batches[1] - batches[0]) / (more * 1_280) * 1_000,
    }


def seconds_of_torchrun(processes: int, command: str) -> float:
    """Seconds of one of our commands by so many processes.

    Raises:
        SystemExit: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = f"--output {folder}/model.pt" if "pretrain" in command else f"--output-dir {folder}/run"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start = time.perf_counter()
        done = subprocess.run(
            [*launch, f"--nproc-per-node={processes}", *shlex.split(f"{command} {output}")],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        taken = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"error: {command} failed.\n{done.stderr}")
    return taken


POINTS = {
    "lanes": of_lanes,
    "map": of_map,
    "objects": of_objects,
    "canvases": of_canvases,
    "pooled canvases": of_pooled_canvases,
    "threads": of_threads,
    "processes": of_processes,
}


# --- all points -------------------------------------------------------------------------------------------------------


def in_a_process(row: str, size: int, seconds: float, cache: Path) -> dict[str, float]:
    """A point, measured by this file in another process.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HSAL_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--point", row, str(size), "--seconds", str(seconds)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: the point {row} {size} failed.\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(row: str, size: int, seconds: float, folder: Path) -> dict[str, float]:
    """A point of any row; of ``canvases`` in two processes, one that writes and one that reads, and nothing is left on disk.

    Raises:
        SystemExit: it failed, or the disk is too small.
    """
    if "canvases" not in row:
        in_a_process(row, size, 0.0, folder)  # fills the store, so that memory and time are those of later runs
        return in_a_process(row, size, seconds, folder)
    needed, free = 1.1 * size * _BYTES_PER_CANVAS, shutil.disk_usage(folder).free
    if needed > free:
        sys.exit(f"error: {size:,} canvases need {needed / 1e9:.1f} GB; {folder} has {free / 1e9:.1f}. Give --folder.")
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        filled = in_a_process(row, size, seconds, Path(cache))
        return filled | in_a_process(row, size, seconds, Path(cache))


def growth(sizes: list[int], costs: list[float]) -> list[float]:
    """Exponents ``log(cost ratio) / log(size ratio)`` between neighbours: at most 1 if cost grows no faster than size.

    NaN beside a cost that is not positive: a difference of two times that are too short for it.
    """
    pairs = zip(zip(sizes, costs, strict=True), zip(sizes[1:], costs[1:], strict=True), strict=False)
    return [
        math.log(after / before) / math.log(larger / size) if min(before, after) > 0 else math.nan
        for (size, before), (larger, after) in pairs
    ]


def table(row: str, points: dict[int, dict[str, float]]) -> str:
    """Markdown: a line per size, and one of the growth between the last two."""
    names = list(next(iter(points.values())))
    lines = [
        f"| {row} | " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for size, costs in points.items():
        lines.append(f"| {size:,} | " + " | ".join(f"{costs[name]:.4g}" for name in names) + " |")
    if len(points) > 1:
        last = [growth(work(row, list(points)), [costs[name] for costs in points.values()])[-1] for name in names]
        lines.append("| *last growth* | " + " | ".join(f"{exponent:.2f}" for exponent in last) + " |")
    return "\n".join(lines)


def work(row: str, sizes: list[int]) -> list[int]:
    """What grows: cells, not sides, of a map."""
    return [size**2 for size in sizes] if row == "map" else sizes


PLOTTED = {
    "lanes": ("step_seconds", "update_seconds", "peak_megabytes"),
    "map": ("step_seconds", "peak_megabytes"),
    "objects": ("step_seconds", "peak_megabytes"),
    "canvases": ("fill_seconds", "open_seconds", "read_256_microseconds", "peak_megabytes"),
    "pooled canvases": ("fill_seconds", "open_seconds", "read_256_microseconds", "peak_megabytes"),
}
_AXES = {
    "lanes": "lanes",
    "map": "cells of the map",
    "objects": "objects in an image",
    "canvases": "canvases in the store",
    "pooled canvases": "canvases in the store, without model",
}


def draw(found: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """A panel per row: each cost relative to its first point, log-log, with the line of proportional cost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito's, told apart by the colour-blind
    figure, axes = pyplot.subplots(1, len(found), figsize=(4.2 * len(found), 3.8), squeeze=False, layout="constrained")
    for axis, (row, points) in zip(axes[0], found.items(), strict=True):
        sizes = work(row, list(points))
        linear = [size / sizes[0] for size in sizes]
        axis.plot(sizes, linear, "--", color="black", linewidth=1, label="proportional")
        for name, colour, marker in zip(PLOTTED[row], colours, "osD^", strict=False):
            costs = [costs[name] for costs in points.values()]
            label = name.replace("_", " ").replace(" seconds", ", time").replace(" microseconds", ", time")
            label = label.replace("peak megabytes", "peak memory")
            axis.plot(sizes, [cost / costs[0] for cost in costs], marker=marker, color=colour, label=label)
        axis.set(xscale="log", yscale="log", xlabel=_AXES[row])
        if max(linear) <= 20:
            axis.set_xticks(sizes, [str(size) for size in sizes], minor=False)
            axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("cost / cost of the smallest")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        description="Time and memory as lanes, map, objects, canvases, threads and processes grow."
    )
    add = parser.add_argument
    add("--rows", nargs="+", choices=CHOSEN, default=list(CHOSEN))
    add("--lanes", type=int, nargs="+", default=[1, 10, 100, 1_000, 10_000])
    add("--map", type=int, nargs="+", default=[7, 14, 28], help="side of the map in cells")
    add("--objects", type=int, nargs="+", default=[1, 2, 4, 7, 10, 20])
    add("--threads", type=int, nargs="+", default=[1, 2])
    add("--processes", type=int, nargs="+", default=[1, 2])
    add("--canvases", type=int, nargs="+", default=[10_000, 100_000], help="a million takes 13 GB and half an hour")
    add("--pooled", action="store_true", help="encode canvases by a model that costs nothing; a row of its own")
    add("--seconds", type=float, default=5.0, help="of measuring, at least, at each point")
    add("--quick", action="store_true", help="two small points in each row")
    add("--folder", type=Path, help="where stores are written for a while; default: the system's temporary folder")
    add("--plot", type=Path, help="where the picture goes")
    add("--json", type=Path, help="where the numbers go; numbers there of other rows and sizes are kept")
    add("--point", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(POINTS[args.point[0]](int(args.point[1]), args.seconds)))
        return
    canvases = "pooled canvases" if args.pooled else "canvases"
    sizes: dict[str, list[int]] = {row: sorted(getattr(args, row)) for row in args.rows}
    if args.quick:
        args.seconds = 0.2
        few = {
            "lanes": [1, 32],
            "map": [7, 14],
            "objects": [1, 4],
            "canvases": [500, 1_000],
            "threads": [1, 2],
            "processes": [1, 2],
        }
        sizes = {row: few[row] for row in args.rows}
    sizes = {canvases if row == "canvases" else row: chosen for row, chosen in sizes.items()}
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    earlier: dict[str, Any] = {}
    if args.json and args.json.exists():
        earlier = json.loads(args.json.read_text())
    found = {row: {int(size): point for size, point in earlier.get(row, {}).items()} for row in ROWS}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for row, chosen in sizes.items():
            for size in chosen:
                found[row][size] = measured(row, size, args.seconds, Path(folder))
                found[row] = dict(sorted(found[row].items()))
                print(f"{row} {size:,}: {json.dumps(found[row][size])}", file=sys.stderr, flush=True)
                write_numbers(args.json, {name: points for name, points in found.items() if points})
    for row in sizes:
        print(table(row, found[row]) + "\n")
    drawn = {row: points for row, points in found.items() if points and row in PLOTTED}
    if args.plot and drawn:
        draw(drawn, args.plot)


if __name__ == "__main__":
    main()
