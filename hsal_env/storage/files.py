"""Paths that can be paths, and writing files so that a reader never finds an incomplete one.

What a process has begun to write has a temporary name and is locked, see :mod:`hsal_env.storage.locks`. So what a killed process
left can be told from what a living one is writing. It is removed when the next process writes in the same folder.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import signal
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from hsal_env.errors import CheckpointError, ConfigError
from hsal_env.storage.locks import lock, unlock

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(r"\..*-hsal-(?P<host>[0-9a-f]{8})-[a-z0-9_]{8}(\..*)?", re.DOTALL)
_FORGOTTEN_SECONDS = 24 * 60 * 60  # after which another host's are removed, too: some file systems show it no locks
_STEM = 50  # characters of a name that its temporary name keeps, since names are limited to 255 bytes
_swept: set[Path] = set()
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # whoever opens the path says so


def as_path(given: str | os.PathLike[str]) -> Path:
    r"""The path that a user has named, with ``~`` and ``~user`` filled in. There need be nothing at it.

    Raises:
        ConfigError: it can be no path: there is no such user, or the user has no home; it holds a zero byte; a name in it is too
            long; or what lies on the way may not be entered.

    Example:
        >>> as_path("runs/mine")
        PosixPath('runs/mine')
        >>> as_path("runs\0mine")
        Traceback (most recent call last):
        ...
        hsal_env.errors.ConfigError: Expected the path of a file or a folder; got 'runs\x00mine' (embedded null byte).
    """
    try:
        path = Path(given).expanduser()
        os.stat(path)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _NOTHING_THERE:
            return path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"Expected the path of a file or a folder; got {given!r:.120} ({reason}).") from error
    return path


class Terminated(KeyboardInterrupt):
    """SIGTERM has come: a scheduler sends it before it kills."""


@contextmanager
def terminable() -> Iterator[None]:
    """A block that SIGTERM ends as Ctrl-C does, so that temporary files are removed. A second SIGTERM does not disturb that.

    Raises:
        Terminated: SIGTERM has come.
    """

    def end(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only that one can set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``. On success it replaces ``path``; on any error it is removed."""
    path = as_path(path)

    def make(prefix: str) -> str:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
        os.close(handle)
        return name

    with _temporary(path.parent, path.stem, make, 0o666) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``. It is removed afterwards."""
    path = Path(path)

    def make(prefix: str) -> str:
        return tempfile.mkdtemp(dir=path.parent, prefix=prefix)

    with _temporary(path.parent, path.name, make, 0o777) as temporary:
        yield temporary


@contextmanager
def creating_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``. On success it becomes ``path``, unless another process was first."""
    path = as_path(path)
    with temporary_folder(path) as temporary:
        yield temporary
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise


@contextmanager
def _temporary(folder: Path, stem: str, make: Callable[[str], str], mode: int) -> Iterator[Path]:
    """Yield what ``make`` makes in ``folder`` under a name with the given prefix. It is locked, and removed afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    while True:
        path = Path(make(f".{stem[:_STEM]}-hsal-{_HOST}-"))
        try:
            held = lock(path)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process has swept it before it was locked
        except OSError:
            _remove(path)
            raise
        if path.exists():
            break
        unlock(held)
    try:
        path.chmod(mode & ~_umask())  # tempfile lets nobody else in
        yield path
    finally:
        _remove(path)
        unlock(held)


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders in ``folder`` whose processes have ended. A process does so once per folder."""
    folder = Path(os.path.abspath(folder))
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):  # it is not there, or may not be listed
        for path in folder.iterdir():
            if name := _TEMPORARY.fullmatch(path.name):
                with suppress(OSError):  # it is locked, or gone, or another user's
                    _remove_dead(path, name["host"])


def _remove_dead(path: Path, host: str) -> None:
    age_seconds = time.time() - path.stat().st_mtime
    if (held := lock(path)) is not None:
        if host == _HOST or age_seconds > _FORGOTTEN_SECONDS:
            _remove(path)
        unlock(held)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(place: Path, errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Turn an error inside the block into one that says that ``place`` cannot be written.

    Raises:
        CheckpointError: the block raised one of ``errors``.
    """
    try:
        yield
    except errors as error:
        raise CheckpointError(f"Cannot write {place}: {error}. Free space or name another place.") from error


def check_writable(folder: Path) -> None:
    """Make ``folder`` and try to write a file in it, so that a long computation does not fail at its end.

    Raises:
        CheckpointError: the folder cannot be made, or files cannot be written in it.
    """
    with writing(folder):
        folder = as_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_writable_file(path: Path) -> None:
    """Try to write a file beside ``path``, as :func:`check_writable` does.

    Raises:
        CheckpointError: its folder cannot be made or written in, or ``path`` is a folder.
    """
    with writing(path):
        path = as_path(path)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` completely or not at all.

    Raises:
        CheckpointError: the file cannot be written.
    """
    with writing(path), replacing(path) as temporary:
        temporary.write_text(text)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
