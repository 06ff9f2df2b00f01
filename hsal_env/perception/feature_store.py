"""A folder of memory-mapped arrays, computed once.

Written under a temporary name and renamed when whole, so an interrupted writer leaves nothing behind that a reader
would take, and of two concurrent writers one wins. Opening checks every array against the checksum in ``store.json``;
a damaged or cut-off store is deleted and computed again, with a warning.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hsal_env.errors import DataError
from hsal_env.files import creating_folder

_CHUNK_BYTES = 1 << 24
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
        arrays: dict[str, np.memmap] = {}
        sums: dict[str, int] = {}
        filled = 0
        for batch in batches:
            if filled + len(next(iter(batch.values()))) > length:
                raise DataError(f"Expected {length} examples for the feature store; got more.")
            for name, values in batch.items():
                if name not in arrays:
                    shape = (length, *values.shape[1:])
                    arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", values.dtype, shape)
                    _reserve(folder / f"{name}.npy")
                arrays[name][filled : filled + len(values)] = values
                sums[name] = zlib.crc32(values.tobytes(), sums.get(name, 0))
            filled += len(next(iter(batch.values())))
        if filled != length:
            raise DataError(f"Expected {length} examples for the feature store; got {filled}.")
        for array in arrays.values():
            array.flush()
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
                total = zlib.crc32(flat[start : start + _CHUNK_BYTES].tobytes(), total)
            if total != expected or len(self._arrays[name]) != length:
                raise ValueError(f"{name}.npy does not match its checksum")

    def read(self, indices: np.ndarray | list[int], *names: str) -> Record:
        """Copies of the rows at ``indices`` of the arrays ``names``."""
        return {name: self._arrays[name][indices] for name in names}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "meta": self.meta}  # a pickled memory map would be a copy of the file

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def _reserve(path: Path) -> None:
    """Take the disk space now: writing to a sparse memory map on a full disk kills the process instead of raising."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
