"""Traces: what is recorded is what happened; files hold all of it; the written schema is the one in the code."""

import csv
import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from playing import CELLS, STOP, single
from pyarrow import parquet
from traces import MetaStep, trace_of

from agents.actor_critic import ActorCritic
from agents.config import AgentConfig
from agents.evaluation import make_env
from agents.protocol import World
from agents.tracing import record
from hsal_env import functional as F
from hsal_env.errors import ConfigError, DataError
from hsal_env.perception.activation import ActivationModel
from hsal_env.perception.grid import Grid
from hsal_env.trace import Trace, load, save
from hsal_env.trace.episode import SCHEMA

ROOT = Path(__file__).parents[1]
ENV = single().simulation.config


@pytest.fixture(scope="module")
def agent() -> ActorCritic:
    torch.manual_seed(0)
    world = World.of(make_env(ENV, 1).simulation.examples)
    made = ActorCritic(world, AgentConfig(meta_hidden=8, controller_hidden=8, location_hidden=8)).eval()
    with torch.no_grad():  # it stops now and then, so that lanes end at different times
        made.controller.label.bias[STOP] += 1.5
    return made


@pytest.fixture(scope="module")
def traces(agent) -> list[Trace]:
    return record(agent, ENV, np.arange(12), deterministic=False, seed=1)


# --- recording --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["map", "cell"])
def test_the_mixture_of_a_trace_is_that_of_its_mask_on_a_map_of_another_size(unit: str):
    env = dataclasses.replace(ENV, canvas_px=130, width_unit=unit)
    torch.manual_seed(0)
    world = World.of(make_env(env, 1).simulation.examples)
    agent = ActorCritic(world, AgentConfig(meta_hidden=8, controller_hidden=8, location_hidden=8)).eval()
    (trace,) = record(agent, env, np.arange(1))
    assert trace.map_size != (7, 7)
    parts = F.Mixture(*(torch.from_numpy(getattr(trace, name)) for name in F.Mixture._fields))
    np.testing.assert_allclose(trace.mask, F.attention_mask(parts, trace.map_size), atol=1e-6)


def test_the_fields_of_a_trace_agree_with_each_other_and_with_the_equations(traces):
    assert {len(trace.phase) for trace in traces} > {4}  # some stopped at once, some went on
    for index, trace in enumerate(traces):
        n, count = np.arange(len(trace.phase)), len(trace.phase)
        np.testing.assert_array_equal(trace.phase, n % 4)
        np.testing.assert_array_equal(trace.meta_step, n // 4)
        assert (trace.canvas_index, trace.source, trace.num_classes, trace.glimpses) == (index, "digits", 10, 2)
        looks, names = (trace.phase == 1) | (trace.phase == 2), trace.phase == 3
        assert ((trace.location >= 0) == looks).all()
        assert ((trace.label >= 0) == names).all()
        assert trace.terminated == (trace.label[-1] == STOP) == (not trace.truncated)
        # rewards: P at a location, +-1 by the multiset rule
        at = trace.priority.reshape(count, -1)[n, trace.location]
        np.testing.assert_allclose(trace.reward, np.where(looks, at, names * np.where(trace.right, 1, -1)), atol=1e-6)
        # probabilities
        for where, chosen, probs in (
            (looks, trace.location, trace.location_probs),
            (names, trace.label, trace.label_probs),
        ):
            np.testing.assert_allclose(probs[where].sum(axis=1), 1, atol=1e-5)
            np.testing.assert_allclose(np.log(probs[n, chosen])[where], trace.log_prob[where], atol=1e-4)
            np.testing.assert_allclose(-(probs * np.log(probs)).sum(axis=1)[where], trace.entropy[where], atol=1e-4)
            assert np.isnan(probs[~where]).all()
        assert np.isnan(trace.log_prob[trace.phase == 0]).all()
        assert not np.isnan(trace.value[trace.phase > 0]).any()
        # the mask is that of its mixture, the priority that of the mask, the saliency what the update leaves
        parts = F.Mixture(*(torch.from_numpy(getattr(trace, name)) for name in F.Mixture._fields))
        mask = F.attention_mask(parts, trace.map_size)
        np.testing.assert_allclose(trace.mask, mask, atol=1e-6)
        saliency = torch.from_numpy(trace.saliency)
        np.testing.assert_allclose(trace.priority, F.priority(mask, saliency), atol=1e-4)
        following = torch.cat([saliency[4::4], torch.from_numpy(trace.saliency_left)[None]])
        locations = torch.from_numpy(trace.location[looks].reshape(-1, 2))
        np.testing.assert_allclose(F.update_saliency(saliency[::4], mask[::4], locations), following, atol=1e-6)
        # the labels that remain
        remaining = np.bincount(trace.labels, minlength=10)
        for label, found in zip(trace.label[names], trace.remaining[names], strict=True):
            np.testing.assert_array_equal(found, remaining)
            remaining = np.maximum(remaining - np.eye(11, 10, dtype=int)[label], 0)
        assert (trace.boxes >= 0).all()
        assert len(trace.boxes) == len(trace.labels)
        assert set(trace.states)
        assert all(len(part) == count for part in trace.states.values())


def test_an_episode_is_the_same_alone_and_among_others(agent, traces):
    among = record(agent, ENV, [3, 5, 3])
    alone = record(agent, single(action_mode="flat"), 5)  # an environment's canvases and rules, whatever its view
    for name, value in alone._asdict().items():
        for one, other in ((value, among[1]),):
            if name == "states":
                for part in value:
                    np.testing.assert_allclose(one[part], other.states[part], atol=1e-5)
            elif isinstance(value, np.ndarray):
                np.testing.assert_allclose(one, getattr(other, name), atol=1e-4, err_msg=name)
            else:
                assert one == getattr(other, name)


def test_the_seed_decides_what_is_sampled(agent, traces):
    again, other = (record(agent, ENV, np.arange(12), deterministic=False, seed=seed) for seed in (1, 2))
    assert [t.location.tolist() for t in again] == [t.location.tolist() for t in traces]
    assert [t.location.tolist() for t in other] != [t.location.tolist() for t in traces]


def test_what_an_agent_does_not_say_is_unknown():
    class Mute:
        def initial(self, lanes):
            return torch.zeros(lanes, 2, dtype=torch.int64)

        def act(self, observation, state, deterministic, generator):
            from agents.protocol import Decision

            lanes = len(state)
            action = {"location": torch.full((lanes,), 7), "label": torch.full((lanes,), STOP)}
            action["attention"] = torch.zeros(lanes, 20)
            return Decision(action, torch.zeros(lanes), torch.zeros(lanes), state + 1)

    trace = record(Mute(), ENV, 0)
    assert trace.location.tolist() == [-1, 7, 7, -1]
    assert np.isnan(trace.location_probs).all()
    assert np.isnan(trace.entropy).all()
    assert trace.states["state"].tolist() == [[1, 1], [2, 2], [3, 3], [4, 4]]


def test_an_index_outside_the_split_is_refused(agent):
    with pytest.raises(DataError, match=r"0\.\.15"):
        record(agent, ENV, 16)


# --- where cells lie --------------------------------------------------------------------------------------------------


def test_the_bundled_models_cells_are_where_its_convolutions_put_them():
    """A px's gradient on a cell is non-zero just within its receptive field, whose middle is the cell's centre."""
    examples = single().simulation.examples
    grid, model = examples.grid, examples._activation
    image = torch.rand(1, 1, 100, 100, requires_grad=True)
    model(image)[0, :, 3, 2].sum().backward()
    rows, cols = image.grad[0, 0].abs().nonzero().unbind(dim=1)
    low_row, high_row, low_col, high_col = (int(v) for v in (rows.min(), rows.max() + 1, cols.min(), cols.max() + 1))
    centre = grid.centres(np.array(3 * 7 + 2), 7)
    assert centre.tolist() == [48.5, 32.5]
    # the top left corner of the field lies outside of the image in columns: 32.5 - 43.5 < 0
    assert (low_row, high_row, low_col, high_col) == (5, 92, 0, 76)
    assert grid.field_px == (87, 87)


def test_where_a_model_says_nothing_cells_are_bands():
    grid = Grid.of(None, (48, 64), (3, 4))
    assert grid == Grid((8.0, 8.0), (16.0, 16.0), (16.0, 16.0))
    assert grid.centres(np.array([0, 5]), 4).tolist() == [[8, 8], [24, 24]]

    class Model(ActivationModel):
        stride_px = 10

    assert Grid.of(Model(), (48, 64), (3, 4)) == Grid((14.0, 17.0), (10.0, 10.0), (10.0, 10.0))
    Model.first_px, Model.receptive_field_px = 2, 30
    assert Grid.of(Model(), (48, 64), (3, 4)) == Grid((2.0, 2.0), (10.0, 10.0), (30.0, 30.0))


def test_fixations_in_px():
    trace = trace_of([MetaStep((0, 48), 1)], [1])
    np.testing.assert_array_equal(trace.location_px, [[np.nan] * 2, [7.5, 7.5], [97.5, 97.5], [np.nan] * 2])


# --- files ------------------------------------------------------------------------------------------------------------


def equal(one: Trace, other: Trace) -> bool:
    for name, value in one._asdict().items():
        found = getattr(other, name)
        pairs = [(value[k], found[k]) for k in value] if name == "states" else [(value, found)]
        assert type(value) is type(found)
        for a, b in pairs:
            assert np.asarray(a).dtype == np.asarray(b).dtype, name
            np.testing.assert_array_equal(a, b, err_msg=name)
    return True


def test_an_npz_file_holds_everything(tmp_path, traces):
    by_hand = trace_of([MetaStep((1,), 3)], [3], num_classes=4, map_size=(2, 3), image=np.zeros((9, 8, 3), np.uint8))
    save([*traces, by_hand], tmp_path / "new" / "traces.npz")
    found = load(str(tmp_path / "new" / "traces.npz"))
    assert len(found) == len(traces) + 1
    assert all(equal(a, b) for a, b in zip(found, [*traces, by_hand], strict=True))
    save([], tmp_path / "none.npz")
    assert load(tmp_path / "none.npz") == []


def rows_of(path: Path) -> list[dict]:
    """Any flat file as Python values."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    types = {"episode": "int64"} | {column.name: column.dtype for column in SCHEMA}

    def value(text: str, dtype: str):
        if dtype.startswith("list"):
            return [value(part, dtype[5:-1]) for part in text.split()]
        return text if dtype == "string" else int(text) if dtype == "int64" else np.dtype(dtype).type(text).item()

    with path.open(newline="") as file:
        return [{name: value(text, types[name]) for name, text in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_flat_file_has_a_row_per_decision_and_loses_nothing_of_it(tmp_path, traces, suffix):
    save(traces, tmp_path / f"t.{suffix}")
    rows = rows_of(tmp_path / f"t.{suffix}")
    assert list(rows[0]) == ["episode", *(column.name for column in SCHEMA)]
    expected = [(i, trace, n) for i, trace in enumerate(traces) for n in range(len(trace.phase))]
    assert len(rows) == len(expected)
    for row, (episode, trace, n) in zip(rows, expected, strict=True):
        assert (row["episode"], row["decision"], row["source"]) == (episode, n, "digits")
        for name in ("saliency", "mask", "priority", "alpha", "location_probs", "label_probs", "remaining"):
            np.testing.assert_array_equal(
                np.array(row[name], getattr(trace, name).dtype), getattr(trace, name)[n].ravel()
            )
        for name in ("meta_step", "phase", "location", "label", "reward", "log_prob", "value", "entropy"):
            np.testing.assert_array_equal(row[name], getattr(trace, name)[n])
        assert row["labels"] == trace.labels.tolist()
        assert row["boxes"] == trace.boxes.ravel().tolist()
        assert row["right"] == (-1 if trace.label[n] < 0 else int(trace.right[n]))
        np.testing.assert_array_equal([row["location_row_px"], row["location_col_px"]], trace.location_px[n])
    save([], tmp_path / f"none.{suffix}")
    assert rows_of(tmp_path / f"none.{suffix}") == []


def test_the_documented_columns_are_those_of_the_code():
    table = [line for line in (ROOT / "docs" / "traces.md").read_text().splitlines() if line.startswith("| `")]
    first = "| `episode` | int64 | number of the trace in the file | from 0 |"
    assert table == [first, *(f"| `{c.name}` | {c.dtype} | {c.meaning} | {c.range} |" for c in SCHEMA)]


def test_every_value_is_of_the_columns_kind_and_in_its_range(traces):
    for trace in traces:
        for column in SCHEMA:
            values = np.asarray(column.values(trace))
            assert len(values) == len(trace.phase)
            assert (values.ndim == 2) == column.dtype.startswith("list")
            if "[0, 1]" in column.range and column.name != "reward":
                assert np.nanmin(values) >= 0
                assert np.nanmax(values) <= 1 + 1e-6
    assert max(trace.location.max() for trace in traces) < CELLS


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.json", "t", "t.npy"])
def test_another_suffix_is_refused(tmp_path, traces, name):
    for call in (lambda: save(traces, tmp_path / name), lambda: load(tmp_path / name)):
        with pytest.raises(ConfigError, match=rf"Expected a file named \.npz.*got '{name}'"):
            call()
    assert not list(tmp_path.iterdir())


def test_a_table_is_not_read_back(tmp_path):
    with pytest.raises(ConfigError, match=r"got 't\.csv'.*pandas"):
        load(tmp_path / "t.csv")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, traces, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"need pyarrow.*\[parquet\]"):
        save(traces, tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_a_clear_error(tmp_path, traces):
    path = tmp_path / "t.npz"
    with pytest.raises(DataError, match="Cannot read"):
        load(path)
    save(traces[:1], path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", b"nothing", whole[:middle], whole[:middle] + b"\0" * 40 + whole[middle + 40 :]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"t\.npz is cut off, damaged, or holds no traces.*Record them again"):
            load(path)
    np.savez(path, something=np.zeros(3))
    with pytest.raises(DataError, match="holds no traces"):
        load(path)
    np.savez(path, format=np.array("hsal trace 99"), episodes=np.array(0))
    with pytest.raises(DataError, match="expected the format 'hsal trace 1'; got 'hsal trace 99'"):
        load(path)
    np.savez(path, format=np.array("hsal trace 1"), episodes=np.array(1))
    with pytest.raises(DataError, match="holds no traces"):
        load(path)


@pytest.mark.parametrize("suffix", ["npz", "csv", "parquet"])
def test_a_full_disk_leaves_what_was_there(tmp_path, traces, monkeypatch, suffix):
    def full(traces: list, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    path = tmp_path / f"t.{suffix}"
    path.write_text("before")
    monkeypatch.setattr(f"hsal_env.trace.episode._write_{suffix}", full)
    with pytest.raises(DataError, match=r"Cannot write .*No space left on device"):
        save(traces, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


def test_the_documented_lines_run(tmp_path, monkeypatch, mnist_root):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HSAL_DATA", mnist_root)
    text = (ROOT / "docs" / "traces.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(block, {})
    assert {path.name for path in tmp_path.iterdir()} == {"traces.npz", "traces.csv"}
    assert len(load("traces.npz")) == 3


# --- class names ------------------------------------------------------------------------------------------------------


def test_class_names_are_kept_and_put_labels_in_words(tmp_path):
    names = tuple(f"class {letter}" for letter in "abcdefghij")
    trace = trace_of([MetaStep((3,), 2), MetaStep((4,), 10)], [2], class_names=names)
    save([trace, trace._replace(class_names=())], tmp_path / "t.npz")
    assert [read.class_names for read in load(tmp_path / "t.npz")] == [names, ()]
    assert [trace.label_name(label) for label in (0, 2, 10)] == ["class a", "class c", "stop"]
    save([trace], tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        assert [row["label_name"] for row in csv.DictReader(file)] == ["", "", "class c", "", "", "stop"]


def test_files_from_before_there_were_class_names_are_read(tmp_path):
    save([trace_of([MetaStep((3,), 2)], [2])], tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as stored:
        parts = {name: stored[name] for name in stored.files if "class_names" not in name}
    np.savez(tmp_path / "old.npz", **parts)
    (read,) = load(tmp_path / "old.npz")
    assert (read.class_names, read.label_name(2)) == ((), "2")


def test_files_from_before_there_were_places_look_at_the_centres_of_cells(tmp_path):
    trace = trace_of([MetaStep((3,), 2)], [2])
    save([trace._replace(location_px=trace.location_px + 5)], tmp_path / "t.npz")
    (read,) = load(tmp_path / "t.npz")
    np.testing.assert_array_equal(read.location_px, trace.location_px + 5)
    with np.load(tmp_path / "t.npz") as stored:
        parts = {name: stored[name] for name in stored.files if "location_px" not in name}
    np.savez(tmp_path / "old.npz", **parts)
    (read,) = load(tmp_path / "old.npz")
    np.testing.assert_array_equal(read.location_px, trace.location_px)
