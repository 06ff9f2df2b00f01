"""Writing files so that a reader never finds an incomplete one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hsal_env.errors import CheckpointError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``. On success it replaces ``path``; on any error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o666 & ~_umask())
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def creating_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``. On success it becomes ``path``, unless another process was first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    temporary.chmod(0o777 & ~_umask())  # mkdtemp lets nobody else in
    try:
        yield temporary
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_writable_file(path: Path) -> None:
    """Try to write a file beside ``path``, as :func:`check_writable` does.

    Raises:
        CheckpointError: its folder cannot be made or written in, or ``path`` is a folder.
    """
    with writing(path):
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
