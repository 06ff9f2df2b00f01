"""Data-parallel training: what the processes of one run, started by torchrun, do together.

``torchrun --nproc-per-node N`` starts N processes and tells each its ``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE``. Process r
plays and scores lanes r B/N to (r + 1) B/N of every batch B, DistributedDataParallel averages the gradients, and process 0,
the leader, alone validates, tests, speaks and writes. Without torchrun a process is the leader of itself, and nothing of
torch.distributed is touched.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hsal_env.errors import ConfigError, ProcessError

_Value = TypeVar("_Value")

# The others wait while one computes features or tests. A dead process is torchrun's to notice, not the clock's.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """Which of the run's processes this is.

    Attributes:
        rank: r in 0..N - 1; 0 leads.
        count: N.
        local_rank: its number on this machine; the accelerator it takes.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> Processes:
        """What torchrun says, or a process on its own.

        Raises:
            ConfigError: ``WORLD_SIZE`` is set, but not the rest.
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
        """Whether this one validates, tests, speaks and writes."""
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
        """``name``, with ``"auto"`` resolved; of several accelerators, the process's own.

        Raises:
            ConfigError: it is not there.
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

        ``module`` returns a loss and whatever is detached.
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
        """The value of ``function``, which the leader calls and every process receives."""
        if self.count == 1:
            return function()
        values: list[Any] = [function() if self.leads else None]
        dist.broadcast_object_list(values)
        return values[0]

    @contextmanager
    def one_per_machine_first(self) -> Iterator[None]:
        """Local process 0 runs the block before the others on its machine, who find what it left on disk."""
        if self.local_rank:
            self._barrier()
        with self.tidy():
            yield
        if not self.local_rank:
            self._barrier()

    @contextmanager
    def tidy(self) -> Iterator[None]:
        """Remove temporary files when ended: torchrun ends the rest by SIGTERM when one of them has died."""
        if self.count == 1:
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _barrier(self) -> None:
        if self.count > 1:
            dist.barrier()


ALONE = Processes()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the run's other processes for a block. Wrapped modules must be out of reach when it ends.

    Args:
        device: ``"cpu"`` (they talk through gloo), ``"cuda"`` (nccl) or ``"auto"``.

    Raises:
        ConfigError: see :meth:`Processes.of_environment` and :meth:`Processes.device`.
        ProcessError: another process ended before its time.
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
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # gloo raises no kind of its own
            raise
        reason = str(error).split(". ")[0]
        reason = reason.partition("] ")[2] or reason  # without the line of its source
        raise ProcessError(
            f"The processes lost one another ({reason}). torchrun's summary names the one that ended first. "
            "Continue with --resume and the same --output-dir."
        ) from error
    gc.collect()  # a DistributedDataParallel that outlives its group aborts the process now and then
    dist.destroy_process_group()


class _EveryParameter(nn.Module):
    """Adds to the loss nothing, of every parameter: DistributedDataParallel waits for the gradient of each.

    ``find_unused_parameters`` does so too, and warns where an agent leaves none unused.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> tuple[Tensor, Any]:
        loss, detached = self.module(*inputs)
        for parameter in self.module.parameters():
            loss = loss + 0 * parameter.sum()
        return loss, detached
