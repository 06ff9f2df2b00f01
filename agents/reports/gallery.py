"""Choose episodes to look at from many recorded ones: the best, the typical and the worst."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.reports.mistakes import Episode, describe
from hsal_env.trace import Trace

KINDS = {
    "best": "Fewest labels are missing or too many; then the least certain label has the highest probability.",
    "typical": "As many labels are missing or too many as in the median episode, or nearly; then the probability of the least "
    "certain label is nearest the median over all episodes.",
    "worst": "The multiset is wrong. Most labels are missing or too many; then the wrong label is the most probable.",
}
"""The meaning of each choice. In a tie the earlier canvas comes first."""


def least_probability(trace: Trace) -> float:
    """The smallest probability of the labels and the stop that the agent named, in [0, 1]."""
    return float(np.exp(trace.log_prob[trace.label >= 0].min()))


def label_errors(episode: Episode) -> int:
    """How many labels are missing or too many."""
    return int(np.abs(episode.true - episode.named).sum())


def worst_first(episode: Episode) -> tuple[int, float, int]:
    """A key that sorts wrong episodes: most labels missing or too many first, then the surest wrong label."""
    return -label_errors(episode), -episode.confidence, episode.canvas_index


def choose(traces: Sequence[Trace], number: int = 3) -> dict[str, list[Trace]]:
    """At most ``number`` episodes of each of :data:`KINDS`, in order. There must be at least one trace."""
    sure = [least_probability(trace) for trace in traces]
    median = float(np.median(sure))
    episodes = [describe(trace) for trace in traces]
    errors = [label_errors(episode) for episode in episodes]
    middle = float(np.median(errors))
    everyone = range(len(traces))
    wrong = [i for i, episode in enumerate(episodes) if episode.kind != "right"]
    orders = {
        "best": sorted(everyone, key=lambda i: (errors[i], -sure[i], traces[i].canvas_index)),
        "typical": sorted(
            everyone, key=lambda i: (abs(errors[i] - middle), abs(sure[i] - median), traces[i].canvas_index)
        ),
        "worst": sorted(wrong, key=lambda i: worst_first(episodes[i])),
    }
    return {kind: [traces[i] for i in order[:number]] for kind, order in orders.items()}
