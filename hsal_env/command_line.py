"""How a command runs: flags by tyro, and one plain line for what goes wrong. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from hsal_env.errors import ConfigError, HSALError
from hsal_env.plugins import check_agents
from hsal_env.registration import plain_id
from hsal_env.storage.files import Terminated, as_path, terminable

_SIGTERM_STATUS = 143  # what a shell reports of a process that SIGTERM has ended: 128 + 15

Args = TypeVar("Args")


def run_command(main: Callable[[Args], None], args: type[Args]) -> None:
    """Run ``main`` on what the command line makes of the dataclass ``args``. Its ``env_id`` may be ``hsal_env:ID``.

    A deliberate error, another package in the place of ours, and Ctrl-C end in one line on stderr and status 1. SIGTERM ends in
    the line of Ctrl-C and status 143.
    """
    try:
        with terminable():
            check_agents()
            given = with_paths(tyro.cli(args))
            if env_id := getattr(given, "env_id", None):
                given = dataclasses.replace(given, env_id=plain_id(env_id))  # type: ignore[type-var]
            main(given)
    except HSALError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as signal:
        end_interrupted(signal, "interrupted")


def end_interrupted(signal: KeyboardInterrupt, line: str) -> NoReturn:
    """End with ``line`` on stderr, and the status that belongs to the signal."""
    if isinstance(signal, Terminated):
        print(f"\n{line}", file=sys.stderr)  # below a progress bar
        sys.exit(_SIGTERM_STATUS)
    sys.exit(line)


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
