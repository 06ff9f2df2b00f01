"""Animations of recorded episodes, decision by decision: GIF files through Pillow, MP4 files through ffmpeg."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hsal_env.errors import ConfigError, DataError
from hsal_env.rendering import draw_trace
from hsal_env.storage.files import replacing
from hsal_env.trace import Trace

_TICK_SECONDS = 0.5
_AT_END, _AT_LAST_END = 4, 8  # ticks that the end of an episode is shown, and the end of the last one
_COLOURS = 256


class Frame(NamedTuple):
    """A picture of an animation.

    Attributes:
        picture: RGB uint8 ``[h, w, 3]``.
        ticks: how long it is shown, in ticks of half a second.
    """

    picture: np.ndarray
    ticks: int


def frames(traces: Sequence[Trace]) -> list[Frame]:
    """The frames of one episode after the other: one before the first decision and one after each. All have the same size.

    Raises:
        DataError: there are no traces, or :func:`hsal_env.rendering.draw_trace` refuses one of them.
    """
    if not traces:
        raise DataError("Expected at least one trace to animate; got none.")
    columns = max(trace.meta_steps for trace in traces)
    found = []
    for trace in traces:
        pictures = [draw_trace(trace, until, columns) for until in range(len(trace.phase) + 1)]
        found += [Frame(picture, 1) for picture in pictures[:-1]] + [Frame(pictures[-1], _AT_END)]
    return [*found[:-1], Frame(found[-1].picture, _AT_LAST_END)]


def save_animation(shown: Sequence[Frame], path: Path) -> None:
    """Write an animation to ``path``, completely or not at all.

    Args:
        shown: at least one frame, from :func:`frames`.
        path: a name that ends with ``.gif`` (repeats without end) or ``.mp4``.

    Raises:
        ConfigError: another suffix, or MP4 without ffmpeg.
        OSError: the file cannot be written; a file that was at ``path`` is still there.
    """
    writers = {".gif": _write_gif, ".mp4": _write_mp4}
    if path.suffix not in writers:
        raise ConfigError(f"Expected a file named .gif or .mp4 for an animation; got {path.name!r}.")
    if path.suffix == ".mp4":
        _ffmpeg()
    with replacing(path) as temporary:
        writers[path.suffix](shown, temporary)


def _write_gif(shown: Sequence[Frame], path: Path) -> None:
    # All frames have one palette, so that nothing flickers and only changes are stored. One half of it holds the commonest
    # colours, among them black and white; Pillow chooses the other half.
    packed = [_packed(frame.picture) for frame in shown]
    parts = [np.unique(part, return_counts=True) for part in packed]
    colours, which = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    counts = np.bincount(which, weights=np.concatenate([part[1] for part in parts]))
    choice = Image.fromarray(shown[-1].picture).quantize(_COLOURS // 2, dither=Image.Dither.NONE).convert("RGB")
    commonest = colours[np.argsort(-counts, kind="stable")[: _COLOURS // 2]]
    palette = np.unique(np.concatenate([commonest, np.unique(_packed(np.asarray(choice)))]))
    nearest = ((_unpacked(colours)[:, None] - _unpacked(palette)) ** 2).sum(axis=2).argmin(axis=1).astype(np.uint8)
    images = [Image.fromarray(nearest[np.searchsorted(colours, part)]) for part in packed]
    for image in images:
        image.putpalette(_unpacked(palette).astype(np.uint8).tobytes())
    durations = [int(1_000 * _TICK_SECONDS * frame.ticks) for frame in shown]  # ms
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)


def _packed(picture: np.ndarray) -> np.ndarray:
    """RGB pixels ``[h, w, 3]`` as one number each, ``[h, w]``."""
    return picture.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def _unpacked(colours: np.ndarray) -> np.ndarray:
    return np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1)


def _write_mp4(shown: Sequence[Frame], path: Path) -> None:
    height, width = shown[0].picture.shape[:2]
    writer = _ffmpeg().write_frames(
        str(path), (width, height), fps=1 / _TICK_SECONDS, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    try:
        for frame in shown:
            for _ in range(frame.ticks):
                writer.send(np.ascontiguousarray(frame.picture))
    finally:
        writer.close()


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ConfigError(f"MP4 files need ffmpeg ({error}): pip install imageio-ffmpeg, or write a GIF.") from error
    return imageio_ffmpeg
