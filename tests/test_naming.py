"""The use of a trained agent: images of any kind in, named objects with their places out."""

import dataclasses
import io
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import agents
from agents import checkpoint, naming
from agents.actor_critic import ActorCritic
from agents.config import AgentConfig
from agents.naming import NamedObject
from agents.protocol import World
from agents.tracing import record
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError, DataError
from hsal_env.perception.examples import Examples
from hsal_env.rendering import draw_trace

NAMES = ["ant", "bee", "cat", "dog", "elk"]
COUNT = 4


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """Test canvases, uint8 ``[4, 100, 100]``."""
    images: np.ndarray = EnvConfig(source="digits", split="test").canvases.compose(np.arange(COUNT)).images
    return images


@pytest.fixture(scope="module")
def loaded() -> checkpoint.Loaded:
    return agents.load("mnist-multiset")


@pytest.fixture(scope="module")
def named(loaded: checkpoint.Loaded, digits: np.ndarray) -> list[list[NamedObject]]:
    return loaded.name_objects(list(digits))


def alike(found: list[list[NamedObject]], expected: list[list[NamedObject]]) -> None:
    """The same, but for the rounding of probabilities, which depends on the batch."""
    assert [len(objects) for objects in found] == [len(objects) for objects in expected]
    for one, other in zip(chain(*found), chain(*expected), strict=True):
        assert one[:2] + one[4:] == other[:2] + other[4:]
        np.testing.assert_allclose(one[2:4], other[2:4], rtol=1e-4)


def saved(folder: Path, env: EnvConfig) -> Path:
    """The folder of a run of an agent that has learned nothing."""
    world = World.of(Examples(env))
    torch.manual_seed(0)
    agent = ActorCritic(world, AgentConfig())
    checkpoint.save(folder / "checkpoint.pt", checkpoint.describe("hsal", agent, AgentConfig(), env, env.source, world))
    return folder


@pytest.fixture(scope="module")
def own(custom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on grey images of 48x64 px with class names."""
    env = EnvConfig(source="custom", images=str(custom_folder), class_names=NAMES)
    return saved(tmp_path_factory.mktemp("run"), env)


def test_what_is_named_is_what_the_test_names(loaded, digits, named):
    config = dataclasses.replace(loaded.env, source="digits", split="test", protocol="free", features="lazy")
    for found, trace in zip(named, record(loaded.agent, config, np.arange(COUNT)), strict=True):
        assert [thing.label for thing in found] == trace.named.tolist()
        assert [thing.name for thing in found] == [str(label) for label in trace.named.tolist()]
        names = np.flatnonzero((trace.label >= 0) & (trace.label < 10))
        first = names - 2
        assert [thing.cell for thing in found] == [divmod(cell, 7) for cell in trace.location[first].tolist()]
        assert [[thing.row_px, thing.col_px] for thing in found] == trace.location_px[first].tolist()
        np.testing.assert_allclose([thing.probability for thing in found], np.exp(trace.log_prob[names]), rtol=1e-5)
        np.testing.assert_allclose([thing.stop_probability for thing in found], trace.label_probs[names, 10], rtol=1e-5)
    assert any(named)


def test_an_image_is_named_alike_alone_and_among_others(loaded, digits, named, monkeypatch):
    alike([loaded.name_objects(digits[1])], named[1:2])
    monkeypatch.setattr(naming, "_LANES", 2)
    alike(loaded.name_objects(digits), named)  # an array [N, h, w], in two batches


def test_every_form_of_an_image_is_read(loaded, digits, named, tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(digits[0]).save(file)
    coloured = digits[0][..., None].repeat(3, axis=2)
    forms = [
        str(file),
        file,
        Image.open(file),
        digits[0],
        coloured,
        torch.from_numpy(digits[0]),
        Image.fromarray(coloured),
    ]
    alike(loaded.name_objects(forms), [named[0]] * len(forms))
    alike([loaded.name_objects(file), loaded.name_objects(coloured)], [named[0]] * 2)
    alike(loaded.name_objects(coloured[None]), named[:1])


def test_a_camera_held_upright_is_seen(loaded, digits, named):
    turned, content = Image.fromarray(digits[0]).rotate(90), io.BytesIO()
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned back
    turned.save(content, "PNG", exif=exif)
    alike([loaded.name_objects(Image.open(content))], named[:1])


def test_places_are_on_the_image_as_it_was_given(own):
    loaded = agents.load(own)
    small = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
    large = small.repeat(3, axis=0).repeat(3, axis=1)
    one, three = loaded.name_objects([small, large])
    grid = Examples(loaded.env).grid
    columns = Examples(loaded.env).map_size[1]
    assert len(one) == len(three) > 0
    for thing, of_large in zip(one, three, strict=True):
        row, col = grid.centres(np.array(thing.cell[0] * columns + thing.cell[1]), columns)
        assert (thing.row_px, thing.col_px) == (min(row, 48), min(col, 64))
        row, col = grid.centres(np.array(of_large.cell[0] * columns + of_large.cell[1]), columns)
        assert (of_large.row_px, of_large.col_px) == (min(3 * row, 144), min(3 * col, 192))
    assert {thing.name for thing in one} <= set(NAMES)
    assert all(thing.name == NAMES[thing.label] for thing in one)


def test_places_of_an_image_of_another_shape_lie_on_it(own):
    loaded = agents.load(own)
    for shape in ((300, 20), (20, 300), (2, 2)):
        found = loaded.name_objects(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        assert all(0 <= thing.row_px <= shape[0] and 0 <= thing.col_px <= shape[1] for thing in found)


def test_an_agent_that_never_stops_is_cut_off(own):
    loaded = agents.load(own)
    assert loaded.env.objects_limit == 3
    with torch.no_grad():
        for name, weight in loaded.agent.named_parameters():
            if weight.shape[:1] == (6,):  # of the labels and stop
                weight[-1] = -100 if name.endswith("bias") else 0
    assert len(loaded.name_objects(np.zeros((48, 64), np.uint8))) == 4


def test_without_glimpses_there_is_no_place(custom_folder, tmp_path):
    env = EnvConfig(source="custom", images=str(custom_folder), glimpses=0)
    found = agents.load(saved(tmp_path, env)).name_objects(np.zeros((48, 64), np.uint8))
    assert all((thing.cell, thing.row_px, thing.col_px) == (None, None, None) for thing in found)


def test_an_agent_of_colours_reads_grey_and_colour(digits):
    loaded = agents.load("house-numbers")
    coloured = digits[0][..., None].repeat(3, axis=2)
    grey, colour = loaded.name_objects([digits[0], coloured])
    alike([grey], [colour])
    tinted = coloured * np.array([1, 0, 0], np.uint8)
    assert naming.fitted(loaded, [tinted]).images[0].shape == (100, 100, 3)
    assert naming.fitted(agents.load("mnist-set"), [tinted]).images[0].shape == (100, 100)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "Expected at least one image; got an empty list"),
        (np.zeros((0, 9, 9), np.uint8), "Expected at least one image"),
        (None, "got NoneType"),
        (7, "got int"),
        (np.zeros((50, 50)), r"Expected images .* got float64 .* Scale them to 0..255"),
        (np.full((50, 50), np.nan, np.float32), "got float32"),
        (np.zeros((50, 50), bool), "got bool"),
        ([np.zeros((50, 50), np.uint8), np.zeros((50, 50))], r"image 1: .* got float64"),
        (np.zeros((1, 1), np.uint8), "image 0: expected at least 2x2 px; got 1x1"),
        (np.zeros((1, 90), np.uint8), "got 1x90"),
        (np.zeros((3, 50, 50), np.uint8), r"got shape \(3, 50, 50\). Put colours last, and several images into a list"),
        (np.zeros(50, np.uint8), r"got shape \(50,\)"),
        ([np.zeros((50, 50, 4), np.uint8)], r"image 0: .*\(.*50, 50, 4\)"),
        ([[1, 2], [3, 4]], "image 0: "),
        (Image.new("RGBA", (50, 50)), "image 0: expected 8-bit grey or RGB; got mode RGBA"),
        (Image.new("F", (50, 50)), "got mode F"),
        ("nothing.png", "nothing.png: cannot be read"),
        (Path("no/such.jpg"), "no/such.jpg: cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(loaded, images, said):
    with pytest.raises(DataError, match=said):
        loaded.name_objects(images)


def test_a_broken_file_is_named(loaded, digits, tmp_path):
    file = tmp_path / "b.png"
    Image.fromarray(digits[0]).save(file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"b\.png: cannot be read"):
        loaded.name_objects([digits[0], file])


def test_a_saliency_model_of_known_images_is_refused(loaded, digits):
    known = loaded._replace(env=dataclasses.replace(loaded.env, saliency="boxes"))
    with pytest.raises(ConfigError, match="'boxes' reads the boxes of known images"):
        known.name_objects(digits[0])


def test_a_picture_shows_what_was_named(loaded, digits, tmp_path):
    figure = loaded.picture(digits[1])
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "named.png")
    shown = np.array(Image.open(tmp_path / "named.png").convert("RGB"))
    trace = record(loaded.agent, naming.environment(loaded, [digits[1]]), 0)
    np.testing.assert_array_equal(shown, draw_trace(trace, labelled=False))
    assert not np.array_equal(shown, draw_trace(trace))
    with pytest.raises(DataError, match="Expected one image to draw; got 2"):
        loaded.picture([digits[0], digits[1]])


VERDICTS = [(0, 158, 115), (213, 94, 0)]  # green, vermillion


def test_without_true_labels_nothing_is_right_or_wrong(loaded, digits):
    trace = record(loaded.agent, naming.environment(loaded, [digits[1]]), 0)
    for labelled in (True, False):
        seen = draw_trace(trace, labelled=labelled).reshape(-1, 3)
        coloured = any((seen == colour).all(axis=1).any() for colour in VERDICTS)
        assert coloured == labelled


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_runs_folder_is_loaded(own, tmp_path):
    by_folder, by_file = agents.load(own), agents.load(own / "checkpoint.pt")
    assert by_folder.env == by_file.env
    with pytest.raises(CheckpointError, match="expected the path of a checkpoint, the folder of its training run, or"):
        agents.load(tmp_path)
