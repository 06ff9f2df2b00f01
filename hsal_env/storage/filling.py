"""How a store of arrays is written, at once or by a thread while it is read. See :mod:`hsal_env.storage.array_store`."""

from __future__ import annotations

import atexit
import io
import json
import math
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hsal_env.errors import DataError
from hsal_env.storage.checksums import BlockChecksums
from hsal_env.storage.files import creating_folder

_BLOCK_BYTES = 1 << 18  # of rows that share a checksum, as far as whole rows go

Record = dict[str, np.ndarray]
Batches = Callable[[], Iterable[Record]]


def write_store(
    folder: Path,
    batches: Batches,
    length: int | None,
    hint: str,
    written: Callable[[Path, dict[str, int]], None] | None = None,
) -> None:
    """Write a store, unless another process is first.

    Args:
        folder, batches, length, hint: see :meth:`hsal_env.storage.array_store.ArrayStore.open`.
        written: is told after each batch the temporary folder, and how many rows each array has there.

    Raises:
        DataError: the store cannot be written (no space, no permission), or ``batches`` yields another number of rows than
            ``length``. Nothing is left behind.
    """
    try:
        with creating_folder(folder) as temporary:
            _write(temporary, batches(), length, written)
    except OSError as error:
        raise DataError(
            f"Cannot write the store {folder}: {error}. Free space, or set HSAL_CACHE to a folder with room{hint}."
        ) from error


_running: dict[Path, Filling] = {}
"""The threads that write stores in this process, by the folder of the store."""


@atexit.register
def _give_up() -> None:
    for filling in [*_running.values()]:
        filling.stop()


class Filling:
    """A thread that writes a store. What it has not written when the process ends is given up, and nothing is left behind.

    Args:
        folder, batches, length, hint: see :meth:`hsal_env.storage.array_store.ArrayStore.open`.
        begun: is called once, when the first rows are written, with the temporary folder and the names of the arrays.
        ended: is called once, when the store has its name.
    """

    def __init__(
        self,
        folder: Path,
        batches: Batches,
        length: int,
        hint: str,
        begun: Callable[[Path, list[str]], None],
        ended: Callable[[], None],
    ) -> None:
        self.folder, self._end = folder, ended
        self._begun: Callable[[Path, list[str]], None] | None = begun
        self._rows, self._ended, self._stopped = 0, False, False
        self._error: BaseException | None = None
        self._changed, self._process = threading.Condition(), os.getpid()
        self._thread = threading.Thread(target=self._run, args=(batches, length, hint), daemon=True)
        _running[folder] = self
        self._thread.start()

    @staticmethod
    def wait_for_others(folder: Path) -> None:
        """Wait for a thread of this process that is writing the store in ``folder``, if there is one."""
        if (other := _running.get(folder)) and other._process == os.getpid():
            other._thread.join()

    def wait_for(self, rows: int | None) -> None:
        """Wait until every array has so many rows; None: until the store has its name.

        Raises:
            DataError: they cannot be written; or this is a forked process, which lacks the thread.
        """

        def are_there() -> bool:
            return self._ended if rows is None else self._rows >= rows

        if are_there() and self._error is None:
            return
        if os.getpid() != self._process:
            raise DataError(
                f"The store {self.folder} is not yet written. Fork after that, or start processes by 'spawn'."
            )
        with self._changed:
            self._changed.wait_for(lambda: self._ended or are_there())
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Give up what is not yet written."""
        if os.getpid() == self._process:
            self._stopped = True
            self._thread.join()

    def _run(self, batches: Batches, length: int, hint: str) -> None:
        def until_stopped() -> Iterator[Record]:
            for batch in batches():
                if self._stopped:
                    raise DataError(f"The store {self.folder} was given up.")
                yield batch

        error: BaseException | None = None
        try:
            write_store(self.folder, until_stopped, length, hint, self._tell)
            self._end()
        except BaseException as raised:  # whoever waits for rows raises it
            error = raised
        _running.pop(self.folder, None)
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def _tell(self, place: Path, rows: dict[str, int]) -> None:
        if self._begun:
            self._begun(place, [*rows])
            self._begun = None
        with self._changed:
            self._rows = min(rows.values())
            self._changed.notify_all()


def _write(
    folder: Path, batches: Iterable[Record], length: int | None, written: Callable[[Path, dict[str, int]], None] | None
) -> None:
    files: dict[str, BinaryIO] = {}
    kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}  # shape of a row, dtype
    arrays: dict[str, dict[str, Any]] = {}
    sums: dict[str, BlockChecksums] = {}
    with ExitStack() as opened:
        for batch in batches:
            for name, values in batch.items():
                if name not in files:
                    files[name] = opened.enter_context((folder / f"{name}.npy").open("wb"))
                    kinds[name] = shape, dtype = values.shape[1:], values.dtype
                    _begin(files[name], length or 0, shape, dtype)
                    row_bytes = dtype.itemsize * math.prod(shape)
                    block_rows = max(1, _BLOCK_BYTES // max(1, row_bytes))
                    arrays[name] = {"rows": 0, "header_crc32": 0, "block_rows": block_rows}
                    sums[name] = BlockChecksums(max(1, block_rows * row_bytes))
                arrays[name]["rows"] += len(values)
                if length is not None and arrays[name]["rows"] > length:
                    raise DataError(f"Expected {length} examples for the store; got more.")
                plain = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
                files[name].write(plain.data)
                sums[name].add(plain.data)
            if written:
                for file in files.values():
                    file.flush()
                written(folder, {name: array["rows"] for name, array in arrays.items()})
        for name, array in arrays.items():
            if length not in (None, array["rows"]):
                raise DataError(f"Expected {length} examples for the store; got {array['rows']} of {name}.")
            files[name].seek(0)
            # the header has room for any number of rows
            array["header_crc32"] = _begin(files[name], array["rows"], *kinds[name])
            array["crc32"] = sums[name].values
    (folder / "store.json").write_text(json.dumps({"length": length, "arrays": arrays}))


def _begin(file: BinaryIO, rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Write the header of a ``.npy`` file, and reserve the array's space, so that a full disk fails now and not after minutes.

    Returns:
        the header's checksum.
    """
    head = {"shape": (rows, *shape), "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, head)
    file.write(header.getvalue())
    file.flush()
    size = file.tell() + dtype.itemsize * rows * math.prod(shape)
    if rows and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    elif os.fstat(file.fileno()).st_size < size:
        file.truncate(size)  # a map of the whole array can be opened before it is written
    return zlib.crc32(header.getvalue())
