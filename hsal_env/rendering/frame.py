"""Frames: pictures of a running episode, made fast enough for films (``render_mode="rgb_array"``) and for a window.

A frame shows one moment: the image with the glimpses, the saliency map with contours of the mask, the priority map, and the
labels named so far. :func:`hsal_env.rendering.draw_trace` draws a whole episode at once, for figures, and takes far longer. Here
numpy puts the pixels together and Pillow sets the text. matplotlib is not imported.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hsal_env.rendering.placing import Placement, cells_extent, check_drawable, chosen_until
from hsal_env.rendering.words import CROSS, GREEN, LONGEST_MULTISET, ORANGE, TICK, VERMILLION, runs
from hsal_env.trace import Trace

FRAME_PX = 400  # side of a frame: a multiple of 16, which films need

_PANEL = 168
_LEFTS, _TOPS = (18, 214), (24, 218)  # of the panels
_HEAD = 18  # from the top of a head to its panel
_LINE = 18  # from one line of text to the next
_MOST_NAMED, _MOST_TRUE = 5, 2  # lines of labels

_Colour = tuple[int, int, int]


def _rgb(code: str) -> _Colour:
    return int(code[-6:-4], 16), int(code[-4:-2], 16), int(code[-2:], 16)


_INK, _FAINT, _BORDER, _EMPTY = _rgb("26262b"), _rgb("6f6f78"), _rgb("c9c9d0"), _rgb("f1f1f4")
_BLACK, _EARLIER = _rgb("000000"), _rgb("56b4e9")
_GLIMPSE, _RIGHT, _WRONG = _rgb(ORANGE), _rgb(GREEN), _rgb(VERMILLION)
_CONTOURS = (0.25, 0.5, 0.75)  # as shares of the mask's maximum
# matplotlib's viridis at seventeen places
_STOPS = "440154 47186a 472c7b 424085 3a528b 32628d 2c728e 26818e 20908c 1e9f88 28ae7f 3ebc73 5ec961 83d34b addc30 d7e219 fde724"
_STOPS_RGB = np.array([_rgb(stop) for stop in _STOPS.split()], float)
_COLOURS = np.stack(
    [np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(_STOPS_RGB)), part) for part in _STOPS_RGB.T], axis=1
).round().astype(np.uint8)  # fmt: skip


def draw_frame(trace: Trace, until: int | None = None) -> np.ndarray:
    """Draw one moment of an episode: what the last of ``until`` decisions saw, and what it chose.

    The maps have the fixed scale [0, 1]. The contours are at 1/4, 1/2 and 3/4 of the mask's maximum. Glimpses of this meta-step
    are orange and numbered in the order of looking, with the receptive field of the last one dashed; those of earlier meta-steps
    are blue. A label is green with a tick if it was among the remaining ones (stop: if none remained), else vermillion with a
    cross.

    Args:
        trace: the trace of an episode, or of its beginning.
        until: how many decisions have been made; None: all.

    Returns:
        RGB uint8 ``[400, 400, 3]``.

    Raises:
        DataError: the parts of the trace do not fit each other, or ``until`` is outside its range.
    """
    check_drawable(trace)
    until = chosen_until(trace, until)
    now, begun = until - 1, until > 0
    picture = _background(trace.glimpses > 0).copy()
    panels = [
        Placement.of(trace, left, top, _PANEL)
        for left, top in ((_LEFTS[0], _TOPS[0]), (_LEFTS[1], _TOPS[0]), (_LEFTS[0], _TOPS[1]))
    ]
    first = trace.saliency[0] if len(trace.phase) else trace.saliency_left
    _put_image(picture, panels[0])
    _put_map(picture, panels[1], trace.saliency[now] if begun else first)
    if begun:
        _put_contours(picture, panels[1], trace.mask[now])
        _put_map(picture, panels[2], trace.priority[now])
        _put_glimpses(picture, panels[0], until, trace.location_px, numbered=True)
        _put_glimpses(picture, panels[2], until, trace.grid.centres(trace.location, trace.map_size[1]), numbered=False)
    _put_labels(picture, trace, until)
    return picture


# --- panels -----------------------------------------------------------------------------------------------------------


def _box(panel: Placement, low: tuple[float, float], high: tuple[float, float]) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right) of the picture between two points (row, col) of the image."""
    (x0, y0), (x1, y1) = panel.at(*low), panel.at(*high)
    top, left = round(y0), round(x0)
    return top, max(round(y1), top + 1), left, max(round(x1), left + 1)


def _put_image(picture: np.ndarray, panel: Placement) -> None:
    image = panel.trace.image
    top, bottom, left, right = _box(panel, (0, 0), (image.shape[0], image.shape[1]))
    resized = Image.fromarray(image).resize((right - left, bottom - top), Image.Resampling.BICUBIC, reducing_gap=2.0)
    shown = np.asarray(resized)
    picture[top:bottom, left:right] = shown if shown.ndim == 3 else shown[..., None]


def _cells_box(panel: Placement) -> tuple[int, int, int, int]:
    (low_row, high_row), (low_col, high_col) = cells_extent(panel.trace)
    return _box(panel, (low_row, low_col), (high_row, high_col))


def _put_map(picture: np.ndarray, panel: Placement, values: np.ndarray) -> None:
    top, bottom, left, right = _cells_box(panel)
    rows = np.arange(bottom - top) * values.shape[0] // (bottom - top)
    cols = np.arange(right - left) * values.shape[1] // (right - left)
    levels = (np.nan_to_num(values).clip(0, 1) * 255).round().astype(np.uint8)
    picture[top:bottom, left:right] = _COLOURS[levels][:, cols][rows]


def _put_contours(picture: np.ndarray, panel: Placement, mask: np.ndarray) -> None:
    """White lines with a black rim: where a point is nearer to a level than about a pixel, by the slope of the mask."""
    peak = float(mask.max())
    levels = [share * peak for share in _CONTOURS if mask.min() < share * peak]
    if not levels:
        return
    top, bottom, left, right = _cells_box(panel)
    small = Image.fromarray(mask.astype(np.float32))
    fine = np.asarray(small.resize((right - left, bottom - top), Image.Resampling.BICUBIC))
    down, across = np.gradient(fine)
    slope = np.maximum(np.sqrt(down**2 + across**2), 1e-4 * peak)
    away = np.min([np.abs(fine - level) for level in levels], axis=0) / slope  # px
    near = away < 2.2
    away, part = away[near, None], picture[top:bottom, left:right]
    rim, line = (2.2 - away).clip(0, 1), (1.2 - away).clip(0, 1)
    part[near] = ((1 - line) * (1 - rim) * part[near] + 255 * line + 0.5).astype(np.uint8)


def _put_glimpses(picture: np.ndarray, panel: Placement, until: int, places: np.ndarray, numbered: bool) -> None:
    """The cells that were looked at, about ``places`` ``[N, 2]``, in px of the image."""
    trace = panel.trace
    grid, current = trace.grid, trace.meta_step[until - 1]
    location, meta_step = trace.location[:until], trace.meta_step[:until]
    looked = location[(location >= 0) & (meta_step == current)].tolist()
    centres = dict(zip(location.tolist(), places, strict=False))
    if numbered:
        for cell in {*location[(location >= 0) & (meta_step < current)].tolist()} - {*looked}:
            _outline(picture, panel.square(centres[cell], grid.stride_px), _EARLIER, 1)
        if looked:
            _outline(picture, panel.square(centres[looked[-1]], grid.field_px), _GLIMPSE, 1, dashed=True)
    for place, cell in enumerate(dict.fromkeys(looked)):
        x0, y0, x1, y1 = panel.square(centres[cell], grid.stride_px)
        _outline(picture, (x0 - 1, y0 - 1, x1 + 1, y1 + 1), _BLACK, 4)
        _outline(picture, (x0, y0, x1, y1), _GLIMPSE, 2)
        if not numbered:
            continue
        words = runs([i for i, location in enumerate(looked, start=1) if location == cell])
        above = y0 - 16 > panel.top and (place % 2 == 0 or y1 + 16 > panel.top + panel.side)
        width = _text(words, 12, True).shape[1]
        left = min(max((x0 + x1 - width) / 2, panel.left + 2), panel.left + panel.side - width - 2)
        top = min(y0 - 16 if above else y1 + 2, panel.top + panel.side - 15)
        _write(picture, round(left), round(top), words, _GLIMPSE, 12, bold=True, halo=True)


def _outline(
    picture: np.ndarray, corners: tuple[float, float, float, float], colour: _Colour, width: int, dashed: bool = False
) -> None:
    """Lines inside a rectangle with the corners (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = map(round, corners)
    across = [x for x in range(x0, x1) if not dashed or (x - x0) % 7 < 4]
    down = [y for y in range(y0, y1) if not dashed or (y - y0) % 7 < 4]
    width = max(1, min(width, x1 - x0, y1 - y0))
    for top in (y0, y1 - width):
        picture[top : top + width, across] = colour
    for left in (x0, x1 - width):
        picture[down, left : left + width] = colour


# --- text -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _background(looks: bool) -> np.ndarray:
    """What all frames share."""
    picture = np.full((FRAME_PX, FRAME_PX, 3), 255, np.uint8)
    heads = ("image, glimpses" if looks else "image", "saliency S, mask M", "priority P")
    for words, left, top in zip(heads, (*_LEFTS, _LEFTS[0]), (_TOPS[0], *_TOPS), strict=True):
        _write(picture, left, top - _HEAD, words, _FAINT, 12)
        picture[top - 1 : top + _PANEL + 1, left - 1 : left + _PANEL + 1] = _BORDER
        picture[top : top + _PANEL, left : left + _PANEL] = _EMPTY
    _write(picture, _LEFTS[1], _TOPS[1] - _HEAD, "named", _FAINT, 12)
    picture.flags.writeable = False
    return picture


def _put_labels(picture: np.ndarray, trace: Trace, until: int) -> None:
    """The labels that were named, one in a line; what is done now; and the true multiset."""
    left, top = _LEFTS[1], _TOPS[1] + 1
    named = [n for n in range(until) if trace.label[n] >= 0]
    right = trace.right
    if len(named) > _MOST_NAMED:
        hidden = named[: 1 - _MOST_NAMED]
        good = int(right[hidden].sum())
        _write(picture, left, top, f"{len(hidden)} earlier: {good} right", _FAINT, 12)
        top, named = top + _LINE, named[1 - _MOST_NAMED :]
    for n in named:
        words = f"{TICK if right[n] else CROSS} {trace.label_name(int(trace.label[n]))}"
        _write(picture, left, top, words, _RIGHT if right[n] else _WRONG, 14, bold=True)
        top += _LINE
    ended = until == len(trace.phase) and (trace.terminated or trace.truncated)
    true = _true(trace)
    foot = _TOPS[1] + _PANEL - (2 + len(true)) * _LINE + 3
    words, colour = _now(trace, until), _FAINT
    if ended:
        words = f"{'all right' if trace.exact_match else 'not all right'} {TICK if trace.exact_match else CROSS}"
        colour = _RIGHT if trace.exact_match else _WRONG
    _write(picture, left, foot, words, colour, 12, bold=ended)
    _write(picture, left, foot + _LINE, "to be named, in any order", _FAINT, 12)
    for line, words in enumerate(true, start=2):
        _write(picture, left, foot + line * _LINE, words, _INK, 13)


def _now(trace: Trace, until: int) -> str:
    if not until:
        return ""
    phase, which = int(trace.phase[until - 1]), f"meta-step {int(trace.meta_step[until - 1]) + 1}"
    if phase == 0:
        return f"{which}: attends"
    return f"{which}: names" if phase > trace.glimpses else f"{which}: looks, {phase} of {trace.glimpses}"


def _true(trace: Trace) -> list[str]:
    """The true multiset, in as few lines as it fits in."""
    counts = np.bincount(trace.labels, minlength=trace.num_classes)
    found = [(trace.label_name(label), int(count)) for label, count in enumerate(counts) if count]
    if not found:
        return ["nothing"]
    if not trace.class_names and counts.sum() <= LONGEST_MULTISET:
        return [" ".join(name for name, count in found for _ in range(count))]
    lines = [""]
    for name, count in found:
        words = name if count == 1 else f"{count} \u00d7 {name}"
        longer = f"{lines[-1]}, {words}" if lines[-1] else words
        if lines[-1] and len(lines) < _MOST_TRUE and _font(13, False).getlength(f"{longer},") > _PANEL:
            lines = [*lines[:-1], f"{lines[-1]},", words]
        else:
            lines[-1] = longer
    return lines


def _write(
    picture: np.ndarray,
    left: int,
    top: int,
    words: str,
    colour: _Colour,
    size_px: int,
    bold: bool = False,
    halo: bool = False,
) -> None:
    """Write words, shortened to the width of a panel."""
    alpha = _text(words, size_px, bold)
    height, width = alpha.shape
    if halo:
        for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, 1), (1, -1), (-1, 1)):
            _blend(picture[top + down : top + down + height, left + across : left + across + width], alpha, _BLACK)
    _blend(picture[top : top + height, left : left + width], alpha, colour)


def _blend(part: np.ndarray, alpha: np.ndarray, colour: _Colour) -> None:
    """Lay a colour over a part of a picture, with the opacity ``alpha`` in [0, 1] ``[h, w]``."""
    alpha = alpha[: part.shape[0], : part.shape[1], None].astype(np.float32)
    part[...] = (part + alpha * (np.array(colour, np.float32) - part) + 0.5).astype(np.uint8)


@lru_cache(maxsize=1024)
def _text(words: str, size_px: int, bold: bool) -> np.ndarray:
    """Opacity of a text in [0, 1] ``[h, w]``. An ellipsis replaces what is wider than a panel."""
    font = _font(size_px, bold)
    shown = words
    while len(shown) > 1 and font.getlength(shown) > _PANEL:
        shown = shown[:-2].rstrip(" ,\u2026") + "\u2026"
    sheet = Image.new("L", (max(1, round(font.getlength(shown)) + 1), round(1.25 * size_px)), 0)
    ImageDraw.Draw(sheet).text((0, 0), shown, 255, font)
    alpha = np.asarray(sheet, np.float32) / 255
    alpha.flags.writeable = False
    return alpha


@lru_cache(maxsize=16)
def _font(size_px: int, bold: bool) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib; else Pillow's own."""
    found = importlib.util.find_spec("matplotlib")
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    try:
        folder = Path(str(found and found.origin)).parent / "mpl-data" / "fonts" / "ttf"
        return ImageFont.truetype(str(folder / name), size_px, layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        return ImageFont.load_default(size_px)
