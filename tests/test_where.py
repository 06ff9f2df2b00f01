"""Where an agent looked: each measure by hand, against the naive definition, and by both routes."""

import dataclasses

import needs
import numpy as np
import pytest
import torch
from conftest import DATA_ROOT
from traces import MetaStep, trace_of

import agents
from agents.actor_critic import ActorCritic
from agents.config import AgentConfig
from agents.evaluation import evaluation_config, score_agent
from agents.protocol import World
from agents.tracing import record
from hsal_env.config import EnvConfig
from hsal_env.perception.examples import Examples
from hsal_env.perception.finding import cells_held
from hsal_env.perception.grid import Grid
from hsal_env.trace.scan_path import located
from hsal_env.where import Where, box_shares, covered_by_axis, summary, where

NAN = float("nan")
QUARTERS = Grid.of(None, (100, 100), (2, 2))
MASK = np.array([[1.0, 2.0], [3.0, 4.0]])


def looks(cells, grid, columns):
    """The places of cells, their centres."""
    return grid.centres(cells, columns)


def one(named, cells, masks, labels, boxes, grid=QUARTERS, image_px=(100, 100)) -> Where:
    """One episode; masks are cells of weight, or maps."""
    maps = [np.eye(4)[mask].reshape(2, 2) if isinstance(mask, int) else np.asarray(mask) for mask in masks]
    boxes = np.array(boxes, np.int64).reshape(1, len(labels), 4)
    found = where(
        np.array([named]), looks(np.array([cells]), grid, 2), np.array([maps]), np.array([labels], np.int64), boxes,
        grid, image_px,
    )  # fmt: skip
    assert all(part.shape == (1, len(named)) and part.dtype == np.float64 for part in found)
    return Where(*(part[0] for part in found))


def same(values: np.ndarray, expected: list[float]) -> None:
    np.testing.assert_allclose(values, expected, atol=1e-12)


# --- the share of a mask in a box -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "share"),
    [
        ((0, 0, 100, 100), 1.0),
        ((0, 0, 50, 50), 0.1),  # a cell
        ((25, 0, 50, 50), 0.2),  # half of the cell of 1, half of that of 3
        ((50, 50, 25, 10), 0.04),  # a tenth of the cell of 4
        ((-50, -50, 100, 100), 0.1),  # beyond the image
        ((90, 90, 500, 500), 0.016),  # a 25th of the cell of 4
        ((0, 0, 0, 0), 0.0),
        ((200, 200, 10, 10), 0.0),
    ],
)
def test_a_boxs_share_of_a_mask_by_hand(box: tuple[int, ...], share: float):
    for scale in (1, 1e-3):
        found = box_shares(scale * MASK[None], np.array([[box]]), QUARTERS, (100, 100))
        assert found == pytest.approx(np.array([[share]]))


def test_a_cells_area_ends_where_the_image_does():
    """Squares of 10 px centred on 0, 10 and 20, of which the outer ones lie on the image by half."""
    grid, mask = Grid((0, 0), (10, 10), (10, 10)), np.diag([1.0, 2.0, 5.0])
    boxes = np.array([[[5, 5, 10, 10], [0, 0, 5, 5], [0, 0, 20, 4], [15, 15, 5, 5]]])
    assert box_shares(mask[None], boxes, grid, (20, 20))[0] == pytest.approx([2 / 8, 1 / 8, 4 / 5 / 8, 5 / 8])


def test_a_cell_beside_the_image_has_no_share():
    rows, cols = covered_by_axis(np.array([[[0, 0, 50, 50]]]), Grid((-20, 5), (10, 10), (10, 10)), (50, 50), (3, 2))
    same(rows, [[[0, 0, 1]]])  # centred on -20, -10 and 0
    same(cols, [[[1, 1]]])


def test_boxes_that_tile_the_image_share_the_mask():
    mask, grid = np.random.default_rng(0).random((1, 7, 5)), Grid.of(None, (100, 100), (7, 5))
    tiles = np.array([[(0, 0, 30, 100), (30, 0, 70, 45), (30, 45, 70, 55)]])
    assert box_shares(mask, tiles, grid, (100, 100)).sum() == pytest.approx(1)


def test_a_mask_of_zeros_has_no_share():
    assert box_shares(np.zeros((1, 2, 2)), np.array([[[0, 0, 99, 99]]]), QUARTERS, (100, 100)) == 0


# --- the measures by hand ---------------------------------------------------------------------------------------------

LEFT, RIGHT = [0, 0, 50, 50], [0, 50, 50, 50]  # the upper two cells


def test_a_glimpse_in_a_box_of_that_label_points():
    found = one([3, 7, -1], [0, 1, 2], [0, 1, 2], [3, 7], [LEFT, RIGHT])
    same(found.pointing, [1, 1, NAN])
    same(found.mask_in_box, [1, 1, NAN])
    same(found.focus, [1, 1, NAN])
    same(found.several, [0, 0, NAN])


def test_a_glimpse_in_a_box_of_another_label_does_not():
    found = one([7, 3, 5], [0, 0, 0], [0, 1, 0], [3, 7], [LEFT, RIGHT])
    same(found.pointing, [0, 1, 0])
    same(found.mask_in_box, [0, 0, 0])  # 7 and 3 have no weight in their boxes; 5 has no box
    same(found.focus, [1, 1, 1])  # what was looked at is another object


def test_a_box_is_used_up_once():
    found = one([3, 3, 3], [0, 0, 1], [0, 0, 1], [3, 3], [LEFT, RIGHT])
    same(found.pointing, [1, 0, 1])
    same(found.mask_in_box, [1, 0, 1])
    same(found.focus, [1, 1, 1])


def test_a_name_that_points_at_nothing_uses_up_nothing():
    found = one([3, 3], [2, 0], [0, 0], [3], [LEFT])
    same(found.pointing, [0, 1])
    same(found.mask_in_box, [1, 1])


def test_of_several_boxes_the_nearest_is_used_up():
    """The glimpse at (25, 25): the second box has its centre there."""
    boxes = [[0, 0, 100, 100], [20, 20, 10, 10]]
    found = one([3, 3, 3], [0, 0, 0], [0, 0, 0], [3, 3], boxes)
    same(found.pointing, [1, 1, 0])
    same(found.mask_in_box, [0.04, 1, 0])


def test_without_pointing_the_box_with_most_weight_counts():
    mask = [[0.2, 0.7], [0.1, 0.0]]
    found = one([3, 3], [3, 3], [mask, mask], [3, 3, 3], [LEFT, RIGHT, [50, 0, 50, 50]])
    same(found.pointing, [0, 0])
    same(found.mask_in_box, [0.7, 0.7])


def test_a_mask_is_of_several_objects():
    masks = [[[1.0, 0.6], [0, 0]], [[1.0, 0.5], [0, 0]], [[0.3, 0.3], [1, 0]], np.zeros((2, 2))]
    found = one([3] * 4, [0] * 4, masks, [3, 7], [LEFT, RIGHT])
    same(found.several, [1, 0, 0, 0])  # above half, not at half
    same(found.focus, [1 / 1.6, 1 / 1.5, 0.3 / 1.6, 0])
    overlapping = one([3], [0], [0], [3, 7], [LEFT, [20, 20, 10, 10]])
    same(overlapping.several, [1])
    beside = one([3], [0], [[[1.0, 0.6], [0, 0]]], [3, 7], [LEFT, [0, 50, 25, 50]])
    same(beside.several, [0])  # the centre of the second cell, (25, 75), is at the box's edge


def test_without_glimpses_the_mask_is_measured_alone():
    found = one([3, 7], [-1, -1], [0, 0], [3, 7], [LEFT, RIGHT])
    same(found.pointing, [NAN, NAN])
    same(found.mask_in_box, [1, 0])
    assert summary([found], True)["pointing"] is None


@pytest.mark.parametrize("boxes", [[[-1] * 4] * 2, [LEFT, [-1] * 4]])
def test_an_unknown_box_makes_the_episode_unknown(boxes: list):
    found = one([3, 7], [0, 1], [0, 1], [3, 7], boxes)
    assert all(np.isnan(part).all() for part in found)
    assert set(summary([found], True).values()) == {None}


def test_a_name_in_an_empty_image_points_at_nothing():
    found = one([3, -1], [0, 1], [0, 1], [], [])
    for part in found:
        same(part, [0, NAN])
    assert summary([found], True) == dict.fromkeys(Where._fields, 0.0)
    assert summary([found], False) == dict.fromkeys(Where._fields)
    assert summary([], True) == dict.fromkeys(Where._fields)


def test_a_mean_is_over_all_names():
    first = one([3, 7, -1], [0, 0, 2], [0, 0, 2], [3, 7], [LEFT, RIGHT])
    second = one([3], [0], [0], [3], [LEFT])
    assert summary([first, second], True)["pointing"] == pytest.approx(2 / 3)


# --- against the definition, object by object -------------------------------------------------------------------------


def naive(named, cells, masks, labels, boxes, grid, image_px):
    """One episode, pixel by pixel."""
    height, width = image_px
    rows, cols = masks.shape[1:]
    owner = np.full((height, width), -1)  # of each pixel the cell
    for r in range(rows):
        for c in range(cols):
            top, left = (first + (i - 0.5) * step for i, first, step in zip((r, c), *grid[:2], strict=True))
            down, across = (int(step) for step in grid.stride_px)
            owner[max(0, int(top)) : max(0, int(top) + down), max(0, int(left)) : max(0, int(left) + across)] = (
                r * cols + c
            )
    area = np.bincount(owner[owner >= 0], minlength=rows * cols)

    def share(mask, box):
        r, c, h, w = box
        inside = owner[max(0, r) : max(0, r + h), max(0, c) : max(0, c + w)]
        count = np.bincount(inside[inside >= 0], minlength=rows * cols)
        return float((mask.ravel() * count / np.maximum(area, 1)).sum() / mask.sum())

    def holds(box, cell):
        y, x = grid.centres(np.array(cell), cols)
        return box[0] <= y < box[0] + box[2] and box[1] <= x < box[1] + box[3]

    used, found = set(), []
    for label, cell, mask in zip(named, cells, masks, strict=True):
        if label < 0:
            found.append([NAN] * 4)
            continue
        free = [n for n, of in enumerate(labels) if of == label and n not in used]
        hit = [n for n in free if holds(boxes[n], cell)]
        place = grid.centres(np.array(cell), cols)
        hit.sort(key=lambda n: (sum((place[i] - boxes[n][i] - boxes[n][i + 2] / 2) ** 2 for i in (0, 1)), n))
        used |= set(hit[:1])
        bright = [i for i, weight in enumerate(mask.ravel()) if weight > mask.max() / 2]
        touched = [n for n, of in enumerate(labels) if of >= 0 and any(holds(boxes[n], i) for i in bright)]
        found.append(
            [
                len(hit) > 0,
                share(mask, boxes[hit[0]]) if hit else max((share(mask, boxes[n]) for n in free), default=0),
                max((share(mask, boxes[n]) for n, of in enumerate(labels) if of >= 0), default=0),
                len(touched) > 1,
            ]
        )
    return np.array(found, float).T


def test_the_measures_are_those_of_the_definition():
    rng, lanes, steps, objects = np.random.default_rng(0), 40, 5, 4
    image_px, map_size, grid = (60, 80), (4, 3), Grid((5, 12), (16, 24), (20, 20))
    labels = np.where(rng.random((lanes, objects)) < 0.2, -1, rng.integers(0, 3, (lanes, objects)))
    boxes = np.concatenate(
        [rng.integers(-10, 60, (lanes, objects, 2)), rng.integers(1, 60, (lanes, objects, 2))], axis=2
    )
    boxes[labels < 0] = -1
    named, cells = rng.integers(-1, 3, (lanes, steps)), rng.integers(0, 12, (lanes, steps))
    masks = rng.random((lanes, steps, *map_size)) ** 4
    found = where(named, looks(cells, grid, 3), masks, labels, boxes, grid, image_px)
    for lane in range(lanes):
        expected = naive(named[lane], cells[lane], masks[lane], labels[lane], boxes[lane].tolist(), grid, image_px)
        for part, values in zip(found, expected, strict=True):
            np.testing.assert_allclose(part[lane], values, atol=1e-12)
    assert all(0.05 < np.nanmean(part) < 0.95 for part in found)


def test_a_hit_is_a_cell_that_the_box_holds():
    grid, boxes = Grid.of(None, (100, 100), (7, 7)), np.array([[[10, 20, 31, 40]]])
    cells = np.arange(49)
    found = where(np.zeros((49, 1), int), looks(cells[:, None], grid, 7), np.ones((49, 1, 7, 7)), np.zeros((49, 1), int),
                  boxes.repeat(49, axis=0), grid, (100, 100))  # fmt: skip
    assert found.pointing.reshape(7, 7).astype(bool).tolist() == cells_held(boxes, grid, (7, 7))[0, 0].tolist()


# --- both routes ------------------------------------------------------------------------------------------------------


def test_a_trace_by_hand():
    """Two meta-steps and a stop; a third that was cut off before its label."""
    masks = [np.eye(4, dtype=np.float32)[i].reshape(2, 2) for i in range(4)]
    steps = [
        MetaStep((0, 3), 3, 0.9, masks[0]),
        MetaStep((3, 1), 7, 0.9, masks[1]),
        MetaStep((2, 2), 10, 0.9, masks[2]),
    ]
    image = np.zeros((100, 100), np.uint8)
    trace = trace_of(steps, [3, 7], [LEFT, RIGHT], map_size=(2, 2), image=image)
    found = located(trace)
    same(found.pointing, [1, 0, NAN])
    same(found.mask_in_box, [1, 1, NAN])
    short = {
        name: getattr(trace, name)[:7] for name in ("label", "phase", "location", "location_px", "mask")
    }  # of twelve decisions
    same(located(trace._replace(**short)).pointing, [1])
    nothing = {name: part[:0] for name, part in short.items()}
    assert located(trace._replace(**nothing)).pointing.shape == (0,)


@pytest.mark.parametrize(("glimpses", "places"), [(0, "cells"), (2, "cells"), (2, "turned")])
def test_the_test_and_the_traces_agree(glimpses: int, places: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agents.evaluation._LANES", 8)
    loaded = agents.load("mnist-multiset")
    env = EnvConfig(source="digits", components=25, update="peak", glimpses=glimpses, places=places)
    config = dataclasses.replace(evaluation_config(env, "test", 20), features="lazy")
    if places == "turned":  # places that miss some of the objects whose cells were looked at
        monkeypatch.setattr(Examples, "places_px", lambda self, images, cells: self.grid.centres(cells, 7) + 15)
    agent = loaded.agent
    monkeypatch.setattr(agent, "world", agent.world._replace(rules=config.rules))
    scores = score_agent(agent, config, progress=False)
    expected = summary([located(trace) for trace in record(agent, config, np.arange(20))], True)
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-5), name
    assert (scores["pointing"] is None) == (glimpses == 0)
    if glimpses:
        assert (scores["pointing"] > 0.95) == (places == "cells")
    assert 0.05 < scores["mask_in_box"] <= scores["focus"] < 1
    without = score_agent(agent, config, progress=False, locate=False)
    assert {name: scores[name] for name in without} == without
    assert set(scores) - set(without) == set(Where._fields)


def test_without_known_boxes_the_test_says_none():
    loaded = agents.load("mnist-multiset")
    images = np.zeros((3, 100, 100), np.uint8)
    env = EnvConfig(
        source="custom",
        images=images,
        labels=[[1], [2, 2], []],
        num_classes=10,
        components=25,
        update="peak",
        max_objects=4,
    )
    scores = score_agent(
        loaded.agent, evaluation_config(dataclasses.replace(env, features="lazy"), "all", 3), progress=False
    )
    assert [scores[name] for name in Where._fields] == [None] * 4
    assert scores["total_error"] >= 0


@pytest.mark.slow
def test_on_photographs_of_dice_the_test_and_the_traces_agree():
    """With the boxes of the file: an agent that looks where it is bright, and has learned nothing."""
    dice = needs.photographs(DATA_ROOT, "dice")
    env = EnvConfig(source="custom", images=dice, image_px=(96, 128), activation="compact-house-numbers", components=9)
    config = dataclasses.replace(evaluation_config(env, "test", 12), features="lazy")
    agent = ActorCritic(World.of(Examples(config)), AgentConfig(location_policy="greedy")).eval()
    with torch.no_grad():
        for name, weight in agent.named_parameters():
            if name.endswith("bias") and weight.shape == (config.classes + 1,):
                weight[-1] = -3  # it seldom stops
    scores = score_agent(agent, config, progress=False)
    expected = summary([located(trace) for trace in record(agent, config, np.arange(config.size))], True)
    for name, value in expected.items():
        assert value is not None
        assert scores[name] == pytest.approx(value, abs=1e-5), name
    assert scores["focus"] >= scores["mask_in_box"]
    assert scores["focus"] > 0
