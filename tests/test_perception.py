"""Activation and saliency models, examples, and the stores of their features."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hsal_env import functional as F
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError, DataError
from hsal_env.multiset import label_counts
from hsal_env.perception.activation import CompactResNet
from hsal_env.perception.examples import Examples, to_images
from hsal_env.perception.grid import Grid
from hsal_env.perception.model_file import fingerprint, load_model, save_model
from hsal_env.perception.registry import ARCHITECTURES, WEIGHTS_FOLDER, activation_model, initial_model, saliency_model

# --- activation and saliency models -----------------------------------------------------------------------------------


class Pool(nn.Module):
    """A third-party activation model: colour in, two channels on a 2x3 map out."""

    in_channels, channels = 3, 2
    value = 1.0

    def forward(self, images):
        pooled = nn.functional.adaptive_avg_pool2d(images.float(), (2, 3)) * self.value
        return torch.stack([pooled[:, 0], 2 * pooled[:, 2]], dim=1)


class NaNModel(Pool):
    value = float("nan")


class OverflowingModel(Pool):
    """Finite in single precision, not in the half precision that volumes are kept in."""

    value = 1e7


class FlatModel(Pool):
    def forward(self, images):
        return super().forward(images).flatten(1)


class MiscountedModel(Pool):
    channels = 3


class Unnamed(nn.Module):
    channels = 3


class NoModule:
    in_channels, channels = 1, 1


class Brightness:
    """A saliency model that reads the images."""

    def __call__(self, images, volume):
        return nn.functional.adaptive_avg_pool2d(images.mean(dim=1), volume.shape[2:])


def examples(**config) -> Examples:
    return Examples(EnvConfig(**{"source": "digits", "num_examples": 4, **config}), progress=False)


COMPACT = ["compact", "compact-single", "compact-ten"]


@pytest.mark.parametrize("name", COMPACT)
def test_the_compact_model_maps_100_px_to_7x7_cells(name):
    model = activation_model(name)
    volume = model(torch.rand(2, 1, 100, 100))
    assert (model.in_channels, model.channels) == (1, 128)
    assert volume.shape == (2, 128, 7, 7)
    assert volume.min() == 0
    assert volume.max() > 0


@pytest.mark.parametrize("name", COMPACT)
def test_the_compact_model_is_fixed(name):
    model = activation_model(name)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model is activation_model(name)


@pytest.mark.parametrize(("deeper", "more_px"), [(0, 0), (1, 96), ((1, 0), 32), ([0, 2], 128)])
def test_a_compact_cell_sees_87_px_16_px_apart_and_more_with_more_blocks(deeper, more_px):
    torch.manual_seed(0)
    model = CompactResNet(deeper=deeper).eval()
    for part in model.more.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
    side_px = 132 + more_px
    images = torch.rand(8, 1, side_px, side_px, requires_grad=True)  # the middle cells see no border
    middle = 4 + more_px // 32

    def seen(row, col):
        """First row and column that the cell sees, and how many."""
        (gradient,) = torch.autograd.grad(model(images)[:, :, row, col].sum(), images)
        lit = gradient.abs().sum(dim=(0, 1)).nonzero()
        return lit.amin(dim=0), (lit.amax(dim=0) - lit.amin(dim=0) + 1).tolist()

    (first, extent), (next_first, next_extent) = seen(middle, middle), seen(middle, middle + 1)
    assert extent == next_extent == [87 + more_px] * 2
    assert model.receptive_field_px == 87 + more_px
    assert (next_first - first).tolist() == [0, 16]


@pytest.mark.parametrize("name", COMPACT)
def test_the_bundled_saliency_peaks_at_the_object(name):
    """On test digits it never saw: the most salient cell's centre, 16 px apart from 2 px on, is in the object's box."""
    tested = examples(task="single", split="test", num_examples=200, activation=name)
    example, canvases = tested.load(np.arange(200))
    peak = example.raw_saliency.flatten(1).argmax(dim=1).numpy()
    centre = np.stack([peak // 7, peak % 7], axis=1) * 16 + 2
    corner, size = canvases.boxes[:, 0, :2], canvases.boxes[:, 0, 2:]
    inside = ((centre >= corner - 8) & (centre < corner + size + 8)).all(axis=1)
    assert inside.mean() > 0.97


def test_sum_of_squares_is_the_default_saliency():
    model, volume = saliency_model("sum-of-squares"), torch.randn(2, 3, 4, 5)
    assert not model.needs_images
    torch.testing.assert_close(model(None, volume), F.sum_of_squares(volume))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "No activation model at"),
        ("empty", "cut off, damaged"),
        ("cut off", "cut off, damaged"),
        ("garbage", "cut off, damaged"),
        ("a list", "expected an activation model written by"),
        ("plain weights", r"got \['bias', 'weight'\]"),
        ("unknown architecture", "holds a 'vgg'"),
        ("other weights", "do not fit the architecture 'compact'"),
        ("unknown argument", "do not fit the architecture 'compact'"),
        ("argument out of range", "Expected in_channels 1 or 3"),
    ],
)
def test_a_file_that_is_no_such_model_is_refused(tmp_path, damage, said):
    path, whole = tmp_path / "model.pt", (WEIGHTS_FOLDER / "compact.pt").read_bytes()
    content = torch.load(WEIGHTS_FOLDER / "compact.pt", weights_only=True)
    if damage in ("empty", "cut off", "garbage"):
        path.write_bytes({"empty": b"", "cut off": whole[: len(whole) // 2], "garbage": bytes(1000)}[damage])
    elif damage != "missing":
        torch.save(
            {
                "a list": [1, 2],
                "plain weights": nn.Linear(2, 2).state_dict(),
                "unknown architecture": content | {"architecture": "vgg"},
                "other weights": content | {"weights": nn.Linear(2, 2).state_dict()},
                "unknown argument": content | {"arguments": {"depth": 3}},
                "argument out of range": content | {"arguments": {"in_channels": 2}},
            }[damage],
            path,
        )
    with pytest.raises(CheckpointError, match=said) as caught:
        activation_model(str(path))
    assert str(path) in str(caught.value)


def test_a_model_file_is_an_activation_by_its_path(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, path = CompactResNet(3, output_stride=8), tmp_path / "own.pt"
    save_model(path, "compact", model)
    read = activation_model(str(path))
    assert (read.in_channels, read.stride_px, read.channels) == (3, 8, 128)
    assert not any(parameter.requires_grad for parameter in read.parameters())
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in read.state_dict().items())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert activation_model("~/own.pt").stride_px == 8
    observed = Examples(EnvConfig(source="digits", num_examples=1, activation=str(path))).load([0])[0]
    assert observed.volume.shape == (1, 128, 14, 14)


def test_a_failed_write_leaves_the_model_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "own.pt"
    save_model(path, "compact", CompactResNet())
    before = path.read_bytes()

    def full(content, to):
        Path(to).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"Cannot write .*own\.pt: No space left"):
        save_model(path, "compact", CompactResNet())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("init", "said"),
    [("missing.pt", "No activation model at missing"), ("compact-ten", "holds a 'compact'")],
)
def test_a_model_to_go_on_from_must_be_there_and_of_the_architecture(monkeypatch, init, said):
    monkeypatch.setitem(ARCHITECTURES, "other", CompactResNet)
    with pytest.raises(CheckpointError, match=said):
        initial_model("other", init)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ConfigError, match="Expected architecture to be one of compact"):
        initial_model("vgg")


def test_what_a_model_is_trained_from():
    class Published(CompactResNet):
        @classmethod
        def published(cls, **arguments):
            return f"published with {arguments}"

    scratch = initial_model("compact", in_channels=3, output_stride=None)
    assert scratch.arguments == {
        "in_channels": 3, "output_stride": 16, "lower_level": False, "deeper": 0, "padding": "zeros",
        "first_px": (0.5, 0.5),
    }  # fmt: skip
    finer = initial_model("compact", "compact-ten", output_stride=4)
    bundled = activation_model("compact-ten").state_dict()
    assert finer.stride_px == 4
    assert all(torch.equal(weight, bundled[name]) for name, weight in finer.state_dict().items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "compact", Published)
        assert initial_model("compact", in_channels=3) == "published with {'in_channels': 3}"
        assert isinstance(initial_model("compact", "scratch"), Published)


@pytest.mark.parametrize("stride", [8, 4])
def test_a_finer_map_holds_the_coarse_one(stride):
    """The same weights: at every 16 px, cells of the dilated network are those of the network itself."""
    coarse, step = activation_model("compact"), 16 // stride
    fine = load_model(WEIGHTS_FOLDER / "compact.pt", ARCHITECTURES, output_stride=stride).eval()
    images = torch.rand(2, 1, 112, 96)
    with torch.no_grad():
        torch.testing.assert_close(fine(images)[:, :, ::step, ::step], coarse(images), rtol=1e-4, atol=1e-4)
        assert fine(images[..., :100, :]).shape == (2, 128, 112 // stride, 96 // stride)
    grid = Grid.of(fine, (112, 96), (112 // stride, 96 // stride))
    assert grid.stride_px == (stride, stride)


def test_the_lower_level_columns_hold_what_lies_in_the_cell():
    model = load_model(WEIGHTS_FOLDER / "compact.pt", ARCHITECTURES, lower_level=True).eval()
    images = torch.rand(2, 1, 112, 112)
    with torch.no_grad():
        volume, top = model(images), activation_model("compact")(images)
        before = model.layers[:-1](images)  # [2, 96, 14, 14]
    assert (model.channels, model.saliency_channels) == (512, 128)
    torch.testing.assert_close(volume[:, :128], top)
    places = volume[:, 128:].view(2, 96, 2, 2, 7, 7)
    for row, col, i, j in [(0, 0, 0, 0), (3, 5, 1, 0), (6, 6, 1, 1)]:
        torch.testing.assert_close(places[:, :, i, j, row, col], before[:, :, 2 * row + i, 2 * col + j])


@pytest.mark.parametrize("stride", [16, 8])
def test_a_deeper_network_begins_as_the_one_it_grew_from(stride):
    images, flat = torch.rand(2, 1, 112, 112), {"output_stride": stride}
    plain = load_model(WEIGHTS_FOLDER / "compact.pt", ARCHITECTURES, **flat).eval()
    grown = load_model(WEIGHTS_FOLDER / "compact.pt", ARCHITECTURES, **flat, deeper=2).eval()
    with torch.no_grad():
        assert torch.equal(grown(images), plain(images))
    assert sum(p.numel() for p in grown.parameters()) == sum(p.numel() for p in plain.parameters()) + 4 * sum(
        c * c * 9 + 2 * c for c in (96, 128)
    )


@pytest.mark.parametrize("stride", [8, 4])
def test_a_deeper_finer_map_holds_the_coarse_one(stride, tmp_path):
    torch.manual_seed(0)
    model = load_model(WEIGHTS_FOLDER / "compact.pt", ARCHITECTURES, deeper=1)
    for part in model.more.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight)
    save_model(tmp_path / "deeper.pt", "compact", model)
    fine = load_model(tmp_path / "deeper.pt", ARCHITECTURES, output_stride=stride).eval()
    images, step = torch.rand(2, 1, 112, 96), 16 // stride
    with torch.no_grad():
        torch.testing.assert_close(fine(images)[:, :, ::step, ::step], model.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stride", "image_px"), [(16, (112, 96)), (8, (100, 90)), (4, (100, 90))])
def test_without_zeros_beyond_the_edge_no_cell_knows_its_place(stride, image_px):
    """An image of one colour: its cells are alike, where the edge goes on, and are not, where zeros follow."""
    flat = torch.full((1, 1, *image_px), 0.7)
    going_on, zeros = (
        load_model(WEIGHTS_FOLDER / "compact.pt", ARCHITECTURES, output_stride=stride, deeper=1, padding=padding).eval()
        for padding in ("replicate", "zeros")
    )
    with torch.no_grad():
        volume = going_on(flat)
        torch.testing.assert_close(volume, volume[:, :, :1, :1].expand_as(volume), rtol=1e-4, atol=1e-4)
        assert volume.shape == zeros(flat).shape
        assert zeros(flat).std(dim=(2, 3)).amax() > 0.01


def test_a_model_file_keeps_the_blocks_of_each_stage_and_the_padding(tmp_path):
    model = CompactResNet(deeper=(0, 2), padding="replicate").eval()
    save_model(tmp_path / "m.pt", "compact", model)
    again, images = load_model(tmp_path / "m.pt", ARCHITECTURES).eval(), torch.rand(1, 1, 48, 64)
    assert [len(stage) for stage in again.more] == [0, 2]
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_unknown_padding_is_refused():
    with pytest.raises(ConfigError, match="padding to be zeros or replicate; got 'reflect'"):
        CompactResNet(padding="reflect")


@pytest.mark.parametrize("deeper", [-1, 9, (0, 9), (1, 2, 3), [-1, 0]])
def test_a_depth_outside_its_range_is_refused(deeper):
    with pytest.raises(ConfigError, match=re.escape(f"deeper in 0..8, or two such numbers; got {deeper}")):
        CompactResNet(deeper=deeper)


def test_only_blocks_that_were_asked_for_may_be_missing_in_a_file(tmp_path):
    model = CompactResNet(deeper=1)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("more.")}
    model.state_dict = lambda: weights
    save_model(tmp_path / "m.pt", "compact", model)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(tmp_path / "m.pt", ARCHITECTURES)


@pytest.mark.parametrize(
    "wrong", [{"in_channels": 2}, {"output_stride": 32}, {"output_stride": 8, "lower_level": True}]
)
def test_a_compact_network_that_cannot_be_built_is_refused(wrong):
    with pytest.raises(ConfigError, match="Expected in_channels 1 or 3"):
        CompactResNet(**wrong)


@pytest.mark.parametrize("name", COMPACT)
def test_a_registered_name_means_the_file_of_that_name(name):
    registered = activation_model(name).state_dict()
    read = load_model(WEIGHTS_FOLDER / f"{name}.pt", ARCHITECTURES).state_dict()
    assert all(torch.equal(registered[part], read[part]) for part in read)
    assert (WEIGHTS_FOLDER / f"{name}.json").is_file()  # where they came from


@pytest.mark.parametrize("find", [activation_model, saliency_model])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet1000", "Unknown (activation|saliency) model 'resnet1000'. Expected one of"),
        ("compact-multiset", "Expected one of"),
        ("", "Expected one of"),
        (":", "package.module:Name"),
        ("os.path:", "package.module:Name"),
        ("no_such_package.models:Model", "cannot be imported"),
        ("os.path:NoSuchModel", "cannot be imported"),
        ("os.path:dirname", "(activation|saliency)='os.path:dirname': expected a class or function that makes a model"),
        ("os.path:sep", "expected a class or function .*: 'str' object is not callable"),
    ],
)
def test_a_model_that_cannot_be_found_is_refused(find, name, message):
    with pytest.raises(ConfigError, match=message):
        find(name)


def test_a_given_activation_model_gets_the_attributes_that_it_lacks():
    mine = Pool()
    found = activation_model(mine)
    assert (found.saliency_channels, found.arguments, found.stride_px, found.resized_px) == (2, {}, None, None)
    assert not hasattr(mine, "saliency_channels")
    mine.saliency_channels, mine.stride_px = 1, 4.0
    found = activation_model(mine)
    assert (found.saliency_channels, found.stride_px, found.first_px) == (1, 4.0, None)


def test_a_given_saliency_model_gets_the_attributes_that_it_lacks():
    def where(images, volume, grid):
        return volume[:, 0] * grid.stride_px[0]

    found = saliency_model(Brightness())
    assert (found.needs_images, found.reads) == (True, ())
    where.needs_images, where.reads = False, ("grid",)
    found = saliency_model(where)
    assert (found.needs_images, found.reads) == (False, ("grid",))
    grid, volume = Grid.of(None, (6, 6), (3, 3)), torch.ones(1, 1, 3, 3)
    assert torch.equal(found(None, volume, grid=grid), 2 * volume[:, 0])


@pytest.mark.parametrize("name", ["Unnamed", "NoModule"])
def test_a_model_that_is_none_is_refused(name):
    with pytest.raises(ConfigError, match=r"expected an nn\.Module with the attributes in_channels and channels"):
        activation_model(f"{__name__}:{name}")


class NegativeSaliency:
    needs_images = False

    def __call__(self, images, volume):
        return -volume.square().sum(dim=1)


class FlatSaliency(NegativeSaliency):
    def __call__(self, images, volume):
        return volume.sum(dim=(1, 2, 3))


@pytest.mark.parametrize("name", ["NegativeSaliency", "FlatSaliency"])
def test_a_saliency_map_of_another_shape_or_range_is_refused(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "odd_saliency", sys.modules[__name__])
    examples = Examples(EnvConfig(source="digits", num_examples=2, saliency=f"odd_saliency:{name}"))
    with pytest.raises(DataError, match="saliency="):
        examples.load([0])


# --- examples ---------------------------------------------------------------------------------------------------------


def test_images_are_scaled_and_grey_is_repeated():
    images = to_images(np.array([[[0, 51], [102, 255]]], np.uint8), 3)
    torch.testing.assert_close(images, torch.tensor([[0.0, 0.2], [0.4, 1.0]]).expand(1, 3, 2, 2))


def test_a_third_partys_models_are_used():
    third = examples(activation=f"{__name__}:Pool", saliency=f"{__name__}:Brightness", num_examples=3)
    assert (third.channels, third.map_size) == (2, (2, 3))
    example, canvases = third.load([2, 0])
    grey = to_images(canvases.images, 1)
    expected = nn.functional.adaptive_avg_pool2d(grey, (2, 3))
    torch.testing.assert_close(example.volume, torch.cat([expected, 2 * expected], dim=1), rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(example.raw_saliency, expected[:, 0])
    assert example.canvas_index.tolist() == [2, 0]


def test_examples_hold_the_canvases_labels_and_the_volumes_saliency():
    supply = examples()
    example, canvases = supply.load([3, 1])
    assert example.counts.dtype == torch.int64
    for counts, labels in zip(example.counts, canvases.labels, strict=True):
        assert [c for c in range(10) for _ in range(counts[c])] == sorted(labels[labels >= 0])
    torch.testing.assert_close(example.raw_saliency, F.sum_of_squares(example.volume))
    np.testing.assert_array_equal(canvases.images, supply.compose(np.array([3, 1])).images)


def test_an_example_does_not_depend_on_its_batch():
    supply = examples()
    together = supply.load(range(4))[0]
    for lane in range(4):
        for part, alone in zip(together, supply.load([lane])[0], strict=True):
            assert torch.equal(part[lane], alone[0])


@pytest.mark.parametrize("indices", [[-1], [0, 4]])
def test_an_index_outside_the_split_is_refused(indices):
    with pytest.raises(DataError, match=r"in 0\.\.3; got"):
        examples().load(indices)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NaNModel", "NaN or infinity"),
        ("OverflowingModel", ""),
        ("FlatModel", ""),
        ("MiscountedModel", "of D = 3 channels"),
    ],
)
def test_a_volume_that_is_none_is_refused(name, words):
    with pytest.raises(DataError, match=f"expected a finite volume.*{words}"):
        examples(activation=f"{__name__}:{name}")


@pytest.mark.parametrize("wrong", [np.zeros((1, 100, 100)), np.zeros((100, 100), np.uint8)])
def test_images_that_are_none_are_refused(wrong):
    with pytest.raises(DataError, match="Expected images uint8"):
        examples().encode(wrong)


def test_label_counts_by_hand():
    counts = label_counts(np.array([[3, 3, -1], [0, 9, 3], [-1, -1, -1]]), 10)
    assert counts.tolist() == [[0, 0, 0, 2, *[0] * 6], [1, 0, 0, 1, *[0] * 5, 1], [0] * 10]


@pytest.mark.parametrize("label", [-2, 10])
def test_other_labels_are_refused(label):
    with pytest.raises(DataError, match=r"labels in 0\.\.9, or -1"):
        label_counts(np.array([[0, label]]), 10)


def test_a_fingerprint_tells_texts_arrays_and_weights_apart():
    torch.manual_seed(0)
    parts = ["a", "b", np.zeros(3), np.ones(3), nn.Linear(2, 2), nn.Linear(2, 2)]
    assert len({fingerprint(part) for part in parts}) == len(parts)
    assert fingerprint(*parts) == fingerprint(*parts)


# --- the feature store ------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HSAL_CACHE", str(tmp_path))
    return tmp_path


def test_stored_examples_are_the_lazy_ones_up_to_rounding(fresh_cache):
    config = {"num_examples": 70, "split": "val"}  # more than one batch
    stored, lazy = examples(features="store", **config), examples(**config)
    assert (stored.channels, stored.map_size) == (lazy.channels, lazy.map_size)
    indices = np.array([69, 0, 64, 64])
    (kept, no_canvases), (computed, _) = stored.load(indices), lazy.load(indices)
    assert no_canvases is None
    torch.testing.assert_close(kept.volume, computed.volume, rtol=0.05, atol=0.05)  # bfloat16: three digits at most
    torch.testing.assert_close(kept.raw_saliency, F.sum_of_squares(kept.volume))
    assert torch.equal(kept.counts, computed.counts)
    assert torch.equal(kept.canvas_index, computed.canvas_index)
    assert kept.volume.dtype == computed.volume.dtype == torch.float32


def test_a_second_reader_computes_nothing(fresh_cache, another_process, monkeypatch):
    first = examples(features="store").load([2])[0]
    another_process()
    monkeypatch.setattr(Examples, "_encode_all", lambda *_: pytest.fail("computed again"))
    second = examples(features="store").load([2])[0]
    assert torch.equal(first.volume, second.volume)


def test_other_examples_have_another_store(fresh_cache):
    changes = [
        {},
        {"seed": 1},
        {"split": "test"},
        {"num_examples": 5},
        {"clutter": 7},
        {"activation": f"{__name__}:Pool"},
    ]
    for change in changes:
        examples(features="store", **change)
    assert len(list((fresh_cache / "features").iterdir())) == len(changes)


def test_a_store_is_shared_where_only_the_dynamics_differ(fresh_cache):
    for change in [{}, {"glimpses": 3}, {"protocol": "teacher"}, {"saliency": f"{__name__}:Brightness"}]:
        examples(features="store", **change)
    assert len(list((fresh_cache / "features").iterdir())) == 1
