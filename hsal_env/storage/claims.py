"""Places in which one process writes at a time."""

from __future__ import annotations

import os
import platform
import weakref
from contextlib import suppress
from pathlib import Path

from hsal_env.errors import CheckpointError
from hsal_env.storage.files import check_writable, check_writable_file, writing
from hsal_env.storage.locks import lock, unlock


class Claim:
    """What :func:`claim_folder` and :func:`claim_file` return. It ends with this object, or with its process."""

    def __init__(self, place: Path, file: Path) -> None:
        self.descriptor = _claimed(place, file)
        weakref.finalize(self, _release, file, self.descriptor, os.getpid())


_claims: weakref.WeakValueDictionary[Path, Claim] = weakref.WeakValueDictionary()  # of this process


def claim_folder(folder: Path) -> Claim:
    """Make ``folder`` and refuse it to other processes while the returned object lives, so that results do not mix.

    A file ``.lock`` in the folder is locked meanwhile. The same process may claim a folder again. Nobody is refused where there
    are no locks, see :mod:`hsal_env.storage.locks`.

    Raises:
        CheckpointError: another process has claimed it, or files cannot be written in it.
    """
    check_writable(folder)
    return _claim(folder, folder / ".lock")


def claim_file(path: Path) -> Claim:
    """The same for a single file, which need not be there. The file that is locked is ``.NAME.lock`` beside it.

    Raises:
        CheckpointError: another process has claimed it, or it cannot be written.
    """
    check_writable_file(path)
    return _claim(path, path.with_name(f".{path.name}.lock"))


def _claim(place: Path, file: Path) -> Claim:
    file = Path(os.path.abspath(file))
    held = _claims.get(file)
    if held is None or not _is_at(held.descriptor, file):
        held = _claims[file] = Claim(place, file)
    return held


def _claimed(place: Path, file: Path) -> int | None:
    while True:
        with writing(place):
            file.touch()
            try:
                descriptor = lock(file)
            except FileNotFoundError:
                continue  # its owner has just ended and removed it
            except BlockingIOError:
                with suppress(FileNotFoundError):
                    owner = file.read_text() or "another process"
                    raise CheckpointError(
                        f"{place} is in use by {owner}, which writes there until it ends. Wait, or choose another place."
                    ) from None
                continue
            if descriptor is None:
                return None
            if _is_at(descriptor, file):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
                return descriptor
            unlock(descriptor)


def _is_at(descriptor: int | None, file: Path) -> bool:
    """Whether the file that was locked is still there: a folder may be deleted, and made again, during a claim."""
    try:
        return descriptor is None or os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _release(file: Path, descriptor: int | None, owner: int) -> None:
    if os.getpid() == owner:
        if _is_at(descriptor, file):
            file.unlink(missing_ok=True)
        unlock(descriptor)


def _forget() -> None:
    """In a forked process, which may outlive the one that writes."""
    for held in list(_claims.values()):
        unlock(held.descriptor)
    _claims.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
