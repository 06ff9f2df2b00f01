"""What fits the memory of this machine, asked before it is taken."""

from __future__ import annotations

import os

from hsal_env.errors import ConfigError


def require_memory(needed_bytes: int, what: str) -> None:
    """Refuse what cannot fit. A system that runs out of memory ends the process without a word.

    Args:
        needed_bytes: no more than it will take.
        what: the arguments that decide it, with their values, for the message.

    Raises:
        ConfigError: the machine has less memory than that.
    """
    there = _memory_bytes()
    if there is not None and needed_bytes > there:
        raise ConfigError(
            f"Expected sizes that fit the {there / 2**30:.1f} GiB of memory of this machine; got {what}, which need at least "
            f"{needed_bytes / 2**30:,.1f} GiB. Lower one of them."
        )


def _memory_bytes() -> int | None:
    """Bytes of memory of this machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None
