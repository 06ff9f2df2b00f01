"""Figures and animations of an agent's episodes, and the command that writes them."""

import sys

import needs
import numpy as np
import pytest
from PIL import Image
from traces import MetaStep, trace_of

from hsal_env.errors import ConfigError, DataError
from hsal_env.rendering import animation, draw_trace, draw_traces, save_pdf
from hsal_env.rendering.animation import Frame, frames, save_animation
from hsal_env.trace import load

FIGURES = "make_figures.py"
STOP = 10
LONG = trace_of([MetaStep((3, 9), 2), MetaStep((4, 4), 7), MetaStep((5, 6), STOP)], [2, 7])
SHORT = trace_of([MetaStep((8, 9), STOP)], [1])


# --- animations -------------------------------------------------------------------------------------------------------


def test_an_animation_shows_every_decision_of_every_episode_in_one_size_and_pauses_at_their_ends():
    shown = frames([SHORT, LONG])
    expected = [draw_trace(SHORT, until, columns=3) for until in range(5)] + [draw_trace(LONG, n) for n in range(13)]
    assert len(shown) == len(expected)
    for frame, picture in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(frame.picture, picture)
    assert [frame.ticks for frame in shown] == [1] * 4 + [4] + [1] * 12 + [8]


def test_a_gif_shows_the_frames_for_their_time_without_end(tmp_path):
    shown = frames([SHORT])
    save_animation(shown, tmp_path / "new" / "t.gif")
    assert (tmp_path / "new" / "t.gif").stat().st_size < 100_000
    with Image.open(tmp_path / "new" / "t.gif") as film:
        assert (film.n_frames, film.info["loop"]) == (len(shown), 0)
        for number, frame in enumerate(shown):
            film.seek(number)
            assert film.info["duration"] == 500 * frame.ticks
            seen = np.asarray(film.convert("RGB")).astype(int)
            assert (np.abs(seen - frame.picture) > 48).mean() < 1e-3  # 256 colours
            assert np.abs(seen - frame.picture).mean() < 1
            white = (frame.picture == 255).all(axis=2)
            assert (seen[white] == 255).all()


def test_an_mp4_has_as_many_frames_as_ticks(tmp_path):
    imageio_ffmpeg = needs.module(
        "imageio_ffmpeg", "test", "imageio-ffmpeg, which comes with moviepy, is not installed"
    )
    shown = frames([SHORT])
    save_animation(shown, tmp_path / "t.mp4")
    count, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "t.mp4"))
    assert (count, seconds) == (12, pytest.approx(6, abs=0.1))
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "t.mp4"))
    assert next(reader)["size"] == (shown[0].picture.shape[1], shown[0].picture.shape[0])
    *_, last = (np.frombuffer(part, np.uint8) for part in reader)
    assert np.abs(last.reshape(shown[0].picture.shape).astype(int) - shown[-1].picture).mean() < 6


def test_mp4_without_ffmpeg_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ConfigError, match=r"MP4 files need ffmpeg.*pip install imageio-ffmpeg, or write a GIF"):
        save_animation(frames([SHORT]), tmp_path / "t.mp4")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_animated_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least one trace to animate"):
        frames([])
    with pytest.raises(ConfigError, match=r"Expected a file named \.gif or \.mp4.*got 't\.avi'"):
        save_animation([Frame(np.zeros((4, 4, 3), np.uint8), 1)], tmp_path / "t.avi")
    assert not list(tmp_path.iterdir())


def test_a_failed_animation_leaves_what_was_there(tmp_path, monkeypatch):
    def full(shown, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "t.gif").write_text("before")
    monkeypatch.setattr(animation, "_write_gif", full)
    with pytest.raises(OSError, match="disk full"):
        save_animation(frames([SHORT]), tmp_path / "t.gif")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("t.gif", "before")]


# --- PDF --------------------------------------------------------------------------------------------------------------


def test_a_pdf_has_a_page_per_episode_and_the_same_bytes_again(tmp_path):
    for name in ("a.pdf", "b.pdf"):
        save_pdf([SHORT, LONG], tmp_path / name)
    content = (tmp_path / "a.pdf").read_bytes()
    assert content == (tmp_path / "b.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page ") == 2
    height, width = (side * 72 / 128 for side in draw_trace(LONG).shape[:2])
    assert f"/MediaBox [ 0 0 {width:g} {height:g} ]".encode() in content
    with pytest.raises(DataError, match="at least one trace"):
        save_pdf([], tmp_path / "none.pdf")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_draws_a_bundled_agents_episodes(command, capsys, tmp_path):
    formats = ["png", "pdf", "gif", "npz", "csv", "parquet"]
    command(FIGURES, ["mnist-multiset", "--source", "digits", "--index", 3, 1, "--format", *formats])
    assert capsys.readouterr().out.split() == [f"figures/episodes.{suffix}" for suffix in formats]
    folder = tmp_path / "figures"
    assert {path.name for path in folder.iterdir()} == {f"episodes.{suffix}" for suffix in formats}
    traces = load(folder / "episodes.npz")
    assert [(trace.canvas_index, trace.source) for trace in traces] == [(3, "digits"), (1, "digits")]
    with Image.open(folder / "episodes.png") as image:
        np.testing.assert_array_equal(np.asarray(image), draw_traces(traces))
    with Image.open(folder / "episodes.gif") as film:
        assert film.n_frames == sum(len(trace.phase) + 1 for trace in traces)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("nothing.pt", "error: No agent 'nothing.pt'"),
        ("mnist-multiset --source digits --index 10000", "Expected example indices in 0..9999; got 10000..10000"),
        ("mnist-multiset --source digits --index", "error: Expected at least one canvas after --index"),
        ("mnist-multiset --source digits --format jpeg", "jpeg"),
        ("mnist-multiset --source digits --split holdout", "error: Expected split to be one of"),
        (
            "mnist-multiset --source digits --format png --output-dir file/folder",
            "error: Cannot write file/folder/episodes.png",
        ),
        (
            "mnist-multiset --source digits --format npz --output-dir file/folder",
            "error: Cannot write file/folder/episodes.npz",
        ),
    ],
)
def test_a_wrong_figure_is_a_clear_error(command, tmp_path, flags, said):
    (tmp_path / "file").write_text("")
    command.fails(FIGURES, flags, said)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
