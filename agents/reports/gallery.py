"""Which of many recorded episodes to look at: the best, the typical and the worst."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.reports.mistakes import Episode, describe
from hsal_env.trace import Trace

KINDS = {
    "best": "Right, and the least certain of its labels is the most certain.",
    "typical": "Their least probability of a label is nearest the median over all episodes.",
    "worst": "Wrong, with most labels too many or missing, then with the most probable wrong label.",
}
"""What each choice means; ties go to the earlier canvas."""


def least_probability(trace: Trace) -> float:
    """The smallest probability of a label or stop that was named, in [0, 1]: how sure the agent was throughout."""
    return float(np.exp(trace.log_prob[trace.label >= 0].min()))


def worst_first(episode: Episode) -> tuple[int, float, int]:
    """A key to sort wrong episodes by."""
    return -int(np.abs(episode.true - episode.named).sum()), -episode.confidence, episode.canvas_index


def choose(traces: Sequence[Trace], number: int = 3) -> dict[str, list[Trace]]:
    """At most ``number`` episodes of each of :data:`KINDS`, in order. ``traces``: at least one."""
    sure = [least_probability(trace) for trace in traces]
    median = float(np.median(sure))
    episodes = [describe(trace) for trace in traces]
    right = [i for i, episode in enumerate(episodes) if episode.kind == "right"]
    wrong = [i for i, episode in enumerate(episodes) if episode.kind != "right"]
    orders = {
        "best": sorted(right, key=lambda i: (-sure[i], traces[i].canvas_index)),
        "typical": sorted(range(len(traces)), key=lambda i: (abs(sure[i] - median), traces[i].canvas_index)),
        "worst": sorted(wrong, key=lambda i: worst_first(episodes[i])),
    }
    return {kind: [traces[i] for i in order[:number]] for kind, order in orders.items()}
