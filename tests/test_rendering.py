"""Pictures: what they show, that they depend on their arguments alone, and that files are whole or absent."""

import itertools
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import hsal_env  # noqa: F401, registers the ids
from hsal_env import dynamics
from hsal_env.config import Rules
from hsal_env.errors import DataError
from hsal_env.rendering import MetaStep, _multiset, _runs, draw_episode, draw_episodes, draw_state, save_picture

GREEN, VERMILLION = (0, 158, 115), (213, 94, 0)
STOP, NONE = 10, 11


def state_of(map_size: tuple[int, int] = (7, 7), lanes: int = 1, glimpses: int = 2) -> dynamics.State:
    """After ``attend``, before the first glimpse; the image holds 2, 2 and 7."""
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(lanes, 3, *map_size, generator=generator)
    counts = torch.zeros(lanes, 10, dtype=torch.int64)
    counts[:, 2], counts[:, 7] = 2, 1
    rules = Rules(glimpses=glimpses, components=1)
    state = dynamics.initial(dynamics.Example(volume, volume.sum(dim=1), counts, torch.arange(lanes)), rules)
    return dynamics.attend(state, torch.linspace(-1, 1, lanes)[:, None].expand(-1, 4), rules)


def step_of(map_size: tuple[int, int] = (7, 7), **changes) -> MetaStep:
    rng = np.random.default_rng(0)
    saliency, mask, priority = rng.random((3, *map_size)).astype(np.float32)
    return MetaStep(saliency, mask, priority, [0, 5], label=2, probability=0.9, reward=1.0)._replace(**changes)


@pytest.fixture
def canvas() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (100, 100), dtype=np.uint8)


BLACK = np.zeros((105, 105), np.uint8)  # 105 px divide into 3, 5 and 7 cells
LANE = torch.tensor([0])


def differing(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The pixels ``[n, 2]`` (row, col) at which two pictures differ."""
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


# --- a state ----------------------------------------------------------------------------------------------------------


def test_a_state_is_rgb_of_one_size_at_every_decision_of_an_episode():
    env = gym.make("HSAL-DigitsMultiset-v0", render_mode="rgb_array", num_examples=8)
    env.action_space.seed(0)
    env.reset(seed=0)
    pictures = [env.render()]
    for _ in range(5):
        env.step(env.action_space.sample())
        pictures.append(env.render())
    assert {(p.shape, p.dtype.name) for p in pictures} == {((330, 1200, 3), "uint8")}
    assert all(len(differing(a, b)) for a, b in itertools.pairwise(pictures))


def test_a_picture_is_the_same_twice_and_under_other_matplotlib_settings(canvas):
    state, steps = state_of(), [step_of()]
    expected = draw_state(canvas, state), draw_episode(canvas, steps, [2])
    settings = {"font.size": 20, "axes.grid": True, "figure.facecolor": "black", "text.color": "red"}
    with matplotlib.rc_context(settings):
        actual = draw_state(canvas, state), draw_episode(canvas, steps, [2])
        assert matplotlib.rcParams["text.color"] == "red"
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(a, b)


def test_pyplot_is_not_imported():
    code = "import sys, hsal_env.rendering; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "change",
    [
        {"phase": LANE},
        {"phase": LANE + 2},
        {"phase": LANE + 3},
        {"meta_step": LANE + 1},
        {"last_label": LANE + 7},
        {"last_label": LANE + STOP},
        {"predicted": torch.eye(10, dtype=torch.int64)[7:8]},
        {"predicted": 2 * torch.eye(10, dtype=torch.int64)[7:8]},
        {"remaining": torch.zeros(1, 10, dtype=torch.int64)},
        {"saliency": torch.zeros(1, 7, 7)},
        {"mask": torch.zeros(1, 7, 7)},
        {"mask": torch.eye(7)[None]},
        {"priority": torch.zeros(1, 7, 7)},
        {"locations": torch.tensor([[3, 49]])},
        {"locations": torch.tensor([[49, 3]])},
        {"locations": torch.tensor([[3, 3]])},
    ],
)
def test_each_part_of_a_state_shows(canvas, change):
    state = state_of()
    assert len(differing(draw_state(canvas, state), draw_state(canvas, state._replace(**change)))) > 10


def test_glimpses_are_numbered_in_order_and_a_cell_carries_all_its_numbers(canvas):
    state = state_of(glimpses=4)
    orders = ([3, 9, 9, 9], [9, 3, 9, 9], [9, 9, 3, 9], [9, 9, 9, 3], [9, 9, 9, 9])
    pictures = [draw_state(canvas, state._replace(locations=torch.tensor([order]))) for order in orders]
    assert all(len(differing(a, b)) > 10 for a, b in itertools.combinations(pictures, 2))


def test_a_state_after_stop_does_not_announce_another_attention(canvas):
    before = state_of()._replace(phase=LANE, meta_step=LANE + 3)
    title = np.s_[:30]
    pictures = [draw_state(canvas, before._replace(last_label=LANE + label))[title] for label in (7, NONE, STOP)]
    assert not len(differing(*pictures[:2]))
    assert len(differing(*pictures[1:]))


@pytest.mark.parametrize("map_size", [(7, 7), (3, 5)])
@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1), (1, 2)])
def test_a_glimpse_is_marked_at_its_cells_centre(map_size, corner):
    row, col = corner[0] % map_size[0], corner[1] % map_size[1]
    state = state_of(map_size)
    plain = draw_state(BLACK, state)
    cell = differing(plain, draw_state(marked_cell(row, col, map_size), state))
    location = torch.tensor([[row * map_size[1] + col, map_size[0] * map_size[1]]])
    marker = differing(plain, draw_state(BLACK, state._replace(locations=location)))
    size = marker.max(axis=0) - marker.min(axis=0)
    assert size.min() > 8
    assert size.max() < 30
    assert np.abs(middle(marker) - middle(cell)).max() < 3


@pytest.mark.parametrize("which", ["saliency", "priority"])
def test_a_map_has_a_fixed_scale(canvas, which):
    state, step = state_of(), step_of()
    darker = draw_state(canvas, state._replace(**{which: getattr(state, which) / 2}))
    assert len(differing(draw_state(canvas, state), darker)) > 1000
    darker = draw_episode(canvas, [step._replace(**{which: getattr(step, which) / 2})], [2])
    assert len(differing(draw_episode(canvas, [step], [2]), darker)) > 1000


def test_the_mask_is_scaled_by_its_maximum_and_the_scale_says_so(canvas):
    state = state_of()
    changed = differing(draw_state(canvas, state), draw_state(canvas, state._replace(mask=state.mask / 2)))
    assert 10 < len(changed) < 1000  # the number at the colour bar, not the map


def test_a_lane_is_drawn_as_if_it_were_alone(canvas):
    state = state_of(lanes=2)
    alone = dynamics.State(dynamics.Example(*(part[1:] for part in state.example)), *(part[1:] for part in state[1:]))
    np.testing.assert_array_equal(draw_state(canvas, state, lane=1), draw_state(canvas, alone))
    assert len(differing(draw_state(canvas, state, lane=0), draw_state(canvas, state, lane=1)))


def test_a_state_with_gradient_no_glimpses_and_a_single_cell_can_be_drawn(canvas):
    state = state_of(map_size=(1, 1), glimpses=0)
    assert draw_state(canvas, state._replace(saliency=state.saliency.requires_grad_())).shape == (330, 1200, 3)


def test_a_colour_canvas_keeps_its_colours():
    red = np.zeros((40, 60, 3), np.uint8)
    red[..., 0] = 255
    for picture in (draw_state(red, state_of()), draw_episode(red, [step_of()], [2])):
        assert (picture == red[0, 0]).all(axis=2).sum() > 1000


def test_long_lists_of_labels_are_not_clipped(canvas):
    many = torch.full((1, 10), 12)
    picture = draw_state(canvas, state_of()._replace(predicted=many, remaining=many, locations=torch.tensor([[6, 48]])))
    assert picture.shape == (330, 1200, 3)
    assert has_margin(picture)
    caption = np.argwhere((picture[32:56] < 128).all(axis=2))
    assert np.ptp(caption[:, 1]) > 0.9 * 1168  # no smaller than the room asks for


@pytest.mark.parametrize(
    ("labels", "words"),
    [([], "{}"), ([2, 2, 7], "{2 2 7}"), ([0] * 12, "{0 0 0 0 0 0 0 0 0 0 0 0}"), ([2] * 15 + [7], "{2x15 7x1}")],
)
def test_a_multiset_in_words(labels, words):
    assert _multiset(np.bincount(labels, minlength=10)) == words


@pytest.mark.parametrize(
    ("numbers", "words"), [([1], "1"), ([1, 2], "1,2"), ([1, 2, 3], "1-3"), ([1, 3, 4, 5, 7, 8], "1,3-5,7,8")]
)
def test_glimpse_numbers_in_words(numbers, words):
    assert _runs(numbers) == words


# --- an episode -------------------------------------------------------------------------------------------------------


def test_an_episode_has_a_column_per_meta_step(canvas):
    pictures = [draw_episode(canvas, [step_of()] * count, [2, 2, 7]) for count in (3, 4, 5, 11)]
    assert {p.dtype for p in pictures} == {np.dtype("uint8")}
    assert len({p.shape[0] for p in pictures}) == 1
    widths = [p.shape[1] for p in pictures]
    assert widths[1] - widths[0] == widths[2] - widths[1] == (widths[3] - widths[2]) / 6 > 100
    assert all(has_margin(p) for p in pictures)


@pytest.mark.parametrize("labels", [[], [8] * 10, [8] * 13, [*range(10)] * 12])
def test_a_short_episode_has_room_for_its_title(canvas, labels):
    assert has_margin(draw_episode(canvas, [step_of(label=STOP)], labels))


@pytest.mark.parametrize("map_size", [(7, 7), (3, 5)])
def test_an_episodes_glimpses_are_marked_in_their_column(map_size):
    cells = map_size[0] * map_size[1]
    step = step_of(map_size, locations=[])
    plain = draw_episode(BLACK, [step] * 3, [2])
    for cell in (0, map_size[1] + 2, cells - 1):
        place = differing(plain, draw_episode(marked_cell(*divmod(cell, map_size[1]), map_size), [step] * 3, [2]))
        pitch = draw_episode(BLACK, [step] * 4, [2]).shape[1] - plain.shape[1]
        for column in range(3):  # the cell shows in all three, its middle in the middle one
            steps = [step._replace(locations=[cell] if i == column else []) for i in range(3)]
            marker = differing(plain, draw_episode(BLACK, steps, [2]))
            assert np.abs(middle(marker) - middle(place) - [0, (column - 1) * pitch]).max() < 3


@pytest.mark.parametrize(
    ("reward", "present", "absent"),
    [(1.0, GREEN, VERMILLION), (-1.0, VERMILLION, GREEN), (0.0, VERMILLION, GREEN)],
)
def test_a_labels_colour_is_its_reward(reward, present, absent):
    picture = draw_episode(BLACK, [step_of(reward=reward, saliency=np.zeros((7, 7)), priority=np.zeros((7, 7)))], [2])
    assert (picture == present).all(axis=2).sum() > 10
    assert (picture == absent).all(axis=2).sum() == 0


@pytest.mark.parametrize(
    "change",
    [
        {"saliency": np.zeros((7, 7))},
        {"mask": np.zeros((7, 7))},
        {"mask": np.ones((7, 7))},
        {"mask": np.eye(7)},
        {"priority": np.zeros((7, 7))},
        {"locations": [5, 0]},
        {"locations": [0, 0]},
        {"label": 3},
        {"label": STOP},
        {"probability": 0.5},
        {"reward": -1.0},
        {"reward": 2.0},
    ],
)
def test_each_part_of_a_meta_step_shows(canvas, change):
    drawn = draw_episode(canvas, [step_of()], [2, 7])
    assert len(differing(drawn, draw_episode(canvas, [step_of(**change)], [2, 7]))) > 10


def test_the_title_tells_true_from_predicted_and_orders_only_the_true(canvas):
    steps = [step_of(), step_of(label=7)]
    drawn = draw_episode(canvas, steps, [2, 2, 7])
    np.testing.assert_array_equal(drawn, draw_episode(canvas, steps, [7, 2, 2]))
    assert len(differing(drawn, draw_episode(canvas, steps, [2, 7])))
    bare = draw_episode(canvas, steps[:1], [2])
    stopped = draw_episode(canvas, [*steps[:1], step_of(label=STOP)], [2])
    np.testing.assert_array_equal(bare[:28, :400], stopped[:28, :400])  # stop is not among the predicted


def test_contours_lie_on_the_maps_slope_and_reach_its_border():
    """A mask that is 1 in the leftmost cells: lines from top to bottom between their centres and the next."""
    mask, zeros = np.zeros((7, 7)), np.zeros((7, 7))
    mask[:, 0] = 1
    step = step_of(saliency=zeros, priority=zeros, locations=[], mask=zeros)
    plain = draw_episode(BLACK, [step], [2])
    lines = differing(plain, draw_episode(BLACK, [step._replace(mask=mask)], [2]))
    cells = differing(plain, draw_episode(BLACK, [step._replace(saliency=mask)], [2]))
    width = np.ptp(cells[:, 1]) + 1
    assert np.abs(lines[:, 0].min() - cells[:, 0].min()) <= 1
    assert np.abs(lines[:, 0].max() - cells[:, 0].max()) <= 1
    assert middle(cells)[1] < lines[:, 1].min()
    assert lines[:, 1].max() < middle(cells)[1] + width


def test_episodes_are_stacked_and_padded_with_white(canvas):
    short, long = (canvas, [step_of()], [2]), (canvas, [step_of()] * 6, [2])
    top, bottom = draw_episode(*short), draw_episode(*long)
    stacked = draw_episodes([short, long])
    assert stacked.shape == (top.shape[0] + bottom.shape[0], bottom.shape[1], 3)
    np.testing.assert_array_equal(stacked[: len(top), : top.shape[1]], top)
    assert (stacked[: len(top), top.shape[1] :] == 255).all()
    np.testing.assert_array_equal(stacked[len(top) :], bottom)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_picture_reads_back(tmp_path, canvas):
    picture = draw_state(canvas, state_of())
    save_picture(picture, tmp_path / "new" / "state.png")
    with Image.open(tmp_path / "new" / "state.png") as image:
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
def test_a_canvas_of_another_kind_is_refused(wrong):
    with pytest.raises(DataError, match="Expected a canvas"):
        draw_state(wrong, state_of())
    with pytest.raises(DataError, match="Expected a canvas"):
        draw_episode(wrong, [step_of()], [2])


@pytest.mark.parametrize("which", ["saliency", "mask", "priority"])
def test_maps_of_differing_shapes_are_refused(canvas, which):
    with pytest.raises(DataError, match="one shape"):
        draw_state(canvas, state_of()._replace(**{which: torch.zeros(1, 7, 6)}))
    with pytest.raises(DataError, match="one shape"):
        draw_episode(canvas, [step_of(), step_of(**{which: np.zeros((7, 6))})], [2])


def test_maps_of_another_rank_are_refused(canvas):
    flat = np.zeros(49)
    with pytest.raises(DataError, match="one shape"):
        draw_episode(canvas, [step_of(saliency=flat, mask=flat, priority=flat)], [2])


@pytest.mark.parametrize(
    ("change", "true_labels", "message"),
    [
        ({"locations": [49]}, [2], "locations in 0..48; got 49"),
        ({"locations": [-1]}, [2], "locations in 0..48; got -1"),
        ({"label": 11}, [2], "labels in 0..10; got 11"),
        ({}, [2, -1], "true labels in 0..9; got -1"),
        ({}, [10], "true labels in 0..9; got 10"),
    ],
)
def test_numbers_outside_their_range_are_refused(canvas, change, true_labels, message):
    with pytest.raises(DataError, match=message):
        draw_episode(canvas, [step_of(**change)], true_labels)


def test_nothing_to_draw_is_refused(canvas):
    with pytest.raises(DataError, match="at least one meta-step"):
        draw_episode(canvas, [], [2])
    with pytest.raises(DataError, match="at least one episode"):
        draw_episodes([])
