"""Which of many recorded episodes to look at: the best, the typical and the worst."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hsal_env.trace import Trace

KINDS = {
    "best": "right, with the highest least probability of a label",
    "typical": "whose least probability of a label is nearest the median over all episodes",
    "worst": "wrong, with most labels too many or missing, then with the most probable wrong label",
}
"""What each choice means; ties go to the earlier canvas."""


def least_probability(trace: Trace) -> float:
    """The smallest probability of a label or stop that was named, in [0, 1]: how sure the agent was throughout."""
    return float(np.exp(trace.log_prob[trace.label >= 0].min()))


def labels_off(trace: Trace) -> int:
    """How many labels are too many or missing."""
    true, named = (np.bincount(part, minlength=trace.num_classes) for part in (trace.labels, trace.named))
    return int(np.abs(true - named).sum())


def wrong_confidence(trace: Trace) -> float:
    """The highest probability of a label or stop that was wrong; 0 without one."""
    wrong = (trace.label >= 0) & ~trace.right
    return float(np.exp(trace.log_prob[wrong].max())) if wrong.any() else 0.0


def choose(traces: Sequence[Trace], number: int = 3) -> dict[str, list[Trace]]:
    """At most ``number`` episodes of each of :data:`KINDS`, in order."""
    right = [trace for trace in traces if trace.exact_match]
    wrong = [trace for trace in traces if not trace.exact_match]
    median = np.median([least_probability(trace) for trace in traces]) if traces else 0.0

    def first(found: Sequence[Trace], *keys: Sequence[float]) -> list[Trace]:
        order = sorted(range(len(found)), key=lambda i: (*(key[i] for key in keys), found[i].canvas_index))
        return [found[i] for i in order[:number]]

    return {
        "best": first(right, [-least_probability(trace) for trace in right]),
        "typical": first(traces, [abs(least_probability(trace) - median) for trace in traces]),
        "worst": first(wrong, [-labels_off(t) for t in wrong], [-wrong_confidence(t) for t in wrong]),
    }
