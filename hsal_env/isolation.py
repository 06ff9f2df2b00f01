"""Blocks of code that neither read nor change what torch keeps for the whole process: its defaults and its random generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_defaults() -> Iterator[None]:
    """A block in which new tensors are float32 on the CPU, whatever ``set_default_dtype`` and ``set_default_device`` say."""
    dtype = torch.get_default_dtype()
    if dtype == torch.float32 and torch.get_default_device().type == "cpu":
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def own_torch() -> Iterator[None]:
    """A block that builds models: in it the defaults are as in :func:`own_defaults`, and parameters can be trained.

    Models draw their first weights from torch's global generator. After the block it is as it was before.
    """
    with own_defaults(), torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        yield
