"""Locks of the operating system. They end with the process, however it ends. Windows, and some file systems, have none."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def lock(path: Path) -> int | None:
    """Lock a file or folder.

    Returns:
        a descriptor that holds the lock until :func:`unlock`. None: nothing can be locked here.

    Raises:
        BlockingIOError: it is locked already.
        OSError: it is not there, or may not be opened.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def unlock(descriptor: int | None) -> None:
    """End the lock of a descriptor that :func:`lock` has returned."""
    if descriptor is not None:
        os.close(descriptor)
