"""Scan-path measures: by hand, against a slow oracle, and their controls."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from traces import MetaStep, trace_of

from hsal_env.errors import DataError
from hsal_env.perception.grid import Grid
from hsal_env.trace import Trace
from hsal_env.trace.scan_path import MEASURES, measures

STOP = 10
GRID = Grid((5.0, 5.0), (10.0, 20.0), (10.0, 20.0))  # rows 10 px apart, columns 20 px
SALIENCY = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32)
MASK = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def played(cells: list[tuple[int, ...]], labels: list[int], boxes: list | None = None, mask=MASK) -> Trace:
    """One meta-step per tuple of cells of a 2x3 map, each naming a right label, and one more to stop."""
    steps = [MetaStep(at, label, mask=mask, saliency=SALIENCY) for at, label in zip(cells, labels, strict=True)]
    steps.append(MetaStep((5,) * len(cells[0]), STOP, mask=mask, saliency=SALIENCY))
    return trace_of(steps, labels, boxes, map_size=(2, 3), image=np.zeros((20, 60), np.uint8), grid=GRID)


def agents(*traces: Trace) -> dict[str, float]:
    return {name: part["agent"] for name, part in measures(traces, np.random.default_rng(0)).items()}


# objects at the centre of cell 0, (5, 5), and of cells 4 and 5, (15, 25) and (15, 45); the first ends right before cell 1
BOXES = [[0, 0, 10, 25], [10, 20, 10, 26]]


def test_the_measures_by_hand():
    found = agents(played([(0, 4), (4, 2)], [1, 2], BOXES))
    assert set(found) == set(MEASURES)
    # saccades: 0 to 4 one row and one column, 4 to 4 none, 4 to 2 one up and one right; not to the glimpses at stop
    assert found["saccade_length_cells"] == pytest.approx(2 * math.sqrt(2) / 3)
    assert found["saccade_length_px"] == pytest.approx(2 * math.sqrt(10**2 + 20**2) / 3)
    assert found["return_share"] == 1 / 4
    assert found["object_share"] == 3 / 4
    assert found["fixations_per_object"] == 3 / 2
    assert found["object_mask_share"] == pytest.approx((1 + 5 + 6) / 21)
    # first fixated 0, 4, 2; most salient first 4 (0.5), 2 (0.3), 0 (0.1): ranks 0, 1, 2 and 2, 0, 1
    assert found["saliency_order"] == pytest.approx(-0.5)


@pytest.mark.parametrize(("order", "found"), [((5, 4, 3), 1.0), ((3, 4, 5), -1.0), ((4, 5, 3), 0.5)])
def test_the_order_of_saliency_by_hand(order, found):
    assert agents(played([order], [1]))["saliency_order"] == pytest.approx(found)


def test_what_several_episodes_have_in_common_is_pooled():
    one, other = played([(0, 0, 0)], [1], BOXES[:1]), played([(5, 4, 5)], [1], BOXES[:1])
    found = agents(one, other)
    assert found["return_share"] == 3 / 6
    assert found["object_share"] == 3 / 6
    assert found["fixations_per_object"] == 3 / 2
    assert found["saccade_length_cells"] == (0 + 0 + 1 + 1) / 4
    assert found["saliency_order"] == pytest.approx(1)  # the first has looked at one cell alone: no order


def test_what_nothing_defines_is_nan():
    without_boxes = agents(played([(0, 4)], [1]))
    objects = {"object_share", "object_mask_share", "fixations_per_object"}
    assert {name for name, value in without_boxes.items() if math.isnan(value)} == objects
    assert all(map(math.isnan, agents(played([(), ()], [1, 2], None)).values()))
    empty = trace_of([MetaStep((3, 3), STOP)], [], map_size=(2, 3))
    assert all(map(math.isnan, agents(empty).values()))
    alone = measures([played([(0, 4)], [1], BOXES[:1])], np.random.default_rng(0))
    assert all(math.isnan(part["centre"]) for part in alone.values())
    assert not any(math.isnan(part["uniform"]) for name, part in alone.items() if name != "saliency_order")


def test_covert_attention_needs_no_glimpses():
    found = agents(played([()], [1], BOXES[:1]))
    assert found["object_mask_share"] == pytest.approx(1 / 21)
    assert math.isnan(found["object_share"])


# --- a slow oracle ----------------------------------------------------------------------------------------------------


def random_traces(number: int) -> list[Trace]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(number):
        objects = int(rng.integers(1, 4))
        boxes = [[*rng.integers(0, 10, 2), *rng.integers(5, 30, 2)] for _ in range(objects)]
        cells = [tuple(rng.integers(0, 6, 3).tolist()) for _ in range(objects)]
        found.append(played(cells, rng.integers(0, 10, objects).tolist(), boxes, mask=rng.random((2, 3), np.float32)))
    return found


def oracle(traces: list[Trace]) -> dict[str, float]:
    lengths, lengths_px, returns, on, per_object, masses, orders = [], [], [], [], [], [], []
    for trace in traces:
        path = []
        for n in range(len(trace.phase)):
            if trace.remaining[n].sum() == 0:
                continue
            if trace.location[n] >= 0:
                path.append(int(trace.location[n]))
            if trace.phase[n] == 0:
                mask = trace.mask[n]
                inside = sum(
                    mask[r, c] for r in range(2) for c in range(3) if any(contains(b, r, c) for b in trace.boxes)
                )
                masses.append(inside / mask.sum())
        for a, b in itertools.pairwise(path):
            rows, cols = b // 3 - a // 3, b % 3 - a % 3
            lengths.append(math.hypot(rows, cols))
            lengths_px.append(math.hypot(10 * rows, 20 * cols))
        for i, cell in enumerate(path):
            returns.append(cell in path[:i])
            on.append(any(contains(box, cell // 3, cell % 3) for box in trace.boxes))
        per_object += [sum(contains(box, cell // 3, cell % 3) for cell in path) for box in trace.boxes]
        seen = sorted(set(path))
        if len(seen) > 1:
            orders.append(spearmanr([path.index(c) for c in seen], [-SALIENCY[c // 3, c % 3] for c in seen]).statistic)
    parts = (lengths, lengths_px, returns, on, masses, per_object, orders)
    return dict(zip(MEASURES, (float(np.mean(part)) for part in parts), strict=True))


def contains(box: np.ndarray, row: int, col: int) -> bool:
    y, x = 5 + 10 * row, 5 + 20 * col
    return box[0] <= y < box[0] + box[2] and box[1] <= x < box[1] + box[3]


def test_the_measures_are_those_of_a_slow_oracle():
    traces = random_traces(30)
    assert agents(*traces) == pytest.approx(oracle(traces))


# --- controls ---------------------------------------------------------------------------------------------------------


def test_the_controls_have_their_expectations():
    """A cell at random lies in box 1 with probability 1/6; others' fixations are all on cell 5."""
    here, there = played([(0, 0)], [1], BOXES[:1]), played([(5, 5)], [1], BOXES[:1])
    found = measures([here] + [there] * 200, np.random.default_rng(0))
    assert found["object_share"]["uniform"] == pytest.approx(1 / 6, abs=0.02)
    assert found["saccade_length_cells"]["uniform"] == pytest.approx(mean_distance(), abs=0.05)
    assert found["return_share"]["uniform"] == pytest.approx(1 / 12, abs=0.02)
    others = measures([here, there], np.random.default_rng(0))
    assert others["object_share"] == {"agent": 0.5, "uniform": pytest.approx(1 / 6, abs=0.2), "centre": 0.5}
    assert others["saccade_length_cells"]["centre"] == 0.0
    swapped = measures([here, there._replace(boxes=np.array([[10, 40, 10, 20]]))], np.random.default_rng(0))
    assert swapped["object_share"]["agent"] == 1.0
    assert swapped["object_share"]["centre"] == 0.0  # what helps on one image does not on the other


def mean_distance() -> float:
    cells = list(itertools.product(range(2), range(3)))
    return float(np.mean([math.dist(a, b) for a in cells for b in cells]))


def test_the_controls_of_masks_by_hand():
    one, other = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    one[0, 0] = 7
    traces = [played([(0,)], [1], BOXES[:1], mask) for mask in (one, other)]
    found = measures(traces, np.random.default_rng(0))["object_mask_share"]
    assert found["agent"] == pytest.approx((1 + 1 / 6) / 2)
    assert found["uniform"] == pytest.approx(1 / 6)
    assert found["centre"] == pytest.approx((1 / 6 + 1) / 2)


def test_the_same_generator_gives_the_same_controls():
    traces = random_traces(5)
    one, again, other = (measures(traces, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert one == again
    assert one["return_share"] != other["return_share"]


def test_traces_of_different_maps_are_refused():
    with pytest.raises(DataError, match=r"all of one map size; got sizes \[\(2, 3\), \(7, 7\)\]"):
        agents(played([(0,)], [1]), trace_of([MetaStep((0,), 1)], [1]))
    with pytest.raises(DataError, match="at least one trace"):
        agents()
