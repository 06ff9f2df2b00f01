"""A folder of memory-mapped arrays, computed once.

Written under a temporary name and renamed when whole, so an interrupted writer leaves nothing behind that a reader
would take, and of two concurrent writers one wins. Opening checks every array against the checksum in ``store.json``;
a damaged or cut-off store is deleted and computed again, with a warning.

Memory stays bounded however large a store is: the writer appends to plain files, checksums are taken a chunk at a time, and
an array of more than ``_MAPPED_BYTES`` is read from its file instead of a memory map, whose pages would stay in the process.
Two kinds of data are kept so: features (:mod:`hsal_env.perception.examples`) and SVHN's crops (:mod:`hsal_env.data.svhn`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hsal_env.errors import DataError
from hsal_env.storage.files import creating_folder

_CHUNK_BYTES = 1 << 20
_MAPPED_BYTES = 1 << 30  # above the default store's 0.8 GB; of what has been touched, a map reads rows twice as fast
_checked: set[Path] = set()  # stores whose checksums this process has verified or written

Record = dict[str, np.ndarray]


class ArrayStore:
    """Arrays by name, memory-mapped and read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / "store.json").open() as file:
            self.meta: dict[str, Any] = json.load(file)
        self._map()

    def _map(self) -> None:
        self._arrays: dict[str, np.memmap[Any, Any]] = {
            name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in self.meta["arrays"]
        }
        self._files: dict[str, int] = {}  # descriptors of what is not read through its map
        for name, array in self._arrays.items():
            if array.nbytes > _MAPPED_BYTES and hasattr(os, "preadv"):  # not on Windows
                self._files[name] = os.open(self.folder / f"{name}.npy", os.O_RDONLY)
                weakref.finalize(self, os.close, self._files[name])

    @classmethod
    def open(
        cls, folder: Path, batches: Callable[[], Iterable[Record]], length: int | None, hint: str = ""
    ) -> ArrayStore:
        """Open the store in ``folder``, filling it from ``batches()`` where it is absent or damaged.

        Args:
            folder: where it lies; its parent is made if need be.
            batches: yields the next rows of some or all arrays, by name.
            length: rows of every array; None: as many of each as come.
            hint: what else helps where it cannot be written, for the message.

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
                f"Cannot write the store {folder}: {error}. Free space, or set HSAL_CACHE to a folder with room{hint}."
            ) from error
        try:
            store = cls(folder)
            store.check(length)  # another process may have been first, or a damaged folder could not be deleted
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"The store {folder} is damaged ({error}) and could not be replaced; delete it.") from error
        _checked.add(folder)
        return store

    @staticmethod
    def _write(folder: Path, batches: Iterable[Record], length: int | None) -> None:
        files: dict[str, BinaryIO] = {}
        kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}  # shape of a row, dtype
        arrays: dict[str, dict[str, int]] = {}
        with ExitStack() as opened:
            for batch in batches:
                for name, values in batch.items():
                    if name not in files:
                        files[name] = opened.enter_context((folder / f"{name}.npy").open("wb"))
                        kinds[name] = values.shape[1:], values.dtype
                        _begin(files[name], length or 0, *kinds[name])
                        arrays[name] = {"rows": 0, "crc32": 0}
                    arrays[name]["rows"] += len(values)
                    if length is not None and arrays[name]["rows"] > length:
                        raise DataError(f"Expected {length} examples for the store; got more.")
                    plain = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
                    files[name].write(plain.data)
                    arrays[name]["crc32"] = zlib.crc32(plain.data, arrays[name]["crc32"])
            for name, array in arrays.items():
                if length not in (None, array["rows"]):
                    raise DataError(f"Expected {length} examples for the store; got {array['rows']} of {name}.")
                files[name].seek(0)
                _begin(files[name], array["rows"], *kinds[name])  # numpy leaves room for a number of any length
        (folder / "store.json").write_text(json.dumps({"length": length, "arrays": arrays}))

    def check(self, length: int | None) -> None:
        """Compare lengths and checksums.

        Raises:
            ValueError: they differ.
        """
        if self.meta["length"] != length:
            raise ValueError(f"expected {length} examples, it holds {self.meta['length']}")
        for name, expected in self.meta["arrays"].items():
            total, chunk = 0, bytearray(_CHUNK_BYTES)
            with (self.folder / f"{name}.npy").open("rb", buffering=0) as file:
                file.seek(self._arrays[name].offset)
                while count := file.readinto(chunk):
                    total = zlib.crc32(memoryview(chunk)[:count], total)
            if (total, len(self._arrays[name])) != (expected["crc32"], expected["rows"]):
                raise ValueError(f"{name}.npy does not match its checksum")

    def read(self, indices: np.ndarray | list[int], *names: str) -> Record:
        """Copies of the rows at ``indices`` of the arrays ``names``."""
        return {
            name: self._from_file(name, indices) if name in self._files else self._arrays[name][indices]
            for name in names
        }

    def read_all(self, name: str) -> np.ndarray:
        """A copy of the whole array ``name``."""
        return self.read_slice(name, 0, len(self._arrays[name]))

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        """A copy of the rows ``start`` to ``stop - 1`` of the array ``name``."""
        array = self._arrays[name]
        if name not in self._files:
            return np.array(array[start:stop])
        rows = np.empty((stop - start, *array.shape[1:]), array.dtype)
        self._fill(rows, name, start)
        return rows

    def _from_file(self, name: str, indices: np.ndarray | list[int]) -> np.ndarray:
        array = self._arrays[name]
        rows = np.empty((len(indices), *array.shape[1:]), array.dtype)
        for place, index in enumerate(indices):
            if not 0 <= index < len(array):
                raise IndexError(f"Expected rows in 0..{len(array) - 1}; got {index}.")
            self._fill(rows[place : place + 1], name, int(index))
        return rows

    def _fill(self, rows: np.ndarray, name: str, start: int) -> None:
        """Read consecutive rows from the file, the first of them row ``start``."""
        array = self._arrays[name]
        offset = array.offset + start * (array.nbytes // len(array))
        if os.preadv(self._files[name], [rows.reshape(-1).view(np.uint8).data], offset) != rows.nbytes:
            raise DataError(f"{self.folder / name}.npy was cut off while it was in use; delete {self.folder}.")

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "meta": self.meta}  # a pickled memory map would be a copy of the file

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def _begin(file: BinaryIO, rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Write the head of a ``.npy`` file and take its disk space at once: a full disk is said before minutes of work."""
    head = {"shape": (rows, *shape), "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    np.lib.format.write_array_header_1_0(file, head)
    if rows and hasattr(os, "posix_fallocate"):
        file.flush()
        os.posix_fallocate(file.fileno(), 0, file.tell() + dtype.itemsize * rows * math.prod(shape))
