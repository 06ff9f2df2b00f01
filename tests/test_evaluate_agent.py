"""The evaluation command: it repeats the test of the training, or tests on what it is told to."""

import json
from pathlib import Path

import pytest
from commands import ANALYSE, EVALUATE, Command, metrics_of, script

import agents
from agents import checkpoint
from agents.reports.metrics_file import read_metrics


def test_evaluating_a_checkpoint_repeats_the_test(
    command: "Command", capsys: pytest.CaptureFixture, trained: Path, tmp_path: Path
):
    command(EVALUATE, [trained / "checkpoint.pt", "--episodes", 200, "--json", "tables/t.json"])
    results, metrics = json.loads((tmp_path / "tables" / "t.json").read_text()), metrics_of(trained)
    assert results["test"] == metrics["test"]
    assert results["versions"] == metrics["versions"]
    assert {name: results[name] for name in ("source", "agent", "trained_on", "split", "seed")} == {
        "source": "digits", "agent": None, "trained_on": "digits", "split": "test", "seed": 0,
    }  # fmt: skip
    assert f"{metrics['test']['exact_match']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(("flag", "value"), [("seed", "1"), ("split", "val"), ("split", "train")])
def test_other_canvases_give_other_numbers(command: "Command", trained: Path, tmp_path: Path, flag: str, value: str):
    picture = tmp_path / "e.png"
    flags = ["--episodes", 100, "--json", "t.json", "--picture", picture, f"--{flag}", value]
    command(EVALUATE, [trained / "checkpoint.pt", *flags])
    results = json.loads((tmp_path / "t.json").read_text())
    assert set(results["test"]) == set(metrics_of(trained)["test"])
    assert sum(part["episodes"] for part in results["test"]["by_count"].values()) == 100
    assert str(results[flag]) == value
    assert results["test"]["attn_saliency"] != metrics_of(trained)["test"]["attn_saliency"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changed", "counts"),
    [({"min_objects": 6, "max_objects": 6, "max_size_px": 33}, "6"), ({"min_objects": 3}, "34")],
)
def test_an_agent_is_tested_on_other_numbers_of_objects(
    command: "Command", trained: Path, tmp_path: Path, changed: dict, counts: str
):
    flags = [text for name, value in changed.items() for text in (f"--{name.replace('_', '-')}", value)]
    command(EVALUATE, [trained / "checkpoint.pt", "--episodes", 40, "--json", "t.json", *flags])
    results = json.loads((tmp_path / "t.json").read_text())
    assert sorted(results["test"]["by_count"]) == list(counts)
    assert {name: value for name, value in results.items() if "objects" in name or "size" in name} == changed
    cells = script("make_results.py").cells("mnist-multiset-on-6", [results])  # it may stand in the results
    assert cells["macro-F1"] == f"{results['test']['macro_f1']:.3f}"


def test_an_agent_is_tested_by_its_name(
    command: "Command", bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(agents, "BUNDLED_FOLDER", bundle)
    for which in ("small", bundle / "small.pt"):
        command(EVALUATE, [which, "--episodes", 40, "--json", f"{Path(which).suffix}t.json"])
    named, by_path = (read_metrics(tmp_path / name)[0] for name in ("t.json", ".ptt.json"))
    assert (named.pop("agent"), by_path.pop("agent")) == ("small", None)
    assert named == by_path
    said = "error: No agent 'nobody': expected the path of a checkpoint, the folder of its training run, or a bundled agent's "
    said += "name (small)."
    for script_name in (EVALUATE, ANALYSE):
        command.fails(script_name, "nobody", said)
        command.fails(script_name, [tmp_path], "error: No agent")


@pytest.fixture
def trained_on_mnist(trained: Path, tmp_path: Path) -> Path:
    """A checkpoint that says so."""
    checkpoint.save(tmp_path / "m.pt", checkpoint.read(trained / "checkpoint.pt") | {"source": "mnist"})
    return tmp_path / "m.pt"


def test_an_agent_is_tested_on_what_it_was_trained_on(
    command: "Command", trained_on_mnist: Path, mnist_root: str, tmp_path: Path
):
    for name, flags in (("mnist", []), ("digits", ["--source", "digits"])):
        flags = [trained_on_mnist, "--episodes", 20, "--data-root", mnist_root, "--json", "t.json", *flags]
        command(EVALUATE, flags)
        results = json.loads((tmp_path / "t.json").read_text())
        assert (results["source"], results["trained_on"]) == (name, "mnist")


@pytest.mark.usefixtures("no_mnist")
def test_where_mnist_is_absent_an_agent_is_tested_on_digits(command: "Command", trained_on_mnist: Path, tmp_path: Path):
    with pytest.warns(UserWarning, match="scores are not MNIST scores"):
        command(EVALUATE, [trained_on_mnist, "--episodes", 20, "--json", "t.json"])
    results = json.loads((tmp_path / "t.json").read_text())
    assert (results["source"], results["trained_on"]) == ("digits", "mnist")
    command.fails(EVALUATE, [trained_on_mnist, "--source", "mnist"], "error: MNIST was not found in")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", ["required", "a bundled agent's name, the folder of a run, or"]),
        ("{checkpoint} --max-objects 6", ["error: 6 objects of up to 50 px do not fit a canvas of 100 px"]),
        ("{checkpoint} --min-objects 5", ["error: Expected 1 <= min_objects <= max_objects; got 5 and 4"]),
        ("{checkpoint} --max-size-px 19", ["error: Expected 1 <= min_size_px <= max_size_px"]),
        ("{checkpoint} --split holdout", ["Expected split to be one of train, val, test; got 'holdout'"]),
        ("{checkpoint} --source imagenet", ["Expected source to be one of auto, mnist, digits"]),
        ("{checkpoint} --episodes 0", ["error: Expected num_examples of at least 1; got 0"]),
        ("{checkpoint} --seed -1", ["error: Expected seed of at least 0; got -1"]),
        ("{metrics}", ["error:", "metrics.json is cut off, damaged, or not a checkpoint"]),
        ("{checkpoint} --episodes 5 --json {metrics}/t.json", ["error: Cannot write", "t.json"]),
        ("{checkpoint} --episodes 5 --picture {metrics}/t.png", ["error: Cannot write", "t.png"]),
    ],
)
def test_a_wrong_evaluation_is_a_clear_error(command: Command, flags: str, said: list[str], trained: Path):
    places = {"checkpoint": trained / "checkpoint.pt", "metrics": trained / "metrics.json"}
    command.fails(EVALUATE, flags.format(**places), *said)


@pytest.mark.parametrize("flag", ["--json", "--picture"])
@pytest.mark.parametrize("place", ["{metrics}/t", "{folder}"])
def test_what_cannot_be_written_is_said_before_the_work(
    command: Command, monkeypatch: pytest.MonkeyPatch, trained: Path, tmp_path: Path, flag: str, place: str
):
    monkeypatch.setattr("agents.evaluation.score_agent", None)  # it is not called
    place = place.format(metrics=trained / "metrics.json", folder=tmp_path)
    command.fails(EVALUATE, f"{trained / 'checkpoint.pt'} --episodes 5 {flag} {place}", "error: Cannot write", place)
