"""What several runs say together: mean and spread, interquartile mean, stratified bootstrap intervals.

The last two are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS
2021, https://arxiv.org/abs/2108.13264), written from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hsal_env.errors import ConfigError

FEWEST_RUNS = 3
"""With fewer runs of a task, an interval means little: the bootstrap has next to nothing to draw from."""


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and sample standard deviation (over n - 1) where there is more than one value, as text.

    Example:
        >>> spread([0.90, 0.94])
        '0.920 ± 0.028'
    """
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """IQM: the mean of the middle half of the n scores along the last axis; floor(n / 4) are left out at either end.

    More robust than the mean and less wasteful than the median. With fewer than four scores it is the mean.

    Args:
        scores: ``[..., n]``, n > 0: the scores of all runs on all tasks, pooled.

    Returns:
        ``[...]``.

    Example:
        >>> float(interquartile_mean(np.array([0.0, 0.5, 0.75, 100.0])))
        0.625
    """
    cut = scores.shape[-1] // 4
    return np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    tasks: Sequence[Sequence[float]], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the interquartile mean, by a bootstrap that is stratified by task.

    Each resample draws, within every task, as many of its runs as it has, with replacement; the ends of the interval are the
    (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of the resamples' interquartile means.

    Args:
        tasks: the scores of the runs on each task; tasks may have different numbers of runs.
        confidence: in (0, 1).
        resamples: how many, at least 1.
        seed: of the draws: the same scores give the same interval.

    Raises:
        ConfigError: no task, a task without runs, or an argument outside its range.
    """
    if not tasks or not all(len(runs) for runs in tasks):
        raise ConfigError(f"Expected at least one run of every task; got {[len(runs) for runs in tasks]} runs.")
    if not 0 < confidence < 1 or resamples < 1:
        raise ConfigError(f"Expected confidence in (0, 1) and resamples of at least 1; got {confidence}, {resamples}.")
    rng = np.random.default_rng(seed)
    drawn = [np.asarray(runs)[rng.integers(len(runs), size=(resamples, len(runs)))] for runs in tasks]
    means = interquartile_mean(np.concatenate(drawn, axis=1))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
