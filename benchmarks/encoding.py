"""Images per second of filling a feature store, beside a bare loop of the same model, in one run.

    python benchmarks/encoding.py --json FILE

Filling is what the first run of a training command does: canvases composed, encoded in batches of 64, checked for NaN,
written with a checksum, and read again to verify it. The loop beside does nothing but call the model on images that lie in
memory as float32, over a grid of batch sizes, float32 or bfloat16 (autocast), channels_last or contiguous. All take turns;
the best of the grid is what filling is held against, and also the best at the dtype that features are stored in, which the
store does not change since its numbers would change. "given canvases" leaves out composing. One thread, unless --threads
says otherwise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from measuring import ratio, taking_turns, write_numbers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Images per second of filling a feature store and of the bare model.")
    parser.add_argument("--source", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--images", type=int, default=2048, help="in a turn of each")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # before torch is imported
    import copy

    import numpy as np
    import torch

    from hsal_env.config import EnvConfig
    from hsal_env.data import CanvasBatch
    from hsal_env.perception.examples import Examples, to_images
    from hsal_env.perception.precision import native_bfloat16
    from hsal_env.perception.registry import activation_model

    torch.set_num_threads(args.threads)
    config = EnvConfig(source=args.source, num_examples=args.images, features="store")
    lazy = Examples(EnvConfig(source=args.source, num_examples=args.images))
    composed = lazy.canvases.compose(range(args.images))
    model: Any = activation_model(config.activation)
    contiguous = copy.deepcopy(model.layers).to(memory_format=torch.contiguous_format)
    inputs = to_images(composed.images, model.in_channels)

    class Given:
        """Canvases that have been composed."""

        source, content = lazy.canvases.source, ("given",)

        def compose(self, indices: Any) -> CanvasBatch:
            rows = np.asarray(indices)
            return CanvasBatch(*(part[rows] for part in composed))

    def fill() -> None:
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, HSAL_CACHE=folder):
            Examples(config, progress=False)

    def fill_given() -> None:
        with mock.patch.dict(vars(config), canvases=Given()):
            fill()

    def bare(size: int, dtype: str, layout: str) -> Callable[[], None]:
        network = model if layout == "channels_last" else contiguous

        @torch.no_grad()
        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                for start in range(0, args.images, size):
                    network(inputs[start : start + size])

        return run

    grid = [
        (size, dtype, layout)
        for size in args.batch_sizes
        for dtype in ("float32", "bfloat16")
        for layout in ("channels_last", "contiguous")
    ]
    runs = {f"bare, {dtype}, {layout}, {size}": bare(size, dtype, layout) for size, dtype, layout in grid}
    # a first look at the grid, so that the turns are spent on what may be best
    first = taking_turns(runs, 1)
    stored = "bfloat16" if native_bfloat16() else "float32"
    best = sorted(runs, key=lambda name: first[name])[:3]
    best_stored = sorted((name for name in runs if stored in name), key=lambda name: first[name])[:3]
    shortlist = {name: runs[name] for name in dict.fromkeys([*best, *best_stored])}
    seconds = taking_turns({"store": fill, "store, given canvases": fill_given, **shortlist}, args.turns)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    rivals = {
        "best": min(shortlist, key=medians.__getitem__),
        f"best in {stored}": min((name for name in shortlist if stored in name), key=medians.__getitem__),
    }
    print(
        f"images/s, {args.threads} threads, median of {args.turns} turns; features are stored as computed in {stored}"
    )
    for name, taken in sorted(first.items(), key=lambda pair: pair[1]):
        measured = f"{args.images / medians[name]:8,.0f}" if name in medians else " " * 8
        print(f"  {name:<40}{measured}  first look {args.images / taken[0]:8,.0f}")
    numbers: dict[str, Any] = {"threads": args.threads, "stored_dtype": stored, "rivals": rivals, "ratio": {}}
    numbers["first_look_per_second"] = {name: args.images / taken[0] for name, taken in first.items()}
    numbers["per_second"] = {name: args.images / taken for name, taken in medians.items()}
    for ours in ("store", "store, given canvases"):
        print(f"  {ours:<40}{args.images / medians[ours]:8,.0f}")
        for what, rival in rivals.items():
            found = numbers["ratio"][f"{ours} / {what}"] = ratio(seconds[ours], seconds[rival])
            print(f"    {found:.2f} of the {what} ({rival})")
    write_numbers(args.json, numbers)


if __name__ == "__main__":
    main()
