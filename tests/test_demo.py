"""The page to play with: what the server answers, and what a browser shows of it."""

import base64
import contextlib
import dataclasses
import io
import json
import math
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import needs
import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image, ImageFile

import agents
from agents import checkpoint
from agents.actor_critic import ActorCritic
from agents.config import AgentConfig
from agents.demo import player as demo
from agents.demo.player import Player, Settings, plain, read_image
from agents.protocol import World
from agents.tracing import record
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError, DataError
from hsal_env.perception.examples import Examples
from hsal_env.perception.registry import SALIENCY_MODELS

needs.module("flask", "test", "the page needs Flask, the extra demo")
from agents.demo import server as demo_server  # noqa: E402

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "agents" / "demo" / "page"
TEST = EnvConfig(source="digits", split="test")
INDEX = 4  # a canvas of several digits


@pytest.fixture(scope="module")
def player():
    return Player()


@pytest.fixture(scope="module")
def client(player):
    return demo_server.create_app(player).test_client()


@pytest.fixture(scope="module")
def canvas():
    """A test canvas, and its labels."""
    composed = Examples(TEST).canvases.compose([INDEX])
    return composed.images[0], [label for label in composed.labels[0].tolist() if label >= 0]


def wish(image, **settings):
    return {"image": base64.b64encode(image.tobytes()).decode(), **settings}


@pytest.fixture(scope="module")
def play(client, canvas):
    def ask(**settings):
        answer = client.post("/api/play", json=wish(canvas[0], **settings))
        assert answer.status_code == 200, answer.json
        return answer.json

    return ask


def refused(answer, *said):
    assert answer.status_code == 400
    assert set(answer.json) == {"error"}
    for words in said:
        assert words in answer.json["error"]
    assert str(ROOT) not in answer.text
    assert "Traceback" not in answer.text


def same(found, trace):
    """What was answered is the whole trace."""
    assert set(trace._fields) <= set(found)
    for name, value in trace._asdict().items():
        if name == "states":
            assert {part: np.array(v, np.float32).tolist() for part, v in found[name].items()} == {
                part: v.tolist() for part, v in value.items()
            }
        elif isinstance(value, np.ndarray):
            got = np.array(found[name], dtype=value.dtype).reshape(value.shape)  # None is read as NaN
            np.testing.assert_array_equal(got, value, err_msg=name)
        elif name == "grid":
            assert [tuple(pair) for pair in found[name]] == list(value)
        elif name == "class_names":
            assert tuple(found[name]) == value
        else:
            assert found[name] == value, name


# --- playing ----------------------------------------------------------------------------------------------------------


def test_the_answer_is_the_trace_of_the_same_canvas(play, canvas):
    loaded = agents.load("mnist-multiset")
    config = dataclasses.replace(loaded.env, source="digits", split="test", protocol="free", features="lazy")
    trace = record(loaded.agent, config, INDEX)
    found = play(labels=canvas[1])
    assert len(canvas[1]) > 1
    assert found["named"] == trace.named.tolist()
    assert found["exact_match"] == trace.exact_match
    # boxes of an image that was sent are unknown, as is where it comes from
    same(found, trace._replace(boxes=np.full_like(trace.boxes, -1), source="custom", canvas_index=0))


def test_what_depends_on_labels_is_left_out_where_they_are_unknown(play, canvas):
    known, unknown = play(labels=canvas[1]), play()
    hidden = {"labels", "boxes", "reward", "remaining", "exact_match"}
    assert {name for name in known if unknown[name] is None} == hidden
    assert all(known[name] == unknown[name] for name in set(known) - hidden)
    assert play(labels=[])["reward"] is not None  # known to be empty
    assert play(labels=[])["labels"] == []


@pytest.mark.parametrize("k", range(5))
def test_k_glimpses_are_taken(play, k):
    found = play(glimpses=k)
    episode = [*range(k + 2)] * (len(found["phase"]) // (k + 2))
    assert found["phase"] == episode
    assert [location >= 0 for location in found["location"]] == [0 < phase <= k for phase in episode]
    assert [probabilities[0] is not None for probabilities in found["label_probs"]] == [p == k + 1 for p in episode]


def test_the_saliency_map_is_updated_by_the_rule(play):
    def first_two(rule):
        found = play(update=rule)
        before, after = (np.array(found["saliency"][n], np.float32) for n in (0, 4))  # 4 decisions: k is 2
        return before, np.array(found["mask"][0], np.float32), found["location"][1:3], after

    for rule, share in (("paper", 1.0), ("peak", None)):
        before, mask, looked, after = first_two(rule)
        expected = np.maximum(before - mask / (share or mask.max()), 0)
        expected.reshape(-1)[looked] = 0
        np.testing.assert_allclose(after, expected, atol=1e-6)
        assert not np.array_equal(before, after)
    before, _, _, after = first_two("none")
    assert np.array_equal(before, after)


def test_the_saliency_model_is_swapped(play, canvas):
    examples = Examples(TEST)
    volume = examples.encode(canvas[0][None])[0].float().numpy()
    doubled = canvas[0].repeat(2, axis=0).repeat(2, axis=1)  # cell r reaches from 16 r - 7.5 to 16 r + 8.5 px
    edges = [(max(0, 32 * i - 15), min(200, 32 * i + 17)) for i in range(7)]
    uniform = np.ones((7, 7))
    uniform[-1, -1] = 0
    raw = {
        "sum-of-squares": (volume**2).sum(0),
        "sum-of-magnitudes": np.abs(volume).sum(0),
        "brightness": np.array([[doubled[a:b, c:d].mean() for c, d in edges] for a, b in edges]),
        "uniform": uniform,
    }
    for name, expected in raw.items():
        found = play(saliency=name)["saliency"][0]
        np.testing.assert_allclose(found, (expected - expected.min()) / np.ptp(expected), atol=1e-5, err_msg=name)
    assert set(demo.SALIENCY) == set(SALIENCY_MODELS) - {"boxes"}  # which nobody knows of an image
    maps = [np.array(play(saliency=name)["saliency"][0]) for name in demo.SALIENCY]
    assert all(0 == found.min() < found.max() == 1 for found in maps)
    assert len({found.tobytes() for found in maps}) == len(maps)
    assert play()["saliency"] == play(saliency="sum-of-squares")["saliency"]


def test_another_agent_plays(play, player, canvas):
    assert set(player.agents) == set(agents.bundled())
    for name in ("mnist-set", "mnist-multiset-faithful"):
        loaded = agents.load(name)
        config = dataclasses.replace(loaded.env, source="digits", split="test", protocol="free", task="multiset")
        trace = record(loaded.agent, dataclasses.replace(config, features="lazy"), INDEX)
        found = play(agent=name, labels=canvas[1])
        assert found["states"]["meta_state"] != play()["states"]["meta_state"]
        assert found["named"] == trace.named.tolist()
        assert np.array_equal(np.array(found["mask"], np.float32), trace.mask)


def test_drawn_decisions_follow_the_seed(play):
    def drawn(seed):
        return play(deterministic=False, seed=seed)

    assert drawn(1) == drawn(1)
    assert drawn(1)["mask"] != drawn(2)["mask"]  # an extent is drawn
    assert play(seed=1) == play(seed=2)


def test_requests_at_once_are_answered_as_one_by_one(player, canvas):
    app = demo_server.create_app(player)
    wishes = [wish(canvas[0], glimpses=k, labels=canvas[1]) for k in (0, 3, 1, 2)]

    def ask(content):
        return app.test_client().post("/api/play", json=content).json

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, wishes)) == [ask(content) for content in wishes]


def test_more_labels_than_in_training_can_be_right(play):
    found = play(labels=[1, 2, 3, 4, 5, 6])
    assert found["truncated"] is False or found["meta_step"][-1] == 6  # 7 meta-steps


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"agent": "nobody"}, "Expected agent to be one of mnist-multiset, "),
        ({"agent": ["mnist-set"]}, "Expected agent as text or None; got ['mnist-set']"),
        ({"agent": "/etc/passwd"}, "Expected agent to be one of"),
        ({"glimpses": 5}, "Expected glimpses as a whole number from 0 to 4; got 5"),
        ({"glimpses": -1}, "got -1"),
        ({"glimpses": True}, "got True"),
        ({"glimpses": "2"}, "got '2'"),
        ({"update": "gone"}, "Expected update to be one of paper, peak, none, None; got 'gone'"),
        ({"saliency": "os:system"}, "Expected saliency to be one of sum-of-squares, sum-of-magnitudes"),
        ({"saliency": []}, "Expected saliency"),
        ({"deterministic": 1}, "Expected deterministic as True or False; got 1"),
        ({"seed": 2**32}, "Expected seed as a whole number from 0 to 2**32 - 1; got 4294967296"),
        ({"labels": "12"}, "Expected labels as a list of whole numbers, or null; got '12'"),
        ({"labels": [1, 10]}, "Expected at most 10 labels, whole numbers from 0 to 9; got 10"),
        ({"labels": [1.0]}, "got 1.0"),
        ({"labels": [1] * 11}, "got 11"),
        ({"image": "abc"}, "Expected image as base64 of 100x100 grey bytes"),
        ({"image": "!" * 13336}, "Expected image"),
        ({"image": 3}, "Expected image"),
        ({"colour": "red"}, "Expected JSON of image, labels, agent, glimpses"),
    ],
)
def test_a_wrong_wish_is_refused(client, canvas, changed, said):
    refused(client.post("/api/play", json=wish(canvas[0]) | changed), said)


def test_what_is_no_json_is_refused(client):
    refused(client.post("/api/play", data="{", content_type="application/json"))
    refused(client.post("/api/play", json=[1]), "Expected JSON of")
    answer = client.post("/api/play", data=json.dumps({}), content_type="text/plain")
    assert (answer.status_code, set(answer.json)) == (415, {"error"})


def test_an_agent_that_hides_its_rules_is_refused():
    with pytest.raises(ConfigError, match="Expected an agent whose attribute world holds its rules; got one without"):
        demo.with_rules_of(object(), EnvConfig())


def test_an_agent_keeps_its_own_rules(player, canvas):
    agent = player.agents["mnist-multiset"].agent
    player.play(canvas[0], None, Settings(glimpses=4))
    assert agent.world.rules.glimpses == 2


# --- agents of yours --------------------------------------------------------------------------------------------------


def test_a_checkpoint_plays_under_a_name_without_its_folder(tmp_path, canvas):
    folder = tmp_path / "mine"
    folder.mkdir()
    path = folder / "checkpoint.pt"
    path.write_bytes((agents.BUNDLED_FOLDER / "mnist-set.pt").read_bytes())
    mine = Player(path)
    assert mine.options()["chosen"] == "mine/checkpoint.pt"
    assert [*mine.agents] == ["mine/checkpoint.pt", *agents.bundled()]
    assert str(tmp_path) not in json.dumps(mine.options())
    expected = plain(mine.play(canvas[0], None, Settings(agent="mnist-set")), False)
    assert plain(mine.play(canvas[0]), False) == expected


def saved(folder: Path, env: EnvConfig, config: AgentConfig = AgentConfig()) -> Path:  # noqa: B008
    """The folder of a run of an agent that has learned nothing."""
    world = World.of(Examples(env))
    agent = ActorCritic(world, config)
    checkpoint.save(folder / "checkpoint.pt", checkpoint.describe("hsal", agent, config, env, env.source, world))
    return folder


NAMES = ["ant", "bee", "cat", "dog", "elk"]


@pytest.fixture(scope="module")
def own(tmp_path_factory, custom_folder):
    """The client of an agent for grey images of 48x64 px with class names, and its name."""
    env = EnvConfig(source="custom", images=str(custom_folder), class_names=NAMES)
    folder = saved(tmp_path_factory.mktemp("runs"), env)
    return demo_server.create_app(Player(folder)).test_client(), folder.name


def test_an_agent_for_images_of_yours_plays_from_its_folder(own, custom_folder):
    client, name = own
    options = client.get("/api/options").json
    assert options["chosen"] == name
    told = options["agents"][name]
    assert {part: told[part] for part in ("image_shape", "class_names", "digits", "max_objects")} == {
        "image_shape": [48, 64, 1], "class_names": NAMES, "digits": False, "max_objects": 3,
    }  # fmt: skip
    answer = client.get("/api/canvas?index=1")
    assert answer.json["size"] == len(EnvConfig(source="custom", images=str(custom_folder), split="test").canvases)
    found = client.post("/api/play", json={"image": answer.json["image"], "labels": answer.json["labels"]})
    assert found.status_code == 200, found.json
    assert np.shape(found.json["image"]) == (48, 64)
    assert (found.json["class_names"], found.json["source"]) == (NAMES, "custom")
    assert sorted(found.json["labels"]) == sorted(answer.json["labels"])
    refused(client.post("/api/play", json={"image": "abc"}), "Expected image as base64 of 48x64 grey bytes")
    blank = base64.b64encode(bytes(100 * 100)).decode()
    assert client.post("/api/play", json={"image": blank, "agent": "mnist-set"}).status_code == 200
    refused(client.get("/api/canvas?index=0&agent=nobody"), "Expected agent to be one of")
    refused(client.post("/api/upload?agent=nobody", data=PNG), "Expected agent to be one of")


@pytest.mark.parametrize("size", [(640, 480), (48, 64), (7, 300), (1, 201), (3000, 2)])
def test_an_upload_of_any_size_is_brought_to_the_agents(own, size):
    client, name = own
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    for agent, length in ((name, 48 * 64), ("house-numbers", 3 * 100 * 100), ("mnist-set", 100 * 100)):
        answer = client.post(f"/api/upload?agent={agent}", data=file_of(image))
        assert len(base64.b64decode(answer.json["image"])) == length


def test_an_agent_of_colours_plays_in_colour(client):
    shown = client.get("/api/canvas?index=0&agent=house-numbers")
    assert shown.json["source"] == "house-numbers"
    assert shown.json["size"] == 10_000
    found = client.post("/api/play", json={"image": shown.json["image"], "agent": "house-numbers"})
    assert np.shape(found.json["image"]) == (100, 100, 3)
    red = file_of(Image.new("RGB", (300, 150), (200, 0, 0)))
    pixels = base64.b64decode(client.post("/api/upload?agent=house-numbers", data=red).json["image"])
    assert set(np.frombuffer(pixels, np.uint8).reshape(-1, 3)[:, 0]) == {200}
    inverted = base64.b64decode(client.post("/api/upload?invert=1&agent=house-numbers", data=red).json["image"])
    assert set(np.frombuffer(inverted, np.uint8).reshape(-1, 3)[:, 1]) == {255}


def test_without_its_images_an_agent_has_no_test_canvases(tmp_path, custom_folder):
    images = tmp_path / "images"
    shutil.copytree(custom_folder, images)
    player = Player(saved(tmp_path, EnvConfig(source="custom", images=str(images), image_px=(48, 64))))
    shutil.rmtree(images)
    with pytest.raises(DataError, match="No folder"):
        player.canvas(0)
    assert player.play(np.zeros((48, 64), np.uint8)).truncated in (False, True)


def test_an_agent_that_cannot_play_is_refused(monkeypatch):
    def refuse(*_):
        raise ConfigError("no maps")

    with pytest.raises(CheckpointError, match="No agent 'nobody'"):
        Player("nobody")
    monkeypatch.setattr(demo, "environment", refuse)
    with pytest.raises(CheckpointError, match=r"mnist-set: expected an agent that can play a new image; .* no maps"):
        Player("mnist-set")


# --- test canvases and uploads ----------------------------------------------------------------------------------------


def pixels(answer):
    assert answer.status_code == 200, answer.json
    return np.frombuffer(base64.b64decode(answer.json["image"]), np.uint8).reshape(100, 100)


def test_test_canvases_are_of_mnist_where_it_is(mnist_root, monkeypatch):
    monkeypatch.setenv("HSAL_DATA", mnist_root)
    client = demo_server.create_app(Player()).test_client()
    expected = Examples(EnvConfig(source="mnist", split="test", data_root=mnist_root)).canvases.compose([7])
    answer = client.get("/api/canvas?index=7")
    assert np.array_equal(pixels(answer), expected.images[0])
    assert answer.json["labels"] == [label for label in expected.labels[0].tolist() if label >= 0]
    assert answer.json["source"] == "mnist"
    refused(client.get("/api/canvas?index=10000"), "Expected the index of a test canvas, 0 to 9999; got 10000")
    for wrong in ("", "?index=-1", "?index=x", "?index=²", "?index=" + "9" * 5000):
        refused(client.get("/api/canvas" + wrong), "Expected index as the number of a test canvas")


@pytest.mark.usefixtures("no_mnist")
def test_without_mnist_they_are_digits_and_nobody_is_warned(canvas, recwarn):
    answer = demo_server.create_app(Player()).test_client().get(f"/api/canvas?index={INDEX}")
    assert answer.json["source"] == "digits"
    assert np.array_equal(pixels(answer), canvas[0])
    assert answer.json["labels"] == canvas[1]
    assert not recwarn.list


def file_of(image, kind="PNG", **how):
    with io.BytesIO() as file:
        image.save(file, kind, **how)
        return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_upload_is_made_grey_and_fitted(client, kind):
    wide = Image.new("RGB", (300, 150), "white")
    found = pixels(client.post("/api/upload", data=file_of(wide, kind)))
    assert (found[25:75] == 255).all()
    assert not found[:24].any()
    assert not found[76:].any()
    inverted = pixels(client.post("/api/upload?invert=1", data=file_of(wide, kind)))
    assert not inverted.any()  # white paper is black, and so is what is filled up


def test_a_canvas_comes_back_as_it_is(client, canvas):
    assert np.array_equal(pixels(client.post("/api/upload", data=file_of(Image.fromarray(canvas[0])))), canvas[0])


def test_what_is_transparent_is_ground():
    ink = np.zeros((100, 100, 4), np.uint8)
    ink[40:60, 40:60] = (0, 0, 0, 255)  # black on nothing
    expected = np.zeros((100, 100), np.uint8)
    expected[40:60, 40:60] = 255
    assert np.array_equal(read_image(file_of(Image.fromarray(ink)), invert=True), expected)
    ink[40:60, 40:60, :3] = 255
    assert np.array_equal(read_image(file_of(Image.fromarray(ink))), expected)


def test_sixteen_bits_are_read():
    values = np.zeros((100, 100), np.uint16)
    values[10, 20] = 0x80FF
    found = read_image(file_of(Image.fromarray(values)))
    assert (found[10, 20], found.sum()) == (0x80, 0x80)


def test_a_photograph_is_turned_upright():
    lying = Image.fromarray(np.repeat(np.arange(100, dtype=np.uint8)[:, None], 100, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    assert np.array_equal(read_image(file_of(lying, exif=exif)), np.array(lying)[::-1])


PNG = file_of(Image.new("L", (100, 100)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "The file is empty. Expected a PNG or JPEG"),
        (b"hello", "not an image that can be read. Expected a PNG or JPEG"),
        (PNG[:-30], "not an image that can be read"),
        (file_of(Image.new("L", (9, 9)), "GIF"), "not an image that can be read"),
        (file_of(Image.new("1", (5001, 5000))), "The image is too large: 5001x5000 px; at most 25,000,000 pixels"),
        (PNG + bytes(demo.MOST_UPLOAD_BYTES), "The request is too large. Expected at most 5,242,880 bytes"),
    ],
    ids=["empty", "text", "cut", "gif", "pixels", "bytes"],
)
def test_a_bad_upload_is_refused(client, content, said):
    refused(client.post("/api/upload", data=content), said)


def test_a_file_that_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match="The image is too large: 5001x5000 px"):
        read_image(file_of(Image.new("1", (5001, 5000))))
    with pytest.raises(DataError, match="The file is too large: 5,242,881 bytes; at most 5,242,880"):
        read_image(bytes(demo.MOST_UPLOAD_BYTES + 1))


# --- the server -------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(client):
    page = client.get("/")
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(parts) == ["/static/page.js", "/static/style.css", "data:,"]
    assert all(client.get(part).status_code == 200 for part in parts if part.startswith("/"))
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self';")
    for file in PAGE.iterdir():
        assert not re.search(r"https?:|wss?:|[\"'(]\s*//", file.read_text()), file.name


def test_errors_are_json_and_tell_nothing_of_the_machine(player, canvas, monkeypatch, caplog):
    client = demo_server.create_app(player).test_client()
    assert (client.get("/nowhere").status_code, client.get("/nowhere").json) == (404, {"error": "Not Found."})
    assert client.get("/api/play").json == {"error": "Method Not Allowed."}

    def fail(*_):
        raise RuntimeError("/home/me/secret")

    monkeypatch.setattr(player, "play", fail)
    answer = client.post("/api/play", json=wish(canvas[0]))
    assert (answer.status_code, answer.json) == (500, {"error": "The server failed. Its terminal shows why."})
    assert "/home/me/secret" in caplog.text


def test_only_this_machine_is_listened_to_unless_told(player):
    default = runpy.run_path(str(ROOT / "train" / "demo.py"))["Args"]()
    assert default.host == demo_server.LOCALHOST == "127.0.0.1"
    server, address = demo_server.listen(demo_server.create_app(player))
    with contextlib.closing(server.socket):
        host, port = server.socket.getsockname()
        assert (host, address) == ("127.0.0.1", f"http://127.0.0.1:{port}/")
    client, everywhere = (demo_server.create_app(player, host).test_client() for host in ("127.0.0.1", "0.0.0.0"))
    for name, here, there in (("localhost:80", 200, 200), ("127.0.0.1:8000", 200, 200), ("evil.example", 400, 200)):
        assert client.get("/api/options", headers={"Host": name}).status_code == here
        assert everywhere.get("/api/options", headers={"Host": name}).status_code == there
    assert [demo_server.is_loopback(host) for host in ("localhost", "::1", "127.0.1.1", "0.0.0.0", "10.0.0.1")] == [
        True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_each_loopback_address_answers_by_its_own_name(player, host):
    client = demo_server.create_app(player, host).test_client()
    assert client.get("/api/options", headers={"Host": f"{host}:8000"}).status_code == 200


def test_json_too_deep_to_read_is_refused(client):
    refused(client.post("/api/play", data="[" * 100_000, content_type="application/json"), "nested")


def test_a_host_that_cannot_be_checked_is_refused():
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
        demo_server.create_app(None, "::1")


def test_a_port_that_is_taken_is_told(player):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"Cannot listen on 127.0.0.1, port {port}: .*Pass another --host or --port"
        ):
            demo_server.listen(demo_server.create_app(player), port=port)
    with pytest.raises(ConfigError, match=r"Cannot listen on 127\.0\.0\.1, port 99999"):
        demo_server.listen(demo_server.create_app(player), port=99999)


def test_the_command_serves_until_it_is_interrupted():
    command = [sys.executable, str(ROOT / "train" / "demo.py"), "--port", "0", "mnist-set"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    with subprocess.Popen(command, cwd=ROOT, **pipes) as running:
        signal.signal(signal.SIGINT, heard)
        try:
            said = running.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", said)
            assert address, said + running.stderr.read()
            with urllib.request.urlopen(address[0] + "api/options") as answer:
                assert json.load(answer)["chosen"] == "mnist-set"
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=120)
        finally:
            running.kill()
    assert running.returncode == 0
    assert errors == ""


def test_without_flask_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flask", None)
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    with pytest.raises(SystemExit, match=r'The page needs Flask: pip install "hsal\[demo\]"'):
        runpy.run_path(str(ROOT / "train" / "demo.py"), run_name="__main__")


def test_flask_is_imported_in_one_module():
    files = [*(ROOT / "agents").rglob("*.py"), *(ROOT / "hsal_env").rglob("*.py")]
    importing = [f.name for f in files if re.search(r"^\s*(from|import) (flask|werkzeug)", f.read_text(), re.MULTILINE)]
    assert importing == ["server.py"]


# --- in a browser -----------------------------------------------------------------------------------------------------

SEVEN = [(14, 12), (34, 12), (23, 40)]
ZERO = [(74 + 9 * math.sin(n * math.pi / 8), 72 - 14 * math.cos(n * math.pi / 8)) for n in range(17)]
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def address(player):
    server, where = demo_server.listen(demo_server.create_app(player))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield where
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    playwright = needs.module("playwright.sync_api", "browser", "playwright, the extra browser, is not installed")
    if not CHROMIUM.exists():
        needs.lack("browser", f"{CHROMIUM}, Debian's package chromium, is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    opened = browser.new_page(viewport={"width": 1200, "height": 1000}, reduced_motion="reduce")
    opened.set_default_timeout(15_000)
    opened.requests, opened.complaints = [], []
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#go:enabled")
    yield opened
    opened.close()


def draw(page, points):
    """A stroke of the mouse through points (x, y) in px of the canvas."""
    frame = page.locator("#pad").bounding_box()
    on_screen = [(frame["x"] + x * frame["width"] / 100, frame["y"] + y * frame["height"] / 100) for x, y in points]
    page.mouse.move(*on_screen[0])
    page.mouse.down()
    for x, y in on_screen[1:]:
        page.mouse.move(x, y, steps=4)
    page.mouse.up()


def press_go(page):
    with page.expect_response("**/api/play") as answer:
        page.click("#go")
    page.wait_for_selector("#thinking:not([hidden])")
    return answer.value.json()


def named(page):
    return page.locator("#named li").evaluate_all("items => items.map((item) => item.dataset.label)")


def expect(locator):
    from playwright.sync_api import expect  # not installed everywhere

    return expect(locator)


def bytes_of(page, view="pad"):
    return page.evaluate("id => document.getElementById(id).toDataURL()", view)


def views(page):
    return [bytes_of(page, f"view-{name}") for name in ("image", "saliency", "priority")]


def check_map(page, view, values):
    """Every cell of 64 px has viridis' colour of its value, at one place at least: lines and numbers lie over others."""
    with Image.open(io.BytesIO(base64.b64decode(bytes_of(page, view).split(",")[1]))) as image:
        shown = np.array(image.convert("RGB")).astype(int).reshape(7, 64, 7, 64, 3)[:, 8::8, :, 8::8]
    expected = colormaps["viridis"](np.array(values), bytes=True)[:, None, :, None, :3].astype(int)
    off = np.abs(shown - expected).max(axis=-1).min(axis=(1, 3))  # [7, 7]
    assert off.max() < 12, view  # the page interpolates between seventeen colours


@pytest.mark.browser
def test_two_digits_are_drawn_and_read(page, address):
    blank = bytes_of(page)
    draw(page, SEVEN)
    draw(page, ZERO)
    page.fill("#labels", "0 7")
    trace = press_go(page)
    first, shown = views(page), []
    assert named(page) == []
    for at in range(len(trace["phase"])):
        page.locator("#step").fill(str(at))
        assert page.locator("#place").inner_text() == f"{at + 1} / {len(trace['phase'])}"
        shown.append(views(page))
        check_map(page, "view-saliency", trace["saliency"][at])
        check_map(page, "view-priority", trace["priority"][at])
    assert sorted(named(page)) == ["0", "7", "stop"]
    assert page.locator("#named li.right").count() == 3
    assert page.locator("#result").inner_text().endswith("true is {0, 7}: all right ✓.")
    assert shown[0] == first
    assert all(len({views[i] for views in shown}) > 2 for i in range(3))
    page.locator("#step").fill(str(trace["glimpses"] + 1))
    label = trace["label"][trace["glimpses"] + 1]
    assert named(page) == [str(label)]
    chosen = page.locator("#bars .chosen")
    assert chosen.locator(".label").inner_text() == str(label)
    assert float(chosen.locator(".value").inner_text()) > 0.5

    page.locator("h1").click()  # arrow keys work wherever the focus is
    page.keyboard.press("ArrowLeft")
    assert named(page) == []
    page.keyboard.press("End")
    assert len(named(page)) == 3
    page.click("#play")  # from the start
    expect(page.locator("#place")).to_have_text(f"2 / {len(trace['phase'])}")
    page.click("#play")

    drawn = bytes_of(page)
    page.click("#undo")
    page.click("#undo")
    assert bytes_of(page) == blank != drawn
    assert page.locator("#undo").is_disabled()
    assert page.complaints == []
    assert all(url.startswith((address, "data:")) for url in page.requests)


@pytest.mark.browser
def test_the_controls_do_what_they_say(page):
    draw(page, SEVEN)
    draw(page, ZERO)
    before = bytes_of(page)
    page.check("[value=eraser]", force=True)
    draw(page, ZERO)
    assert bytes_of(page) != before
    page.click("#undo")
    assert bytes_of(page) == before
    page.select_option("#agent", "mnist-set")
    page.select_option("#glimpses", "4")
    page.select_option("#update", "none")
    page.select_option("#saliency", "brightness")
    page.select_option("#choice", "sampled")
    page.fill("#seed", "5")
    with page.expect_request("**/api/play") as asked:
        trace = press_go(page)
    content = asked.value.post_data_json
    assert {name: content[name] for name in content if name != "image"} == {
        "labels": None, "agent": "mnist-set", "glimpses": 4, "update": "none", "saliency": "brightness",
        "deterministic": False, "seed": 5,
    }  # fmt: skip
    assert trace["glimpses"] == 4
    page.keyboard.press("End")
    assert page.locator("#named li.right, #named li.wrong").count() == 0  # nobody knows
    page.fill("#labels", "one")
    page.click("#go")
    expect(page.locator("#message")).to_contain_text("got “one”")


@pytest.mark.browser
def test_canvases_and_files_are_shown_or_refused_with_a_message(page, tmp_path):
    expect(page.locator("#source")).to_contain_text("digits")
    blank = bytes_of(page)
    page.fill("#index", str(INDEX))
    page.click("#pick button[type=submit]")
    expect(page.locator("#labels")).not_to_have_value("")
    assert bytes_of(page) != blank
    draw(page, [(2, 2), (4, 4)])  # then the labels hold no longer
    assert page.input_value("#labels") == ""

    page.click("summary:has-text('file')")
    big = tmp_path / "big.png"
    big.write_bytes(PNG + bytes(demo.MOST_UPLOAD_BYTES))
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    empty = tmp_path / "empty.png"
    empty.touch()
    for file, said in ((big, "big.png is too large: at most 5 MiB"), (bad, "not an image"), (empty, "is empty")):
        page.set_input_files("#file", str(file))
        expect(page.locator("#message")).to_contain_text(said)
    good = tmp_path / "good.png"
    good.write_bytes(PNG)
    page.set_input_files("#file", str(good))
    expect(page.locator("#file-shown")).to_have_text("good.png, as it is.")
    expect(page.locator("#message")).to_have_text("")
    assert bytes_of(page) == blank
    page.check("#invert")
    expect(page.locator("#file-shown")).to_have_text("good.png, inverted.")
    pixels = "[...document.getElementById('pad').getContext('2d').getImageData(0, 0, 100, 100).data]"
    assert set(page.evaluate(pixels)) == {255}
    page.click("#undo")
    assert bytes_of(page) == blank


@pytest.mark.browser
def test_an_agent_of_yours_brings_its_shape_and_class_names(browser, own, tmp_path):
    app, _ = own
    server, where = demo_server.listen(app.application)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    opened = browser.new_page(viewport={"width": 1200, "height": 1000}, reduced_motion="reduce")
    opened.set_default_timeout(30_000)
    try:
        complaints = []
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.goto(where)
        expect(opened.locator("#source")).to_contain_text("folder that the agent was trained on")
        opened.click("#pick button[type=submit]")
        expect(opened.locator("#labels")).not_to_have_value("")
        assert set(opened.input_value("#labels").split(", ")) <= set(NAMES)
        trace = press_go(opened)
        opened.keyboard.press("End")
        assert named(opened) == [[*NAMES, "stop"][label] for label in trace["label"] if label >= 0]
        size = "id => { const {width, height} = document.getElementById(id); return [width, height]; }"
        assert opened.evaluate(size, "pad") == [64, 48]
        assert opened.locator(".of-digits").first.is_hidden()

        photograph = tmp_path / "photograph.png"
        Image.new("RGB", (300, 150), (200, 0, 0)).save(photograph)
        opened.click("summary:has-text('file')")
        opened.set_input_files("#file", str(photograph))
        expect(opened.locator("#file-shown")).to_have_text("photograph.png, as it is.")
        with opened.expect_response("**/api/upload?**"):
            opened.select_option("#agent", "house-numbers")  # takes the file, too
        assert opened.evaluate(size, "pad") == [100, 100]
        pixel = "[...document.getElementById('pad').getContext('2d').getImageData(50, 50, 1, 1).data]"
        opened.wait_for_function(f"String({pixel}) === '200,0,0,255'")
        draw(opened, [(10, 50), (90, 50)])  # white over red
        assert opened.evaluate(pixel) == [255, 255, 255, 255]
        assert np.shape(press_go(opened)["image"]) == (100, 100, 3)
        assert complaints == []
    finally:
        opened.close()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    """A player whose agent draws its attention."""
    env = EnvConfig(source="digits", components=9)
    return Player(saved(tmp_path_factory.mktemp("runs"), env, AgentConfig(attention_policy="drawn")))


def test_the_page_is_told_what_the_upper_level_drew(drawing, canvas):
    image = base64.b64encode(canvas[0].tobytes()).decode()
    content = {"image": image, "glimpses": 1, "deterministic": False, "seed": 2}
    trace = demo_server.create_app(drawing).test_client().post("/api/play", json=content).json
    attends = [n for n, phase in enumerate(trace["phase"]) if phase == 0]
    assert attends
    for n, cell in enumerate(trace["attended"]):
        assert (0 <= cell < 49) == (n in attends)
        assert None not in (trace["log_prob"][n], trace["value"][n], trace["entropy"][n])


@pytest.mark.browser
def test_drawn_attention_is_shown(browser, drawing):
    server, where = demo_server.listen(demo_server.create_app(drawing))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    opened = browser.new_page(viewport={"width": 1200, "height": 1000}, reduced_motion="reduce")
    try:
        opened.goto(where)
        opened.wait_for_selector("#go:enabled")
        draw(opened, SEVEN)
        trace = press_go(opened)
        row, col = divmod(trace["attended"][0], 7)
        said = f"draws its mask of attention about row {row + 1}, column {col + 1} (log-probability {trace['log_prob'][0]:.2f},"
        expect(opened.locator("#now")).to_contain_text(said)
    finally:
        opened.close()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.browser
def test_a_glimpse_is_drawn_where_it_looks(page):
    """Its square lies about the cell's centre, or moved by as many px of the canvas as the place is off it."""
    trace = press_go(page)
    n = trace["phase"].index(1)
    orange = """() => {
        const { width, height } = document.getElementById('view-image');
        const { data } = document.getElementById('view-image').getContext('2d').getImageData(0, 0, width, height);
        const found = [...Array(width * height).keys()].filter((i) => data[4 * i] === 230 && data[4 * i + 1] === 159);
        return [Math.min(...found.map((i) => Math.floor(i / width))), Math.min(...found.map((i) => i % width))];
    }"""
    page.evaluate(f"at = {n}; draw()")
    before = page.evaluate(orange)
    page.evaluate(f"trace.location_px[{n}][0] -= 2; trace.location_px[{n}][1] += 4; draw()")
    px = page.evaluate("document.getElementById('view-image').width") / (7 * trace["grid"][1][1])
    assert np.subtract(page.evaluate(orange), before) == pytest.approx([-2 * px, 4 * px], abs=1)


@pytest.mark.browser
def test_the_page_fits_a_narrow_screen(page):
    page.set_viewport_size({"width": 360, "height": 740})
    press_go(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
