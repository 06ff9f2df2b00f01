"""The command that breaks an agent's mistakes down."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import ANALYSE, EVALUATE, Command, script

from agents import checkpoint
from agents.config import AgentConfig
from agents.protocol import World, build_agent
from hsal_env.config import EnvConfig
from hsal_env.perception.examples import Examples
from hsal_env.trace import Trace


def test_errors_are_broken_down_of_no_more_images_than_there_are(tmp_path: Path, svhn_folder: str):
    env = EnvConfig(source="svhn", activation="compact-house-numbers", data_root=svhn_folder)
    examples = Examples(env)
    world, config = World.of(examples), AgentConfig(meta_hidden=8, controller_hidden=8, location_hidden=8)
    content = checkpoint.describe("hsal", build_agent("hsal", world, config), config, env, "svhn", world)
    checkpoint.save(tmp_path / "c.pt", content)
    module = script(ANALYSE)
    module.main(module.Args(str(tmp_path / "c.pt"), "test", 50, data_root=svhn_folder, output_dir=tmp_path / "errors"))
    assert json.loads((tmp_path / "errors" / "errors.json").read_text())["episodes"] == 12


def test_the_errors_are_those_of_the_evaluation(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn: list = []
    monkeypatch.setattr(
        "hsal_env.rendering.draw_traces", lambda part: drawn.extend(part) or np.zeros((8, 8, 3), np.uint8)
    )
    command(ANALYSE, [trained / "checkpoint.pt", "--episodes", 60, "--output-dir", "new/errors"])
    command(EVALUATE, [trained / "checkpoint.pt", "--episodes", 60, "--split", "val", "--json", "t.json"])
    folder = tmp_path / "new" / "errors"
    found, test = (
        json.loads((folder / "errors.json").read_text()),
        json.loads((tmp_path / "t.json").read_text())["test"],
    )
    kinds = {kind: row["cases"] for kind, row in found["by kind"].items()}
    assert found["episodes"] == sum(kinds.values()) == 60
    assert kinds.get("right", 0) / 60 == pytest.approx(test["exact_match"])
    assert found["by number of objects"] == {
        count: {"cases": part["episodes"], "right": pytest.approx(part["exact_match"])}
        for count, part in test["by_count"].items()
    }
    labels = found["by label"].values()
    hits = sum(part["cases"] * part["recall"] for part in labels) / sum(part["cases"] for part in labels)
    assert hits == pytest.approx(test["overall_recall"])
    text = (folder / "errors.md").read_text()
    assert text.startswith("# An agent: 60 val canvases of digits, greedy\n")  # no place of this machine
    assert f"| {len(test['by_count'])} | {found['by number of objects']['4']['cases']} |" in text
    assert (folder / "errors.png").read_bytes().startswith(b"\x89PNG")

    def distance(trace: Trace) -> int:
        true, named = (np.bincount(part, minlength=10) for part in (trace.labels, trace.named))
        return int(np.abs(true - named).sum())

    distances = [distance(trace) for trace in drawn]
    assert 1 <= len(distances) <= 20
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] > 0


def test_the_errors_do_not_depend_on_the_batches(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = script(ANALYSE)
    tables = []
    for batch in (50, 16):
        monkeypatch.setattr(module, "_BATCH", batch)
        monkeypatch.setattr(module, "_PICTURED", 1)
        module.main(module.Args(str(trained / "checkpoint.pt"), "test", 50, output_dir=tmp_path / str(batch)))
        text = (tmp_path / str(batch) / "errors.json").read_text()
        tables.append(json.loads(text, parse_float=lambda digits: round(float(digits), 5)))
        assert (tmp_path / str(batch) / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", ["required", "a bundled agent's name, or the path"]),
        ("{checkpoint} --episodes 0", ["error: Expected --episodes of at least 1; got 0"]),
        ("{checkpoint} --split holdout", ["error: Expected split to be one of train, val, test; got 'holdout'"]),
        ("{checkpoint} --source imagenet", ["error: Expected source to be one of auto, mnist, digits"]),
        ("{metrics}", ["error:", "metrics.json is cut off, damaged, or not a checkpoint"]),
        ("{checkpoint} --episodes 5 --output-dir {metrics}/errors", ["error: Cannot write", "errors"]),
    ],
)
def test_a_wrong_analysis_is_a_clear_error(command: Command, flags: str, said: list[str], trained: Path):
    places = {"checkpoint": trained / "checkpoint.pt", "metrics": trained / "metrics.json"}
    command.fails(ANALYSE, flags.format(**places), *said)


def test_what_cannot_be_written_is_said_before_the_work(
    command: Command, monkeypatch: pytest.MonkeyPatch, trained: Path
):
    monkeypatch.setattr("agents.tracing.record", None)  # it is not called
    flags = f"{trained / 'checkpoint.pt'} --episodes 5 --output-dir {trained / 'metrics.json'}/errors"
    command.fails(ANALYSE, flags, "error: Cannot write")
