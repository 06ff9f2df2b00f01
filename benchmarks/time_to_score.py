"""Seconds from the start of a fresh process, without any feature computed before, to a score on held-out canvases.

    python benchmarks/time_to_score.py --json FILE --plot FILE.png

Ours is ``python train/ppo_or_reinforce.py`` with its defaults. Its checkpoints are copied as they appear, and each is tested
afterwards on canvases whose digits no training canvas holds. Beside it, one after the other: Stable-Baselines3's RecurrentPPO
with our policy, and MaskablePPO, by ``train/sb3_agents.py``, whose own validation is taken. The clock is that of the wall and
begins with the process, so it counts imports, features and (for them) validations. MNIST is read from where it is.

FILE has for every score asked for the seconds by system (null: not reached), the curves, and how long the machine takes for
the products of matrices.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import write_numbers
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
CHECKPOINT_MINUTES = 0.05
POLL_SECONDS = 0.1
COMMANDS = {
    "hsal": ["train/ppo_or_reinforce.py", "--checkpoint-minutes", str(CHECKPOINT_MINUTES)],
    "sb3-hsal": [
        "train/sb3_agents.py",
        "hsal",
        "--timesteps",
        "400000",
        "--val-every",
        "20000",
        "--val-episodes",
        "2000",
    ],
    "sb3-maskable-ppo": ["train/sb3_agents.py", "maskable-ppo", "--val-every", "25000", "--val-episodes", "2000"],
}
"""What is run, by system."""

Curve = list[tuple[float, float]]
"""(seconds, 0-1), in the order of time."""


def reached(curve: Curve, score: float) -> float | None:
    """The seconds after which a curve first has ``score``; None: never."""
    return next((seconds for seconds, found in curve if found >= score), None)


def curve_of(name: str, flags: Sequence[str], episodes: int, seed: int, folder: Path) -> tuple[Curve, float]:
    """The curve of a system that is run in a fresh process, and the seconds until that process ends.

    Raises:
        RuntimeError: the command fails.
    """
    output = folder / name
    command = [sys.executable, str(ROOT / COMMANDS[name][0]), *COMMANDS[name][1:], *flags]
    command += ["--seed", str(seed), "--output-dir", str(output)]
    environment = {**os.environ, "HSAL_CACHE": str(folder / f"{name}-cache"), "PYTHONPATH": str(ROOT)}
    collect = snapshots if name == "hsal" else validations
    met: dict[float, Any] = {}
    with (folder / f"{name}.log").open("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            for found in collect(output, process.poll):
                met[time.perf_counter() - started] = found
            total = time.perf_counter() - started
        finally:
            process.kill()
        if process.wait():
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{log.read()[-2000:]}")
    if name != "hsal":
        return [*met.items()], total
    return [(seconds, tested(path, episodes)) for seconds, path in tqdm([*met.items()], desc="tests")], total


def snapshots(output: Path, ended: Callable[[], int | None]) -> Iterator[Path]:
    """Copies of the checkpoints of a run, each as soon as it is there."""
    found, last = output / "checkpoint.pt", 0
    while True:
        over = ended() is not None
        if found.exists() and (at := found.stat().st_mtime_ns) != last:
            last = at
            copy = output / f"at-{at}.pt"
            os.link(found, copy)  # a checkpoint is replaced as a whole, so this one stays as it is
            yield copy
        if over:
            return
        time.sleep(POLL_SECONDS)


def validations(output: Path, ended: Callable[[], int | None]) -> Iterator[float]:
    """The validation scores of a run of Stable-Baselines3, each as soon as it is there."""
    found, met = output / "progress.csv", 0
    while True:
        over = ended() is not None
        if found.exists():
            with found.open(newline="") as file:
                rows = [*csv.DictReader(file)]
            for row in rows[met:]:
                yield float(row["val/exact_match"])
            met = len(rows)
        if over:
            return
        time.sleep(POLL_SECONDS)


def tested(path: Path, episodes: int) -> float:
    """The 0-1 of the last weights in a checkpoint, on test canvases."""
    import agents
    from agents import checkpoint
    from agents.evaluation import evaluation_config, score_agent

    loaded = agents.load(str(path))
    loaded.agent.load_state_dict(checkpoint.read(path)["last"])
    scores = score_agent(loaded.agent, evaluation_config(loaded.env, "test", episodes), progress=False, locate=False)
    return float(scores["exact_match"])


def draw(curves: dict[str, Curve], scores: Sequence[float], path: Path) -> None:
    """0-1 against seconds, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), marker=".", label=name)
    for score in scores:
        axes.axhline(score, color="0.8", zorder=0)
    axes.set(xlabel="seconds from the start of the process", ylabel="0-1", ylim=(0, 1), xlim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def matrix_gflops() -> dict[str, float]:
    """The machine's rate of products of 1,024 x 1,024 matrices, in GFLOP/s, by dtype."""
    import torch

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix, times = torch.ones(1024, 1024, dtype=dtype), []
        for _ in range(10):
            started = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - started)
        found[str(dtype).removeprefix("torch.")] = 2 * 1024**3 / min(times) / 1e9
    return found


def main() -> None:
    """Run the systems one after the other, and write what they reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=COMMANDS, default=[*COMMANDS], help="which to run")
    parser.add_argument(
        "--scores", nargs="+", type=float, default=[0.9, 0.935, 0.96, 0.98], help="scores that are waited for"
    )
    parser.add_argument("--episodes", type=int, default=10_000, help="test canvases")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--flags", default="", help="more flags of every training: --flags='--source digits'")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--plot", type=Path, help="PNG file for the curves")
    args = parser.parse_args()

    curves: dict[str, Curve] = {}
    total: dict[str, float] = {}
    folder = Path(tempfile.mkdtemp(prefix="time-to-score-"))
    try:
        for name in args.systems:
            curves[name], total[name] = curve_of(name, shlex.split(args.flags), args.episodes, args.seed, folder)
            for seconds, score in curves[name]:
                print(f"{name}: {seconds:6.1f} s  {score:.4f}")
    finally:
        shutil.rmtree(folder)
    numbers: dict[str, Any] = {
        f"seconds_to_{score:g}": {name: reached(curve, score) for name, curve in curves.items()}
        for score in args.scores
    }
    numbers |= {"seconds_of_the_command": total, "curves": curves, "matrix_gflops": matrix_gflops()}
    for score in args.scores:
        print(f"seconds to {score:g}: {numbers[f'seconds_to_{score:g}']}")
    write_numbers(args.json, numbers)
    if args.plot:
        draw(curves, args.scores, args.plot)


if __name__ == "__main__":
    main()
