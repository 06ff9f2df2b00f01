"""What every test shares: one thread, a cache folder of its own, and MNIST where it can be found."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in the processes that tests start
os.environ["MPLBACKEND"] = "agg"  # windows that nobody sees

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import needs
import numpy as np
import pytest
import torch
from commands import BUNDLE, TRAIN, Command, run, script, succeeded
from PIL import Image
from playing import SMALL

from hsal_env.data import glyphs
from hsal_env.storage import array_store

DATA_ROOT = Path(os.environ.get("HSAL_DATA") or Path(__file__).parents[2] / "shared" / "data")

torch.set_num_threads(1)
hypothesis.settings.register_profile("hsal", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("hsal")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The session's cache folder, ``$HSAL_CACHE``: nothing of the user's is read or written."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSAL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def mnist_root() -> str:
    """A folder with ``MNIST/raw``: ``$HSAL_DATA``, or ``shared/data`` beside the checkout."""
    return needs.mnist(DATA_ROOT)


@pytest.fixture(scope="session")
def svhn_root() -> str:
    """A folder with ``SVHN/train`` and ``SVHN/test``, or some of their images: as above."""
    return needs.svhn(DATA_ROOT)


@pytest.fixture(scope="session")
def svhn_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with ``SVHN/train``, ``test`` and ``extra`` as the official files are laid out: images of noise."""
    needs.module("h5py", "test", "h5py, the extra svhn, is not installed")
    from svhn_files import random_root

    return random_root(tmp_path_factory.mktemp("svhn"))


@pytest.fixture
def no_mnist(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that knows of no MNIST and cannot download it."""

    def refuse() -> None:
        raise ConnectionError("no route to host")

    def forget() -> None:
        for cached in (glyphs.find_mnist, glyphs._mnist, glyphs._auto_source):
            cached.cache_clear()

    forget()
    monkeypatch.delenv("HSAL_DATA", raising=False)
    monkeypatch.setattr("hsal_env.data.torchvision_import.import_torchvision", refuse)
    yield
    forget()


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forget, as another process would, which stores were checked."""
    return lambda: monkeypatch.setattr(array_store, "_checked", {})


@pytest.fixture(scope="session")
def custom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty grey images of 48x64 px that hold 1 to 3 objects of five labels: a square for each, bright by its label."""
    folder, rng = tmp_path_factory.mktemp("custom"), np.random.default_rng(0)
    lines = ["file,labels"]
    for i in range(40):
        image, labels = np.zeros((48, 64), np.uint8), rng.integers(0, 5, rng.integers(1, 4)).tolist()
        for place, label in enumerate(labels):
            image[16 : 16 + 16, 20 * place : 20 * place + 16] = 50 * (label + 1) + rng.integers(5)
        Image.fromarray(image).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{' '.join(map(str, labels))}")
    lines[1] = "0.png,4 4"  # every label and number occurs
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def small(env_id: str, request: pytest.FixtureRequest) -> dict:
    """Arguments that make a small environment of the id ``env_id``."""
    if env_id == "HSAL-Custom-v0":
        return {"images": str(request.getfixturevalue("custom_folder"))}
    if env_id.startswith("HSAL-SVHN"):
        return {"data_root": request.getfixturevalue("svhn_folder"), "activation": "playing:Colours"}
    return SMALL


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the smallest training that the README promises."""
    folder = tmp_path_factory.mktemp("runs")
    done = succeeded(run(TRAIN, "--preset", "tiny", "--source", "digits", "--output-dir", "mine/deep", cwd=folder))
    assert "exact match" in done.stdout + done.stderr
    return folder / "mine" / "deep"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="session")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained agent in a folder of its own, as ``small``."""
    folder, module = tmp_path_factory.mktemp("bundled") / "new", script(BUNDLE)
    module.main(module.Args(trained, "small", folder, episodes=40))
    assert {path.name for path in folder.iterdir()} == {"small.pt", "small.md"}
    return folder
