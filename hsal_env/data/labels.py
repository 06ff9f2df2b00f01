"""Labels of images of your own, in the forms that people keep them in, read as one list of whole numbers per image.

| form | example | read as |
|---|---|---|
| a list per image | ``[[3, 3, 0], []]`` | itself |
| one number per image | ``[3, 0, 7]`` | a label each |
| names | ``[["cup", "cup"], ["plate"]]`` | places in the class names |
| texts | ``["3 3 0", "cup; plate"]`` | as in ``labels.csv``: see :func:`split_texts` |
| a table ``[N, C]`` | ``[[1, 0, 0, 2], ...]`` | counts of each class: only if ``labels_are="counts"`` says so |

Arrays, tensors and columns of pandas are read as lists are. What could be read in two ways is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from hsal_env.errors import DataError
from hsal_env.rules import MOST_OBJECTS

LabelsAre = Literal["lists", "counts"]
LABELS_ARE = ("lists", "counts")

MOST_CLASSES = 10_000  # a larger label is probably a mistake: every class is a column of the agent's output


class Labels(NamedTuple):
    """The labels of N images.

    Attributes:
        lists: of each image its labels, whole numbers from 0 on.
        num_classes: C, where the form tells it; else None.
        class_names: the name of each class; () where there are none.
    """

    lists: tuple[tuple[int, ...], ...]
    num_classes: int | None
    class_names: tuple[str, ...]


def read_labels(
    labels: Any, names: Sequence[str], labels_are: LabelsAre | None = None, class_names: Any = None
) -> Labels:
    """Read the labels of the images that messages call ``names``.

    Args:
        labels: any form of the table above.
        names: of each image what messages call it.
        labels_are: ``"lists"``: a row holds labels. In a table -1 fills up the shorter rows. ``"counts"``: a row holds how often
            each class occurs; a multi-hot row is one of them. None: the form decides.
        class_names: the name of each class. None: the names of the columns of a pandas table of counts, or the different names
            that occur, sorted; or none.

    Raises:
        DataError: labels of another number, form or range; a table, or rows of only 0 and 1, without ``labels_are``; a name that
            is not among the class names.

    Example:
        >>> read_labels([["cup", "cup"], []], ["a.png", "b.png"])
        Labels(lists=((0, 0), ()), num_classes=1, class_names=('cup',))
        >>> read_labels(np.array([[0, 2, 1]]), ["a.png"], "counts").lists
        ((1, 1, 2),)
    """
    if labels_are not in (None, *LABELS_ARE):
        raise DataError(f"Expected labels_are to be one of {', '.join(LABELS_ARE)}; got {labels_are!r}.")
    known = None if class_names is None else checked_names(class_names)
    columns = getattr(labels, "columns", None)
    rows = _rows(labels)
    if len(rows) != len(names):
        raise DataError(f"Expected as many lists of labels as images; got {len(rows)} for {len(names)} images.")
    is_table = isinstance(rows, np.ndarray)
    if not is_table:
        rows = _split(rows, known or ())
    if labels_are == "counts" or (labels_are is None and is_table and rows.dtype == bool):
        if known is None and columns is not None and all(isinstance(column, str) for column in columns):
            known = checked_names(columns)
        return _of_counts(rows, names, known)
    if is_table:
        if labels_are is None and not (rows == -1).any():
            raise _ambiguous(*rows.shape)
        rows = [[value for value in row if value != -1] for row in rows.tolist()]
    named = any(
        isinstance(value, str) for row in rows if not isinstance(row, str) and np.iterable(row) for value in row
    )
    if named:
        rows, known = _numbered(rows, names, known)
    lists = tuple(_label_list(row, name) for row, name in zip(rows, names, strict=True))
    if labels_are is None and not (is_table or named) and _may_be_counts(lists):
        raise _ambiguous(len(lists), len(lists[0]))
    return Labels(lists, len(known) if known else None, known or ())


def split_texts(texts: Iterable[str], class_names: Sequence[str] = ()) -> list[list[str]]:
    """Split each text into labels.

    They are separated by ``;``, ``,`` or ``|`` if one of these occurs in any of the texts, and then names may have blanks; else
    by blanks. Brackets around a text and quotes around a label are taken off, since pandas writes lists with them. A text that is
    a class name is one label.

    Example:
        >>> split_texts(["3 3 0", ""]), split_texts(["traffic light; bus", "bus"]), split_texts(["['cup', 'cup']"])
        ([['3', '3', '0'], []], [['traffic light', 'bus'], ['bus']], [['cup', 'cup']])
    """
    bare = [re.sub(r"^[\[({](.*)[\])}]$", r"\1", text.strip()) for text in texts]
    apart = r"[;,|]" if any(re.search(r"[;,|]", text) for text in bare) else r"\s+"
    return [
        [text] if text in class_names else [part for part in (p.strip(" \t'\"") for p in re.split(apart, text)) if part]
        for text in bare
    ]


def checked_names(class_names: Any) -> tuple[str, ...]:
    """Class names as a tuple.

    Raises:
        DataError: no names, a name that is no text, is empty or occurs twice, or a whole number that is not its own place.
    """
    names = [class_names] if isinstance(class_names, str) else [*class_names]
    if not names:
        raise DataError("Expected at least one class name; got none.")
    for place, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"Expected class names as texts; got {name!r} for label {place}.")
        if name.strip() in [str(earlier).strip() for earlier in names[:place]]:
            raise DataError(f"Expected each class name once; got {name!r} again for label {place}.")
        if _is_number(name.strip()) and name.strip() != str(place):
            raise DataError(
                f"Expected class names that no label can be taken for; got {name!r} for label {place}. Spell it out, as in "
                f"'no. {name}'."
            )
    return tuple(name.strip() for name in names)


def on_host(values: Any) -> np.ndarray:
    """An array of numpy. A tensor comes from its device."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _rows(labels: Any) -> Any:
    """A row for each image: a list of them, or a table, which is a two-dimensional array of numbers."""
    try:
        rows = on_host(labels) if hasattr(labels, "ndim") else [*labels]
        if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype.kind in "biuf":
            return rows
        if isinstance(labels, str | dict):
            raise TypeError
        return [on_host(row) if hasattr(row, "detach") else row for row in rows]
    except TypeError:
        raise DataError(f"Expected labels as one list of whole numbers per image; got {labels!r}.") from None


def _split(rows: list[Any], class_names: Sequence[str]) -> list[Any]:
    """Rows that are all texts, or all a number, as lists. Empty cells of pandas are NaN."""
    empty = [isinstance(row, float) and row != row for row in rows]
    if any(isinstance(row, str) for row in rows) and all(
        isinstance(row, str) or nothing for row, nothing in zip(rows, empty, strict=True)
    ):
        texts = split_texts(("" if nothing else row for row, nothing in zip(rows, empty, strict=True)), class_names)
        return [[int(t) if _is_number(t) and t not in class_names else t for t in row] for row in texts]
    return [[row] for row in rows] if all(np.isscalar(row) and not isinstance(row, str) for row in rows) else rows


def _of_counts(rows: Any, names: Sequence[str], class_names: tuple[str, ...] | None) -> Labels:
    width = len([*rows[0]]) if len(rows) and np.iterable(rows[0]) else 0
    for row, name in zip(rows, names, strict=True):
        values = [*row] if np.iterable(row) else []
        numbers = all(isinstance(value, int | float | np.number | np.bool_) for value in values)
        if not numbers or len(values) != width or not 0 < width <= MOST_CLASSES:
            raise DataError(
                f"{name}: expected how often each of the C classes occurs, C in 1..{MOST_CLASSES} and the same for all images; "
                f"got {row!r}."
            )
    table = np.array([[*row] for row in rows])
    wrong = ~((table == np.round(table)) & (table >= 0) & (table <= MOST_OBJECTS))
    if wrong.any():
        row, label = np.argwhere(wrong)[0]
        raise DataError(
            f"{names[row]}: expected counts as whole numbers in 0..{MOST_OBJECTS}; got {table[row, label]} of label {label}."
        )
    if class_names and len(class_names) != table.shape[1]:
        raise DataError(f"Expected {len(class_names)} counts per image, one for each class name; got {table.shape[1]}.")
    lists = tuple(tuple(np.repeat(np.arange(width), row).tolist()) for row in table.astype(np.int64))
    return Labels(lists, width, class_names or ())


def _ambiguous(rows: int, columns: int) -> DataError:
    return DataError(
        f"Expected labels that can be read in one way only; got {rows} rows of {columns} numbers, which may be lists of labels, "
        f"or counts of {columns} classes, such as multi-hot rows. Say which: labels_are='lists' or labels_are='counts'. In "
        "labels.csv the first line says it: file,labels or file,counts."
    )


def _may_be_counts(lists: Sequence[Sequence[int]]) -> bool:
    """Whether lists of labels could be multi-hot rows: all of one length above 1, and of nothing but 0 and 1."""
    return bool(lists) and len(lists[0]) > 1 and all(len(row) == len(lists[0]) and max(row) <= 1 for row in lists)


def _numbered(
    rows: Sequence[Any], names: Sequence[str], class_names: tuple[str, ...] | None
) -> tuple[list[list[int]], tuple[str, ...]]:
    """Names of classes as places in ``class_names``; None: in the sorted names that occur."""
    for row, name in zip(rows, names, strict=True):
        if class_names is None and not all(isinstance(value, str) and any(map(str.isalpha, value)) for value in row):
            raise DataError(
                f"{name}: expected labels as whole numbers from 0 on, or in all images as names, which have a letter; got "
                f"{[*row]!r}."
            )
    known = class_names or checked_names(sorted({value for row in rows for value in row}))
    places = {name: place for place, name in enumerate(known)}
    for row, name in zip(rows, names, strict=True):
        unknown = [value for value in row if value not in places]
        if unknown:
            raise DataError(f"{name}: expected labels among the class names {', '.join(known)}; got {unknown[0]!r}.")
    return [[places[value] for value in row] for row in rows], known


def _label_list(row: Any, name: str) -> tuple[int, ...]:
    try:
        values = [*row]
    except TypeError:
        raise DataError(
            f"{name}: expected a list of labels; got {row!r}. Write a single label as a list, too: [{row!r}]."
        ) from None
    for value in values:
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or not 0 <= value < MOST_CLASSES:
            raise DataError(f"{name}: expected labels as whole numbers in 0..{MOST_CLASSES - 1}; got {value!r}.")
    return tuple(int(value) for value in values)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
