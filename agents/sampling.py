"""Samples that are the same however many processes share the lanes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class SharedGenerator(torch.Generator):
    """The generator of a process that plays some of a batch's lanes.

    It gives this process random numbers of its own. :func:`sample` does not use these: it draws for the whole batch from
    ``everyone`` and keeps the samples of this process's lanes.

    Attributes:
        everyone: a generator that is in the same state in every process.
        lanes: this process's lanes of the batch.
        total: number of lanes in the batch.
    """

    everyone: torch.Generator
    lanes: slice
    total: int

    @classmethod
    def seeded(
        cls, device: torch.device, everyone: torch.Generator, own_seed: int, lanes: slice, total: int
    ) -> SharedGenerator:
        """Make one that shares the samples of ``everyone`` and draws all else from a seed of its own."""
        generator = cls(device)
        generator.manual_seed(own_seed)
        generator.everyone, generator.lanes, generator.total = everyone, lanes, total
        return generator


def sample(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw one action per lane: probabilities ``[B, C]`` to int64 ``[B]``.

    If C events arrive at rates p, the c-th is the first with probability p_c. So ``argmax(p / q)`` is a sample, where the q are
    drawn from the exponential distribution. Several processes together draw what one process draws, to the bit. Unlike
    ``multinomial``, this never waits for an accelerator.

    Example:
        >>> sample(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), torch.Generator().manual_seed(0))
        tensor([1, 0])
    """
    arrivals = _drawn(probabilities, generator, torch.Tensor.exponential_)
    return (probabilities / arrivals).argmax(dim=1)


def sample_normal(mean: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    """Draw ``[B, n]`` independent numbers from Normal distributions of this ``mean`` ``[B, n]``. Without gradient.

    Example:
        >>> sample_normal(torch.tensor([[2.0, 3.0]]), 0.0, torch.Generator().manual_seed(0))
        tensor([[2., 3.]])
    """
    return mean.detach() + std * _drawn(mean, generator, torch.Tensor.normal_)


def _drawn(like: Tensor, generator: torch.Generator | None, draw: Callable[..., Tensor]) -> Tensor:
    """``[B, n]`` random numbers of one kind: this process's lanes of those that one process would draw."""
    lanes, width = like.shape
    if isinstance(generator, SharedGenerator) and lanes == len(range(generator.total)[generator.lanes]):
        return draw(like.new_empty(generator.total, width), generator=generator.everyone)[generator.lanes]
    return draw(torch.empty_like(like), generator=generator)
