"""The page *The idea*, its nine pictures, and the command that draws them."""

import pydoc
import re

import numpy as np
import pytest
from commands import ROOT, Command
from PIL import Image
from traces import MetaStep, trace_of

from hsal_env.errors import DataError
from hsal_env.rendering.steps import draw_steps
from hsal_env.rendering.words import GREEN, VERMILLION

IDEA = "make_idea.py"
PAGE = (ROOT / "docs" / "idea.md").read_text()
NAMES = [
    "1-image", "2-activation", "3-saliency", "4-mask", "5-priority", "6-glimpses", "7-label", "8-update", "9-stop",
]  # fmt: skip
SIZE, MOST_BYTES = (600, 648), 60_000
STOP = 10


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_nine_pictures_in_order_and_they_are_there():
    shown = re.findall(r"!\[Picture (\d): [^\]]+\]\(idea/([^)]+)\.png\)", PAGE)
    assert shown == [(name[0], name) for name in NAMES]
    for name in NAMES:
        path = ROOT / "docs" / "idea" / f"{name}.png"
        with Image.open(path) as picture:
            assert picture.size == SIZE
        assert path.stat().st_size < MOST_BYTES


def test_every_function_that_the_page_names_exists():
    named = re.findall(r"\{py:(\w+)\}`([^`]+)`", PAGE)
    assert len(named) > 15
    kinds = {"class": type, "func": object, "meth": object}
    for kind, name in named:
        found = pydoc.locate(name)
        assert callable(found), name
        assert isinstance(found, kinds[kind]), name


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


def test_the_command_draws_nine_pictures_and_the_same_again(command, capsys, tmp_path):
    for folder in ("a", "b"):
        command(IDEA, ["--source", "digits", "--index", 2, "--output-dir", folder])
        assert capsys.readouterr().out.split() == [f"{folder}/{name}.png" for name in NAMES]
    for name in NAMES:
        path = tmp_path / "a" / f"{name}.png"
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert path.stat().st_size < MOST_BYTES
        with Image.open(path) as picture:
            assert picture.size == SIZE


def test_agents_on_coloured_images_are_drawn_too(command, tmp_path):
    command(IDEA, ["--agent", "house-numbers", "--output-dir", "x"])
    assert {path.stem for path in (tmp_path / "x").iterdir()} == set(NAMES)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--agent nothing.pt", "error: No agent 'nothing.pt'"),
        ("--source digits --index 10000", "Expected example indices in 0..9999; got 10000..10000"),
        ("--source digits --output-dir file/folder", "error: Cannot write file/folder/1-image.png"),
    ],
)
def test_a_wrong_command_is_a_clear_error(command, tmp_path, flags, said):
    (tmp_path / "file").write_text("")
    command.fails(IDEA, flags, said)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- what the pictures show -------------------------------------------------------------------------------------------


def drawn(name: str, trace) -> np.ndarray:
    return draw_steps(trace, np.ones((5, 7, 7), np.float32))[name]


def test_a_label_is_green_exactly_if_it_is_rewarded():
    trace = trace_of([MetaStep((3, 9), 2), MetaStep((4, 4), STOP)], [2, 7, 7])
    picture = drawn("7-label", trace)  # every probability is 1: full bars
    for number in range(11):
        row = round((34 + (number + 0.5) * 240 / 11) * 2)
        expected = GREEN if number in (2, 7) else VERMILLION
        assert picture[row, 300].tolist() == rgb(expected), number


def test_the_update_shows_the_saliency_that_the_second_meta_step_finds_or_what_the_only_one_left():
    dark, bright = np.zeros((7, 7), np.float32), np.ones((7, 7), np.float32)
    two = trace_of([MetaStep((3, 9), 2, saliency=dark), MetaStep((4, 4), STOP, saliency=bright)], [2])
    one = trace_of([MetaStep((3, 9), STOP, saliency=dark)], [2])._replace(saliency_left=bright)
    np.testing.assert_array_equal(drawn("8-update", two), drawn("8-update", one))
    assert (drawn("8-update", two)[300, 300] > [200, 200, 30]).tolist() == [True, True, True]  # viridis at 1: yellow


def test_the_end_shows_a_map_per_meta_step():
    dark, bright = np.zeros((7, 7), np.float32), np.ones((7, 7), np.float32)
    steps = [MetaStep((3, 9), 2, saliency=bright)] * 3 + [MetaStep((4, 4), STOP, saliency=dark)]
    picture = drawn("9-stop", trace_of(steps, [2, 2, 2]))
    centres = [picture[2 * (34 + y), 2 * (10 + x)].tolist() for y in (49, 169) for x in (49, 169)]
    assert centres == [[253, 231, 36]] * 3 + [[68, 1, 84]]


def test_circles_stand_where_the_gaussians_are_and_the_heaviest_is_clearest():
    trace = trace_of([MetaStep((3, 9), 2, mask=np.zeros((7, 7), np.float32))], [2])
    rows, halves = len(trace.phase), np.log(2)
    trace = trace._replace(
        row=np.tile([2.0, 6.0], (rows, 1)), col=np.tile([2.0, 6.0], (rows, 1)),
        beta=np.full((rows, 2), halves), alpha=np.tile([0.8, 0.2], (rows, 1)),  # at half height: a radius of one cell
    )  # fmt: skip
    picture = drawn("4-mask", trace).astype(int)
    cell = 2 * 240 / 7
    for centre, least, most in ((1.5, 240, 255), (5.5, 90, 160)):
        row, col = round(68 + centre * cell), round(20 + (centre + 1) * cell)  # right of the centre
        assert least <= picture[row, col - 3 : col + 4, 0].max() <= most


@pytest.mark.parametrize(
    ("trace", "volume", "said"),
    [
        (trace_of([MetaStep((3, 9), 2)], [2]), (5, 7, 6), r"Expected a volume \[D, 7, 7\]; got \[5, 7, 6\]"),
        (trace_of([MetaStep((3, 9), -1)], [2]), (5, 7, 7), "at least one whole meta-step"),
    ],
)
def test_what_cannot_be_drawn_is_refused(trace, volume, said):
    with pytest.raises(DataError, match=said):
        draw_steps(trace, np.ones(volume, np.float32))
