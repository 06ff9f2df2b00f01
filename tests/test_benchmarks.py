"""The benchmarks' commands, run at their smallest; and that a feature store's memory does not grow with the store."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from hsal_env.data import Canvases, load_glyphs

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


def run(name: str, flags: str, folder: Path) -> dict:
    """The numbers that ``python benchmarks/name flags`` writes."""
    command = [sys.executable, str(FOLDER / name), *shlex.split(flags), "--json", str(folder / "n.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "n.json").read_text())


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    """Imports a benchmark without running it."""
    monkeypatch.syspath_prepend(FOLDER)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        assert spec
        assert spec.loader
        found = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, found)  # where the source of a class is looked up
        spec.loader.exec_module(found)
        return found

    return load


def numbers_in(found: object) -> list[float]:
    """Every number of nested dicts."""
    if isinstance(found, dict):
        return [number for value in found.values() for number in numbers_in(value)]
    return [found] if isinstance(found, int | float) else []


# --- taking turns -----------------------------------------------------------------------------------------------------


def test_runs_take_turns_and_the_first_turn_warms_up(module):
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = module("measuring").taking_turns(runs, 2)
    assert order == ["a", "b"] * 3
    assert [len(taken) for taken in seconds.values()] == [2, 2]


def test_a_ratio_is_the_median_over_turns(module):
    assert module("measuring").ratio([1.0, 2.0, 1.0], [3.0, 4.0, 100.0]) == 3


# --- the commands -----------------------------------------------------------------------------------------------------


def test_canvases(tmp_path: Path):
    found = run("canvases.py", "--source digits --canvases 32 --batch-size 16 32 --turns 1", tmp_path)
    assert set(found) == {"source", "one_at_a_time_per_second", "batches of 16", "batches of 32"}
    assert min(numbers_in(found)) > 0
    batched, alone = found["batches of 32"], found["one_at_a_time_per_second"]
    assert batched["ratio"] == pytest.approx(batched["per_second"] / alone)
    assert batched["ratio_to_authors_elsewhere"] == pytest.approx(batched["per_second"] / 520)


def test_frames(tmp_path: Path):
    found = run("frames.py", "--env-id HSAL-DigitsMultiset-v0 --frames 3 --turns 1", tmp_path)
    assert set(found) == {"env_id", "ratio", "frames", "figures"}
    assert min(numbers_in(found)) > 0


def test_the_loop_beside_draws_from_the_same_distribution(module):
    canvases = Canvases(load_glyphs("digits", "train"))
    rng = np.random.default_rng(0)
    drawn = [module("canvases").one_canvas(canvases.glyphs, canvases.config, rng) for _ in range(300)]
    images, labels = [image for image, _ in drawn], [found for _, found in drawn]
    ours = canvases.compose(range(300))
    assert {len(found) for found in labels} == {1, 2, 3, 4}
    assert np.mean(images) == pytest.approx(ours.images.mean(), rel=0.1)
    assert np.mean([len(found) for found in labels]) == pytest.approx((ours.labels >= 0).sum(1).mean(), rel=0.1)


@pytest.mark.slow
def test_encoding(tmp_path: Path):
    found = run("encoding.py", "--source digits --images 64 --batch-sizes 32 --turns 1", tmp_path)
    assert len(found["first_look_per_second"]) == 4  # two dtypes, two layouts
    assert {"store", "store, given canvases"} < set(found["per_second"])
    assert min(numbers_in(found)) > 0
    rival = found["rivals"]["best"]
    assert found["per_second"][rival] == max(rate for name, rate in found["per_second"].items() if "bare" in name)
    ratio = found["per_second"]["store"] / found["per_second"][rival]
    assert found["ratio"]["store / best"] == pytest.approx(ratio)


@pytest.mark.slow
def test_perception(tmp_path: Path):
    found = run("perception.py", "--models compact 'compact, 14x14' --images 2 --turns 1", tmp_path)
    assert set(found["models"]) == {"compact", "compact, 14x14"}
    assert min(numbers_in(found)) > 0
    coarse, fine = found["models"]["compact"], found["models"]["compact, 14x14"]
    assert fine["gflop_per_image"] > coarse["gflop_per_image"]
    assert (coarse["kilobytes_per_image"], fine["kilobytes_per_image"]) == (12.544, 50.176)  # 2 bytes x 128 x 49, x 196
    assert coarse["encode_ratio_to_compact"] == coarse["fine-tune_ratio_to_compact"] == 1


@pytest.mark.slow
def test_startup(tmp_path: Path):
    found = run("startup.py", "--turns 1 --only import", tmp_path)
    assert set(found) == {"python", "import torch", "import hsal_env"}
    assert min(numbers_in(found)) > 0
    assert found["import hsal_env"]["processor_seconds"] < found["import torch"]["processor_seconds"]


@pytest.mark.slow
def test_scaling(tmp_path: Path):
    picture = tmp_path / "s.png"
    flags = f"--rows canvases --canvases 20 10 --pooled --seconds 0 --folder {tmp_path / 'stores'} --plot {picture}"
    found = run("scaling.py", flags, tmp_path)
    assert list(found) == ["pooled canvases"]
    assert list(found["pooled canvases"]) == ["10", "20"]
    small, large = found["pooled canvases"].values()
    assert {"fill_seconds", "open_seconds", "fill_peak_megabytes"} < set(small)
    assert min(numbers_in(found)) > 0
    assert 30 < small["peak_megabytes"] < 4000
    assert large["disk_megabytes"] == pytest.approx(2 * small["disk_megabytes"], rel=0.05)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "stores").iterdir())


@pytest.mark.parametrize(("row", "size"), [("lanes", 3), ("map", 2), ("objects", 2)])
def test_scalings_other_points(module, monkeypatch: pytest.MonkeyPatch, row: str, size: int):
    scaling = module("scaling")
    monkeypatch.setattr(scaling, "EXAMPLES", 8)
    point = scaling.POINTS[row](size, 0.0)
    assert min(point.values()) > 0
    assert point["microseconds_per_decision"] == pytest.approx(
        point["step_seconds"] / (3 if row == "lanes" else 64) * 1e6
    )
    assert ("update_seconds" in point) == (row == "lanes")


def test_threads_are_those_asked_for(module, monkeypatch: pytest.MonkeyPatch):
    scaling, found = module("scaling"), []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(scaling, "of_lanes", lambda lanes, seconds: {"step_seconds": lanes, "peak_megabytes": 1.0})
    assert scaling.of_threads(2, 0.0) == {"step_seconds": 1_024}
    assert found == [2]


def test_of_processes_only_what_a_longer_run_takes_more_counts(module, monkeypatch: pytest.MonkeyPatch):
    scaling = module("scaling")
    lengths = {"train/ppo": 4.0, "train/pre": 0.01}  # seconds of a pass, and of a canvas, by one process

    def seconds(processes: int, command: str) -> float:
        if "ppo" in command:
            assert "--num-examples 1792 " in command  # whole batches of 256 of the 2,000 canvases: all are played
        return 30 + lengths[command[:9]] * int(command.split()[-1]) / processes

    monkeypatch.setattr(scaling, "seconds_of_torchrun", seconds)
    expected = {"seconds_of_10000_images": 2.0 * 10_000 / 1_792, "seconds_of_1000_canvases": 5.0}
    assert scaling.of_processes(2, 3.0) == pytest.approx(expected)


@pytest.mark.slow
def test_both_commands_run_in_processes(module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HSAL_CACHE", str(tmp_path))
    scaling = module("scaling")
    monkeypatch.setattr(scaling, "EXAMPLES", 256)
    monkeypatch.delenv("HSAL_DATA", raising=False)  # it needs no MNIST
    assert set(scaling.of_processes(1, 0.0)) == {"seconds_of_10000_images", "seconds_of_1000_canvases"}
    with pytest.raises(SystemExit, match="--no-such failed"):
        scaling.seconds_of_torchrun(1, "train/pretrain_perception.py --no-such")


def test_growth_is_the_exponent(module):
    scaling = module("scaling")
    assert scaling.growth([1, 10, 100], [2.0, 20.0, 2000.0]) == pytest.approx([1, 2])
    assert scaling.work("map", [7, 14]) == [49, 196]
    assert np.isnan(scaling.growth([1, 2], [5.0, -0.1])).all()
    table = scaling.table("processes", {1: {"seconds": 5.0}, 2: {"seconds": -0.1}})
    assert table.splitlines()[-1] == "| *last growth* | nan |"


def test_a_store_that_does_not_fit_the_disk_is_refused_before_work(module, tmp_path: Path):
    with pytest.raises(SystemExit, match=r"need 13860000.0 GB.*--folder"):
        module("scaling").measured("canvases", 10**12, 0.0, tmp_path)


def test_the_time_to_a_score_is_that_of_the_first_point_that_has_it(module):
    curve = [(10.0, 0.5), (20.0, 0.95), (30.0, 0.94), (40.0, 0.97)]
    reached = module("time_to_score").reached
    assert [reached(curve, score) for score in (0.5, 0.935, 0.96, 0.98)] == [10.0, 20.0, 40.0, None]
    assert reached([], 0.5) is None


@pytest.mark.slow
def test_curves_of_ours_and_of_others_begin_with_their_processes(tmp_path: Path):
    few = "--source digits --test-episodes 20 --val-episodes 20"
    ours = f"--systems hsal --scores 0 1.5 --episodes 30 --plot curve.png --flags='--preset tiny --log-every 1 {few}'"
    found = run("time_to_score.py", ours, tmp_path)
    curve = found["curves"]["hsal"]
    assert len(curve) >= 2  # a checkpoint after each of two passes
    assert all(0 < seconds <= found["seconds_of_the_command"]["hsal"] and 0 <= score <= 1 for seconds, score in curve)
    assert found["seconds_to_0"]["hsal"] == curve[0][0]
    assert found["seconds_to_1.5"] == {"hsal": None}
    assert min(found["matrix_gflops"].values()) > 0
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size[0] > 400
    theirs = "--systems sb3-maskable-ppo --scores 0 --flags='--timesteps 4096 --num-examples 64 --val-every 4096 " + few
    found = run("time_to_score.py", theirs + "'", tmp_path)
    assert found["seconds_to_0"]["sb3-maskable-ppo"] > 1


@pytest.mark.slow
def test_a_training_that_fails_ends_the_benchmark_with_its_message(tmp_path: Path):
    command = [sys.executable, str(FOLDER / "time_to_score.py"), "--systems", "hsal", "--flags=--preset huge"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Unknown preset 'huge'" in done.stderr


def test_every_benchmark_is_in_the_table_and_gives_help_without_torch(tmp_path: Path):
    page = (FOLDER / "README.md").read_text()
    for path in sorted(FOLDER.glob("*.py")):
        if path.name == "measuring.py":
            continue
        assert f"python benchmarks/{path.name}" in page
        command = [sys.executable, "-X", "importtime", str(path), "--help"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0
        imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert "argparse" in imported
        assert "torch" not in imported


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of a process alone is read from /proc")
def test_a_stores_memory_is_bounded(tmp_path: Path):
    """128 MiB written, checked, read in order and at random: no more than some batches at a time."""
    code = f"""
import re
from pathlib import Path
import numpy as np
from hsal_env.storage import array_store
array_store._MAPPED_BYTES = 1 << 24
def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
rows = np.arange(1 << 13)
def batches():
    for start in range(0, len(rows), 64):
        yield {{"values": np.repeat(rows[start : start + 64, None], 2048, axis=1)}}
before = peak_mib()
store = array_store.ArrayStore.open(Path({str(tmp_path / "store")!r}), batches, len(rows))
order = np.random.default_rng(0).permutation(len(rows))
for chosen in (*rows.reshape(-1, 64), *order.reshape(-1, 64)):
    assert (store.read(chosen, "values")["values"] == chosen[:, None]).all()
print(peak_mib() - before)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "store" / "values.npy").stat().st_size > 1 << 27
    assert float(done.stdout) < 32


@pytest.mark.slow
def test_sb3s_throughput_is_measured_side_by_side(tmp_path: Path):
    command = [sys.executable, str(ROOT / "benchmarks" / "sb3_throughput.py")]
    small = shlex.split("--num-envs 2 --steps 4 --turns 1 --learn 128 --json numbers.json")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *small], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["num_envs"] == 2
    for part in ("untrained", "trained"):
        assert min(numbers[part].values()) > 0
        assert set(numbers[part]) == {"HSALVecEnv", "DummyVecEnv", "ratio"}
    assert "frames/s" in done.stdout
