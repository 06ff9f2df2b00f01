"""Seconds until something happens, in fresh processes, beside those of a bare interpreter and of `import torch`.

    python benchmarks/startup.py --json FILE

Rows: ``import hsal_env``; ``gymnasium.make`` of an id and the first reset; ``--help`` of every command in train, examples and
benchmarks. All take turns, after one round that warms the disk's cache; medians and processor seconds (of the process and
its children) are printed, the latter since a busy machine stretches the former.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measuring import taking_turns, write_numbers

ROOT = Path(__file__).parents[1]
LIMITS = {"import": 0.6, "make": 3.0, "help": 1.5}
"""Seconds that the kinds of start may take."""


def started(command: list[str], folder: Path) -> None:
    """Run ``python command`` to its end, with the packages of this checkout.

    Raises:
        CalledProcessError: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True, capture_output=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Seconds until the package, an environment and each help are there.")
    parser.add_argument("--env-id", default="HSAL-MNISTMultiset-v0")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=tuple(LIMITS), default=list(LIMITS), help="kinds of start")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    make = f"import gymnasium, hsal_env; gymnasium.make({args.env_id!r}).reset(seed=0)"
    rows = {
        "import": {"import hsal_env": ["-c", "import hsal_env"]},
        "make": {"make and reset": ["-c", make]},
        "help": {},
    }
    for folder in ("train", "examples", "benchmarks"):
        for path in sorted((ROOT / folder).glob("*.py")):
            if "__main__" in path.read_text():
                rows["help"][f"{folder}/{path.name} --help"] = [str(path), "--help"]
    kinds = {name: kind for kind in args.only for name in rows[kind]}
    commands = {"python": ["-c", ""], "import torch": ["-c", "import torch"]}
    commands |= {name: rows[kind][name] for name, kind in kinds.items()}
    processor: dict[str, list[float]] = {name: [] for name in commands}

    def timed(name: str, command: list[str]) -> None:
        before = os.times()
        started(command, ROOT)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        processor[name].append(used)

    runs: dict[str, Callable[[], None]] = {name: partial(timed, name, command) for name, command in commands.items()}
    seconds = taking_turns(runs, args.turns)
    numbers = {}
    print(f"seconds in a fresh process, median of {args.turns} turns (processor seconds); limit")
    for name, taken in seconds.items():
        limit = LIMITS[kinds[name]] if name in kinds else None
        wall, used = statistics.median(taken), statistics.median(processor[name][1:])
        numbers[name] = {"seconds": wall, "processor_seconds": used, "limit_seconds": limit}
        over = "" if limit is None else f"  {limit:.1f}{' exceeded' if wall > limit else ''}"
        print(f"  {name:<40} {wall:5.2f} ({used:.2f}){over}")
    write_numbers(args.json, numbers)


if __name__ == "__main__":
    main()
