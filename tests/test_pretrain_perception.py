"""The command that pretrains perception, and the canvases that it learns from."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import PRETRAIN, Command, script
from PIL import Image

from agents.supervised import features
from agents.supervised.pretraining import Pretrainer
from hsal_env import functional as F
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError, DivergenceError
from hsal_env.perception.examples import Examples
from hsal_env.perception.model_file import load_model
from hsal_env.perception.registry import ARCHITECTURES, WEIGHTS_FOLDER
from train import pretrain_perception

pytestmark = pytest.mark.filterwarnings("ignore:The saliency map of")  # trainings as short as these show nothing


@pytest.mark.parametrize(
    ("objects", "flags", "map_px"),
    [
        ("multiset", {}, 7),
        ("crowded", {"init": "compact-ten", "output_stride": 8}, 14),
        ("single", {"objective": "classify"}, 7),
        ("house-numbers", {}, 7),
        pytest.param(
            "single",
            {"architecture": "resnet18", "init": "scratch", "objective": "classify", "num_canvases": 16},
            7,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_perception_can_be_pretrained(mnist_root: str, tmp_path: Path, objects: str, flags: dict, map_px: int):
    module = script(PRETRAIN)
    output = tmp_path / "w.pt"
    few = {"passes": 1, "num_canvases": 64, "batch_size": 16, "val_canvases": 9, "test_canvases": 9}
    module.main(module.Args(output=output, objects=objects, data_root=mnist_root, **{**few, **flags}))

    results = json.loads(output.with_suffix(".json").read_text())
    assert set(results["test"]) == ({"house-numbers"} if objects == "house-numbers" else {"mnist", "digits"})
    for looks in results["test"].values():
        assert set(looks) == set(module.LOOKS[objects])
        assert all(
            set(part) == ({"label"} if flags.get("objective") else {"counts", "peaks", "count_error"})
            for part in looks.values()
        )
        assert all(
            0 <= value <= (1 if name != "count_error" else 10)
            for part in looks.values()
            for name, value in part.items()
        )
    assert results["args"]["objects"] == objects
    assert results["images_per_second"] > 0
    assert mnist_root not in output.with_suffix(".json").read_text()
    model = load_model(output, ARCHITECTURES)
    volume = model(torch.rand(1, model.in_channels, 100, 100))
    assert F.sum_of_squares(volume).shape == (1, map_px, map_px)


def test_the_first_half_of_the_passes_may_show_smaller_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module, shown = script(PRETRAIN), []
    loss = features.Pretrainer.loss

    def told(net, images, *others):
        shown.append(tuple(images.shape[2:]))
        return loss(net, images, *others)

    measured: list[float] = []
    monkeypatch.setattr(features.Pretrainer, "loss", told)
    monkeypatch.setattr(features, "accuracy", lambda net, config, count, objective, scale: measured.append(scale) or {})
    few = {"passes": 3, "num_canvases": 2, "batch_size": 1, "val_canvases": 1, "test_canvases": 1}
    module.main(module.Args(output=tmp_path / "model.pt", objects="house-numbers", first_scale=0.68, **few))
    assert shown == [(68, 68)] * 2 + [(100, 100)] * 4
    assert measured == [0.68, 1.0, 1.0, 1.0]  # after each pass, and the test


def rows_shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the rows in px of each batch that is learned from."""
    shown, loss = [], Pretrainer.loss

    def told(net, images, *others):
        shown.append(images.shape[2])
        return loss(net, images, *others)

    monkeypatch.setattr(Pretrainer, "loss", told)
    return shown


def test_each_batch_may_be_shown_at_a_size_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module, shown = script(PRETRAIN), rows_shown(monkeypatch)
    few = {"passes": 2, "num_canvases": 10, "batch_size": 1, "val_canvases": 1, "test_canvases": 1}
    module.main(module.Args(output=tmp_path / "model.pt", objects="house-numbers", scale=1.5, **few))
    assert len({*shown}) > 10
    assert 66 <= min(shown) < 85
    assert 120 < max(shown) <= 150


def test_batches_are_larger_where_variations_make_their_content_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At 0.75 to 1 of its size it has 0.87 in the mean. So images are shown at 0.77 to 1.73 of theirs, and not at 0.67 to 1.5."""
    module, shown = script(PRETRAIN), rows_shown(monkeypatch)
    for i in range(5):
        Image.fromarray(np.full((48, 64), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("\n".join(["file,labels", *(f"{i}.png,{i % 2}" for i in range(5))]))
    few = {"passes": 2, "num_canvases": 10, "batch_size": 1, "val_canvases": 1, "test_canvases": 1}
    args = module.Args(output=tmp_path / "model.pt", images=tmp_path, augment="mirrored", scale=1.5, warp_px=0.0, **few)
    module.main(args)
    assert 37 <= min(shown) < 45
    assert 72 < max(shown) <= 83


def test_pretraining_that_diverges_leaves_the_output_as_it_was(tmp_path: Path):
    module, output = script(PRETRAIN), tmp_path / "model.pt"
    output.write_bytes(b"good")
    few = {"passes": 1, "num_canvases": 64, "batch_size": 16, "val_canvases": 1, "test_canvases": 1}
    with pytest.raises(
        DivergenceError, match=r"not finite in pass 1, .*model\.pt is as it was\. Try a lower learning rate"
    ):
        module.main(module.Args(output=output, objects="house-numbers", learning_rate=1e30, **few))
    assert output.read_bytes() == b"good"


def test_pretraining_twice_gives_the_same_weights(tmp_path: Path):
    module = script(PRETRAIN)
    few = {"passes": 1, "num_canvases": 32, "batch_size": 16, "val_canvases": 1, "test_canvases": 1}
    flags = {"objects": "house-numbers", **few}
    for name in ("one.pt", "two.pt"):
        module.main(module.Args(output=tmp_path / name, **flags))
    one, two = (torch.load(tmp_path / name, weights_only=True)["weights"] for name in ("one.pt", "two.pt"))
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


def test_pretraining_goes_on_from_weights(mnist_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a learning rate of 0 they come out as they went in, but for the running means of batch norm."""
    module = script(PRETRAIN)
    monkeypatch.setattr(features, "accuracy", lambda *_: {})
    start, output = WEIGHTS_FOLDER / "compact.pt", tmp_path / "w.pt"
    flags = {"passes": 1, "num_canvases": 32, "batch_size": 32, "data_root": mnist_root, "learning_rate": 1e-30}
    module.main(module.Args(output=output, objects="ten", init=str(start), **flags))
    before, after = (torch.load(path, weights_only=True)["weights"] for path in (start, output))
    for name in before:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], before[name])
    assert json.loads(output.with_suffix(".json").read_text())["args"]["init"] == "compact.pt"
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"broken\.pt"):
        module.main(module.Args(output=output, objects="ten", init=str(tmp_path / "broken.pt"), **flags))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--fixed-passes 18", "Expected fixed_passes of at least 0 and less than passes; got 18 of 18"),
        ("--average-passes 18", "Expected average_passes of at least 0 and less than passes; got 18 of 18"),
        ("--average-passes 2 --fixed-passes 1", "Expected average_passes or fixed_passes, not both"),
        ("--passes 5 --fixed-passes 4 --first-scale 0.9", "Expected fixed_passes among those of whole images"),
        ("--overlaid 0.5", "Expected --overlaid with --images only; got 0.5"),
        ("--scale 0.5", "Expected scale of 1 to 4; got 0.5"),
        ("--sharp-ramp 0.5 0.2", "Expected sharp_ramp as two shares in 0..1, the lower one first"),
        ("--deeper 9", "Expected deeper in 0..8, or two such numbers; got 9"),
        ("--deeper 0 9", "Expected deeper in 0..8, or two such numbers; got (0, 9)"),
        ("--first-scale 0", "Expected first_scale above 0 and at most 1; got 0.0"),
        ("--first-scale 1.5", "Expected first_scale above 0 and at most 1; got 1.5"),
        ("--passes 0", "Expected passes, val_canvases and test_canvases of at least 1"),
        ("--batch-size 0", "Expected passes, val_canvases and test_canvases of at least 1"),
        ("--batch-size 64 --num-canvases 32", "Expected passes, val_canvases and test_canvases of at least 1"),
        ("--test-canvases 0", "Expected passes, val_canvases and test_canvases of at least 1"),
        ("--objects pair", "--objects"),
        ("--architecture vgg", "--architecture"),
        ("--init nowhere.pt --passes 1", "error: No activation model at nowhere.pt"),
        ("--device tpu --passes 1", "error: Expected a device that is there"),
        (
            "--output mine.pth",
            "error: Expected --output as FILE.pt, since --activation recognises a model file by its suffix; got mine.pth",
        ),
        ("--mnist-share 1.5", "Expected --mnist-share between 0 and 1; got 1.5"),
        ("--seed -1", "Expected a seed of at least 0"),
        ("--learning-rate 0", "Expected a seed of at least 0, a learning_rate above 0"),
        ("--weight-decay -1", "a weight_decay of at least 0; got 0, 0.004, -1.0"),
        ("--output /dev/null/deep/x.pt", "error: Cannot write /dev/null/deep"),
    ],
)
def test_a_wrong_pretraining_is_refused(command: Command, flags: str, said: str):
    command.fails(PRETRAIN, flags, said)


@pytest.mark.parametrize(
    ("objects", "numbers"),
    [
        ("multiset", [(1, 4), (1, 9), (10, 10)]),
        ("ten", [(10, 10)]),
        ("crowded", [(10, 10)] * 2),
        ("single", [(1, 1)] * 3),
        ("house-numbers", [(1, 5)]),
        ("long-house-numbers", [(1, 5), (4, 5)]),
    ],
)
def test_what_is_learned_from_has_as_many_objects_as_it_says(objects, numbers):
    args = pretrain_perception.Args(objects=objects)
    looks = pretrain_perception.LOOKS[objects]
    for look, (least, most) in zip(looks, numbers, strict=True):
        *_, supply = pretrain_perception.supplies(args, "train", 0).values()  # digits, where there are two sources
        config = supply[look].config
        labels = config.canvases.compose(range(100)).labels
        found = (labels >= 0).sum(axis=1)
        assert (found.min(), found.max()) == (least, most)
    assert sum(share for _, share in looks.values()) == pytest.approx(1)


@pytest.mark.parametrize("objects", ["multiset", "house-numbers", "long-house-numbers"])
def test_what_is_learned_from_has_the_side_it_says(objects):
    args = pretrain_perception.Args(objects=objects, canvas_px=112)
    for looks in pretrain_perception.supplies(args, "val", 0).values():
        assert {supply.config.image_shape[:2] for supply in looks.values()} == {(112, 112)}


def test_what_is_learned_from_is_laid_out_otherwise_than_the_environments_canvases():
    supplies = pretrain_perception.supplies(pretrain_perception.Args(), "train", seed=0)
    ours = supplies["digits"]["plain"].config.canvases.compose(range(4))
    theirs = Examples(EnvConfig(source="digits", num_examples=4), progress=False).compose(np.arange(4))
    assert ours.boxes.shape == theirs.boxes.shape
    assert (ours.boxes != theirs.boxes).any(axis=(1, 2)).all()


def test_the_weights_of_the_last_passes_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module, output = script(PRETRAIN), tmp_path / "model.pt"
    step, met, rates = torch.optim.AdamW.step, [], []

    def stepped(optimiser: torch.optim.AdamW, *others: object) -> None:
        rates.append(optimiser.param_groups[0]["lr"])
        step(optimiser, *others)
        met.append(optimiser.param_groups[0]["params"][0].detach().clone())  # of the first convolution

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    few = {"passes": 3, "num_canvases": 32, "batch_size": 16, "val_canvases": 1, "test_canvases": 1}
    module.main(
        module.Args(output=output, objects="house-numbers", average_passes=2, learning_rate=1e-3, warp_px=0.0, **few)
    )
    weights = torch.load(output, weights_only=True)["weights"]
    torch.testing.assert_close(weights["layers.0.weight"], torch.stack(met[2:]).mean(dim=0))
    assert len(met) == 6
    assert rates[3:] == [2.5e-4] * 3  # the first update after the schedule takes its last rate
    assert weights["layers.1.num_batches_tracked"] == 100  # batch norm measures anew


def test_in_the_last_passes_batch_norm_keeps_its_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are measured anew before, and the weights learn to do with them."""
    module, seen = script(PRETRAIN), []
    save = features.Pretraining._save

    def told(self: features.Pretraining, random: list[torch.Tensor]) -> None:
        state = self.net.model.state_dict()
        seen.append({name: state[name].clone() for name in state if "running_var" in name or name.endswith("0.weight")})
        save(self, random)

    monkeypatch.setattr(features.Pretraining, "_save", told)
    few = {"passes": 4, "num_canvases": 32, "batch_size": 16, "val_canvases": 1, "test_canvases": 1}
    module.main(module.Args(output=tmp_path / "model.pt", objects="house-numbers", fixed_passes=2, **few))
    for name, last in seen[3].items():
        assert not torch.equal(seen[1][name], last)
        assert torch.equal(seen[2][name], last) == ("running_var" in name)


@pytest.mark.parametrize(("average_passes", "fixed_passes"), [(0, 0), (2, 0), (0, 2), (0, 1)])
def test_an_interrupted_pretraining_goes_on_as_if_it_had_not_been(
    average_passes: int, fixed_passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = script(PRETRAIN)
    few = {"passes": 3, "num_canvases": 32, "batch_size": 16, "val_canvases": 1, "test_canvases": 1}
    flags = {"objects": "house-numbers", "average_passes": average_passes, "fixed_passes": fixed_passes, **few}
    module.main(module.Args(output=tmp_path / "whole.pt", **flags))
    save, saved = features.Pretraining._save, []

    def interrupted(self: features.Pretraining, random: list[torch.Tensor]) -> None:
        save(self, random)
        saved.append(self.passes)
        if len(saved) == (average_passes or 2 * bool(fixed_passes) or 1):  # amid these, or right before them
            raise KeyboardInterrupt

    monkeypatch.setattr(features.Pretraining, "_save", interrupted)
    output = tmp_path / "parts.pt"
    with pytest.raises(KeyboardInterrupt):
        module.main(module.Args(output=output, **flags))
    module.main(module.Args(output=output, resume=True, **flags))
    assert saved == [1, 2, 3]
    assert not output.with_suffix(".resume.pt").exists()
    whole, parts = (torch.load(path, weights_only=True)["weights"] for path in (tmp_path / "whole.pt", output))
    assert all(torch.equal(weight, parts[name]) for name, weight in whole.items())


def test_a_pretraining_with_other_flags_or_damaged_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module, output = script(PRETRAIN), tmp_path / "model.pt"
    few = {"passes": 2, "num_canvases": 16, "batch_size": 16, "val_canvases": 1, "test_canvases": 1}
    flags = {"objects": "house-numbers", "output": output, **few}
    monkeypatch.setattr(features, "write_text", raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        module.main(module.Args(**flags))
    with pytest.raises(CheckpointError, match="of a training with other flags"):
        module.main(module.Args(**flags, resume=True, seed=1))
    path = output.with_suffix(".resume.pt")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.resume\.pt is damaged.*Delete it to begin anew"):
        module.main(module.Args(**flags, resume=True))


def raising(error: type[BaseException]):
    def stop(*_: object) -> None:
        raise error

    return stop


def test_pretraining_on_images_of_your_own(tmp_path: Path):
    """Images in grey with two classes, from colour features, among them some without objects."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rng, lines = np.random.default_rng(0), ["file,labels"]
    for i in range(30):
        Image.fromarray(rng.integers(0, 256, (48, 64)).astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{' '.join(['cup', 'plate'][: i % 3])}")
    (folder / "labels.csv").write_text("\n".join(lines))
    module, output = script(PRETRAIN), tmp_path / "mine.pt"
    few = {"passes": 1, "num_canvases": 32, "batch_size": 16}
    flags = {"images": folder, "augment": "turned", "init": "compact-house-numbers"}
    module.main(module.Args(output=output, **flags, **few))
    results = json.loads(output.with_suffix(".json").read_text())
    assert set(results["test"]["custom"]["plain"]) == {"counts", "peaks", "count_error"}
    assert results["args"]["images"] == "mine"
    assert load_model(output, ARCHITECTURES).in_channels == 3
    laid = pretrain_perception.supplies(module.Args(images=folder, augment="mirrored", overlaid=0.25), "train", 0)
    assert laid["custom"]["plain"].config.overlaid == 0.25
    with pytest.raises(ConfigError, match="--objects or --images, not both"):
        module.Args(images=folder, objects="ten")


def test_svhn_may_be_learned_with_synthetic_numbers_and_is_tested_alone():
    args = pretrain_perception.Args(objects="svhn", synthetic_share=0.25, extra=True, augment="upright")
    training = pretrain_perception.supplies(args, "train", 0)
    assert {source: looks["plain"].share for source, looks in training.items()} == {"svhn": 0.75, "house-numbers": 0.25}
    svhn, synthetic = training["svhn"]["plain"].config, training["house-numbers"]["plain"].config
    assert (svhn.extra, svhn.augment, synthetic.augment) == (True, "upright", "none")
    assert list(pretrain_perception.supplies(args, "val", 0)) == ["svhn"]
    assert list(pretrain_perception.supplies(pretrain_perception.Args(objects="svhn"), "train", 0)) == ["svhn"]


def test_the_digits_of_canvases_may_be_varied_while_it_learns():
    args = pretrain_perception.Args(augment="upright")
    for split, varied in (("train", True), ("val", False)):
        for looks in pretrain_perception.supplies(args, split, 0).values():
            assert [(supply.config.variation is not None) for supply in looks.values()] == [varied] * 3
    numbers = pretrain_perception.supplies(pretrain_perception.Args(objects="house-numbers"), "train", 0)
    assert numbers["house-numbers"]["plain"].config.augment == "none"
    with pytest.raises(ConfigError, match="source='house-numbers' takes; got augment"):
        pretrain_perception.supplies(dataclasses.replace(args, objects="house-numbers"), "train", 0)


def test_the_penalty_on_unsure_cells_rises_while_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    met, loss = [], Pretrainer.loss

    def recorded(self, images, counts, objective, sharp_coef):
        met.append(sharp_coef)
        return loss(self, images, counts, objective, sharp_coef)

    monkeypatch.setattr(Pretrainer, "loss", recorded)
    few = {"passes": 2, "num_canvases": 16, "batch_size": 8, "val_canvases": 8, "test_canvases": 8}
    args = {"mnist_share": 0.0, "sharp_coef": 0.4, "sharp_ramp": (0.25, 0.75), **few}
    pretrain_perception.main(pretrain_perception.Args(output=tmp_path / "m.pt", **args))
    assert met == pytest.approx([0.0, 0.2, 0.4, 0.4])  # after 1/4, 2/4, 3/4 and all of it
