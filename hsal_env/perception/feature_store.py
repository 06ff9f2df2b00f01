"""A folder of memory-mapped arrays, computed once.

Written under a temporary name and renamed when whole, so an interrupted writer leaves nothing behind that a reader
would take, and of two concurrent writers one wins. Opening checks every array against the checksum in ``store.json``;
a damaged or cut-off store is deleted and computed again, with a warning.

Memory stays bounded however large a store is: the writer appends to plain files, and a reader lets go of the pages it has
touched once they may exceed ``_RESIDENT_BYTES``. A store smaller than that stays mapped, and is the quicker to read.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hsal_env.errors import DataError
from hsal_env.files import creating_folder

_CHUNK_BYTES = 1 << 24
_RESIDENT_BYTES = 1 << 30  # above the default store's 0.8 GB
_FAULT_BYTES = 1 << 16  # what Linux maps around a page that is touched
_checked: set[Path] = set()  # stores whose checksums this process has verified or written

Record = dict[str, np.ndarray]


class FeatureStore:
    """Arrays by name, all of the same length, memory-mapped and read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / "store.json").open() as file:
            self.meta: dict[str, Any] = json.load(file)
        self._map()

    def _map(self) -> None:
        self._arrays = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in self.meta["arrays"]}
        self._bounded = sum(array.nbytes for array in self._arrays.values()) > _RESIDENT_BYTES
        self._resident = 0  # bytes that reading may have mapped, at most

    @classmethod
    def open(cls, folder: Path, batches: Callable[[], Iterable[Record]], length: int) -> FeatureStore:
        """Open the store in ``folder``, filling it from ``batches()`` where it is absent or damaged.

        Raises:
            DataError: it cannot be written (no space, no permission); nothing is left behind.
        """
        if folder.exists():
            try:
                store = cls(folder)
                if store.meta["length"] != length:
                    raise ValueError(f"expected {length} examples, it holds {store.meta['length']}")
                if folder not in _checked:
                    store.check(length)
                    _checked.add(folder)
                return store
            except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
                warnings.warn(f"{folder} is damaged ({error}); computing it again.", stacklevel=2)
                shutil.rmtree(folder, ignore_errors=True)
        try:
            with creating_folder(folder) as temporary:
                cls._write(temporary, batches(), length)
        except OSError as error:
            raise DataError(
                f"Cannot write the feature store {folder}: {error}. Free space, set HSAL_CACHE to a folder with room, "
                f"or use features='lazy'."
            ) from error
        try:
            store = cls(folder)
            store.check(length)  # another process may have been first, or a damaged folder could not be deleted
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"The feature store {folder} is damaged ({error}) and could not be replaced; delete it."
            ) from error
        _checked.add(folder)
        return store

    @staticmethod
    def _write(folder: Path, batches: Iterable[Record], length: int) -> None:
        files: dict[str, BinaryIO] = {}
        sums: dict[str, int] = {}
        filled = 0
        with ExitStack() as opened:
            for batch in batches:
                if filled + len(next(iter(batch.values()))) > length:
                    raise DataError(f"Expected {length} examples for the feature store; got more.")
                for name, values in batch.items():
                    if name not in files:
                        files[name] = opened.enter_context((folder / f"{name}.npy").open("wb"))
                        _begin(files[name], (length, *values.shape[1:]), values.dtype)
                    plain = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
                    files[name].write(plain.data)
                    sums[name] = zlib.crc32(plain.data, sums.get(name, 0))
                filled += len(next(iter(batch.values())))
        if filled != length:
            raise DataError(f"Expected {length} examples for the feature store; got {filled}.")
        (folder / "store.json").write_text(json.dumps({"length": length, "arrays": sums}))

    def check(self, length: int) -> None:
        """Compare length and checksums.

        Raises:
            ValueError: they differ.
        """
        if self.meta["length"] != length:
            raise ValueError(f"expected {length} examples, it holds {self.meta['length']}")
        for name, expected in self.meta["arrays"].items():
            flat = self._arrays[name].reshape(-1).view(np.uint8)
            total = 0
            for start in range(0, len(flat), _CHUNK_BYTES):
                chunk = flat[start : start + _CHUNK_BYTES]
                total = zlib.crc32(chunk.data, total)
                self._touched(len(chunk))
            if total != expected or len(self._arrays[name]) != length:
                raise ValueError(f"{name}.npy does not match its checksum")

    def read(self, indices: np.ndarray | list[int], *names: str) -> Record:
        """Copies of the rows at ``indices`` of the arrays ``names``."""
        rows = {name: self._arrays[name][indices] for name in names}
        if self._bounded:
            self._touched(sum(values.nbytes + len(indices) * _FAULT_BYTES for values in rows.values()))
        return rows

    def _touched(self, count: int) -> None:
        """Count mapped bytes, and unmap them all when they are too many: the files' pages stay in the system's cache."""
        self._resident += count
        if self._resident > _RESIDENT_BYTES:
            self._resident = 0
            for array in self._arrays.values():
                if hasattr(mmap, "MADV_DONTNEED") and isinstance(array.base, mmap.mmap):  # not on Windows
                    array.base.madvise(mmap.MADV_DONTNEED)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "meta": self.meta}  # a pickled memory map would be a copy of the file

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def _begin(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Write the head of a ``.npy`` file and take its disk space at once: a full disk is said before minutes of work."""
    head = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    np.lib.format.write_array_header_1_0(file, head)
    if hasattr(os, "posix_fallocate"):
        file.flush()
        os.posix_fallocate(file.fileno(), 0, file.tell() + dtype.itemsize * math.prod(shape))
