"""Files from strangers: the names in a checkpoint run no code that nobody here has chosen."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from commands import ANALYSE, BUNDLE, DEMO, EVALUATE, Command, script

import agents
from agents import checkpoint, protocol
from agents.demo.player import Player
from hsal_env import plugins
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError
from hsal_env.perception import registry
from hsal_env.perception.registry import ACTIVATION_GROUP, SALIENCY_GROUP, SALIENCY_MODELS, activation_model

FIGURES, IDEA, REPORT = "make_figures.py", "make_idea.py", "report.py"

STRANGER = """
from pathlib import Path

from agents.actor_critic import ActorCritic
from hsal_env.perception.saliency import SumOfSquares

Path("imported").touch()
calls = []


class Agent(ActorCritic):
    def __init__(self, *given):
        calls.append("Agent")
        super().__init__(*given)


def activation():
    from hsal_env.perception.registry import activation_model

    calls.append("activation")
    return activation_model("compact")


class Saliency(SumOfSquares):
    def __init__(self):
        calls.append("Saliency")
"""
NAMES = {
    "agent": ("agent", "stranger:Agent", protocol.ENTRY_POINTS),
    "activation": ("activation model", "stranger:activation", ACTIVATION_GROUP),
    "saliency": ("saliency model", "stranger:Saliency", SALIENCY_GROUP),
}


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module that says when it is imported, and what of it is called."""
    (tmp_path / "stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for cached in (registry._activation_of_name, registry._saliency_of_name):
        cached.cache_clear()
    yield
    sys.modules.pop("stranger", None)


@pytest.fixture(params=NAMES)
def part(request: pytest.FixtureRequest) -> str:
    return request.param


def altered(path: Path, **changes: Any) -> Path:
    """A bundled agent's checkpoint with other entries."""
    content = checkpoint.read(agents.BUNDLED_FOLDER / "mnist-multiset.pt")
    env = {name: changes.pop(name) for name in ("activation", "saliency", "images", "data_root") if name in changes}
    checkpoint.save(path, {**content, **changes, "env": {**content["env"], **env}})
    return path


@pytest.fixture
def path(tmp_path: Path, part: str) -> Path:
    return altered(tmp_path / "x.pt", **{part: NAMES[part][1]})


def calls() -> list[str]:
    return sys.modules["stranger"].calls


def test_a_name_in_a_file_is_not_followed(stranger, path: Path, part: str):
    what, name, group = NAMES[part]
    for trust in (False, [], ["stranger:Other"]):
        with pytest.raises(CheckpointError) as caught:
            agents.load(path, trust=trust)
        assert str(caught.value) == (
            f"{path} is not loaded. It names the {what} {name!r}, which would import stranger and call its "
            f"{name.partition(':')[2]}. A file may only name what comes with hsal or is an entry point ({group}) of an "
            "installed package. If you trust who made the file, pass trust=True (on the command line --trust-names)."
        )
    assert not Path("imported").exists()


@pytest.mark.parametrize("listed", [False, True])
def test_it_is_followed_where_the_caller_trusts_it(stranger, path: Path, part: str, listed: bool):
    name = NAMES[part][1]
    loaded = agents.load(path, trust=[name] if listed else True)
    env = EnvConfig.from_kwargs(
        {"source": "digits", "num_examples": 2, "saliency": loaded.env.saliency, "components": 25}
    )
    assert agents.tracing.record(loaded.agent, env, 0).terminated
    assert name.partition(":")[2] in calls()


@pytest.mark.parametrize("name", ["os:abort", "os.path:join", "subprocess:run"])
def test_functions_of_the_standard_library_are_not_called(tmp_path: Path, part: str, name: str):
    with pytest.raises(CheckpointError, match=f"names the {NAMES[part][0]} '{name}', which would import"):
        agents.load(altered(tmp_path / "x.pt", **{part: name}))


@pytest.mark.parametrize("by_name", [False, True], ids=["by what it stands for", "by its name"])
def test_an_entry_point_is_followed(
    stranger, tmp_path: Path, part: str, by_name: bool, monkeypatch: pytest.MonkeyPatch
):
    """Whoever installed its package has chosen it."""
    _, value, group = NAMES[part]
    entry = EntryPoint(name=f"stranger-{part}", value=value, group=group)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == entry.group else [])
    loaded = agents.load(altered(tmp_path / "x.pt", **{part: entry.name if by_name else value}))
    assert loaded.agent
    assert Path("imported").exists() == (part != "saliency")  # it is made with the environment


def test_an_entry_point_of_another_group_is_not(stranger, path: Path, part: str, monkeypatch: pytest.MonkeyPatch):
    entry = EntryPoint(name="x", value=NAMES[part][1], group="console_scripts")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == entry.group else [])
    with pytest.raises(CheckpointError, match="would import"):
        agents.load(path)


def test_what_comes_with_hsal_is_followed(tmp_path: Path):
    assert agents.load(altered(tmp_path / "x.pt", agent="agents.actor_critic:ActorCritic")).agent
    for name in SALIENCY_MODELS:
        assert agents.load(altered(tmp_path / "x.pt", saliency=name)).env.saliency == name


@pytest.mark.parametrize("trust", ["os:abort", 1, None])
def test_trust_is_a_bool_or_a_list(tmp_path: Path, trust: Any):
    with pytest.raises(ConfigError, match="Expected trust as True, False or a list of names; got"):
        agents.load(altered(tmp_path / "x.pt"), trust=trust)


def test_what_the_user_types_needs_no_trust(stranger):
    assert activation_model("stranger:activation").channels == 128
    kwargs = {"activation": "stranger:activation", "saliency": "stranger:Saliency", "num_examples": 2}
    gym.make("HSAL-DigitsMultiset-v0", **kwargs).reset(seed=0)
    assert protocol.find_agent("stranger:Agent").__name__ == "Agent"
    assert {"activation", "Saliency"} <= set(calls())


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("activation", r"\\host\share\x.pt"),
        ("activation", "//host/share/x.pt"),
        ("saliency", r"file:\\host\share\{split}.npy"),
        ("images", r"\\host\share"),
    ],
)
def test_a_path_on_another_machine_is_not_followed(tmp_path: Path, part: str, value: str):
    changes = {"source": "custom"} if part == "images" else {}
    path = altered(tmp_path / "x.pt", **{part: value}, **changes)
    with pytest.raises(CheckpointError, match=r"would be fetched from another machine.*--trust-names"):
        agents.load(path)


def test_another_path_is_followed(tmp_path: Path):
    """What lies there is data."""
    assert agents.load(altered(tmp_path / "x.pt", saliency="file:/maps/{split}.npy")).env.saliency.startswith("file:")
    with pytest.raises(CheckpointError, match="No activation model at"):
        agents.load(altered(tmp_path / "x.pt", activation="no/such.pt"))


def test_where_the_data_lie_is_not_the_files_to_say(tmp_path: Path):
    """They would be downloaded there."""
    assert agents.load(altered(tmp_path / "x.pt", data_root=str(tmp_path / "there"))).env.data_root is None


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flags", "trusting"),
    [
        (EVALUATE, ["x.pt", "--episodes", 2, "--source", "digits"], True),
        (ANALYSE, ["x.pt", "--episodes", 2, "--source", "digits"], True),
        (FIGURES, ["x.pt", "--index", 0, "--format", "npz", "--source", "digits"], True),
        (IDEA, ["--agent", "x.pt", "--source", "digits"], False),
        (REPORT, ["run", "--episodes", 2, "--source", "digits"], False),
        (BUNDLE, ["run", "--name", "x", "--output-dir", "out", "--episodes", 2], False),
        (DEMO, ["x.pt", "--port", 0], False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_command_that_loads_a_checkpoint_asks_for_trust(
    stranger, command: Command, trained: Path, tmp_path: Path, name: str, flags: list, trusting: bool
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_bytes((trained / "metrics.json").read_bytes())
    altered(tmp_path / "run" / "checkpoint.pt", saliency="stranger:Saliency")
    altered(tmp_path / "x.pt", saliency="stranger:Saliency")
    command.fails(name, flags, "is not loaded. It names the saliency model 'stranger:Saliency'", "--trust-names")
    assert not Path("imported").exists()
    assert not list(tmp_path.glob("out/*"))
    assert script(name).Args.__dataclass_fields__["trust_names"].default is False
    if trusting:
        command(name, [*flags, "--trust-names"])
        assert calls() == ["Saliency"]


def test_the_page_plays_an_agent_that_is_trusted(stranger, tmp_path: Path):
    path = altered(tmp_path / "x.pt", saliency="stranger:Saliency")
    assert Player(path, trust=True).chosen.endswith("x.pt")
