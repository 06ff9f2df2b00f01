"""Draws that do not depend on how lanes are shared among processes."""

from __future__ import annotations

import torch
from torch import Tensor


class SharedGenerator(torch.Generator):
    """The generator of a process that plays some of a batch's lanes.

    It draws numbers of this process's own. :func:`sample` draws for the whole batch from ``everyone``, the same in every
    process, and keeps this process's.

    Attributes:
        everyone: a generator in the same state in every process.
        lanes: this process's lanes of the batch.
        total: lanes of the batch.
    """

    everyone: torch.Generator
    lanes: slice
    total: int

    @classmethod
    def seeded(
        cls, device: torch.device, everyone: torch.Generator, own_seed: int, lanes: slice, total: int
    ) -> SharedGenerator:
        """One that shares the draws of ``everyone``, and has a seed of its own for other draws."""
        generator = cls(device)
        generator.manual_seed(own_seed)
        generator.everyone, generator.lanes, generator.total = everyone, lanes, total
        return generator


def sample(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """One action per lane: probabilities ``[B, C]`` to int64 ``[B]``.

    The first of C arrivals with rates p is the c-th with probability p_c, so ``argmax(p / q)``, q exponential, is a draw. One
    process draws to the bit what several draw together; unlike ``multinomial``, nothing waits for an accelerator.

    Example:
        >>> sample(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), torch.Generator().manual_seed(0))
        tensor([1, 0])
    """
    lanes, labels = probabilities.shape
    if isinstance(generator, SharedGenerator) and lanes == len(range(generator.total)[generator.lanes]):
        arrivals = probabilities.new_empty(generator.total, labels).exponential_(generator=generator.everyone)
        return (probabilities / arrivals[generator.lanes]).argmax(dim=1)
    return (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(dim=1)
