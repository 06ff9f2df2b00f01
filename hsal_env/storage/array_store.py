"""A folder of arrays that are computed once and then read from disk.

A store is written under a temporary name and renamed when it is complete. So an interrupted writer leaves nothing that a reader
could take for a store, and if two processes write at the same time, one of them wins.

A store is opened in no time, whatever its size: the length of every file is compared, and the checksum of its head. The rows
have one checksum for every block of them, which is compared when a process first reads of that block. So no value is handed out
unseen. A store that is damaged, or that is not what would be written now, is deleted and computed again, with a warning.

A store of a known length can also be read while a thread writes it (``ahead``): what is not there yet is waited for.

Memory use is bounded for stores of any size. The writer appends to plain ``.npy`` files and reserves their disk space beforehand;
if it wrote through a memory map, a full disk would kill the process. Arrays of more than ``_MAPPED_BYTES`` are read from their
file and not through a memory map, whose pages would stay in the process.

Three kinds of data are stored: features (:mod:`hsal_env.perception.examples`), SVHN's crops (:mod:`hsal_env.data.svhn`), and the
images of folders (:mod:`hsal_env.data.pixel_store`).
"""

from __future__ import annotations

import json
import os
import shutil
import tokenize
import warnings
import weakref
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hsal_env.errors import DataError
from hsal_env.storage.filling import Batches, Filling, Record, write_store

_MAPPED_BYTES = 1 << 30  # more than the default store's 0.8 GB; a map reads rows twice as fast once they are in memory

_checked: dict[Path, dict[str, np.ndarray]] = {}
"""Of every store that this process has found whole: which blocks of its arrays have matched their checksums."""

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


class _OutOfDateError(Exception):
    """A whole store, but not of what would be written now."""


class DamagedStoreError(DataError):
    """Rows do not match their checksum, and the store cannot be computed again from here."""


class ArrayStore:
    """Arrays by name, read-only.

    Args:
        folder: a store that :meth:`open` has written.
    """

    _renew: Callable[[], object] | None = None
    """Writes the store again. A store that was pickled lacks it."""
    _filling: Filling | None = None
    """The thread that writes the store, while it does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / "store.json").open() as file:
            self.meta: dict[str, Any] = json.load(file)
        self._map(folder, [*self.meta["arrays"]])
        self._whole = {name: np.zeros(len(array["crc32"]), bool) for name, array in self.meta["arrays"].items()}

    def _map(self, place: Path, names: list[str]) -> None:
        self._arrays: dict[str, np.memmap[Any, Any]] = {
            name: np.load(place / f"{name}.npy", mmap_mode="r") for name in names
        }
        self._files: dict[str, int] = {}  # descriptors of the arrays that are not read through their map
        for name, array in self._arrays.items():
            if array.nbytes > _MAPPED_BYTES and hasattr(os, "preadv"):  # not on Windows
                self._files[name] = os.open(place / f"{name}.npy", os.O_RDONLY)
                weakref.finalize(self, os.close, self._files[name])

    @classmethod
    def open(
        cls,
        folder: Path,
        batches: Batches,
        length: int | None,
        hint: str = "",
        is_current: Callable[[ArrayStore], bool] = lambda _: True,
        ahead: bool = False,
    ) -> ArrayStore:
        """Open the store in ``folder``. If it is missing or damaged, write it from ``batches()``.

        Args:
            folder: the folder of the store; its parents are made.
            batches: yields the next rows of some or all arrays, by name.
            length: number of rows of every array; None: as many as ``batches`` yields for each.
            hint: further advice for the message if the store cannot be written.
            is_current: whether ``batches()`` would write the same as a store that was found. It is asked once in a process.
            ahead: come back when the first rows are written, and let a thread write the others; every batch has to hold rows of
                all arrays then, and ``length`` has to be known. On Windows, which renames no folder that is in use, all is
                written first.

        Raises:
            DataError: the store cannot be written (no space, no permission), and nothing is left behind; or it cannot be read
                for a reason that is not its own (no permission, too many open files), and it is left as it is.
        """
        Filling.wait_for_others(folder)
        store = cls._found(folder, length, is_current)
        if store is None and ahead and length and os.name == "posix":
            store = cls._while_filled(folder, batches, length, hint)
        elif store is None:
            write_store(folder, batches, length, hint)
            try:
                store = cls(folder)
                # another process may have been first, or a damaged folder could not be deleted
                store._check_files(length)
            except _DAMAGE as error:
                raise DataError(
                    f"The store {folder} is damaged ({error}) and could not be replaced. Delete it."
                ) from error
            except OSError as error:
                raise DataError(f"Cannot read the store {folder}, which may be whole: {error}.") from error
            _checked[folder] = store._whole
        store._renew = lambda: cls.open(folder, batches, length, hint)
        return store

    @classmethod
    def _found(cls, folder: Path, length: int | None, is_current: Callable[[ArrayStore], bool]) -> ArrayStore | None:
        """The store in ``folder``, if it is whole as far as can be told without reading it. Else None, and it is deleted."""
        if not folder.exists():
            return None
        try:
            store = cls(folder)
            store._check_files(length)
            if folder in _checked:
                store._whole = _checked[folder]
            elif not is_current(store):
                raise _OutOfDateError
        except _OutOfDateError:
            warnings.warn(f"{folder} is out of date; computing it again.", stacklevel=3)
        except (*_DAMAGE, DamagedStoreError) as error:
            warnings.warn(f"{folder} is damaged ({error}); computing it again.", stacklevel=3)
        except OSError as error:
            raise DataError(f"Cannot read the store {folder}, which may be whole: {error}.") from error
        else:
            _checked[folder] = store._whole
            return store
        _delete(folder)
        return None

    @classmethod
    def _while_filled(cls, folder: Path, batches: Batches, length: int, hint: str) -> ArrayStore:
        """A store that a thread writes. Its files are opened under their temporary names, and stay open."""
        store = cls.__new__(cls)
        store.folder = folder
        store._filling = Filling(folder, batches, length, hint, store._map, lambda: cls._remember(folder))
        store._filling.wait_for(1)
        return store

    @classmethod
    def _remember(cls, folder: Path) -> None:
        """A store that this process has written need not be asked whether it is current."""
        with suppress(OSError, *_DAMAGE):  # whoever opens it will see
            _checked[folder] = cls(folder)._whole

    def _check_files(self, length: int | None) -> None:
        """Compare the lengths of the arrays with ``length``, and the heads of their files with ``store.json``.

        Raises:
            ValueError: one of them differs.
        """
        if self.meta["length"] != length:
            raise ValueError(f"expected {length} examples, got {self.meta['length']}")
        for name, expected in self.meta["arrays"].items():
            array = self._arrays[name]
            with (self.folder / f"{name}.npy").open("rb") as file:
                header = zlib.crc32(file.read(array.offset))
            blocks = -(-expected["rows"] // expected["block_rows"])
            found = (len(array), header, len(expected["crc32"]))
            if found != (expected["rows"], expected["header_crc32"], blocks):
                raise ValueError(f"{name}.npy does not match its checksum")

    def read(self, indices: np.ndarray | list[int], *names: str) -> Record:
        """Copies of the rows at ``indices`` of the arrays ``names``.

        Raises:
            DataError: see :meth:`require`.
        """
        places = np.asarray(indices, dtype=np.int64)
        for name in names:
            self.require(name, places)
        return {
            name: self._from_file(name, places) if name in self._files else self._arrays[name][places] for name in names
        }

    def read_all(self, name: str) -> np.ndarray:
        """A copy of the whole array ``name``."""
        return self.read_slice(name, 0, len(self._arrays[name]))

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        """A copy of the rows ``start`` to ``stop - 1`` of the array ``name``.

        Raises:
            DataError: see :meth:`require`.
        """
        self.require(name, slice(start, stop))
        return self._rows(name, start, stop)

    def wait_until_written(self) -> None:
        """Wait for the thread that writes the store, if there is one.

        Raises:
            DataError: it cannot be written.
        """
        if self._filling:
            self._filling.wait_for(None)

    def require(self, name: str, rows: np.ndarray | slice) -> None:
        """Wait until ``rows`` of the array ``name`` are written, and compare their blocks with their checksums, once each.

        Rows that the array does not have are left to whoever reads them. If a block differs, the store is computed again, with a
        warning.

        Raises:
            DataError: rows cannot be written; or one differs, and the store was pickled, so that it cannot be computed again.
        """
        if self._filling:
            stop = rows.stop if isinstance(rows, slice) else int(rows.max(initial=-1)) + 1
            self._filling.wait_for(stop)
            return  # this process has written them
        array, whole = self.meta["arrays"][name], self._whole[name]
        if isinstance(rows, slice):  # of a row for each byte there may be millions
            blocks = np.arange(
                rows.start // array["block_rows"], -(-min(rows.stop, array["rows"]) // array["block_rows"])
            )
        else:
            blocks = rows[(rows >= 0) & (rows < array["rows"])] // array["block_rows"]
        for block in np.unique(blocks[~whole[blocks]]).tolist():
            start = block * array["block_rows"]
            content = self._rows(name, start, min(start + array["block_rows"], array["rows"]))
            if zlib.crc32(content.reshape(-1).view(np.uint8).data) != array["crc32"][block]:
                self._compute_again(f"{name}.npy does not match its checksum")
                return
            whole[block] = True

    def _compute_again(self, reason: str) -> None:
        if self._renew is None:
            raise DamagedStoreError(
                f"The store {self.folder} is damaged ({reason}). Start again: it will be computed anew."
            )
        warnings.warn(f"{self.folder} is damaged ({reason}); computing it again.", stacklevel=4)
        _delete(self.folder)
        self._renew()
        ArrayStore.__init__(self, self.folder)
        self._whole = _checked[self.folder]

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        array = self._arrays[name]
        if name not in self._files:
            return np.array(array[start:stop])
        rows = np.empty((stop - start, *array.shape[1:]), array.dtype)
        self._fill(rows, name, start)
        return rows

    def _from_file(self, name: str, indices: np.ndarray) -> np.ndarray:
        array = self._arrays[name]
        rows = np.empty((len(indices), *array.shape[1:]), array.dtype)
        for place, index in enumerate(indices.tolist()):
            if not 0 <= index < len(array):
                raise IndexError(f"Expected rows in 0..{len(array) - 1}; got {index}.")
            self._fill(rows[place : place + 1], name, index)
        return rows

    def _fill(self, rows: np.ndarray, name: str, start: int) -> None:
        """Read consecutive rows from the file into ``rows``, from row ``start`` on."""
        array = self._arrays[name]
        offset = array.offset + start * (array.nbytes // len(array))
        if os.preadv(self._files[name], [rows.reshape(-1).view(np.uint8).data], offset) != rows.nbytes:
            raise DataError(f"{self.folder / name}.npy was cut off while it was in use. Delete {self.folder}.")

    def __getstate__(self) -> dict[str, Any]:
        if self._filling:
            self.wait_until_written()
            return ArrayStore(self.folder).__getstate__()
        return {"folder": self.folder, "meta": self.meta}  # pickling a memory map would copy the whole file

    def __setstate__(self, state: dict[str, Any]) -> None:
        ArrayStore.__init__(self, state["folder"])


def _delete(folder: Path) -> None:
    _checked.pop(folder, None)
    shutil.rmtree(folder, ignore_errors=True)
