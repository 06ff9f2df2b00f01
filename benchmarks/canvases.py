"""Canvases per second composed in batches, beside a loop that composes one image at a time, in one run on one core.

    python benchmarks/canvases.py --json FILE

The default look: 100x100 px, 1 to 4 digits of 20 to 50 px, 8 crops of clutter. The loop beside is written here in the way
a generator of single images works: a draw at a time from numpy's generator, Pillow to resize a digit, a paste for each. It
draws from the same distribution, not the same canvases, and its pixels are Pillow's. The two take turns.

The issue's yardstick is another: the paper's first author's generator, about 520 canvases/s where it was measured. That
machine is not this one, so the ratio to 520 is printed as what it is.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ratio, taking_turns, write_numbers

AUTHORS_PER_SECOND = 520  # the paper's first author's generator, on another machine


def one_canvas(glyphs: Any, config: Any, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """A canvas and its labels, drawn step by step."""
    from PIL import Image

    canvas = np.zeros((config.canvas_px, config.canvas_px), np.uint8)
    per_side, px = config.canvas_px // config.clutter_px, config.clutter_px
    for cell in rng.choice(per_side**2, config.clutter, replace=False):
        glyph = glyphs.images[rng.integers(len(glyphs.images))]
        top, left = rng.integers(29 - px, size=2)
        row, column = divmod(int(cell), per_side)
        canvas[row * px : (row + 1) * px, column * px : (column + 1) * px] = glyph[top : top + px, left : left + px]
    count = rng.integers(config.min_objects, config.max_objects + 1)
    sizes = rng.integers(config.min_size_px, config.max_size_px + 1, size=count)
    largest = int(sizes.max())
    side, labels = config.canvas_px // largest, []
    for patch, size_px in zip(rng.choice(side**2, count, replace=False), sizes.tolist(), strict=True):
        which = rng.integers(len(glyphs.images))
        digit = np.asarray(Image.fromarray(glyphs.images[which]).resize((size_px, size_px), Image.Resampling.BILINEAR))
        row, column = divmod(int(patch), side)
        top, left = (int(start) * largest + rng.integers(largest - size_px + 1) for start in (row, column))
        window = canvas[top : top + size_px, left : left + size_px]
        window[digit > 0] = digit[digit > 0]
        labels.append(int(glyphs.labels[which]))
    return canvas, labels


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Canvases per second, in batches and one at a time.")
    parser.add_argument("--source", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--canvases", type=int, default=4096, help="composed by each in a turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    from hsal_env.data import Canvases, load_glyphs

    canvases = Canvases(load_glyphs(args.source, "train"))
    rng = np.random.default_rng(0)

    def in_batches(size: int) -> None:
        for start in range(0, args.canvases, size):
            canvases.compose(range(start, min(start + size, args.canvases)))

    def one_at_a_time() -> None:
        for _ in range(args.canvases):
            one_canvas(canvases.glyphs, canvases.config, rng)

    runs: dict[str, Any] = {f"batches of {size}": lambda size=size: in_batches(size) for size in args.batch_size}
    seconds = taking_turns({"one at a time": one_at_a_time, **runs}, args.turns)
    rates = {name: args.canvases / statistics.median(taken) for name, taken in seconds.items()}
    print(f"canvases/s of {args.source}, one core, median of {args.turns} turns")
    print(f"  {'one at a time':<16} {rates['one at a time']:8,.0f}")
    found = {}
    for name in runs:
        found[name] = {
            "per_second": rates[name],
            "ratio": ratio(seconds[name], seconds["one at a time"]),
            "ratio_to_authors_elsewhere": rates[name] / AUTHORS_PER_SECOND,
        }
        print(
            f"  {name:<16} {rates[name]:8,.0f}   {found[name]['ratio']:.1f} times the loop, "
            f"{found[name]['ratio_to_authors_elsewhere']:.0f} times the first author's {AUTHORS_PER_SECOND}/s elsewhere"
        )
    write_numbers(args.json, {"source": args.source, "one_at_a_time_per_second": rates["one at a time"], **found})


if __name__ == "__main__":
    main()
