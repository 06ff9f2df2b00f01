"""The files beside images of your own: ``labels.csv``, images and their labels, and ``classes.txt``, the names of the labels."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hsal_env.data.labels import LabelsAre, checked_names
from hsal_env.data.pixels import IMAGE_SUFFIXES
from hsal_env.errors import DataError

LABELS_FILE, CLASSES_FILE = "labels.csv", "classes.txt"

_FILE_COLUMNS = ("file", "filename", "file_name", "image", "path")
_BOX_COLUMN = "boxes"
_LABEL_COLUMNS: dict[str, LabelsAre] = {"labels": "lists", "label": "lists", "counts": "counts"}


class LabelFile(NamedTuple):
    """What a ``labels.csv`` says of N images.

    Attributes:
        files: the images.
        texts: their labels, as they are written.
        where: what messages call each line.
        boxes: their boxes (row, col, height, width) in px, float ``[n, 4]``; None where the file names none.
        labels_are: what the first line says the labels are; None: there is no such line.
    """

    files: list[Path]
    texts: list[str]
    where: list[str]
    boxes: list[np.ndarray | None]
    labels_are: LabelsAre | None


def read_label_file(path: Path, root: Path | None) -> LabelFile:
    """Read a ``labels.csv``.

    The first line names the columns: ``file`` (or ``filename``, ``file_name``, ``image``, ``path``), and ``labels`` (or
    ``label``) or ``counts``. A column ``boxes`` may name the box of each label, as ``row col height width`` in px, with
    semicolons between the boxes; it may be empty. A column without a name, in which pandas numbers the rows, is passed over.
    Without such a line the columns are file and labels. Columns are separated by commas, or by the semicolons or tabs of the
    first line.

    Args:
        path: the file.
        root: the folder in which all images must lie; None: they may lie anywhere.

    Raises:
        DataError: the file is missing, damaged, or not as described, names an image twice, or one outside ``root``.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = next((mark for mark in ",;\t" if mark in first), ",")
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}. Expected text in UTF-8.") from error
    lines = [(number, row) for number, row in lines if row not in ([], [""])]
    head = lines[0][1] if lines else []
    width, at_file, at_labels, at_boxes, labels_are = 2, 0, 1, None, None
    if not head or not head[0].lower().endswith(IMAGE_SUFFIXES):
        width, (at_file, at_labels, at_boxes, labels_are) = len(head), _columns(path, head)
        lines = lines[1:]
    found = LabelFile([], [], [], [], labels_are)
    known: set[Path] = set()
    for number, row in lines:
        where = f"{path}, line {number}"
        if len(row) != width or not row[at_file]:
            raise DataError(
                f"{where}: expected a file, a comma, and labels separated by spaces; got {row}. Write several labels with spaces "
                "between them, or in quotes."
            )
        file_name = path.parent / row[at_file]
        check_inside(file_name, root, where, row[at_file])
        if file_name in known:
            raise DataError(f"{where}: {row[at_file]} is listed twice. Write all its labels in one line.")
        known.add(file_name)
        found.files.append(file_name)
        found.texts.append(row[at_labels])
        found.where.append(f"{where} ({row[at_file]})")
        found.boxes.append(None if at_boxes is None else _boxes(row[at_boxes], where))
    if not found.files:
        raise DataError(f"{path} names no images.")
    return found


def read_class_file(path: Path) -> tuple[str, ...] | None:
    """The class names in a ``classes.txt``, one in each line, the first for label 0; None without such a file.

    Raises:
        DataError: the file cannot be read, or see :func:`hsal_env.data.labels.checked_names`.
    """
    if not path.is_file():
        return None
    try:
        return checked_names(path.read_text(encoding="utf-8-sig").rstrip().split("\n"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error} Expected a class name in each line, in UTF-8.") from error


def check_inside(file: Path, root: Path | None, where: str, name: str) -> None:
    """Refuse a file that lies outside ``root``, be it by ``..``, by an absolute path or by a link. None: it may lie anywhere.

    Raises:
        DataError: it does, or its name can be no name of a file. The message begins with ``where`` and calls it ``name``.
    """
    try:
        inside = root is None or file.resolve().is_relative_to(root)
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a null byte
        raise DataError(f"{where}: {file.name!r} is no name of a file: {error}.") from error
    if not inside:
        raise DataError(
            f"{where}: expected a file in {root}; got {name}, which lies outside. Move it there, or read the folder with "
            "hsal_env.data.custom.load_folder(FOLDER, outside=True)."
        )


def _columns(path: Path, head: list[str]) -> tuple[int, int, int | None, LabelsAre]:
    """Where the first line says that files, labels and boxes stand, and what the labels are."""
    names = [name.lower() for name in head]
    files = [i for i, name in enumerate(names) if name in _FILE_COLUMNS]
    labels = [i for i, name in enumerate(names) if name in _LABEL_COLUMNS]
    boxes = [i for i, name in enumerate(names) if name == _BOX_COLUMN]
    others = [name for name in names if name not in (*_FILE_COLUMNS, *_LABEL_COLUMNS, _BOX_COLUMN, "")]
    if len(files) != 1 or len(labels) != 1 or len(boxes) > 1 or others:
        raise DataError(
            f"{path}: expected the first line 'file,labels'; got {','.join(head)!r}. Name the columns so: the file, and its "
            "labels ('labels') or how often each class occurs ('counts'), separated by spaces; there may be 'boxes'. Leave out "
            "other columns."
        )
    labels_are = _LABEL_COLUMNS[names[labels[0]]]
    if boxes and labels_are == "counts":
        raise DataError(f"{path}: expected 'labels' beside 'boxes', since a box belongs to a label; got 'counts'.")
    return files[0], labels[0], boxes[0] if boxes else None, labels_are


def _boxes(text: str, where: str) -> np.ndarray | None:
    if not text:
        return None
    try:
        boxes = np.array([[float(number) for number in part.split()] for part in text.split(";")], np.float64)
        if boxes.shape[1:] != (4,) or not np.isfinite(boxes).all():
            raise ValueError
    except ValueError:
        raise DataError(
            f"{where}: expected boxes as 'row col height width' in px, with ';' between them; got {text!r:.120}."
        ) from None
    return boxes
