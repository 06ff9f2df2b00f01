"""Statistics over runs: numbers by hand, and a slow oracle."""

import itertools
import statistics

import numpy as np
import pytest

from agents.reports.statistics import bootstrap_interval, interquartile_mean, spread
from hsal_env.errors import ConfigError


@pytest.mark.parametrize(
    ("scores", "mean"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 6.0], 3.0),  # fewer than four: none is left out
        ([100.0, 2.0, 4.0, -50.0], 3.0),  # one at either end
        ([0.0, 9.0, 1.0, 2.0, 3.0], 2.0),  # floor(5 / 4) = 1
        ([8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0], 4.5),  # 3, 4, 5, 6
        ([0.0, 0.0, 5.0, 6.0, 7.0, 99.0, 99.0], 117 / 5),  # floor(7 / 4) = 1: 0, 5, 6, 7, 99
    ],
)
def test_the_interquartile_mean_by_hand(scores: list[float], mean: float):
    assert interquartile_mean(np.array(scores)) == pytest.approx(mean)


def test_the_interquartile_mean_is_that_of_each_row():
    rows = np.random.default_rng(0).normal(size=(3, 5, 9))
    found = interquartile_mean(rows)
    assert found.shape == (3, 5)
    for at in np.ndindex(3, 5):
        middle = sorted(rows[at].tolist())[2:-2]
        assert found[at] == pytest.approx(statistics.mean(middle))


def test_equal_scores_have_an_interval_of_no_width():
    assert bootstrap_interval([[0.5, 0.5], [0.5]]) == (0.5, 0.5)


def test_one_run_per_task_can_only_be_drawn_as_it_is():
    assert bootstrap_interval([[1.0], [2.0], [6.0]]) == (3.0, 3.0)


def test_the_interval_of_two_runs_by_hand():
    # the means of the resamples are 0, 1/2, 1/2 and 1 with probability 1/4 each
    assert bootstrap_interval([[0.0, 1.0]]) == (0.0, 1.0)
    assert bootstrap_interval([[0.0, 1.0]], confidence=0.4) == (0.5, 0.5)  # from the 0.3 to the 0.7 quantile


def test_runs_are_drawn_within_their_tasks():
    # pooled, a resample could hold ten nines; by task it holds one, and the mean of the others stays
    low, high = bootstrap_interval([[9.0], [0.0, 1.0]])
    assert (low, high) == (pytest.approx(9 / 3), pytest.approx(11 / 3))


def test_the_interval_is_that_of_all_resamples_counted_one_by_one():
    tasks = [[0.1, 0.5, 0.9], [0.2, 0.3]]
    means = []
    for first in itertools.product(tasks[0], repeat=3):  # 27 * 4 equally probable resamples
        for second in itertools.product(tasks[1], repeat=2):
            middle = sorted([*first, *second])[1:-1]
            means.append(sum(middle) / 3)
    expected = np.quantile(means, [0.1, 0.9])
    assert bootstrap_interval(tasks, confidence=0.8, resamples=40_000) == pytest.approx(expected, abs=0.01)


def test_the_interval_is_repeatable_and_depends_on_the_seed():
    scores = [np.random.default_rng(1).normal(size=7).tolist()]
    few = {"resamples": 50}
    assert bootstrap_interval(scores, **few) == bootstrap_interval(scores, **few)
    assert bootstrap_interval(scores, **few) != bootstrap_interval(scores, **few, seed=1)


@pytest.mark.parametrize(
    ("tasks", "changed", "said"),
    [
        ([], {}, r"at least one task, and at least one run of every task; got \[\] runs"),
        ([[1.0], []], {}, r"got \[1, 0\] runs"),
        ([[1.0]], {"confidence": 1.0}, r"confidence in \(0, 1\).*got 1.0, 10000"),
        ([[1.0]], {"resamples": 0}, "resamples of at least 1; got 0.95, 0"),
    ],
)
def test_what_cannot_be_resampled_is_refused(tasks: list, changed: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        bootstrap_interval(tasks, **changed)


@pytest.mark.parametrize(
    ("values", "digits", "text"),
    [([0.12345], 3, "0.123"), ([0.90, 0.94], 3, "0.920 ± 0.028"), ([1.0, 3.0], 1, "2.0 ± 1.4")],
)
def test_a_spread_in_words(values: list[float], digits: int, text: str):
    assert spread(values, digits) == text
