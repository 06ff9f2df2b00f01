"""A folder of arrays that are computed once and then read from disk.

A store is written under a temporary name and renamed when it is complete. So an interrupted writer leaves nothing that a reader
could take for a store, and if two processes write at the same time, one of them wins. Opening a store checks every array against
its checksum in ``store.json``. A store that is damaged, or that is not what would be written now, is deleted and computed again,
with a warning.

Memory use is bounded for stores of any size. The writer appends to plain ``.npy`` files and reserves their disk space beforehand;
if it wrote through a memory map, a full disk would kill the process. Checksums are computed chunk by chunk. Arrays of more than
``_MAPPED_BYTES`` are read from their file and not through a memory map, whose pages would stay in the process.

Three kinds of data are stored: features (:mod:`hsal_env.perception.examples`), SVHN's crops (:mod:`hsal_env.data.svhn`), and the
images of folders (:mod:`hsal_env.data.pixel_store`).
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import tokenize
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
_MAPPED_BYTES = 1 << 30  # more than the default store's 0.8 GB; a map reads rows twice as fast once they are in memory
_checked: set[Path] = set()  # stores that this process has written or whose checksums it has verified

# what reading a damaged store raises; numpy parses the header of a file as Python
_DAMAGE = (
    FileNotFoundError,
    NotADirectoryError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    SyntaxError,
    tokenize.TokenError,
)

Record = dict[str, np.ndarray]


class _OutOfDateError(Exception):
    """A whole store, but not of what would be written now."""


class ArrayStore:
    """Arrays by name, read-only.

    Args:
        folder: a store that :meth:`open` has written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / "store.json").open() as file:
            self.meta: dict[str, Any] = json.load(file)
        self._map()

    def _map(self) -> None:
        self._arrays: dict[str, np.memmap[Any, Any]] = {
            name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in self.meta["arrays"]
        }
        self._files: dict[str, int] = {}  # descriptors of the arrays that are not read through their map
        for name, array in self._arrays.items():
            if array.nbytes > _MAPPED_BYTES and hasattr(os, "preadv"):  # not on Windows
                self._files[name] = os.open(self.folder / f"{name}.npy", os.O_RDONLY)
                weakref.finalize(self, os.close, self._files[name])

    @classmethod
    def open(
        cls,
        folder: Path,
        batches: Callable[[], Iterable[Record]],
        length: int | None,
        hint: str = "",
        is_current: Callable[[ArrayStore], bool] = lambda _: True,
    ) -> ArrayStore:
        """Open the store in ``folder``. If it is missing or damaged, write it from ``batches()``.

        Args:
            folder: the folder of the store; its parents are made.
            batches: yields the next rows of some or all arrays, by name.
            length: number of rows of every array; None: as many as ``batches`` yields for each.
            hint: further advice for the message if the store cannot be written.
            is_current: whether ``batches()`` would write the same as a store that was found. It is asked once in a process.

        Raises:
            DataError: the store cannot be written (no space, no permission), and nothing is left behind; or it cannot be read
                for a reason that is not its own (no permission, too many open files), and it is left as it is.
        """
        if folder.exists():
            try:
                store = cls(folder)
                if store.meta["length"] != length:
                    raise ValueError(f"expected {length} examples, got {store.meta['length']}")
                if folder not in _checked:
                    store.check(length)
                    if not is_current(store):
                        raise _OutOfDateError
                    _checked.add(folder)
                return store
            except _OutOfDateError:
                warnings.warn(f"{folder} is out of date; computing it again.", stacklevel=2)
                shutil.rmtree(folder, ignore_errors=True)
            except _DAMAGE as error:
                warnings.warn(f"{folder} is damaged ({error}); computing it again.", stacklevel=2)
                shutil.rmtree(folder, ignore_errors=True)
            except OSError as error:
                raise DataError(f"Cannot read the store {folder}, which may be whole: {error}.") from error
        try:
            with creating_folder(folder) as temporary:
                cls._write(temporary, batches(), length)
        except OSError as error:
            raise DataError(
                f"Cannot write the store {folder}: {error}. Free space, or set HSAL_CACHE to a folder with room{hint}."
            ) from error
        try:
            store = cls(folder)
            store.check(length)  # another process may have been first, or the damaged folder could not be deleted
        except _DAMAGE as error:
            raise DataError(f"The store {folder} is damaged ({error}) and could not be replaced. Delete it.") from error
        except OSError as error:
            raise DataError(f"Cannot read the store {folder}, which may be whole: {error}.") from error
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
                        arrays[name] = {"rows": 0, "crc32": 0, "header_crc32": 0}
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
                # the header has room for any number of rows
                array["header_crc32"] = _begin(files[name], array["rows"], *kinds[name])
        (folder / "store.json").write_text(json.dumps({"length": length, "arrays": arrays}))

    def check(self, length: int | None) -> None:
        """Compare the lengths of the arrays with ``length``, and the checksums of their files with those in ``store.json``.

        Raises:
            ValueError: one of them differs.
        """
        if self.meta["length"] != length:
            raise ValueError(f"expected {length} examples, got {self.meta['length']}")
        for name, expected in self.meta["arrays"].items():
            total, chunk = 0, bytearray(_CHUNK_BYTES)
            with (self.folder / f"{name}.npy").open("rb", buffering=0) as file:
                header = zlib.crc32(file.read(self._arrays[name].offset))
                while count := file.readinto(chunk):
                    total = zlib.crc32(memoryview(chunk)[:count], total)
            found = {"rows": len(self._arrays[name]), "crc32": total, "header_crc32": header}
            if found != expected:
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
        """Read consecutive rows from the file into ``rows``, from row ``start`` on."""
        array = self._arrays[name]
        offset = array.offset + start * (array.nbytes // len(array))
        if os.preadv(self._files[name], [rows.reshape(-1).view(np.uint8).data], offset) != rows.nbytes:
            raise DataError(f"{self.folder / name}.npy was cut off while it was in use. Delete {self.folder}.")

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "meta": self.meta}  # pickling a memory map would copy the whole file

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def _begin(file: BinaryIO, rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Write the header of a ``.npy`` file, and reserve the array's space, so that a full disk fails now and not after minutes.

    Returns:
        the header's checksum.
    """
    head = {"shape": (rows, *shape), "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, head)
    file.write(header.getvalue())
    if rows and hasattr(os, "posix_fallocate"):
        file.flush()
        os.posix_fallocate(file.fileno(), 0, file.tell() + dtype.itemsize * rows * math.prod(shape))
    return zlib.crc32(header.getvalue())
