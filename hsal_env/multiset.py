"""Scores of predicted multisets against true ones (paper section 5, "Evaluation Metrics")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hsal_env.errors import DataError

SCORES = ("exact_match", "macro_f1", "micro_f1", "overall_precision", "overall_recall", "example_f1")
"""The names of the scores, in the order of all tables."""


def scores(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Compare the predicted and the true label counts of N images, ``[N, C]`` each.

    With TP_nc = min(predicted, true):

    - ``exact_match``: share of images whose multisets are equal (the paper's 0-1);
    - ``macro_f1``: per class 2 sum_n TP / sum_n (predicted + true), then the mean over the classes that occur in either;
    - ``micro_f1``, ``overall_precision``, ``overall_recall``: from the sums over images and classes (OP, OR);
    - ``example_f1``: the mean over images of each image's F1 (1 where both multisets are empty).

    Raises:
        DataError: shapes differ or are not ``[N, C]`` with N > 0, or a count is negative.

    Example:
        >>> found = scores([[2, 0], [0, 1]], [[2, 0], [1, 1]])  # counts of two labels on two images
        >>> found["exact_match"], found["overall_precision"], found["overall_recall"]
        (0.5, 1.0, 0.75)
    """
    predicted, true = _checked(predicted, true)
    hits = np.minimum(predicted, true)

    def f1(hit: np.ndarray, both: np.ndarray) -> np.ndarray:
        return np.where(both > 0, 2 * hit / np.maximum(both, 1), 1.0)

    both_by_class = (predicted + true).sum(0)
    by_class = f1(hits.sum(0), both_by_class)[both_by_class > 0]
    return {
        "exact_match": float((predicted == true).all(1).mean()),
        "macro_f1": float(by_class.mean()) if len(by_class) else 1.0,
        "micro_f1": float(f1(hits.sum(), both_by_class.sum())),
        "overall_precision": float(hits.sum() / max(predicted.sum(), 1)),
        "overall_recall": float(hits.sum() / max(true.sum(), 1)),
        "example_f1": float(f1(hits.sum(1), (predicted + true).sum(1)).mean()),
    }


def count_errors(predicted: np.ndarray, true: np.ndarray, class_names: Sequence[str] = ()) -> dict[str, Any]:
    """How far the predicted label counts of N images are from the true ones, ``[N, C]`` each: mean absolute differences.

    - ``count_error``: ``by_class``, the mean over images of ``|predicted - true|`` for each class, by its name, or by its number
      as text where the classes have no names; and ``mean``, the mean of these over the classes;
    - ``total_error``: the mean over images of the difference between the numbers of all objects.

    Raises:
        DataError: as of :func:`scores`.

    Example:
        >>> count_errors([[2, 0], [0, 1]], [[1, 1], [1, 1]], ["cup", "plate"])
        {'count_error': {'mean': 0.75, 'by_class': {'cup': 1.0, 'plate': 0.5}}, 'total_error': 0.5}
    """
    predicted, true = _checked(predicted, true)
    by_class = np.abs(predicted - true).mean(axis=0)
    names = class_names or [str(label) for label in range(len(by_class))]
    return {
        "count_error": {"mean": float(by_class.mean()), "by_class": dict(zip(names, by_class.tolist(), strict=True))},
        "total_error": float(np.abs(predicted.sum(axis=1) - true.sum(axis=1)).mean()),
    }


def _checked(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, true = np.asarray(predicted, np.int64), np.asarray(true, np.int64)
    if predicted.shape != true.shape or true.ndim != 2 or not len(true):
        raise DataError(
            f"Expected two arrays of counts [N, C] with N > 0; got shapes {predicted.shape} and {true.shape}."
        )
    if min(predicted.min(), true.min()) < 0:
        raise DataError("Expected label counts of at least 0; got negative ones.")
    return predicted, true


def most_frequent(counts: np.ndarray) -> np.ndarray:
    """The multiset ``[C]`` that occurs most often in ``counts`` ``[N, C]``: what a blind guess should say.

    Example:
        >>> most_frequent(np.array([[1, 0], [0, 2], [1, 0]]))
        array([1, 0])
    """
    kinds, occurrences = np.unique(counts, axis=0, return_counts=True)
    return kinds[occurrences.argmax()]


def label_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """Turn label lists ``[B, N]``, padded with -1, into counts int64 ``[B, C]``.

    Raises:
        DataError: a label outside -1..C - 1.
    """
    if labels.size and not -1 <= labels.min() <= labels.max() < classes:
        raise DataError(f"Expected labels in 0..{classes - 1}, or -1; got {labels.min()}..{labels.max()}.")
    lanes, slots = np.nonzero(labels >= 0)
    counts = np.zeros((len(labels), classes), np.int64)
    np.add.at(counts, (lanes, labels[lanes, slots]), 1)
    return counts
