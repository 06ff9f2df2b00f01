"""What comes from outside can be anything: paths that are none, numbers beyond all memory, files of other people."""

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import gymnasium as gym
import numpy as np
import pytest
import torch
from commands import (
    ANALYSE,
    BUNDLE,
    COUNT,
    EVALUATE,
    LEARNERS,
    PRETRAIN,
    REPRODUCE,
    ROOT,
    TRAIN,
    Command,
    metrics_of,
    script,
)
from PIL import Image

import agents
from agents import checkpoint
from agents.actor_critic import ActorCritic
from agents.config import AgentConfig, LearnerConfig
from agents.demo.player import MOST_UPLOAD_PIXELS, Player, read_image
from agents.demo.server import create_app, listen
from agents.protocol import World
from agents.reports import runs
from hsal_env import memory
from hsal_env.config import EnvConfig
from hsal_env.data import glyphs
from hsal_env.data.custom import load_folder
from hsal_env.data.svhn import find_svhn
from hsal_env.errors import CheckpointError, ConfigError, DataError, HSALError
from hsal_env.perception.examples import Examples
from hsal_env.perception.registry import activation_model, initial_model
from hsal_env.perception.resnet import ResNet18
from hsal_env.rules import Rules
from hsal_env.storage.files import as_path, check_writable, check_writable_file, write_text
from hsal_env.trace import load as load_traces
from hsal_env.trace import save as save_traces

DIGITS = "HSAL-DigitsMultiset-v0"
NO_PATHS = {
    "zero byte": ("a\0b", "null"),
    "300 characters": ("x" * 300, "too long"),
    "no such user": ("~nosuchuser/x", "home"),
}


@pytest.fixture(params=NO_PATHS)
def no_path(request: pytest.FixtureRequest) -> str:
    return NO_PATHS[request.param][0]


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who is in no list, as in many containers."""
    for name in ("HOME", "HSAL_CACHE", "XDG_CACHE_HOME", "HSAL_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "reason"), NO_PATHS.values(), ids=NO_PATHS)
def test_what_can_be_no_path_is_named_with_the_reason(given: str, reason: str):
    with pytest.raises(ConfigError, match=f"^Expected the path of a file or a folder; got .*{reason}"):
        as_path(given)


def test_other_paths_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for given in (".", "no/such/file", str(tmp_path), tmp_path, "", "a" * 200, "~x"[:1] + os.sep):
        assert as_path(given) == Path(given).expanduser()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/x") == tmp_path / "x"
    assert as_path(Path(os.devnull) / "x") == Path(os.devnull) / "x"  # whoever opens it says so
    with pytest.raises(ConfigError, match="Expected the path"):
        as_path(5)  # type: ignore[arg-type]


def denied(*_: Any, **__: Any) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_path_that_may_not_be_entered_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(ConfigError, match=r"got '/secret/x' \(Permission denied\)"):
        as_path("/secret/x")


DOORS: dict[str, Callable[[str], Any]] = {
    "agents.load": agents.load,
    "checkpoint.read": lambda path: checkpoint.read(Path(path)),
    "checkpoint.save": lambda path: checkpoint.save(Path(path), {}),
    "model file": lambda path: activation_model(f"{path}.pt"),
    "first weights": lambda path: initial_model("compact", path),
    "published weights": lambda path: ResNet18.published(path=path),
    "saliency maps": lambda path: Examples(EnvConfig(source="digits", saliency=f"file:{path}")).load([0]),
    "images": lambda path: EnvConfig(source="custom", images=path).data,
    "folder of images": load_folder,
    "folder of MNIST": lambda path: glyphs.load_glyphs("mnist", "test", path),
    "folder of SVHN": lambda path: find_svhn("test", path),
    "make": lambda path: gym.make("HSAL-MNISTMultiset-v0", data_root=path),
    "traces": lambda path: load_traces(f"{path}.npz"),
    "new traces": lambda path: save_traces([], f"{path}.npz"),
    "runs": lambda path: runs.gather([path]),
    "page": Player,
    "writable folder": lambda path: check_writable(Path(path)),
    "writable file": lambda path: check_writable_file(Path(path)),
    "text": lambda path: write_text(Path(path), ""),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_path_that_is_taken_in_python_is_held_against_that(
    door: str, no_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HSALError):
        DOORS[door](no_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["HSAL_CACHE", "XDG_CACHE_HOME", "HSAL_DATA"])
def test_so_are_folders_of_the_environment(name: str, no_path: str, monkeypatch: pytest.MonkeyPatch):
    if "\0" in no_path:
        pytest.skip("a variable cannot hold it")
    monkeypatch.delenv("HSAL_CACHE")
    monkeypatch.setenv(name, no_path)
    with pytest.raises(ConfigError, match="Expected the path"):
        glyphs.data_folders() if name == "HSAL_DATA" else glyphs.cache_folder()


def test_a_user_without_a_home_needs_a_folder_of_data(no_home, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"There is no cache folder .*Set HSAL_CACHE"):
        glyphs.cache_folder()
    with pytest.raises(ConfigError, match="Set HSAL_CACHE"):
        glyphs.data_folders()
    assert glyphs.data_folders(str(tmp_path)) == [tmp_path]  # nothing is missing
    gym.make(DIGITS, num_examples=2).reset(seed=0)
    with pytest.raises(ConfigError, match="Set HSAL_CACHE"):
        gym.make(DIGITS, num_examples=2, features="store")


FLAGS = {
    EVALUATE: ["mnist-multiset"],
    ANALYSE: ["mnist-multiset"],
    BUNDLE: ["run", "--name", "x"],
    COUNT: [],
    LEARNERS: ["ppo"],
    PRETRAIN: [],
    REPRODUCE: ["mnist-multiset"],
    TRAIN: ["--preset", "tiny", "--source", "digits"],
    "compare_saliency.py": [],
    "make_figures.py": ["mnist-multiset"],
    "make_idea.py": [],
    "report.py": ["mnist-multiset"],
    "rllib_agents.py": [],
    "make_demo_picture.py": [],
}


@pytest.mark.parametrize("name", FLAGS)
def test_every_path_on_a_command_line_is_held_against_that(command: Command, name: str, no_path: str, tmp_path: Path):
    hints = get_type_hints(script(name).Args)
    paths = [field for field, kind in hints.items() if Path in (kind, *get_args(kind)) and field != "run"]
    assert paths
    for field in paths:
        flag = f"--{field.replace('_', '-')}"
        command.fails(name, [*FLAGS[name], flag, no_path], "error: Expected the path of a file or a folder; got")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [EVALUATE, ANALYSE, "make_figures.py", "report.py", BUNDLE])
def test_so_is_the_agent(command: Command, name: str, no_path: str, tmp_path: Path):
    rest = ["--name", "x"] if name == BUNDLE else []
    command.fails(name, [no_path, *rest], "error: Expected the path of a file or a folder; got")
    assert not list(tmp_path.iterdir())


# --- sizes ------------------------------------------------------------------------------------------------------------

HUGE = [10**9 + 1, 10**18, 10**30, 10**5000]  # Python refuses to write out the last one


@pytest.mark.parametrize("config", [EnvConfig, AgentConfig, LearnerConfig, Rules])
@pytest.mark.parametrize("value", HUGE, ids=["10**9 + 1", "10**18", "10**30", "10**5000"])
def test_a_number_beyond_all_use_is_refused(config: type, value: int):
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        if int in (hints[field.name], *get_args(hints[field.name])) and (field.name != "seed" or value > 10**20):
            with pytest.raises(ConfigError, match=rf"{field.name}|objects|crops|size_px|canvas_px"):
                config(**{field.name: value})


def test_the_limit_is_named():
    with pytest.raises(ConfigError, match=r"Expected components of at most 65,536; got 1,000,000,000\."):
        EnvConfig(components=10**9)
    with pytest.raises(ConfigError, match=r"Expected meta_hidden of at most 8,192; got 1,000,000,000\."):
        AgentConfig(meta_hidden=10**9)
    with pytest.raises(ConfigError, match=r"Expected passes of less than 2\*\*64 in size"):
        LearnerConfig(passes=10**30)


@pytest.mark.parametrize("num_envs", [10**9, 10**30])
def test_more_lanes_than_fit_the_memory_are_refused(num_envs: int):
    with pytest.raises(ConfigError, match=r"got num_envs=10+, which need at least [\d,.]+ GiB"):
        gym.make_vec(DIGITS, num_envs=num_envs, features="store")


@pytest.mark.parametrize("num_envs", [0, -1, 1.5, "2", None])
def test_a_number_of_lanes_is_a_whole_number(num_envs: Any):
    from hsal_env.vector_env import HSALVectorEnv

    with pytest.raises(ConfigError, match="Expected num_envs as a whole number of at least 1; got"):
        HSALVectorEnv(num_envs, source="digits")


def test_what_fits_depends_on_the_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_memory_bytes", lambda: 2**20)
    gym.make(DIGITS, num_examples=2)
    with pytest.raises(
        ConfigError, match=r"got 900 environments with components=5 and maps of 49 cells and 128 channels"
    ):
        gym.make_vec(DIGITS, num_envs=900, num_examples=2)
    with pytest.raises(ConfigError, match=r"fit the 0\.0 GiB of memory.* got 1 environments with components=9000"):
        gym.make(DIGITS, num_examples=2, components=9_000)
    with pytest.raises(
        ConfigError, match=r"got a recurrent network of 8192 units over 60 inputs, which need at least 1\.5"
    ):
        ActorCritic(World(Rules(), (7, 7), 128, 10), AgentConfig(meta_hidden=8_192))
    monkeypatch.setattr(memory, "_memory_bytes", lambda: None)  # a system that does not tell
    memory.require_memory(10**30, "anything")


# --- checkpoints ------------------------------------------------------------------------------------------------------

SMALL = AgentConfig(meta_hidden=4, controller_hidden=4, location_hidden=4)
OTHERS: list[Any] = [
    None,
    True,
    -1,
    0,
    10**9,
    10**30,
    1.5,
    float("nan"),
    "",
    "x",
    b"x",
    [],
    [1, 2],
    {},
    {"x": 1},
    torch.zeros(2),
]


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    env = EnvConfig(source="digits")
    world = World(env.rules, (7, 7), 128, 10)
    return checkpoint.describe("hsal", ActorCritic(world, SMALL), SMALL, env, "digits", world)


def places(part: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value stands in nested dicts and lists."""
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    return [at] * bool(at) + [place for name, value in inner for place in places(value, (*at, name))]


def with_other(part: Any, at: tuple[Any, ...], *values: Any) -> Any:
    """``part`` with another value at a place; without values, with nothing there."""
    copied = dict(part) if isinstance(part, dict) else list(part)
    if len(at) > 1:
        copied[at[0]] = with_other(part[at[0]], at[1:], *values)
    elif values:
        copied[at[0]] = values[0]
    else:
        del copied[at[0]]
    return copied


def test_a_checkpoint_with_anything_anywhere_is_loaded_or_refused(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """Every entry is left out, and becomes a value of another type or size."""
    changed: dict[str, Any] = {}
    monkeypatch.setattr(checkpoint, "load_weights", lambda path: changed)
    refused: list[str] = []
    for at in places(content):
        for values in [(), *((value,) for value in OTHERS)]:
            changed = with_other(content, at, *values)
            try:
                checkpoint.load(Path(__file__))
            except HSALError as error:
                refused.append(str(error))
    assert len(refused) > 1_000
    assert all(__file__ in message for message in refused)  # it says which file


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"world": {"channels": 10**12}}, "Expected channels as whole numbers in 1..65536; got 1000000000000"),
        ({"world": {"map_size": [10**6, 7]}}, "Expected map_size as whole numbers in 1..65536"),
        ({"agent_config": {"controller_hidden": 10**9}}, "Expected controller_hidden of at most 8,192"),
        ({"source": "nowhere"}, "Expected source to be one of auto, "),
        ({"sample": {"image_px": [10**6, 10**6]}}, r".*sample image of 1000000x1000000 px"),
    ],
    ids=str,
)
def test_absurd_sizes_in_a_checkpoint_are_named(tmp_path: Path, content: dict[str, Any], part: dict, message: str):
    changed = {name: {**content[name], **value} if isinstance(value, dict) else value for name, value in part.items()}
    checkpoint.save(tmp_path / "x.pt", {**content, **changed})
    with pytest.raises(CheckpointError, match=f"x.pt (does not fit this version of HSAL: |holds no sample){message}"):
        checkpoint.load(tmp_path / "x.pt")


@pytest.mark.slow
def test_a_run_is_not_continued_from_anything_else(command: Command, trained: Path, tmp_path: Path):
    flags = ["--preset", "tiny", "--source", "digits", "--output-dir", "run", "--resume"]
    content = checkpoint.read(trained / "checkpoint.pt")
    for name, other in [
        ("step", "x"), ("step", 10**9), ("step", None), ("rows", 5), ("rows", [5]), ("rows", [{"update": "x"}]),
        ("optimiser", None), ("optimiser", {}), ("train_seconds", "x"), ("cpu_seconds", None), ("best", 5),
    ]:  # fmt: skip
        checkpoint.save(tmp_path / "run" / "checkpoint.pt", {**content, name: other})
        command.fails(TRAIN, flags, "error: run/checkpoint.pt is damaged, so the run cannot be continued (")
    checkpoint.save(tmp_path / "run" / "checkpoint.pt", {**content, "run": 5})
    command.fails(TRAIN, flags, "error: run/checkpoint.pt is of another run")
    moments = content["optimiser"]["state"]
    other = {**content["optimiser"], "state": {**moments, 0: {**moments[0], "exp_avg": torch.zeros(3)}}}
    checkpoint.save(tmp_path / "run" / "checkpoint.pt", {**content, "optimiser": other})
    command.fails(TRAIN, flags, "the optimiser's state is of other weights")


# --- metrics.json -----------------------------------------------------------------------------------------------------

RUN = ROOT / "results" / "mnist-multiset" / "seed-0"


def test_a_report_on_anything_is_written_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every entry of metrics.json is left out, and becomes a value of another type."""
    from agents.reports import page

    for name in ("_svg", "_interval_figure"):  # drawing takes long
        monkeypatch.setattr(page, name, lambda *_: page.Picture("image/png", b"", ""))
    metrics, folder = metrics_of(RUN), tmp_path / "run"
    folder.mkdir()
    refused: list[str] = []
    others = [value for value in OTHERS if not isinstance(value, bytes | torch.Tensor)] + [10**400, [[1]], {"1": None}]
    for at in places(metrics):
        for values in [(), *((value,) for value in others)]:
            (folder / "metrics.json").write_text(json.dumps(with_other(metrics, at, *values)))
            try:
                run = runs.read(folder)
            except DataError as error:
                refused.append(str(error))
            else:
                if at[0] != "versions":
                    page.page([page.ReportRow("x", [run])], "0")
    assert len(refused) > 200
    assert all("metrics.json is damaged" in message for message in refused)


@pytest.mark.parametrize("text", ["", "{", "null", "5", "[]", "[" * 100_000, '{"test": ' * 900 + "1" + "}" * 900, "\0"])
def test_a_damaged_metrics_json_is_refused(command: Command, tmp_path: Path, text: str):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text(text)
    command.fails("report.py", ["run", "--episodes", 0], "metrics.json is damaged")


def test_seeds_that_were_tested_on_other_numbers_of_objects_share_a_row(tmp_path: Path):
    from agents.reports.page import ReportRow, _by_count

    metrics = metrics_of(RUN)
    del metrics["test"]["by_count"]["1"], metrics["checksum"]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    table = _by_count([ReportRow("x", [runs.read(RUN), runs.read(tmp_path)])])
    assert table
    assert len(table.heads) == 5


# --- traces -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traces_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "traces.npz"
    env = EnvConfig(source="digits", num_examples=4, components=25, update="peak")
    save_traces(agents.tracing.record(agents.load("mnist-multiset").agent, env, [0]), path)
    return path


def test_traces_with_anything_anywhere_are_refused(traces_file: Path, tmp_path: Path):
    with np.load(traces_file) as stored:
        content = {name: stored[name] for name in stored.files}
    others = [
        np.zeros(0),
        np.zeros((2, 3)),
        np.array("x"),
        np.array(None),
        np.array(-1),
        np.array(10**12),
        np.zeros(3, "S1"),
    ]
    free = ("canvas_index", "source", "glimpses", "terminated", "truncated", "class_names")
    for name in content:
        for other in [None, *others]:
            changed = {**content, name: other}
            if other is None:
                del changed[name]
            np.savez(tmp_path / "x.npz", **changed)
            may_lack = "states/" in name or name.endswith(("/attended", "/location_px"))  # older files lack both
            if name.split("/")[-1] in free or (other is None and may_lack):
                with contextlib.suppress(DataError):
                    load_traces(tmp_path / "x.npz")
            else:
                with pytest.raises(DataError, match=r"x\.npz"):
                    load_traces(tmp_path / "x.npz")


def test_traces_that_promise_more_than_all_memory_are_refused(traces_file: Path, tmp_path: Path):
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (10**15,), "fortran_order": False, "descr": "<f8"})
    with zipfile.ZipFile(traces_file) as whole, zipfile.ZipFile(tmp_path / "x.npz", "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, header.getvalue() if name == "0/reward.npy" else whole.read(name))
    with pytest.raises(DataError, match=r"x\.npz is cut off, damaged, or holds no traces"):
        load_traces(tmp_path / "x.npz")


# --- uploads ----------------------------------------------------------------------------------------------------------


def picture(width: int, height: int, mode: str = "L") -> bytes:
    content = io.BytesIO()
    Image.new(mode, (width, height), 255 if mode == "L" else None).save(content, format="PNG")
    return content.getvalue()


@pytest.mark.parametrize("long", [1, 99, 100, 101, 199, 200, 201, 202, 1000, 65_535])
@pytest.mark.parametrize("thin", [1, 2, 5])
def test_a_line_is_an_image(long: int, thin: int):
    for width, height in ((thin, long), (long, thin)):
        canvas = read_image(picture(width, height))
        assert canvas.shape == (100, 100)
        assert canvas.max() == 255


def test_a_line_is_taken_by_the_page():
    client = create_app(Player()).test_client()
    for size in ((1, 201), (201, 1)):
        assert client.post("/api/upload", data=picture(*size)).status_code == 200
    answer = client.post("/api/upload", data=picture(1, 65_535)[:60])
    assert answer.status_code == 400
    assert MOST_UPLOAD_PIXELS > 65_535


# --- numbers on command lines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (TRAIN, "--components 1000000000", "Expected components of at most 65,536"),
        (TRAIN, "--canvas-px 1000000000", "Expected canvas_px of at most 4,096"),
        (TRAIN, "--controller-hidden 1000000000", "Expected controller_hidden of at most 8,192"),
        (TRAIN, "--glimpses 1000000000", "Expected glimpses of at most 10,000"),
        (TRAIN, "--learning-rate 1e300", "Expected learning_rate of at most 1e+30; got 1e+300"),
        (TRAIN, "--location-prior 1e300", "Expected location_prior of at most 1e+30"),
        (COUNT, "--hidden 1000000000", "Expected hidden of at most 8,192"),
        (COUNT, f"--seed {10**30}", "Expected seed of at most 4,294,967,295"),
        (COUNT, "--learning-rate 1e300", "Expected learning_rate of at most 1e+30"),
        (PRETRAIN, "--learning-rate nan", "Expected learning_rate of at most 1e+30; got nan"),
        (PRETRAIN, "--weight-decay nan", "Expected weight_decay of at most 1e+30; got nan"),
        (PRETRAIN, "--canvas-px 1000000000", "canvas_px"),
        (LEARNERS, "ppo --source digits --num-envs 1000000000", "which need at least"),
        ("rllib_agents.py", f"--seed {10**30}", "Expected seed of at most 4,294,967,295"),
    ],
)
def test_a_number_beyond_use_is_an_error_of_one_line(command: Command, name: str, flags: str, message: str):
    command.fails(name, flags, message)


@pytest.mark.parametrize("host", ["a\0b", "x" * 300, "\udcff"])
def test_a_host_that_can_be_none_is_named(host: str):
    with pytest.raises(ConfigError, match="Cannot listen on"):
        listen(create_app(Player.__new__(Player)), host)
