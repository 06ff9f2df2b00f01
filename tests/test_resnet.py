"""ResNet-18 and ResNet-34: against torchvision's own, dilated against strided, and their weights files."""

import copy
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from hsal_env.config import EnvConfig
from hsal_env.data.torchvision_import import import_torchvision
from hsal_env.errors import CheckpointError, ConfigError, DataUnavailableError
from hsal_env.perception import examples as examples_module
from hsal_env.perception import registry, resnet
from hsal_env.perception.examples import Examples, to_images
from hsal_env.perception.grid import Grid
from hsal_env.perception.model_file import save_model
from hsal_env.perception.registry import ARCHITECTURES, activation_model, initial_model
from hsal_env.perception.resnet import ResNet, ResNet18, ResNet34, imagenet_file

STAGES = {
    32: ("layer4", "layer3"),
    16: ("layer3", "layer2"),
    8: ("layer2", "layer1"),
}  # of that stride, and the next finer


@pytest.fixture(scope="module")
def torchvision_net() -> nn.Module:
    """Torchvision's resnet18, with weights and batch norm's statistics drawn at random."""
    torch.manual_seed(0)
    net = import_torchvision().models.resnet18(weights=None).eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.1)
    return net


@pytest.fixture(scope="module")
def of(torchvision_net):
    """Our net of the given arguments with torchvision_net's weights."""

    def build(output_stride: int = 32, lower_level: bool = False) -> ResNet:
        model = ResNet18(output_stride, lower_level).eval()
        model.load_state_dict({k: v for k, v in torchvision_net.state_dict().items() if not k.startswith("fc.")})
        return model

    return build


@pytest.fixture(scope="module")
def images():
    return torch.rand(1, 3, 100, 100, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def volume(of, images):
    with torch.inference_mode():
        return {(stride, lower): of(stride, lower)(images) for stride in (32, 16, 8) for lower in (False, True)}


def torchvision_stages(net, images):
    """The four stages' activations, by torchvision's own transforms and network."""
    import_torchvision()
    from torchvision.transforms.v2 import functional as transforms

    resized = transforms.resize(images, [224, 224], antialias=True)
    normalised = transforms.normalize(resized, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        getattr(net, name).register_forward_hook(lambda *called, name=name: seen.update({name: called[2]}))
        for name in ("layer1", "layer2", "layer3", "layer4")
    ]
    with torch.inference_mode():
        net(normalised)
    for hook in hooks:
        hook.remove()
    return seen


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(100, 100), (224, 224), (40, 300)])
def test_it_is_torchvisions_network_up_to_its_4th_stage(of, torchvision_net, size):
    images = torch.rand(1, 3, *size).double()  # in single precision, processors differ by 1e-4
    theirs = torchvision_stages(copy.deepcopy(torchvision_net).double(), images)["layer4"]
    with torch.inference_mode():
        found = of().double()(images)
    assert found.shape == (1, 512, 7, 7)
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)


# torchvision's published counts, 11,689,512 and 21,797,672, less the last layer's 512 x 1000 + 1000
@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_176_512), (34, 21_284_672)])
def test_it_has_torchvisions_parameters_by_the_same_names(depth, parameters):
    with torch.device("meta"):
        theirs = getattr(import_torchvision().models, f"resnet{depth}")(weights=None).state_dict()
        ours = ARCHITECTURES[f"resnet{depth}"](output_stride=8, lower_level=True)
    shapes = {name: tensor.shape for name, tensor in theirs.items() if not name.startswith("fc.")}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    assert sum(parameter.numel() for parameter in ours.parameters()) == parameters


@pytest.mark.parametrize(("stride", "cells"), [(32, 7), (16, 14), (8, 28)])
@pytest.mark.parametrize("lower", [False, True])
def test_shapes(of, volume, stride, cells, lower):
    channels = 512 + (4 * {32: 256, 16: 128, 8: 64}[stride] if lower else 0)
    model = of(stride, lower)
    assert volume[stride, lower].shape == (1, channels, cells, cells)
    assert (model.in_channels, model.channels, model.saliency_channels) == (3, channels, 512)
    assert volume[stride, lower].min() == 0
    assert model.arguments == {"output_stride": stride, "lower_level": lower, "first_px": (0.5, 0.5)}


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize(("fine", "coarse"), [(16, 32), (8, 16), (8, 32)])
def test_every_other_cell_of_a_dilated_map_is_the_strided_maps_border_included(volume, fine, coarse, lower):
    step = coarse // fine
    found = volume[fine, lower][:, :512, ::step, ::step]
    torch.testing.assert_close(found, volume[coarse, False], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("row", "col"), [(0, 1), (1, 0), (1, 1)])
def test_the_cells_between_are_the_strided_stages_on_a_shifted_input(of, row, col):
    """Away from the border: a cell of the 4th stage of ResNet-18 reaches 7 cells of the 3rd, 1 + 2 + 2 + 2."""
    finer = torch.rand(1, 256, 32, 32)
    with torch.inference_mode():
        dilated = of(16).layer4(finer)[:, :, row::2, col::2]
        strided = of(32).layer4(finer[:, :, row:, col:])
    torch.testing.assert_close(dilated[:, :, 4:12, 4:12], strided[:, :, 4:12, 4:12], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        dilated[:, :, 0, 0], strided[:, :, 0, 0], rtol=1e-2
    )  # where the shift lost a row or column


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_lower_level_activations_lie_in_the_column_of_their_cell(of, volume, images, torchvision_net, stride):
    last, finer = STAGES[stride]
    stages, found = torchvision_stages(torchvision_net, images), volume[stride, True]
    torch.testing.assert_close(found[:, :512], volume[stride, False])
    assert stages[finer].shape[2] == 2 * stages[last].shape[2]  # the next finer one
    for channel, row, col, i, j in [(0, 0, 0, 0, 0), (5, 0, 1, 3, 2), (5, 1, 0, 3, 2), (63, 1, 1, 6, 6)]:
        torch.testing.assert_close(
            found[:, 512 + 4 * channel + 2 * row + col, i, j],
            stages[finer][:, channel, 2 * i + row, 2 * j + col],
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize(("output_stride", "cells"), [(32, 7), (16, 14), (8, 28)])
def test_its_cells_lie_where_they_look_at_the_resized_image(of, output_stride, cells):
    grid = Grid.of(of(output_stride), (112, 448), (cells, cells))
    assert grid.first_px == pytest.approx((0.25, 1.0))
    assert grid.stride_px == pytest.approx((output_stride / 2, output_stride * 2))
    assert grid.field_px == pytest.approx((435 / 2, 435 * 2))


def test_a_cell_sees_as_far_as_it_says_and_as_far_to_either_side(of, monkeypatch):
    """On an image so large that the whole receptive field of a middle cell lies on it."""
    monkeypatch.setattr(resnet, "SIDE_PX", 640)
    image = torch.rand(1, 3, 640, 640, requires_grad=True)
    model, cell = of(), 10
    model(image)[0, :, cell, cell].sum().backward()
    for seen in (image.grad.abs().sum(dim=(0, 1, 3)), image.grad.abs().sum(dim=(0, 1, 2))):
        rows = seen.nonzero()
        centre, reach = model.first_px[0] + cell * model.stride_px, model.receptive_field_px / 2
        assert (rows.min().item(), rows.max().item() + 1) == (centre - reach, centre + reach)


def test_the_deeper_network_sees_further():
    """7 px of stem and 3 of pooling, then two 3x3 convolutions in each block, those of stride 2 reading the finer map."""
    for model, blocks in ((ResNet18, (2, 2, 2, 2)), (ResNet34, (3, 4, 6, 3))):
        field, step = 11, 4
        for stage, count in enumerate(blocks):
            strided = 2 * step if stage else 0  # the first convolution of a stage that halves the map
            step *= 2 if stage else 1
            field += strided + (2 * count - (stage > 0)) * 2 * step
        assert model.receptive_field_px == field


def test_all_layers_can_be_fine_tuned():
    torch.manual_seed(0)
    model = ResNet18(lower_level=True)
    before = model.bn1.running_mean.clone()
    model(torch.rand(2, 3, 40, 40)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert not torch.equal(model.bn1.running_mean, before)


def test_another_output_stride_is_refused():
    with pytest.raises(ConfigError, match="output_stride to be one of 32, 16, 8; got 4"):
        ResNet34(output_stride=4)


def test_torchvision_is_imported_only_when_a_resnet_is_built():
    code = """
import sys, hsal_env.perception.registry as registry
assert "torchvision" not in sys.modules
registry.activation_model("compact")
assert "torchvision" not in sys.modules
assert registry.ARCHITECTURES['resnet18']().channels == 512
assert "torchvision" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr


# --- weights files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """For files of 45 MB, which pytest would keep."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture
def folders(folder, monkeypatch) -> dict[str, Path]:
    """Where weights are looked for, each empty; and nothing can be downloaded."""
    monkeypatch.setenv("HSAL_DATA", str(folder / "data"))
    monkeypatch.setenv("HSAL_CACHE", str(folder / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    found = {
        "data": folder / "data",
        "cache": folder / "cache" / "weights",
        "hub": folder / "hub" / "checkpoints",
    }
    for place in found.values():
        place.mkdir(parents=True)
    registry._activation_of_name.cache_clear()
    yield found
    registry._activation_of_name.cache_clear()


def refuse(*_, **__):
    raise ConnectionError("no route to host")


@pytest.fixture
def imagenet(folders, torchvision_net, monkeypatch) -> Path:
    """A stand-in for torchvision's weights of resnet18, under its name, last layer included."""
    path = folders["cache"] / "weights.pth"
    torch.save(torchvision_net.state_dict(), path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(resnet.WEIGHTS_FILES, 18, f"resnet18-{digits}.pth")
    return path.rename(path.with_name(f"resnet18-{digits}.pth"))


def test_the_names_are_torchvisions():
    models = import_torchvision().models
    for depth, enum in ((18, models.ResNet18_Weights), (34, models.ResNet34_Weights)):
        assert resnet.WEIGHTS_URL + resnet.WEIGHTS_FILES[depth] == enum.IMAGENET1K_V1.url
    transform = models.ResNet34_Weights.IMAGENET1K_V1.transforms()
    assert (tuple(transform.mean), tuple(transform.std)) == (resnet.MEAN, resnet.STD)
    assert transform.crop_size == [resnet.SIDE_PX]


@pytest.mark.parametrize("place", ["data", "cache", "hub"])
def test_imagenet_weights_are_found_in_each_place(folders, imagenet, of, images, volume, place):
    if place != "cache":
        (folders[place] / imagenet.name).write_bytes(imagenet.read_bytes())
        imagenet.unlink()
    assert imagenet_file(18) == folders[place] / imagenet.name
    model = ResNet18.published(output_stride=16).eval()
    with torch.inference_mode():
        assert torch.equal(model(images), volume[16, False])


def test_without_hsal_data_the_other_places_are_looked_at(imagenet, monkeypatch):
    monkeypatch.delenv("HSAL_DATA")
    assert imagenet_file(18) == imagenet


def test_loading_changes_no_other_draw(imagenet):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    ResNet18.published()
    assert torch.equal(torch.rand(1), expected)


def test_weights_are_downloaded_once_and_their_hash_asked_for(folders, imagenet, monkeypatch):
    whole, asked = imagenet.read_bytes(), []
    imagenet.unlink()
    folders["cache"].rmdir()

    def download(url, path, hash_prefix):
        asked.append((url, hash_prefix))
        Path(path).write_bytes(whole)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert imagenet_file(18) == imagenet_file(18) == imagenet
    assert asked == [(f"https://download.pytorch.org/models/{imagenet.name}", imagenet.stem[-8:])]


def test_weights_found_nowhere_say_where_they_belong(folders):
    with pytest.raises(DataUnavailableError) as error:
        activation_model("resnet34")
    said = str(error.value)
    assert "https://download.pytorch.org/models/resnet34-b627a593.pth" in said
    assert "no route to host" in said
    assert "hsal-pretrain --architecture resnet34 --init scratch" in said
    assert all(str(folder) in said for folder in folders.values())


def test_a_file_of_another_hash_is_refused(imagenet):
    whole = imagenet.read_bytes()
    imagenet.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    said = rf"{imagenet.name}: expected torchvision's ImageNet weights, whose SHA-256 begins with {imagenet.stem[-8:]}"
    with pytest.raises(CheckpointError, match=said):
        ResNet18.published()


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:1_000_000])
    return path


def without(state: dict, *names: str) -> dict:
    return {name: tensor for name, tensor in state.items() if name not in names}


DAMAGES = {
    "missing file": (lambda path, _: path, "cannot be read"),
    "cut off": (lambda path, state: cut(save(path, state)), "cannot be read"),
    "code": (lambda path, _: save(path, nn.Linear(1, 1)), "cannot be read"),
    "two tensors missing": (
        lambda path, state: save(path, without(state, "conv1.weight", "layer4.1.bn2.bias")),
        r"got 2 tensors missing \(conv1\.weight, …\)\.",
    ),
    "others": (
        lambda path, _: save(path, nn.Linear(2, 2).state_dict()),
        r"got 120 tensors missing \(conv1\.weight, …\), 2 tensors unknown \(weight, …\)\.",
    ),
    "another shape": (
        lambda path, state: save(path, {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}),
        r"got 1 tensors of another shape \(conv1\.weight, …\)\.",
    ),
    "a list": (lambda path, _: save(path, [1, 2]), "but a list"),
    "numbers": (lambda path, _: save(path, {"conv1.weight": 1}), "no dictionary of tensors but a dict"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_weights_that_do_not_fit_are_refused(folder, torchvision_net, damage, words):
    path = damage(folder / "own.pth", torchvision_net.state_dict())
    with pytest.raises(CheckpointError, match=rf"own\.pth: .*{words}"):
        ResNet18.published(path=path)


def test_weights_of_another_depth_are_refused(folder, torchvision_net):
    path = save(folder / "resnet18.pth", torchvision_net.state_dict())
    # 8 blocks more, of 2 convolutions with one tensor and 2 batch norms with five each
    with pytest.raises(CheckpointError, match=r"torchvision's resnet34; got 96 tensors missing \(layer1\.2\."):
        ResNet34.published(path=path)


def test_weights_of_your_own_are_loaded_from_their_file(folder, torchvision_net, images, volume):
    state = torchvision_net.state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]  # older files have none
    path = save(folder / "own.pth", without(state, "fc.weight", "fc.bias", *counters))
    with torch.inference_mode():
        assert torch.equal(ResNet18.published(path=path).eval()(images), volume[32, False])


@pytest.mark.parametrize(
    ("name", "kind", "arguments"),
    [
        ("resnet18", ResNet18, (32, False)),
        ("resnet34", ResNet34, (32, False)),
        ("resnet34-stride16", ResNet34, (16, False)),
        ("resnet34-stride8", ResNet34, (8, False)),
        ("resnet34-lower-level", ResNet34, (32, True)),
    ],
)
def test_registered_names(monkeypatch, name, kind, arguments):
    asked = []
    monkeypatch.setattr(resnet, "imagenet_file", asked.append)
    monkeypatch.setattr(torch, "load", lambda *_, **__: {})
    monkeypatch.setattr(ResNet, "load_state_dict", lambda *_: None)
    model = registry.ACTIVATION_MODELS[name]()
    assert (type(model), tuple(model.arguments.values())[:2], asked) == (kind, arguments, [model.depth])


def test_training_starts_from_imagenet_or_from_scratch(imagenet, torchvision_net):
    known = torchvision_net.conv1.weight
    assert torch.equal(initial_model("resnet18").conv1.weight, known)
    fine = initial_model("resnet18", output_stride=16)
    assert torch.equal(fine.conv1.weight, known)
    assert fine.arguments["output_stride"] == 16
    assert not torch.equal(initial_model("resnet18", "scratch").conv1.weight, known)


def test_a_fine_tuned_resnet_is_read_from_its_model_file(folder, of, images, volume):
    path = folder / "tuned.pt"
    save_model(path, "resnet18", of(16, lower_level=True))
    with torch.inference_mode():
        assert torch.equal(activation_model(str(path))(images), volume[16, True])
        assert torch.equal(initial_model("resnet18", str(path), lower_level=False).eval()(images), volume[16, False])


# --- in the environment -----------------------------------------------------------------------------------------------


def examples(**config) -> Examples:
    return Examples(EnvConfig(**{"source": "digits", "num_examples": 3, **config}), progress=False)


def test_a_frozen_resnet_stays_as_it_is(of):
    given = of().train()
    supply = examples(activation=given)
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    example, canvases = supply.load([2, 0])
    after = supply._activation.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(part.training for part in supply._activation.modules())
    assert not any(parameter.requires_grad for parameter in supply._activation.parameters())
    assert all(part.training for part in given.modules())  # the given one can still be fine-tuned
    with torch.inference_mode():
        expected = given.eval()(to_images(canvases.images, 3))
    torch.testing.assert_close(example.volume, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("bfloat16", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_store_holds_what_is_computed_and_tells_variants_apart(folders, of, monkeypatch, bfloat16):
    monkeypatch.setattr(examples_module, "native_bfloat16", lambda: bfloat16)
    stored, lazy = examples(activation=of(), features="store"), examples(activation=of())
    computed, kept = lazy.load([2, 0])[0], stored.load([2, 0])[0]
    torch.testing.assert_close(kept.volume, computed.volume, rtol=0.05, atol=0.05)
    for other in (of(16), of(32, lower_level=True)):
        examples(activation=other, features="store")
    assert len(list((folders["cache"].parent / "features").iterdir())) == 3
    monkeypatch.setattr(Examples, "encode", refuse)
    assert torch.equal(examples(activation=of(), features="store").load([2, 0])[0].volume, kept.volume)


def test_an_environment_sees_through_it_by_name(imagenet):
    env = gym.make("HSAL-MNISTMultiset-v0", activation="resnet18", source="digits", num_examples=2, include_volume=True)
    observation, _ = env.reset(seed=0)
    assert observation["volume"].shape == (512, 7, 7)
    assert np.isfinite(observation["volume"]).all()
    env.step(env.action_space.sample())
