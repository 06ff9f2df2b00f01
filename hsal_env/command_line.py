"""How a command runs: flags by tyro, and one plain line for what goes wrong. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import dataclasses
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from hsal_env.errors import ConfigError, HSALError
from hsal_env.plugins import check_agents
from hsal_env.registration import plain_id
from hsal_env.storage.files import Terminated, as_path, terminable

_SIGTERM_STATUS = 143  # what a shell reports of a process that SIGTERM has ended: 128 + 15
_SIGPIPE_STATUS = 141

Args = TypeVar("Args")


def run_command(main: Callable[[Args], None], args: type[Args]) -> None:
    """:func:`run` ``main`` on what the command line makes of the dataclass ``args``. Its ``env_id`` may be ``hsal_env:ID``."""

    def parse() -> Args:
        given = with_paths(tyro.cli(args, console_outputs=rank() == 0))
        if env_id := getattr(given, "env_id", None):
            given = dataclasses.replace(given, env_id=plain_id(env_id))  # type: ignore[type-var]
        return given

    run(main, parse)


def run(main: Callable[[Args], None], parse: Callable[[], Args], interrupted: str = "interrupted") -> None:
    """Run ``main`` on what ``parse`` returns, and say what goes wrong: once, however many processes torchrun has started.

    A deliberate error, another package in the place of ours, and Ctrl-C (with the line ``interrupted``) end in one line on stderr
    and status 1. SIGTERM ends in the line of Ctrl-C and status 143. If nobody reads on, as in ``command | head``, it ends
    silently with status 141.
    """
    try:
        try:
            _run(main, parse, interrupted)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise  # of another pipe, which is no reason to be silent
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at the end
        sys.exit(_SIGPIPE_STATUS)


def _reader_has_gone() -> bool:
    """Whether nobody reads what is printed."""
    if not hasattr(select, "poll"):  # Windows
        return False
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)  # errors are told in any case
    return bool(stdout.poll(0))


def _run(main: Callable[[Args], None], parse: Callable[[], Args], interrupted: str) -> None:
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    try:
        with terminable() if alone else nullcontext():  # see agents.learning.distributed.Processes.tidy
            check_agents()
            main(parse())
    except HSALError as error:
        fail(f"error: {error}")
    except SystemExit as stop:  # --help, or flags that tyro has refused
        fail(stop.code or 0, wait_seconds=10.0 if stop.code else 0.0)
    except KeyboardInterrupt as signal:
        if rank():
            sys.exit(1)
        end_interrupted(signal, interrupted)


def rank() -> int:
    """Which of several processes this is, see :mod:`agents.learning.distributed`, which is slow to import; 0 leads."""
    return int(os.environ.get("RANK", 0))


def fail(message: str | int, wait_seconds: float = 10.0) -> NoReturn:
    """Exit with a message, or a status whose reason has been said.

    What every process runs into, the leader says: the others wait, and torchrun ends them. One that is still there after that
    has something of its own to say.
    """
    if rank():
        time.sleep(wait_seconds)
        message = f"\nprocess {rank()}: {message}" if isinstance(message, str) else message
    sys.exit(message)


def end_interrupted(signal: KeyboardInterrupt, line: str) -> NoReturn:
    """End with ``line`` on stderr, below a progress bar, and the status that belongs to the signal."""
    print(f"\n{line}", file=sys.stderr)
    sys.exit(_SIGTERM_STATUS if isinstance(signal, Terminated) else 1)


def with_paths(args: Args) -> Args:
    """``args`` with ``~`` filled in in every path.

    Raises:
        ConfigError: one can be no path, see :func:`hsal_env.storage.files.as_path`.
    """
    given: Any = args
    paths = {name: as_path(value) for name, value in vars(given).items() if isinstance(value, Path)}
    return dataclasses.replace(given, **paths)


def require_agents() -> None:
    """End here, with one line, unless ``import agents`` finds ours: for scripts that import it before they have flags."""
    try:
        check_agents()
    except ConfigError as error:
        sys.exit(f"error: {error}")
