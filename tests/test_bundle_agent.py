"""The command that makes bundled agents, and their model cards."""

import dataclasses
import shlex
from pathlib import Path

import pytest
import torch
from commands import (
    BUNDLE,
    EVALUATE,
    Command,
    metrics_of,
    script,
)

from agents import checkpoint
from hsal_env.config import EnvConfig


def test_a_bundled_agent_is_the_trained_one_in_half_precision(trained: Path, bundle: Path):
    stored, whole = checkpoint.read(bundle / "small.pt"), checkpoint.read(trained / "checkpoint.pt")
    assert {part.dtype for part in stored["model"].values()} == {torch.float16}
    assert set(whole) - set(stored) == {"last", "best", "optimiser", "rows"}
    assert (bundle / "small.pt").stat().st_size < (trained / "checkpoint.pt").stat().st_size / 4
    loaded, exact = checkpoint.load(bundle / "small.pt"), checkpoint.load(trained / "checkpoint.pt")
    assert (loaded.env, loaded.source) == (exact.env, exact.source)
    for name, part in loaded.agent.state_dict().items():
        assert part.dtype == torch.float32
        assert torch.equal(part, exact.agent.state_dict()[name].half().float())


def test_a_model_card_says_what_was_done(command: Command, capsys: pytest.CaptureFixture, bundle: Path, trained: Path):
    card, metrics = (bundle / "small.md").read_text(), metrics_of(trained)
    assert card.startswith("# small\n")
    for part in (
        'agents.load("small")',
        f"`{shlex.join(metrics['command'])}`, expected success (log), seed 0,\n  ",
        f"{metrics['train_seconds'] / 60:.1f} minutes on 1 ",
        "the task\n`multiset` with 1 to 4 digits of 20 to 50 px",
        "activation model `compact`",
        "E. Alpaydin and C. Kaynak (CC BY 4.0)",
        "No training canvas holds a digit of the test canvases.\n",
    ):
        assert part in card
    assert "MNIST" not in card
    capsys.readouterr()
    command(EVALUATE, [bundle / "small.pt", "--episodes", 40])
    assert f"```\n{capsys.readouterr().out.strip()}\n```" in card  # of the half-precision agent


def test_a_model_card_names_its_own_data_and_task(bundle: Path, trained: Path):
    content = checkpoint.read(bundle / "small.pt")
    content["env"] |= {"task": "single", "glyphs": "paper"}
    card = script(BUNDLE).card("other", content | {"source": "mnist"}, metrics_of(trained), "the table")
    for part in ("`single` with 1 to 1 digits", "Yann LeCun", "CC BY-SA 3.0", "made from the same digits", "the table"):
        assert part in card
    environment = dataclasses.asdict(EnvConfig(source="house-numbers", activation="compact-house-numbers"))
    content["env"] = {name: environment[name] for name in content["env"] if name in environment} | {
        "source": "house-numbers"
    }
    card = script(BUNDLE).card("numbers", content | {"source": "house-numbers"}, metrics_of(trained), "the table")
    for part in (
        "with 1 to 5 digits.",
        "synthetic images, no photographs",
        "holds a type face of",
        "printed digits side by",
    ):
        assert part in card
    assert "px" not in card
    assert "white digits" not in card


def test_a_model_card_of_photographs_tells_their_terms(bundle: Path, trained: Path):
    environment = dataclasses.asdict(EnvConfig(source="svhn", activation="compact-house-numbers"))
    content = checkpoint.read(bundle / "small.pt") | {"source": "svhn"}
    content["env"] = {name: environment[name] for name in content["env"] if name in environment} | {"source": "svhn"}
    card = script(BUNDLE).card("svhn", content, metrics_of(trained), "the table")
    for part in (
        "with 1 to 6 digits.",
        "Data: SVHN, by",
        "non-commercial use only. No photograph is in two",
        "one house number",
    ):
        assert part in card
    assert "canvas" not in card
    assert "px" not in card


@pytest.mark.parametrize("metrics", [None, "{"])
def test_an_unfinished_run_is_not_bundled(command: Command, trained: Path, tmp_path: Path, metrics: str | None):
    (tmp_path / "run").mkdir()
    command.fails(BUNDLE, "run --name x --output-dir out", "error: No checkpoint at run/checkpoint.pt")
    (tmp_path / "run" / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes())
    if metrics:
        (tmp_path / "run" / "metrics.json").write_text(metrics)
    command.fails(BUNDLE, "run --name x --output-dir out", "error: run holds no finished run")
    assert not (tmp_path / "out").exists()


def test_a_wrong_bundling_is_a_clear_error(command: Command, trained: Path, tmp_path: Path):
    command.fails(BUNDLE, [trained], "required", "--name")
    command.fails(BUNDLE, [trained, "--name", "x", "--output-dir", trained / "metrics.json"], "error: Cannot write")
    command.fails(BUNDLE, [trained, "--name", "x", "--episodes", 0, "--output-dir", "out"], "of at least 1; got 0")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("activation", ["runs/own.pt", "resnet34", "package.module:Name"])
def test_an_agent_that_sees_by_what_is_not_bundled_is_not_bundled(
    command: Command, trained: Path, tmp_path: Path, activation: str
):
    content = checkpoint.read(trained / "checkpoint.pt")
    content["env"]["activation"] = activation
    checkpoint.save(tmp_path / "run" / "checkpoint.pt", content)
    command.fails(
        BUNDLE,
        "run --name x --output-dir out",
        "error: Expected an agent that uses a bundled",
        f"one that uses {activation}",
    )
    assert not (tmp_path / "out").exists()
