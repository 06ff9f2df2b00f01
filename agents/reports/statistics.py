"""Statistics over several runs: mean and spread, interquartile mean, stratified bootstrap intervals.

Interquartile mean and intervals are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (NeurIPS 2021, https://arxiv.org/abs/2108.13264). We wrote them from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hsal_env.errors import ConfigError

FEWEST_RUNS = 3
"""With fewer runs of a task, an interval means little, because the bootstrap has too few scores to draw from."""


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The mean as text. More than one value also gives the sample standard deviation (over n - 1).

    Example:
        >>> spread([0.90, 0.94])
        '0.920 ± 0.028'
    """
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """The interquartile mean (IQM): the mean of the middle half of the scores along the last axis.

    Of n scores, the floor(n / 4) least and the floor(n / 4) greatest are left out. With fewer than four scores it is the mean.
    Outliers move it less than the mean, and it uses more of the scores than the median.

    Args:
        scores: ``[..., n]``, n > 0: the scores of all runs on all tasks together.

    Returns:
        ``[...]``.

    Example:
        >>> float(interquartile_mean(np.array([0.0, 0.5, 0.75, 100.0])))
        0.625
    """
    from scipy.stats import trim_mean  # slow to import, and --help needs none of it

    return np.asarray(trim_mean(scores, 0.25, axis=-1))


def bootstrap_interval(
    tasks: Sequence[Sequence[float]], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of the interquartile mean, by a bootstrap that is stratified by task.

    A resample draws runs with replacement, within every task as many as the task has. The interval runs from the
    (1 - confidence) / 2 to the (1 + confidence) / 2 quantile of the resamples' interquartile means.

    Args:
        tasks: the scores of each task's runs. Tasks may have different numbers of runs.
        confidence: in (0, 1).
        resamples: number of resamples, at least 1.
        seed: of the draws. The same scores and seed give the same interval.

    Raises:
        ConfigError: no task, a task without runs, or an argument outside its range.
    """
    if not tasks or not all(len(runs) for runs in tasks):
        raise ConfigError(
            f"Expected at least one task, and at least one run of every task; got {[len(runs) for runs in tasks]} runs."
        )
    if not 0 < confidence < 1 or resamples < 1:
        raise ConfigError(f"Expected confidence in (0, 1) and resamples of at least 1; got {confidence}, {resamples}.")
    rng = np.random.default_rng(seed)
    drawn = [np.asarray(runs)[rng.integers(len(runs), size=(resamples, len(runs)))] for runs in tasks]
    means = interquartile_mean(np.concatenate(drawn, axis=1))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
