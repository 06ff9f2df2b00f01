"""digitStruct.mat: which digits stand where in the images of a folder of SVHN (format 1, "full numbers").

It is an HDF5 file (MATLAB 7.3). ``digitStruct/name`` and ``digitStruct/bbox``, ``[N, 1]`` each, hold references. A name refers
to a file name as UTF-16 codes. A bbox refers to a group with a data set for each of :data:`FIELDS`. For an image of one digit
that data set is the number itself, ``[1, 1]``. For an image of n digits it holds n references to such numbers. Rows and columns
are counted from 0.

A full training set has 600,000 such small objects. They are read through h5py's low-level interface, which takes a quarter of
the time of ``file[reference][()]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from hsal_env.errors import ConfigError, DataError

FIELDS = ("top", "left", "height", "width", "label")


class Entry(NamedTuple):
    """What the file says of one image.

    Attributes:
        name: the name of its file.
        digits: float64 ``[n, 5]``, the :data:`FIELDS` of each digit, unchanged.
    """

    name: str
    digits: np.ndarray


def read_digit_struct(path: Path) -> Iterator[Entry]:
    """Read the file one entry at a time, in its order.

    Raises:
        ConfigError: h5py is not installed.
        DataError: the file is not an HDF5 file, is cut off, or has another layout than described above.
    """
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            names, boxes = (file[f"digitStruct/{part}"][()].ravel() for part in ("name", "bbox"))
            if len(names) != len(boxes):
                raise ValueError(f"{len(names)} names for {len(boxes)} lists of boxes")
            read = _Reader(h5py, file.id)
            for name, box in zip(names, boxes, strict=True):
                yield Entry(read.name(name), read.digits(box))
    except Exception as error:  # damage shows as errors of many kinds
        raise DataError(
            f"{path}: cannot be read as SVHN's digitStruct.mat ({type(error).__name__}: {error}). Fetch the archive again."
        ) from error


class _Reader:
    """Follows the references of an open file."""

    def __init__(self, h5py: ModuleType, file: Any) -> None:
        self._file, self._everything = file, h5py.h5s.ALL
        self._data_set = h5py.h5d.DatasetID
        self._dereference, self._open = h5py.h5r.dereference, h5py.h5d.open
        self._number = np.empty((1, 1))
        self._one = h5py.h5s.create_simple((1, 1))  # HDF5 refuses to read more than fits
        self._keys = [field.encode() for field in FIELDS]

    def name(self, reference: Any) -> str:
        """The text that a reference points to."""
        data_set = self._dereference(reference, self._file)
        codes = np.empty(data_set.shape, "<u2")
        data_set.read(self._everything, self._everything, codes)
        return codes.tobytes().decode("utf-16-le")

    def digits(self, reference: Any) -> np.ndarray:
        """The :data:`FIELDS` of the digits that a reference points to, ``[n, 5]``. MATLAB writes an empty list as a data set."""
        group = self._dereference(reference, self._file)
        if isinstance(group, self._data_set) or not len(group):
            return np.empty((0, len(FIELDS)))
        columns = [self._numbers(self._open(group, key)) for key in self._keys]
        return np.array(columns).T  # a ValueError where fields are of several lengths

    def _numbers(self, data_set: Any) -> list[float]:
        shape = data_set.shape
        if shape == (1, 1):
            return [self._value(data_set)]
        references = np.empty(shape, object)
        data_set.read(self._everything, self._everything, references)
        return [self._value(self._dereference(reference, self._file)) for reference in references.ravel()]

    def _value(self, data_set: Any) -> float:
        data_set.read(self._one, self._everything, self._number)
        return float(self._number[0, 0])


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(f'SVHN needs h5py ({error}): pip install "hsal[svhn]".') from error
    return h5py
