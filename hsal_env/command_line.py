"""How a command runs: flags by tyro, and one plain line for what goes wrong. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from hsal_env.errors import ConfigError, HSALError
from hsal_env.plugins import check_agents

Args = TypeVar("Args")


def run_command(main: Callable[[Args], None], args: type[Args]) -> None:
    """Run ``main`` on what the command line makes of the dataclass ``args``.

    A deliberate error, another package in the place of ours, and Ctrl-C end in one line on stderr and status 1.
    """
    try:
        check_agents()
        main(tyro.cli(args))
    except HSALError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def require_agents() -> None:
    """End here, with one line, unless ``import agents`` finds ours: for scripts that import it before they have flags."""
    try:
        check_agents()
    except ConfigError as error:
        sys.exit(f"error: {error}")
