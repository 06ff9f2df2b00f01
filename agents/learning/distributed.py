"""Data-parallel training: several processes share the batches of one run.

``torchrun --nproc-per-node N`` starts N processes and tells each its ``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE``. Process r
plays and scores lanes r B/N to (r + 1) B/N of every batch of B lanes, or learns features from every N-th image of a batch.
DistributedDataParallel averages the gradients. Process 0
leads: it alone validates, tests, prints and writes. Without torchrun there is one process, which leads, and
torch.distributed is not used.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hsal_env.errors import ConfigError, ProcessError
from hsal_env.storage.files import terminable

_Value = TypeVar("_Value")

# Processes wait while one of them computes features or tests. If one dies, torchrun notices it, so the limit need not be short.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """Which of the run's processes this is.

    Attributes:
        rank: r in 0..N - 1. Process 0 leads.
        count: N, the number of processes.
        local_rank: number of this process on its machine, and of the accelerator that it takes.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> Processes:
        """The process that torchrun's environment variables describe. Without them: the only process.

        Raises:
            ConfigError: ``WORLD_SIZE`` is set, but ``RANK`` or ``LOCAL_RANK`` is not.
        """
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls()
        try:
            return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
        except KeyError as error:
            raise ConfigError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {error} is not set. Start the processes with torchrun, or unset "
                "WORLD_SIZE."
            ) from error

    @property
    def leads(self) -> bool:
        """Whether this process validates, tests, prints and writes."""
        return self.rank == 0

    def lanes(self, batch_size: int) -> slice:
        """This process's lanes of a batch.

        Raises:
            ConfigError: the batch cannot be shared equally.
        """
        if batch_size % self.count:
            raise ConfigError(
                f"Expected batch_size, which the processes share, to be a multiple of their number; got {batch_size}, "
                f"{self.count}."
            )
        share = batch_size // self.count
        return slice(self.rank * share, (self.rank + 1) * share)

    def device(self, name: str) -> str:
        """The device that ``name`` means: ``"auto"`` is resolved, and ``"cuda"`` becomes the process's own accelerator.

        Raises:
            ConfigError: there is no such device.
        """
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda" and self.count > 1:
            name = f"cuda:{self.local_rank}"
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"Expected a device that is there, such as cpu; got {name!r} ({error}).") from error
        return name

    def parallel(self, module: nn.Module) -> nn.Module:
        """``module`` with gradients averaged over the processes.

        ``module`` must return a loss, and anything else without gradient.
        """
        return module if self.count == 1 else DistributedDataParallel(_EveryParameter(module))

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes, elementwise, the same in each."""
        if self.count == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def from_leader(self, function: Callable[[], _Value]) -> _Value:
        """Call ``function`` in the leading process and return its value in every process."""
        if self.count == 1:
            return function()
        values: list[Any] = [function() if self.leads else None]
        dist.broadcast_object_list(values)
        return values[0]

    def of_all(self, value: _Value) -> list[_Value]:
        """The values of all processes, in the order of their ranks, in each."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def one_per_machine_first(self) -> Iterator[None]:
        """On every machine local process 0 runs the block first. The others run it after that, and find its files on disk."""
        if self.local_rank:
            self._barrier()
        with self.tidy():
            yield
        if not self.local_rank:
            self._barrier()

    @contextmanager
    def tidy(self) -> Iterator[None]:
        """A block that removes its temporary files if torchrun ends this process, which it does after another one died.

        Elsewhere SIGTERM ends one of several processes at once: it may be waiting, in C, for one that is gone.
        """
        with nullcontext() if self.count == 1 else terminable():
            yield

    def _barrier(self) -> None:
        if self.count > 1:
            dist.barrier()


ALONE = Processes()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Connect this process to the run's others for the length of a block.

    No module that :meth:`Processes.parallel` wrapped may be referenced after the block.

    Args:
        device: ``"cpu"`` (the processes communicate by gloo), ``"cuda"`` (by nccl) or ``"auto"``.

    Raises:
        ConfigError: see :meth:`Processes.of_environment` and :meth:`Processes.device`.
        ProcessError: another process ended early.
    """
    processes = Processes.of_environment()
    if processes.count == 1:
        yield processes
        return
    try:
        own = processes.device(device)
        on_cuda = torch.device(own).type == "cuda"
        if on_cuda:
            torch.cuda.set_device(own)
        dist.init_process_group("nccl" if on_cuda else "gloo", timeout=_PATIENCE)
        yield processes
        dist.barrier()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # gloo has no error class of its own
            raise
        reason = str(error).split(". ")[0]
        reason = reason.partition("] ")[2] or reason  # without the place in gloo's source
        raise ProcessError(
            f"The processes lost one another ({reason}). torchrun's summary names the one that ended first. "
            "Continue with --resume and the same --output-dir."
        ) from error
    gc.collect()  # a DistributedDataParallel that outlives its process group sometimes aborts the process
    dist.destroy_process_group()


class _EveryParameter(nn.Module):
    """Adds 0 times every parameter to the loss, because DistributedDataParallel waits for a gradient of each parameter.

    Its option ``find_unused_parameters`` would do, too, but warns if no parameter is unused.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> tuple[Tensor, Any]:
        loss, detached = self.module(*inputs)
        for parameter in self.module.parameters():
            loss = loss + 0 * parameter.sum()
        return loss, detached
