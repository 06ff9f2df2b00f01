"""The paper's results, which reports show with our own."""

from __future__ import annotations

TABLE_1 = {
    ("multiset", "reinforce"): (0.978, 0.935),
    ("set", "reinforce"): (0.990, 0.960),
    ("multiset", "cross-entropy"): (0.726, 0.477),
    ("set", "cross-entropy"): (0.735, 0.478),
    ("svhn", "reinforce"): (0.973, 0.947),
    ("svhn", "cross-entropy"): (0.589, 0.307),
}
"""Table 1 of the paper: (macro-F1, 0-1) by data and algorithm. The data are the two MNIST tasks, with 1 to 4 digits of 20 to 50
px, and SVHN."""
