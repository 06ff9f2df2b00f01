"""What a training run writes for TensorBoard, read with TensorBoard's own reader."""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

from agents.config import AgentConfig, LearnerConfig
from agents.evaluation import evaluation_config
from agents.learning.learner import Learner
from agents.learning.run import Run, RunConfig
from agents.reports.runs import flat
from agents.reports.tables import measure
from agents.tracing import record
from hsal_env.config import EnvConfig
from hsal_env.rendering import draw_traces

ROOT = Path(__file__).parents[1]
ENV = EnvConfig(
    source="digits", num_examples=64, protocol="teacher", features="store", include_image=False, components=9
)
AGENT = AgentConfig(meta_hidden=8, controller_hidden=16, location_hidden=8, attention_policy="drawn")  # it logs most
LEARNER = LearnerConfig(batch_size=16, passes=2)
TESTED = 12


def start(folder: Path, resume: bool = False, **env: object) -> Run:
    """A run of eight updates in two passes, with a row of progress every other update."""
    config = dataclasses.replace(ENV, **env)
    return Run(RunConfig(folder, config, "hsal", AGENT, LEARNER, 0, "cpu", val_episodes=8, log_every=2), resume)


def whole(folder: Path, **env: object) -> Run:
    run = start(folder, **env)
    run.train()
    run.test(TESTED)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return whole(tmp_path_factory.mktemp("runs") / "finished")


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = events(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def single(value: object) -> float:
    """As TensorBoard keeps it."""
    return float(np.float32(value))  # type: ignore[arg-type]


def test_scalars_are_the_numbers_of_progress_csv(finished: Run):
    logged = scalars(finished.folder)
    with (finished.folder / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = set(rows[0]) - {"update", "seconds"}
    assert {name for name in logged if not name.startswith("test/")} == names
    for name in names:
        assert logged[name] == [(int(row["update"]), single(row[name])) for row in rows if row[name]]
    assert [step for step, _ in logged["loss/label"]] == [2, 4, 6, 8]
    assert [step for step, _ in logged["val/exact_match"]] == [4, 8]


def test_the_table_of_the_docs_names_what_is_logged_and_nothing_else(finished: Run):
    table = [
        line for line in (ROOT / "docs" / "learning" / "runs.md").read_text().splitlines() if line.startswith("| `")
    ]
    documented = {name for line in table for name in re.findall(r"`(\w+/\w+)`", line)}
    found = events(finished.folder).Tags()
    assert documented == {*found["scalars"], *found["images"]}


def test_after_every_pass_the_first_validation_episodes_are_drawn(finished: Run):
    pictures = events(finished.folder).Images("attention/episodes")
    assert [event.step for event in pictures] == [4, 8]
    assert finished.best
    tested = pictures[[4, 8].index(finished.best.update)]  # of the weights that the agent has after its test
    shown = np.asarray(Image.open(io.BytesIO(tested.encoded_image_string)))
    traces = record(finished.agent, evaluation_config(ENV, "val", 8), np.arange(3))
    np.testing.assert_array_equal(shown, draw_traces(traces))
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string  # it has learned


def test_the_settings_stand_beside_the_test_scores_in_the_runs_own_folder(finished: Run):
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    content = events(finished.folder).SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    stored = parse_session_start_info_plugin_data(content).hparams
    told = {name: getattr(value, value.WhichOneof("kind")) for name, value in stored.items()}
    assert told == {name: value for name, value in flat(metrics["config"]).items() if value is not None}
    assert (told["learner/batch_size"], told["agent/detach_location_head"], told["seed"]) == (16, True, 0)
    tested = {name: points for name, points in scalars(finished.folder).items() if name.startswith("test/")}
    assert tested == {name: [(9, single(measure(metrics["test"], name.removeprefix("test/"))))] for name in tested}
    assert {"test/exact_match", "test/pointing", "test/count_error"} <= set(tested)
    assert all(path.is_file() for path in (finished.folder / "tensorboard").iterdir())


def test_without_glimpses_a_test_has_no_saliency_at_them(tmp_path: Path):
    whole(tmp_path, glimpses=0)
    assert {"test/exact_match"} <= set(scalars(tmp_path))
    assert "test/attn_saliency_ratio" not in scalars(tmp_path)


def interrupt_after(patch: pytest.MonkeyPatch, updates: int) -> None:
    real: Callable = Learner.update
    done = []

    def update(self: Learner, *args: object) -> dict[str, float]:
        if len(done) == updates:
            raise KeyboardInterrupt
        done.append(None)
        return real(self, *args)

    patch.setattr(Learner, "update", update)


@pytest.mark.parametrize(
    "updates", [5, 7]
)  # after the checkpoint of update 4; 7: update 6 was logged and is logged again
def test_a_resumed_run_loses_nothing_and_repeats_nothing(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, updates)
        run = start(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run.train()
    run = start(tmp_path, resume=True)
    assert run.learner.step == 4
    run.train()
    run.test(TESTED)
    for _ in range(2):  # the second time, of a finished run: it is tested again
        assert scalars(tmp_path) == scalars(finished.folder)
        assert [event.step for event in events(tmp_path).Images("attention/episodes")] == [4, 8]
        again = start(tmp_path, resume=True)
        again.train()
        again.test(TESTED)


def test_pictures_leave_learning_as_it_is(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Run, "_picture", lambda *_: np.zeros((4, 4, 3), np.uint8))
    plain = whole(tmp_path)
    for name, weight in plain.agent.state_dict().items():
        assert torch.equal(weight, finished.agent.state_dict()[name]), name


def test_the_agent_goes_on_training_after_its_picture(finished: Run):
    for training in (True, False):
        finished.agent.train(training)
        finished._picture(finished._val_config, 1)
        assert finished.agent.training == training
