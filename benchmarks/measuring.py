"""What the benchmarks share: taking turns, and a file of numbers."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsal_env.storage.files import write_text


def taking_turns(runs: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of each run in each turn, so that a noisy machine is noisy to all; one more turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(ours: list[float], beside: list[float]) -> float:
    """How many times as fast ours is: the median over turns."""
    return statistics.median(b / a for a, b in zip(ours, beside, strict=True))


def write_numbers(path: Path | None, numbers: dict[str, Any]) -> None:
    """Write JSON, if a path is given."""
    if path:
        write_text(path, json.dumps(numbers, indent=2) + "\n")
