"""The breakdown of errors: what kind an episode is of, and the tables, by hand."""

import json

import numpy as np
import pytest
from traces import MetaStep, trace_of

from agents.reports.mistakes import breakdown, describe
from hsal_env.errors import DataError
from hsal_env.trace import Trace

STOP = 10
MASKS = np.eye(4, dtype=np.float32).reshape(4, 2, 2)  # all of it on one of four cells
BOXES = [[0, 0, 40, 40], [0, 50, 30, 30], [50, 50, 20, 20]]  # cover 0.64, 0.36 and 0.16 of cells 0, 1 and 3


def told(cell: int, label: int, probability: float = 0.5) -> MetaStep:
    return MetaStep((0,), label, probability, MASKS[cell])


def played(steps: list[MetaStep], labels: list[int], boxes: list | None, **changes) -> Trace:
    image = np.zeros((100, 100), np.uint8)
    return trace_of(steps, labels, boxes, map_size=(2, 2), image=image, **changes)


EPISODES = {  # of two threes and a seven
    "right": [told(0, 3), told(3, 7), told(1, 3), told(2, STOP)],
    "wrong label": [told(0, 3), told(1, 5, 0.9), told(3, 7), told(1, STOP, 0.6)],
    "early": [told(1, 3, 0.8), told(0, STOP, 0.7)],
    "late": [told(0, 3), told(1, 3), told(3, 7), told(2, 7, 0.2), told(2, 1, 0.3)],
}


@pytest.mark.parametrize(
    ("kind", "named", "overlaps", "hits", "confidence"),
    [
        ("right", [3, 3, 7], [0.64, 0.16, 0.36], [True, True, True], 0.0),
        ("wrong label", [3, 5, 7], [0.64, 0.36, 0.16, 0.36], [True, False, True, False], 0.9),
        ("early", [3], [0.36, 0.64], [True, False], 0.7),
        ("late", [1, 3, 3, 7, 7], [0.64, 0.36, 0.16], [True, True, True], 0.3),
    ],
)
def test_an_episode_is_of_a_kind(kind: str, named: list, overlaps: list, hits: list, confidence: float):
    episode = describe(played(EPISODES[kind], [3, 7, 3], BOXES))
    assert (episode.canvas_index, episode.kind, episode.hits) == (17, kind, hits)
    assert np.repeat(np.arange(10), episode.true).tolist() == [3, 3, 7]
    assert np.repeat(np.arange(10), episode.named).tolist() == named
    assert episode.overlaps == pytest.approx(overlaps)
    assert episode.confidence == pytest.approx(confidence)
    assert episode.sizes_px.tolist() == [40, 30, 20]


def test_the_tables_of_errors_by_hand():
    alone = played([told(0, 0), told(0, STOP)], [0], [[0, 0, 50, 50]])
    found = breakdown([*(played(steps, [3, 7, 3], BOXES) for steps in EPISODES.values()), alone])
    by_label = found.pop("by label")
    assert found.pop("mean share, right labels") == pytest.approx((3 * 0.64 + 3 * 0.36 + 3 * 0.16 + 1) / 10)
    assert found.pop("mean share, wrong labels") == pytest.approx((0.36 + 0.36 + 0.64) / 3)
    assert found == {
        "episodes": 5,
        "by kind": {"right": {"cases": 2}, "wrong label": {"cases": 1}, "early": {"cases": 1}, "late": {"cases": 1}},
        "by number of objects": {"1": {"cases": 1, "right": 1.0}, "3": {"cases": 4, "right": 0.25}},
        "by smallest object, px": {"20 to 25": {"cases": 4, "right": 0.25}, "45 to 51": {"cases": 1, "right": 1.0}},
        "labels by share of the mask in the box most covered": {
            "0 to 0.2": {"cases": 3, "right": 1.0},
            "0.2 to 0.4": {"cases": 5, "right": 0.6},
            "0.6 to 0.8": {"cases": 4, "right": 0.75},
            "0.8 to 1": {"cases": 1, "right": 1.0},
        },
    }
    assert by_label["3"] == {"cases": 8, "recall": 6 / 8, "precision": 1.0}
    assert by_label["7"] == {"cases": 4, "recall": 3 / 4, "precision": 3 / 4}  # late named it once too often
    assert by_label["0"] == {"cases": 1, "recall": 1.0, "precision": 1.0}
    assert by_label["5"] == by_label["9"] == {"cases": 0, "recall": 0.0, "precision": 0.0}


@pytest.mark.parametrize(("steps", "absent"), [(EPISODES["right"], "wrong"), ([told(0, STOP)], "right")])
def test_a_mean_over_no_labels_is_none(steps: list, absent: str):
    found = breakdown([played(steps, [3, 7, 3], BOXES)])
    assert found[f"mean share, {absent} labels"] is None
    json.dumps(found, allow_nan=False)


def test_unknown_probabilities_make_no_confidence_and_unknown_boxes_no_sizes():
    trace = played(EPISODES["early"], [3, 7, 3], None)
    found = breakdown([trace, played([told(0, STOP)], [], [])])
    assert set(found) == {"episodes", "by kind", "by number of objects", "by label"}
    assert found["by number of objects"]["0"] == {"cases": 1, "right": 1.0}
    assert describe(trace._replace(log_prob=np.full(6, np.nan))).confidence == 0.0
    json.dumps(found, allow_nan=False)


def test_labels_are_as_many_as_there_are_classes():
    found = breakdown([played([told(0, 11), told(0, 12)], [11], [[0, 0, 50, 50]], num_classes=12)])
    assert list(found["by label"]) == [str(label) for label in range(12)]


def test_no_episodes_are_refused():
    with pytest.raises(DataError, match="at least one episode"):
        breakdown([])
