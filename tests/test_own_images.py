"""own_images.py: from a folder to an agent and a report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tyro
from commands import Command, script
from PIL import Image

import agents
from agents.supervised import features
from hsal_env.errors import CheckpointError, DataError
from hsal_env.perception.model_file import read_model

OWN = "own_images.py"
FEW = {"overlaid": 0.3, "feature_images": 128, "feature_passes": 2, "agent_images": 128, "agent_passes": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of 0 to 2 bright squares: grey ones and white ones."""
    folder = tmp_path_factory.mktemp("own") / "squares"
    folder.mkdir()
    rng, lines = np.random.default_rng(0), ["file,labels"]
    for i in range(40):
        image, names = np.zeros((48, 64, 3), np.uint8), []
        for column in (4, 36)[: i % 3]:
            name = str(rng.choice(["dim", "white"]))
            image[16:32, column : column + 16] = {"dim": 120, "white": 255}[name]
            names.append(name)
        image[:8] = rng.integers(0, 30, (8, 64, 3))
        Image.fromarray(image).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{' '.join(names)}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def learned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("learned")
    module = script(OWN)
    module.main(module.Args(folder=folder, output_dir=output, **FEW))
    return output


@pytest.mark.slow
def test_a_folder_becomes_an_agent_and_a_report(learned: Path):
    names = {path.name for path in learned.iterdir()}
    assert names >= {"features.pt", "features.json", "checkpoint.pt", "metrics.json", "progress.csv", "episodes.png"}
    assert "report.html" in names
    metrics = json.loads((learned / "metrics.json").read_text())
    assert metrics["test"]["exact_match"] is not None
    assert 0 <= metrics["count_network"]["exact_match"] <= 1
    assert 0 <= metrics["features"]["test"]["custom"]["plain"]["counts"] <= 1
    assert read_model(learned / "features.pt")["arguments"]["padding"] == "replicate"
    assert str(learned) not in (learned / "metrics.json").read_text()


def test_a_run_tells_the_folder_by_its_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = script(OWN)
    args = module.Args(folder=folder, output_dir=tmp_path)
    monkeypatch.setattr("sys.argv", ["own_images.py", f"{folder}/", "--output-dir", str(tmp_path), "--seed", "3"])
    command = module.run_config(args, module.read(args)).command
    assert command == ["python", "train/own_images.py", "squares", "--seed", "3"]


def test_features_learn_from_more_images_where_they_are_small():
    module = script(OWN)

    def images(*image_px: int, overlaid: float = 0.0, **given: int) -> int:
        env = SimpleNamespace(image_shape=(*image_px, 3), overlaid=overlaid)
        return module.images_for_features(module.Args(Path("x"), **given), env)

    assert (images(160, 224), images(64, 160)) == (33_482, 96_000)  # 1.2e9 / 35840
    assert images(192, 256) == 28_184  # half of 49152 px, half of 36000
    assert images(1000, 1000) == 24_000
    assert images(1000, 1000, overlaid=0.5) == 48_000
    assert images(64, 160, feature_images=7, overlaid=0.5) == 7


def test_features_begin_with_smaller_images_where_they_are_large():
    module = script(OWN)
    scales = [module.first_scale(SimpleNamespace(image_shape=(*px, 3))) for px in ((160, 224), (200, 200), (240, 320))]
    assert scales == [1.0, 1.0, pytest.approx((36_000 / 76_800) ** 0.5)]


def test_features_see_photographs_nearer_and_farther_but_no_characters(folder: Path):
    module = script(OWN)

    def scale(augment: str, **given: float) -> float:
        return module.scale(module.Args(folder, **given), SimpleNamespace(augment=augment))

    assert [scale(augment) for augment in ("none", "upright", "mirrored", "turned")] == [1.0, 1.0, 1.5, 1.5]
    assert scale("upright", feature_scale=1.2) == 1.2


def test_photographs_have_finer_cells_unless_other_weights_or_flags_say_how_fine(folder: Path):
    module = script(OWN)

    def stride(augment: str, **given: object) -> int | None:
        return module.output_stride(module.Args(folder, **given), SimpleNamespace(augment=augment))

    assert [stride(augment) for augment in ("none", "upright", "mirrored", "turned")] == [None, None, 8, 8]
    assert [stride("mirrored", init="compact"), stride("mirrored", architecture="resnet18")] == [None, None]
    assert [stride("mirrored", output_stride=16), stride("upright", output_stride=4)] == [16, 4]


def test_cells_see_more_of_characters_which_fill_their_line():
    module = script(OWN)

    def deeper(augment: str, **given: object) -> object:
        return module.deeper(module.Args(Path("x"), **given), SimpleNamespace(augment=augment))

    assert [deeper(augment) for augment in ("none", "upright", "mirrored", "turned")] == [1, 1, 0, 0]
    assert [deeper("mirrored", init="compact-svhn"), deeper("upright", architecture="resnet18")] == [None, None]
    assert [deeper("mirrored", deeper=2), deeper("upright", deeper=(0, 1))] == [2, (0, 1)]


def test_an_agent_learns_from_fewer_images_where_they_hold_many_objects():
    module = script(OWN)

    def share(objects: int, images: int) -> float:
        data = SimpleNamespace(labels=np.zeros((images, objects), np.int64), part=lambda split: np.arange(images))
        return module.share_for_agent(SimpleNamespace(data=data, classes=2))

    assert [share(objects, 7) for objects in (0, 3, 5, 10)] == [1.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(("objects", "batch_size", "images"), [(2, 128, 10_000), (20, 32, 2_500), (2_000, 1, 25)])
def test_batches_hold_about_as_many_objects(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objects: int, batch_size: int, images: int
):
    module = script(OWN)
    args = module.Args(folder=folder, output_dir=tmp_path)
    env = module.read(args)
    monkeypatch.setattr(env.data, "labels", np.zeros((len(env.data), objects), np.int64))
    learner, task = module.run_config(args, env).learner, module.with_features(args, env)
    assert (learner.batch_size, task.num_examples) == (batch_size, images)


def test_an_agent_of_own_images_learns_by_the_best_order_remembers_and_stops_at_the_median(
    folder: Path, tmp_path: Path
):
    module = script(OWN)
    args = module.Args(folder=folder, output_dir=tmp_path, agent_images=50)
    run = module.run_config(args, module.read(args))
    assert (run.learner.estimator, run.agent.stop) == ("assigned", "median")
    assert (run.agent.controller_state, run.env.width_unit) == ("carry", "cell")
    assert (run.learner.batch_size, run.env.num_examples) == (50, 50)  # no more than there are


@pytest.mark.parametrize(
    ("augment", "passes", "fixed", "ramp"),
    [("mirrored", 8, 2, (0.15, 0.5)), ("turned", 3, 0, (0.15, 0.5)), ("upright", 8, 0, (0.0, 0.0))],
)
def test_features_of_photographs_keep_their_statistics_at_last_and_are_made_sharp_later(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: str, passes: int, fixed: int, ramp: tuple
):
    module, seen = script(OWN), []
    monkeypatch.setattr(features, "Pretraining", lambda config, *_: seen.append(config) or SimpleNamespace(run=int))
    args = module.Args(folder=folder, output_dir=tmp_path, feature_passes=passes, augment=augment)
    module.learn_features(args, module.read(args))
    assert [(config.fixed_passes, config.sharp_ramp) for config in seen] == [(fixed, ramp)]


def test_large_photographs_are_brought_to_about_50_000_px(tmp_path: Path):
    module = script(OWN)
    for i in range(3):
        Image.fromarray(np.full((480, 640), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,labels\n0.png,0\n1.png,0\n2.png,0")
    assert module.suited(module.Args(folder=tmp_path)) == (192, 256)


def test_the_format_of_the_labels_may_be_said_in_one_word():
    module = script(OWN)
    assert tyro.cli(module.Args, args=["FOLDER", "--format", "voc"]) == module.Args(Path("FOLDER"), images_format="voc")


@pytest.mark.slow
def test_the_agent_knows_its_classes_and_its_features_in_another_place(learned: Path, tmp_path: Path):
    moved = learned.rename(tmp_path / "moved")
    try:
        loaded = agents.load(moved / "checkpoint.pt")
        assert loaded.env.class_names == ("dim", "white")
        assert loaded.env.activation == str(moved / "features.pt")
    finally:
        moved.rename(learned)


@pytest.mark.slow
def test_an_interrupted_start_is_gone_on_with(
    folder: Path, learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped after each step, it ends as one that ran through."""
    module, output = script(OWN), tmp_path / "parts"
    save = features.Pretraining._save

    def interrupted(self: features.Pretraining, random: list) -> None:
        save(self, random)
        if self.passes == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(features.Pretraining, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.main(module.Args(folder=folder, output_dir=output, **FEW))
    with monkeypatch.context() as patch:
        patch.setattr(module, "learn_agent", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            module.main(module.Args(folder=folder, output_dir=output, resume=True, **FEW))
    for other in ({"augment": "upright"}, {"image_px": (32, 48)}):
        with pytest.raises(CheckpointError, match="learned with other flags or from other images"):
            module.main(module.Args(folder=folder, output_dir=output, resume=True, **other, **FEW))
    module.main(module.Args(folder=folder, output_dir=output, resume=True, **FEW))
    one, other = (json.loads((path / "metrics.json").read_text()) for path in (learned, output))
    assert one["test"] == other["test"]
    assert one["count_network"] == other["count_network"]
    module.main(module.Args(folder=folder, output_dir=output, resume=True, **FEW))  # finished: nothing is learned again
    assert json.loads((output / "metrics.json").read_text())["test"] == other["test"]
    with pytest.raises(CheckpointError, match="--resume"):
        module.main(module.Args(folder=folder, output_dir=output, **FEW))


def test_what_the_folder_holds_is_told_and_how_it_will_be_varied(folder: Path):
    module = script(OWN)
    env = module.read(module.Args(folder=folder))
    lines = module.told(env).splitlines()
    assert lines[0] == "40 images of 48x64 px in colour, varied: mirrored"
    assert [line.split(" images")[0] for line in lines[1:]] == ["train: 32", "val: 4", "test: 4"]
    assert all(" dim, " in line and line.endswith(" white") for line in lines[1:])


def test_few_images_and_rare_classes_are_warned_of(folder: Path):
    module = script(OWN)
    with pytest.warns(UserWarning, match="few") as caught:
        module.check_amount(module.read(module.Args(folder=folder)))
    said = [str(warning.message) for warning in caught]
    assert said[0].startswith("32 training images are few")
    assert said[1].startswith("Classes with few objects to learn from: ")


def test_signs_are_not_mirrored(tmp_path: Path):
    """Digits and letters change their meaning in a mirror."""
    module = script(OWN)
    for i in range(10):
        Image.fromarray(np.full((32, 32), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    for label, augment in (("6", "upright"), ("b", "upright"), ("cup", "mirrored")):
        (tmp_path / "labels.csv").write_text("\n".join(["file,labels", *(f"{i}.png,{label}" for i in range(10))]))
        assert module.read(module.Args(folder=tmp_path)).augment == augment
        assert module.read(module.Args(folder=tmp_path, augment="none")).augment == "none"


@pytest.mark.parametrize(
    ("labels", "overlaid"),
    [
        (["a a", "b b b", "a", "b b"], 0.5),
        (["a a", "b b b", "a b", "a b b"], 0.0),  # about as independent objects would be
        (["a", "b", "a", ""], 0.0),  # none has several
        (["a a", "a", "a a a", "a"], 0.0),  # there is one class
    ],
)
def test_images_of_one_class_each_are_laid_over_one_another(tmp_path: Path, labels: list[str], overlaid: float):
    module = script(OWN)
    for i in range(40):
        Image.fromarray(np.full((32, 32), 6 * i, np.uint8)).save(tmp_path / f"{i}.png")
    rows = [f"{i}.png,{labels[i % 4].replace('a', 'cup').replace('b', 'jug')}" for i in range(40)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,labels", *rows]))
    env = module.read(module.Args(folder=tmp_path))
    assert env.overlaid == overlaid
    assert ("50% of the training images have another laid over them" in module.told(env)) == bool(overlaid)
    assert env.unvaried.variation is None
    assert module.read(module.Args(folder=tmp_path, augment="none")).overlaid == 0
    assert module.read(module.Args(folder=tmp_path, overlaid=0.2)).overlaid == 0.2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("nowhere", "error: No folder nowhere"),
        ("nowhere --agent-images 0", "Expected --agent-images of at least 1; got 0"),
        ("nowhere --augment sideways", "--augment"),
    ],
)
def test_a_wrong_start_is_refused(command: Command, flags: str, said: str):
    command.fails(OWN, flags, said)


def test_one_image_is_too_few(tmp_path: Path):
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "1.png")
    (tmp_path / "labels.csv").write_text("file,labels\n1.png,cup\n")
    module = script(OWN)
    with pytest.raises(DataError, match="at least 3 images"):
        module.main(module.Args(folder=tmp_path, output_dir=tmp_path / "out"))
