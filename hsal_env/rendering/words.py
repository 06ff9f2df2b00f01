"""The words in pictures: multisets, glimpse numbers, and the marks and colours of right and wrong labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

ORANGE, GREEN, VERMILLION, BLUE = "#E69F00", "#009E73", "#D55E00", "#56B4E9"  # Okabe and Ito's colours
TICK, CROSS = "\u2713", "\u2717"
LONGEST_MULTISET = 12  # multisets of more labels are written as counts


def runs(numbers: Sequence[int]) -> str:
    """Increasing numbers in a short form: ``[1, 2, 3, 4, 6, 7]`` as ``"1-4,6,7"``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 2 else ",".join(map(str, part)) for part in parts)


def multiset(counts: np.ndarray, name: Callable[[int], str] = str) -> str:
    """Counts ``[C]`` as ``"{2 2 7}"``, or as ``"{2x15 7x1}"`` if that would be too long. ``name`` gives a label's text."""
    if counts.sum() > LONGEST_MULTISET:
        return braces([f"{name(label)}x{count}" for label, count in enumerate(counts) if count])
    return braces([name(label) for label in np.repeat(np.arange(len(counts)), counts).tolist()])


def braces(labels: Sequence[str]) -> str:
    """Texts in braces, with commas where one of them holds a blank."""
    return "{" + (", " if any(" " in text for text in labels) else " ").join(labels) + "}"
