"""Random numbers by index: canvas i has the same ones alone, in a batch, and in any order."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

import numpy as np

from hsal_env.errors import DataError


class IndexedRandom:
    """A block of a counter-based generator (Philox) for every index.

    Args:
        seed: with ``stream``, picks the sequence.
        stream: a second key, so that splits of one seed differ.
        draws: how many numbers belong to an index.
    """

    def __init__(self, seed: int, stream: int, draws: int) -> None:
        self._counters = -(-draws // 4)  # Philox yields four 64-bit words per counter
        self.key = np.random.SeedSequence([seed, stream]).generate_state(2, np.uint64)

    def draws(self, indices: np.ndarray) -> Draws:
        """The numbers of ``indices`` ``[B]``.

        Raises:
            DataError: an index is negative.
        """
        if indices.size and indices.min() < 0:
            raise DataError(f"Expected canvas indices of at least 0; got {indices.min()}.")
        per_canvas = 4 * self._counters

        def block(first: int, count: int) -> np.ndarray:
            bits = np.random.Philox(key=self.key, counter=first * self._counters)
            return bits.random_raw(count * per_canvas).reshape(count, per_canvas)

        if len(indices) > 1 and (np.diff(indices) == 1).all():
            words = block(int(indices[0]), len(indices))
        else:
            words = np.concatenate([np.empty((0, per_canvas), np.uint64), *(block(int(i), 1) for i in indices)])
        return Draws(words >> np.uint64(32))


class Draws:
    """Consumes a block of 32-bit random words column by column."""

    def __init__(self, words: np.ndarray) -> None:
        self._words, self._used = words, 0

    @property
    def lanes(self) -> int:
        """B."""
        return len(self._words)

    def below(self, bound: int | np.ndarray, count: int | None = None) -> np.ndarray:
        """Integers in ``0..bound - 1``, ``[B]`` or ``[B, count]``; the bias is under bound / 2**32."""
        width = 1 if count is None else count
        words = self._words[:, self._used : self._used + width]
        self._used += width
        words = words[:, 0] if count is None else words
        return (words * np.asarray(bound, np.uint64) >> np.uint64(32)).astype(np.int64)

    def distinct_below(self, bound: np.ndarray, most: int, count: int) -> np.ndarray:
        """``[B, count]`` different integers in ``0..bound - 1`` (``bound`` ``[B]``, at most ``most``).

        They are the first ``count`` places of a Fisher-Yates shuffle. Where ``count`` exceeds ``bound`` the last ones repeat.
        """
        lanes = np.arange(self.lanes)
        deck = np.tile(np.arange(most, dtype=np.int64), (self.lanes, 1))
        for place in range(count):
            place_in = np.minimum(place, bound - 1)
            other = place_in + self.below(bound - place_in)
            deck[lanes, place_in], deck[lanes, other] = deck[lanes, other], deck[lanes, place_in]
        # a lane with bound < count has more slots than places; those slots are padding
        return deck[lanes[:, None], np.minimum(np.arange(count), bound[:, None] - 1)]


def source_of(*parts: Callable[..., object]) -> list[str]:
    """The source code of the modules that define ``parts``. What is stored under it is computed again when the code changes."""
    return [inspect.getsource(sys.modules[part.__module__]) for part in parts]
