"""Frames of running episodes: what they show, and that matplotlib has no part in them."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from traces import MetaStep, trace_of

from hsal_env.errors import DataError
from hsal_env.perception.grid import Grid
from hsal_env.rendering import draw_frame
from hsal_env.rendering.frame import _COLOURS, _LEFTS, _PANEL, _TOPS, FRAME_PX, _text

STOP = 10
IMAGE, SALIENCY, PRIORITY, NAMED = (
    np.s_[top : top + _PANEL, left : left + _PANEL] for top in _TOPS for left in _LEFTS
)  # fmt: skip
ORANGE, GREEN, VERMILLION, BLUE = (230, 159, 0), (0, 158, 115), (213, 94, 0), (86, 180, 233)
DARK = np.zeros((7, 7), np.float32)
STEPS = [MetaStep((8, 40), 2, 0.9), MetaStep((3, 3), 5, 0.5), MetaStep((0, 1), STOP, 0.8)]


@pytest.fixture
def trace():
    image = np.random.default_rng(0).integers(0, 256, (70, 70), dtype=np.uint8)
    return trace_of(STEPS, [2, 7], image=image)


def inked(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The pixels of a colour ``[n, 2]``."""
    return np.argwhere((picture == colour).all(axis=2))


def test_matplotlib_has_no_part_in_films():
    """A program that makes, plays and films environments never imports it, and nor does importing the package's rendering."""
    code = """
import sys, gymnasium, numpy, hsal_env, hsal_env.rendering
settings = {"source": "digits", "num_examples": 4, "render_mode": "rgb_array"}
single, lanes = gymnasium.make("HSAL-MNISTMultiset-v0", **settings), gymnasium.make_vec("HSAL-MNISTMultiset-v0", 2, **settings)
for env in (single, lanes):
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(3):  # attention and two glimpses: no label that could end the episode
        env.step(env.action_space.sample())
        assert numpy.shape(env.render())[-3:] == (400, 400, 3)
sys.exit("matplotlib" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_frame_is_drawn_without_a_single_call_of_matplotlib(trace, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a frame went through matplotlib")

    monkeypatch.setattr("matplotlib.figure.Figure.__init__", refuse)
    monkeypatch.setattr("hsal_env.rendering.episodes.draw_trace", refuse)
    assert draw_frame(trace).shape == (FRAME_PX, FRAME_PX, 3)


def test_the_colours_are_viridis():
    expected = mpl.colormaps["viridis"](np.arange(256))[:, :3] * 255
    assert np.abs(_COLOURS - expected).max() < 6


def test_every_decision_makes_another_frame_and_all_have_one_size(trace):
    frames = [draw_frame(trace, until) for until in range(13)]
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((FRAME_PX, FRAME_PX, 3), "uint8")}
    assert FRAME_PX % 16 == 0
    assert len({frame.tobytes() for frame in frames}) == 13
    for frame in frames:
        assert (frame[:, -10:] == 255).all()
        assert (frame[-8:] == 255).all()


@pytest.mark.parametrize(("which", "panel"), [("saliency", SALIENCY), ("mask", SALIENCY), ("priority", PRIORITY)])
def test_a_frame_shows_the_maps_that_its_decision_found(trace, which, panel):
    before = draw_frame(trace, 6)
    values = getattr(trace, which).copy()
    values[5] = values[5].T
    after = draw_frame(trace._replace(**{which: values}), 6)
    changed = (before != after).any(axis=2)
    assert changed[panel].sum() > 1000
    changed[panel] = False
    assert not changed.any()
    values[5], values[6:] = getattr(trace, which)[5], 0  # the future
    np.testing.assert_array_equal(draw_frame(trace._replace(**{which: values}), 6), before)


def test_a_cell_has_its_colour_where_it_lies():
    saliency = DARK.copy()
    saliency[2, 5] = 1
    trace = trace_of([MetaStep((0,), 2, mask=DARK, saliency=saliency)], [2])
    lit = inked(draw_frame(trace, 0)[SALIENCY], tuple(_COLOURS[255]))
    cell = _PANEL / 7
    assert lit.min(axis=0) == pytest.approx([2 * cell, 5 * cell], abs=1.5)
    assert lit.max(axis=0) + 1 == pytest.approx([3 * cell, 6 * cell], abs=1.5)


def test_contours_are_of_the_masks_shape_not_its_height(trace):
    np.testing.assert_array_equal(draw_frame(trace, 5), draw_frame(trace._replace(mask=trace.mask / 2), 5))
    flat = trace._replace(mask=np.zeros_like(trace.mask))
    white = [len(inked(draw_frame(one, 5)[SALIENCY], (255, 255, 255))) for one in (trace, flat)]
    assert white[0] > 100
    assert white[1] == 0


def test_glimpses_are_numbered_and_earlier_ones_are_blue(trace):
    black = trace._replace(image=np.zeros_like(trace.image))
    counts = [[len(inked(draw_frame(black, n)[IMAGE], colour)) for colour in (ORANGE, BLUE)] for n in range(13)]
    assert counts[0] == counts[1] == [0, 0]
    assert counts[1][0] < counts[2][0] < counts[3][0]
    assert counts[4][1] == 0
    assert counts[5][0] == 0
    assert counts[5][1] > 50
    orange = inked(draw_frame(black, 2)[PRIORITY], ORANGE)
    assert orange.mean(axis=0) == pytest.approx(np.array([1.5, 1.5]) * _PANEL / 7, abs=2)  # cell 8


@pytest.mark.parametrize("cell", [0, 6, 42, 48, 24])
def test_a_glimpse_at_any_border_fits(cell):
    grid = Grid((7.5, 7.5), (15.0, 15.0), (90.0, 90.0))
    frame = draw_frame(trace_of([MetaStep((cell, cell, cell), 2)], [2], grid=grid), 4)
    assert min(len(inked(frame[panel], ORANGE)) for panel in (IMAGE, PRIORITY)) > 60
    assert len(inked(frame, ORANGE)) == sum(len(inked(frame[panel], ORANGE)) for panel in (IMAGE, PRIORITY))


@pytest.mark.parametrize(
    ("labels", "label", "right"), [([2], 2, True), ([7], 2, False), ([], STOP, True), ([2], STOP, False)]
)
def test_a_label_is_green_or_vermillion_by_the_multiset_rule(labels, label, right):
    trace = trace_of([MetaStep((0, 5), label)], labels)._replace(terminated=False, truncated=False)
    found = [len(inked(draw_frame(trace)[NAMED], colour)) > 5 for colour in (GREEN, VERMILLION)]
    assert found == [right, not right]
    assert not any(len(inked(draw_frame(trace, 3)[NAMED], colour)) for colour in (GREEN, VERMILLION))


def test_the_end_brings_the_verdict(trace):
    running = trace._replace(terminated=False)
    assert (draw_frame(trace)[NAMED] != draw_frame(running)[NAMED]).any()
    np.testing.assert_array_equal(draw_frame(trace, 11), draw_frame(running, 11))


def test_names_of_any_length_fit():
    names = ("a", "ant", "Brontosaurus excelsus, a very long name that never ends", *(f"n{i}" for i in range(7)))
    frames = []
    for chosen in ((), names):
        trace = trace_of([MetaStep((0,), 2)] * 9, [2] * 9 + [1], class_names=chosen)
        frames.append(draw_frame(trace))
        assert (frames[-1][:, -10:] == 255).all()
        assert (frames[-1][-8:] == 255).all()
    assert (frames[0][NAMED] != frames[1][NAMED]).any()
    assert _text(names[2], 14, True).shape[1] <= _PANEL + 2
    with pytest.raises(DataError, match="Expected 10 class names, or none; got 2"):
        draw_frame(trace._replace(class_names=("a", "b")))


def test_an_image_keeps_its_colours_and_its_shape():
    red = np.zeros((40, 60, 3), np.uint8)
    red[..., 0] = 255
    seen = inked(draw_frame(trace_of(STEPS, [2], image=red), 0), (255, 0, 0))
    height, width = np.ptp(seen, axis=0) + 1
    assert (height, width) == pytest.approx((_PANEL * 40 / 60, _PANEL), abs=2)


def test_what_cannot_be_drawn_is_refused(trace):
    for until in (-1, 13):
        with pytest.raises(DataError, match=rf"until in 0\.\.12.*; got {until}"):
            draw_frame(trace, until)
    with pytest.raises(DataError, match="Expected an image"):
        draw_frame(trace._replace(image=trace.image / 255))
