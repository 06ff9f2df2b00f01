"""Pictures: what they show, that they depend on their arguments alone, and that files are whole or absent."""

import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from traces import MetaStep, trace_of

from hsal_env.errors import DataError
from hsal_env.perception.grid import Grid
from hsal_env.rendering import draw_frame, draw_trace, draw_traces, save_picture
from hsal_env.rendering.words import multiset, runs
from hsal_env.trace import Trace

GREEN, VERMILLION, ORANGE = (0, 158, 115), (213, 94, 0), (230, 159, 0)
STOP = 10
LABELS = [2, 2, 7]
STEPS = [MetaStep((0, 5), 2), MetaStep((9, 9), 3), MetaStep((1, 48), STOP)]
GLIMPSES = slice(356, 498)  # rows of the picture
FOOT = slice(499, 600)


@pytest.fixture
def canvas() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (100, 100), dtype=np.uint8)


BLACK = np.zeros((105, 105), np.uint8)  # 105 px divide into 3, 5 and 7 cells
DARK = np.zeros((7, 7))


def differing(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The pixels ``[n, 2]`` (row, col) at which two pictures differ."""
    assert a.shape == b.shape
    return np.argwhere((a != b).any(axis=2))


def middle(pixels: np.ndarray) -> np.ndarray:
    return (pixels.min(axis=0) + pixels.max(axis=0)) / 2


def marked_cell(row: int, col: int, map_size: tuple[int, int]) -> np.ndarray:
    """A black canvas with one bright cell: where that cell is in a picture, its difference to ``BLACK`` says."""
    height, width = BLACK.shape[0] // map_size[0], BLACK.shape[1] // map_size[1]
    canvas = BLACK.copy()
    canvas[row * height : (row + 1) * height, col * width : (col + 1) * width] = 255
    return canvas


def has_margin(picture: np.ndarray, px: int = 2) -> bool:
    """Whether nothing touches the border, as clipped text would."""
    inner = np.zeros(picture.shape[:2], bool)
    inner[px:-px, px:-px] = True
    return bool((picture[~inner] == 255).all())


def changed(trace: Trace, name: str, at: int | slice, value) -> Trace:
    """``trace`` with one field different at one decision, and what follows from it."""
    field = getattr(trace, name).copy()
    field[at] = value
    follows = {"location_px": trace.grid.centres(field, trace.map_size[1])} if name == "location" else {}
    return trace._replace(**{name: field}, **follows)


def first(trace: Trace, decisions: int) -> Trace:
    """What of it was known after so many decisions."""
    known = {n: v[:decisions] for n, v in trace._asdict().items() if np.shape(v)[:1] == (len(trace.phase),)}
    return trace._replace(**known, saliency_left=trace.saliency[decisions], terminated=False, truncated=False)


# --- one episode ------------------------------------------------------------------------------------------------------


def test_an_episode_has_a_column_per_meta_step(canvas):
    pictures = [draw_trace(trace_of(STEPS[:1] * count, LABELS, image=canvas)) for count in (3, 4, 5, 11)]
    assert {p.dtype for p in pictures} == {np.dtype("uint8")}
    assert len({p.shape[0] for p in pictures}) == 1
    widths = [p.shape[1] for p in pictures]
    assert widths[1] - widths[0] == widths[2] - widths[1] == (widths[3] - widths[2]) / 6 > 100
    assert 800 <= widths[2] <= 900  # what a README shows without scaling
    assert all(has_margin(p) for p in pictures)


def test_the_size_depends_neither_on_until_nor_before_the_first_decision(canvas):
    trace = trace_of(STEPS, LABELS, image=canvas)
    pictures = [draw_trace(trace, until) for until in range(13)]
    assert len({p.shape for p in pictures}) == 1
    assert all(len(differing(a, b)) > 10 for a, b in itertools.pairwise(pictures))
    np.testing.assert_array_equal(pictures[-1], draw_trace(trace))
    assert draw_trace(first(trace, 0), columns=5).shape == draw_trace(trace, columns=5).shape
    assert draw_trace(trace, columns=5).shape == draw_trace(trace_of(STEPS[:1] * 5, LABELS)).shape


def test_a_beginning_is_drawn_as_if_the_rest_were_unknown(canvas):
    trace = trace_of(STEPS, LABELS, image=canvas)
    for until in (0, 1, 3, 4, 7, 11):
        np.testing.assert_array_equal(draw_trace(first(trace, until), columns=3), draw_trace(trace, until))


def test_a_picture_is_the_same_twice_and_under_other_matplotlib_settings(canvas):
    trace = trace_of(STEPS, LABELS, image=canvas)
    expected = draw_trace(trace)
    settings = {"font.size": 20, "axes.grid": True, "figure.facecolor": "black", "text.color": "red"}
    with matplotlib.rc_context(settings):
        np.testing.assert_array_equal(draw_trace(trace), expected)
        assert matplotlib.rcParams["text.color"] == "red"


def test_pyplot_is_not_imported():
    code = "import sys, hsal_env.rendering; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("saliency", 0, DARK),
        ("mask", 0, DARK),
        ("mask", 0, np.eye(7)),
        ("priority", 0, DARK),
        ("location", 1, 12),
        ("location", slice(1, 3), [5, 0]),
        ("location", slice(1, 3), [0, 0]),
        ("location_px", slice(1, 3), [40.0, 60.0]),
        ("label", 3, 7),
        ("label", 3, STOP),
        ("log_prob", 3, np.log(0.5)),
        ("log_prob", 3, np.nan),
        ("remaining", 3, np.zeros(10)),
    ],
)
def test_each_part_of_a_meta_step_shows(canvas, name, at, value):
    trace = trace_of(STEPS, LABELS, image=canvas)
    assert len(differing(draw_trace(trace), draw_trace(changed(trace, name, at, value)))) > 10


@pytest.mark.parametrize("which", ["saliency", "priority"])
def test_a_map_has_a_fixed_scale(canvas, which):
    trace = trace_of(STEPS, LABELS, image=canvas)
    darker = trace._replace(**{which: getattr(trace, which) / 2})
    assert len(differing(draw_trace(trace), draw_trace(darker))) > 1000


def test_contours_are_of_the_masks_shape_not_its_height(canvas):
    trace = trace_of(STEPS, LABELS, image=canvas)
    np.testing.assert_array_equal(draw_trace(trace), draw_trace(trace._replace(mask=trace.mask / 2)))


def test_contours_lie_on_the_maps_slope_and_reach_its_border():
    """A mask that is 1 in the leftmost cells: lines from top to bottom between their centres and the next."""
    mask = DARK.copy()
    mask[:, 0] = 1

    def drawn(**maps) -> np.ndarray:
        return draw_trace(trace_of([MetaStep((3,), 2, **{"saliency": DARK, "mask": DARK, **maps})], [2]))

    lines, cells = differing(drawn(), drawn(mask=mask)), differing(drawn(), drawn(saliency=mask))
    width = np.ptp(cells[:, 1]) + 1
    assert np.abs(lines[:, 0].min() - cells[:, 0].min()) <= 1
    assert np.abs(lines[:, 0].max() - cells[:, 0].max()) <= 1
    assert middle(cells)[1] < lines[:, 1].min()
    assert lines[:, 1].max() < middle(cells)[1] + width


def test_contours_are_at_a_quarter_a_half_and_three_quarters_of_the_maximum():
    """Of a ramp from 0 in the leftmost cells to 0.6 in the rightmost, whose values say where a line is to be."""
    ramp = np.tile(np.linspace(0, 0.6, 7), (7, 1))
    lit = DARK.copy()
    lit[:, 0] = lit[:, 6] = 1

    def drawn(**maps) -> np.ndarray:
        return draw_trace(trace_of([MetaStep((3,), 2, **{"saliency": DARK, "mask": DARK, **maps})], [2]))

    lines, cells = differing(drawn(), drawn(mask=ramp))[:, 1], differing(drawn(), drawn(saliency=lit))[:, 1]
    groups = np.split(np.unique(lines), np.flatnonzero(np.diff(np.unique(lines)) > 5) + 1)
    left, cell_px = cells.min(), (np.ptp(cells) + 1) / 7
    places = [(group.mean() + 0.5 - left) / cell_px - 0.5 for group in groups]  # in cells, from the centre of the first
    assert places == pytest.approx([1.5, 3, 4.5], abs=0.05)


# --- glimpses ---------------------------------------------------------------------------------------------------------


def orange(picture: np.ndarray) -> np.ndarray:
    """The saturated pixels of the glimpses' colour ``[n, 2]``."""
    return np.argwhere((np.abs(picture[GLIMPSES].astype(int) - ORANGE) < 40).all(axis=2))


@pytest.mark.parametrize("map_size", [(7, 7), (3, 5)])
@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1), (1, 2)])
def test_a_glimpse_frames_its_cell_and_leaves_it_visible(map_size, corner):
    row, col = corner[0] % map_size[0], corner[1] % map_size[1]
    image = marked_cell(row, col, map_size)

    def drawn(image: np.ndarray, location: int) -> np.ndarray:
        return draw_trace(trace_of([MetaStep((location,), 2)], [2], map_size=map_size, image=image))[GLIMPSES]

    cell = row * map_size[1] + col
    place = differing(drawn(image, cell), drawn(BLACK, cell))  # what is seen of the cell
    assert np.ptp(place, axis=0).min() > 12
    elsewhere = (cell + 7) % (map_size[0] * map_size[1])
    whole = differing(drawn(image, elsewhere), drawn(BLACK, elsewhere))
    assert len(place) > 0.6 * len(whole)
    assert np.abs(middle(place) - middle(whole)).max() < 3


def test_a_receptive_field_is_drawn_around_the_cell():
    grid = Grid((0.5, 0.5), (16.0, 16.0), (48.0, 80.0))
    image = np.zeros((100, 100), np.uint8)
    seen = orange(draw_trace(trace_of([MetaStep((24, 24), 2)], [2], grid=grid, image=image)))
    height, width = np.ptp(seen, axis=0) + 1
    scale = 140 / 112  # the cells' seven squares of 16 px fill the panel of 140 px
    assert (height, width) == pytest.approx((48 * scale, 80 * scale), abs=3)
    assert middle(seen) == pytest.approx([71, 92 + 70], abs=3)


def test_glimpses_are_numbered_in_order_and_a_cell_carries_all_its_numbers():
    orders = ([3, 9, 9, 9], [9, 3, 9, 9], [9, 9, 3, 9], [9, 9, 9, 3], [9, 9, 9, 9])
    pictures = [draw_trace(trace_of([MetaStep(tuple(order), 2)], [2])) for order in orders]
    for i, one in enumerate(pictures):
        assert all(len(differing(one, other)) > 10 for other in pictures[:i])


def test_an_episode_without_glimpses_and_of_a_single_cell_can_be_drawn():
    assert has_margin(draw_trace(trace_of([MetaStep((), 2), MetaStep((), STOP)], [2], map_size=(1, 1))))


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "label", "right"), [([2], 2, True), ([7], 2, False), ([], STOP, True), ([2], STOP, False)]
)
def test_a_labels_colour_and_mark_follow_the_multiset_rule(labels, label, right):
    trace = trace_of([MetaStep((0, 5), label)], labels)
    unfinished = trace._replace(terminated=False, truncated=False)  # a title without verdict
    picture = draw_trace(unfinished._replace(reward=np.zeros(4)))[FOOT]  # whatever was earned
    colours = [(picture == colour).all(axis=2).sum() > 10 for colour in (GREEN, VERMILLION)]
    assert colours == [right, not right]
    otherwise = np.full(10, int(right == (label == STOP)))
    other = draw_trace(changed(unfinished, "remaining", 3, otherwise))[FOOT]
    # both colours have a channel at 0, so that the least one says how much ink there is: colour is not the only cue
    assert (np.abs(picture.min(axis=2).astype(int) - other.min(axis=2)) > 128).sum() > 10


def test_class_names_are_shown_and_fit():
    plain = trace_of([MetaStep((0, 5), 2), MetaStep((0, 5), 7)], LABELS)
    named = plain._replace(class_names=tuple(f"a long name of the class {i}" for i in range(10)))
    pictures = draw_trace(plain), draw_trace(named)
    assert pictures[0].shape == pictures[1].shape
    assert all(len(differing(pictures[0][part], pictures[1][part])) > 10 for part in (np.s_[:34], FOOT))
    assert has_margin(pictures[1])


def test_unknown_probabilities_are_left_out():
    trace = trace_of([MetaStep((0, 5), 2)], [2])
    unknown = draw_trace(trace._replace(log_prob=np.full(4, np.nan)))
    gone = differing(draw_trace(trace), unknown)
    assert len(gone) > 10
    assert gone[:, 0].min() > 500
    assert (unknown[522:-2, 92:] == 255).all()


def test_the_title_tells_true_from_predicted_and_orders_only_the_true(canvas):
    trace = trace_of([MetaStep((0, 5), 2), MetaStep((0, 5), 7)], LABELS, image=canvas)
    title = np.s_[:34]
    drawn = draw_trace(trace)
    np.testing.assert_array_equal(drawn, draw_trace(trace._replace(labels=np.array([7, 2, 2]))))
    assert len(differing(drawn[title], draw_trace(trace._replace(labels=np.array([2, 7])))[title]))
    swapped = trace._replace(label=np.where(trace.label == 2, 7, np.where(trace.label == 7, 2, -1)))
    assert len(differing(drawn[title], draw_trace(swapped)[title]))
    open_end = trace._replace(terminated=False, truncated=False)
    assert len(differing(drawn[title], draw_trace(open_end)[title]))  # the verdict on the whole
    right, wrong = (draw_trace(trace_of(STEPS[:1] + STEPS[2:], true))[title] for true in ([2], [3]))
    assert (right == GREEN).all(axis=2).sum() > 10
    assert (wrong == VERMILLION).all(axis=2).sum() > 10


@pytest.mark.parametrize("labels", [[], [8] * 10, [8] * 13, [*range(10)] * 12])
def test_a_short_episode_has_room_for_its_title(canvas, labels):
    assert has_margin(draw_trace(trace_of(STEPS[2:], labels, image=canvas)))


@pytest.mark.parametrize(
    ("labels", "words"),
    [([], "{}"), ([2, 2, 7], "{2 2 7}"), ([0] * 12, "{0 0 0 0 0 0 0 0 0 0 0 0}"), ([2] * 15 + [7], "{2x15 7x1}")],
)
def test_a_multiset_in_words(labels, words):
    assert multiset(np.bincount(labels, minlength=10)) == words


@pytest.mark.parametrize(
    ("numbers", "words"), [([1], "1"), ([1, 2], "1,2"), ([1, 2, 3], "1-3"), ([1, 3, 4, 5, 7, 8], "1,3-5,7,8")]
)
def test_glimpse_numbers_in_words(numbers, words):
    assert runs(numbers) == words


def test_a_colour_canvas_keeps_its_colours_and_its_shape():
    red = np.zeros((40, 60, 3), np.uint8)
    red[..., 0] = 255
    seen = np.argwhere((draw_trace(trace_of(STEPS[:1], [2], image=red)) == red[0, 0]).all(axis=2))
    height, width = np.ptp(seen, axis=0) + 1
    assert (height, width) == pytest.approx((140 * 40 / 60, 140), abs=3)


# --- several episodes -------------------------------------------------------------------------------------------------


def test_episodes_are_stacked_and_padded_with_white(canvas):
    short, long = trace_of(STEPS[:1], [2], image=canvas), trace_of(STEPS * 2, [2], image=canvas)
    top, bottom = draw_trace(short), draw_trace(long)
    stacked = draw_traces([short, long])
    assert stacked.shape == (top.shape[0] + bottom.shape[0], bottom.shape[1], 3)
    np.testing.assert_array_equal(stacked[: len(top), : top.shape[1]], top)
    assert (stacked[: len(top), top.shape[1] :] == 255).all()
    np.testing.assert_array_equal(stacked[len(top) :], bottom)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_picture_reads_back(tmp_path):
    picture = draw_trace(trace_of(STEPS, LABELS))
    save_picture(picture, tmp_path / "new" / "trace.png")
    with Image.open(tmp_path / "new" / "trace.png") as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    def break_off(self, file, **_):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    old, picture = tmp_path / "old.png", np.zeros((4, 4, 3), np.uint8)
    save_picture(picture, old)
    before = old.read_bytes()
    monkeypatch.setattr(Image.Image, "save", break_off)
    for path in (old, tmp_path / "new.png"):
        with pytest.raises(OSError, match="disk full"):
            save_picture(picture, path)
    assert [p.name for p in tmp_path.iterdir()] == ["old.png"]
    assert old.read_bytes() == before


@pytest.mark.parametrize("picture", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_picture_is_not_saved(tmp_path, picture):
    with pytest.raises(DataError, match="Expected a picture"):
        save_picture(picture, tmp_path / "none.png")
    assert not list(tmp_path.iterdir())


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [np.zeros((9, 9)), *(np.zeros(shape, np.uint8) for shape in ((9,), (9, 9, 1), (9, 9, 4), (0, 9)))]
)
def test_an_image_of_another_kind_is_refused(wrong):
    with pytest.raises(DataError, match="Expected an image"):
        draw_trace(trace_of(STEPS, LABELS)._replace(image=wrong))


@pytest.mark.parametrize("which", ["saliency", "mask", "priority", "saliency_left"])
def test_maps_of_differing_shapes_are_refused(which):
    trace = trace_of(STEPS, LABELS)
    for wrong in (getattr(trace, which)[..., 1:], getattr(trace, which)[..., 0]):
        with pytest.raises(DataError, match="Expected maps"):
            draw_trace(trace._replace(**{which: wrong}))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("location", 49, r"location in -1\.\.48; got 49"),
        ("location", -2, r"location in -1\.\.48; got -2"),
        ("label", 11, r"label in -1\.\.10; got 11"),
        ("labels", -1, r"labels in 0\.\.9; got -1"),
        ("labels", 10, r"labels in 0\.\.9; got 10"),
    ],
)
def test_numbers_outside_their_range_are_refused(name, value, message):
    with pytest.raises(DataError, match=message):
        draw_trace(changed(trace_of(STEPS, LABELS), name, 0, value))


@pytest.mark.parametrize("wrong", [lambda px: px[:-1], lambda px: px[:, :1], lambda px: np.full_like(px, np.nan)])
def test_a_location_without_a_place_is_refused(wrong):
    trace = trace_of(STEPS, LABELS)
    for drawn in (draw_trace, draw_frame):
        with pytest.raises(DataError, match=r"Expected finite location_px \[12, 2\]"):
            drawn(trace._replace(location_px=wrong(trace.location_px)))


def test_frames_and_columns_that_there_are_not_are_refused():
    trace = trace_of(STEPS, LABELS)
    for until in (-1, 13):
        with pytest.raises(DataError, match=rf"until in 0\.\.12.*; got {until}"):
            draw_trace(trace, until)
    with pytest.raises(DataError, match="at least 3 columns, one per meta-step; got 2"):
        draw_trace(trace, columns=2)
    with pytest.raises(DataError, match="at least one trace"):
        draw_traces([])
