"""One variation of a photograph: the arithmetic behind :mod:`hsal_env.data.augmentation`, in torch."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from hsal_env.data.augmentation import Variation
from hsal_env.data.canvases import CanvasBatch
from hsal_env.isolation import own_defaults

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
_POINTS = 5  # an image is bent at 5x5 points
_TAPS = 3  # a blur reaches so many px to each side


@own_defaults()
def varied(
    image: np.ndarray, boxes: np.ndarray, variation: Variation, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One variation of an image uint8 ``[h, w]`` or ``[h, w, 3]``, and of its boxes ``[n, 4]``, -1 where unknown.

    A pixel at x, measured from the middle in units of half the image, shows what was at ``A x + t + b(x)``, where A undoes zoom,
    stretch, shear and turn, t is the shift, and b interpolates the displacements of 5x5 points. Beyond its edge the image goes on
    as it ends. Boxes follow A and t, not b. The colours c of a pixel become ``m + M (c - m) + l``, where m is the mean colour, M
    changes hue, saturation and contrast, and l is the light.
    """
    v = variation
    pixels = torch.from_numpy(image.reshape(*image.shape[:2], -1)).permute(2, 0, 1)[None].float() / 255
    form = _form(v, image.shape[1], image.shape[0], FormDraw.of(1, random))
    pixels = _moved(pixels, form)
    if random.random() < 0.5:
        pixels = _blurred(pixels, random.uniform(0.3, max(v.blur_px, 0.3)))
    pixels = _recoloured(pixels, v, random)
    pixels = _covered(pixels, *v.covered, random)
    pixels += random.uniform(0, v.noise) * torch.from_numpy(random.standard_normal(pixels.shape, np.float32))
    values = _as_bytes(pixels)[0].permute(1, 2, 0).numpy()
    return values.reshape(image.shape), _moved_boxes(boxes, form.matrix[0], form.shift[0], image.shape[:2])


class FormDraw(NamedTuple):
    """Random numbers that decide the form of n images.

    Attributes:
        uniform: in [0, 1), ``[n, 9]``.
        normal: ``[n, 2, 5, 5]``, float32.
    """

    uniform: np.ndarray
    normal: np.ndarray

    @classmethod
    def of(cls, n: int, random: np.random.Generator) -> FormDraw:
        """Draw them."""
        return cls(random.random((n, 9)), random.standard_normal((n, 2, _POINTS, _POINTS), np.float32))


@own_defaults()
def bent(images: np.ndarray, variation: Variation, numbers: FormDraw) -> np.ndarray:
    """Grey images uint8 ``[n, h, w]``, each in another form: :func:`varied` without its colours, blur, covers and noise."""
    pixels = torch.from_numpy(images)[:, None].float() / 255
    form = _form(variation, images.shape[2], images.shape[1], numbers)
    return _as_bytes(_moved(pixels, form))[:, 0].numpy()


def _as_bytes(pixels: Tensor) -> Tensor:
    return (pixels.clamp_(0, 1) * 255).round_().byte()


@own_defaults()
def beside(batch: CanvasBatch, lane: int, other: CanvasBatch) -> CanvasBatch:
    """One canvas of a batch and, to its right, the only one of ``other``: an image ``[h, w]`` or ``[h, w, 3]``, labels, boxes.

    Of n and m objects the first gets the share n / (n + m) of the width. The canvas alone where one has none, or both have more
    than the labels have places.
    """
    image, labels, boxes = (part[lane] for part in batch)
    count, more = (labels >= 0).sum(), (other.labels[0] >= 0).sum()
    if not count or not more or count + more > len(labels):
        return CanvasBatch(image, labels, boxes)
    width = image.shape[1]
    split = round(width * count / (count + more))
    halves = [_squeezed(image, split), _squeezed(other.images[0], width - split)]
    both = np.concatenate([labels[:count], other.labels[0, :more]])
    joined = np.full_like(boxes, -1)
    parts = ((boxes[:count], 0, split, 0), (other.boxes[0, :more], count, width - split, split))
    for these, start, part, first in parts:
        left = np.floor(these[:, 1] * part / width)
        right = np.ceil((these[:, 1] + these[:, 3]) * part / width)
        moved = np.stack([these[:, 0], first + left, these[:, 2], right - left], axis=1)
        joined[start : start + len(these)] = np.where(these[:, :1] < 0, -1, moved)
    padded = np.concatenate([both, np.full(len(labels) - len(both), -1)])
    return CanvasBatch(np.concatenate(halves, axis=1), padded, joined)


def overlaid(batch: CanvasBatch, lane: int, others: CanvasBatch) -> CanvasBatch | None:
    """One canvas of a batch with one of ``others`` laid over it: an image ``[h, w]`` or ``[h, w, 3]``, labels, boxes.

    The image is ``A + B - m(B)``, where m is the median colour: where B shows its background, A stays as it is, and the other way
    round. Of the others that have objects, but not more than the labels have places for, the one is taken that is busy least
    where A is, by ``sum v(A) v(B)`` over blocks of 8x8 px, v the variance of a block's grey values. None if there is none.
    """
    image, labels, boxes = (part[lane] for part in batch)
    count, more = int((labels >= 0).sum()), (others.labels >= 0).sum(axis=1)  # [], [candidates]
    fitting = np.flatnonzero((more > 0) & (count + more <= len(labels)))
    if not len(fitting):
        return None
    covered = (_busy(image[None]) * _busy(others.images[fitting])).sum(axis=(1, 2))
    other = fitting[covered.argmin()]
    above = others.images[other].astype(np.int32)
    image = image + above - np.median(above, axis=(0, 1)).astype(np.int32)
    labels, boxes = labels.copy(), boxes.copy()
    places = slice(count, count + int(more[other]))
    labels[places], boxes[places] = (part[other, : more[other]] for part in others[1:])
    return CanvasBatch(np.clip(image, 0, 255).astype(np.uint8), labels, boxes)


def _busy(images: np.ndarray) -> np.ndarray:
    """Variances of grey in blocks of 8x8 px, from every second px: ``[n, h, w, ...]`` to ``[n, h // 8, w // 8]``."""
    some = images[:, ::2, ::2]
    lanes, rows, columns = len(some), some.shape[1] // 4, some.shape[2] // 4
    colours = some[:, : rows * 4, : columns * 4].reshape(lanes, rows * 4, columns * 4, -1)
    grey = colours[..., 0].astype(np.float32)
    for channel in range(1, colours.shape[-1]):  # numpy is slow on short axes
        grey += colours[..., channel]
    blocks = (grey / colours.shape[-1]).reshape(lanes, rows, 4, columns, 4).transpose(2, 4, 0, 1, 3)
    return np.ascontiguousarray(blocks).reshape(16, lanes, rows, columns).var(axis=0)


def _squeezed(image: np.ndarray, width: int) -> np.ndarray:
    """An image brought to another width."""
    pixels = torch.from_numpy(image.reshape(*image.shape[:2], -1)).permute(2, 0, 1)[None].float()
    narrow = interpolate(pixels, (image.shape[0], width), mode="bilinear", antialias=True)
    return narrow.round_().byte()[0].permute(1, 2, 0).numpy().reshape(image.shape[0], width, *image.shape[2:])


class _Form(NamedTuple):
    """Where the pixels of n images come from, in (column, row) and half images.

    Attributes:
        matrix: A ``[n, 2, 2]``.
        shift: t ``[n, 2]``.
        points: displacements at 5x5 points ``[n, 2, 5, 5]``, float32.
    """

    matrix: np.ndarray
    shift: np.ndarray
    points: np.ndarray


def _form(v: Variation, width: int, height: int, numbers: FormDraw) -> _Form:
    """The form of images of one size."""

    def between(low: float, high: float, place: int) -> np.ndarray:
        return low + (high - low) * numbers.uniform[:, place]

    zoom, stretch = (
        np.exp(between(math.log(v.zoom[0]), math.log(v.zoom[1]), 0)),
        np.exp(between(-v.stretch, v.stretch, 1) / 2),
    )
    slant, angle = between(-v.shear, v.shear, 2), np.radians(between(-v.turn_deg, v.turn_deg, 3))
    cos, sin, none, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    turned = _matrices(cos, -sin, sin, cos) * _needed(cos, sin, width / height)[:, None, None]
    matrix = _matrices(stretch, none, none, 1 / stretch) @ _matrices(one, slant, none, one) @ turned
    half = np.array([width, height]) / 2
    matrix = matrix / zoom[:, None, None] * half / half[:, None]  # angles are measured in px
    moved = numbers.uniform[:, 8] >= v.still
    matrix[~moved] = np.eye(2)
    if v.mirrored:
        matrix[:, 0] *= np.where(between(0, 1, 4) < 0.5, -1, 1)[:, None]
    room = (np.maximum(1 - zoom, 0.0) + 2 * v.shift * zoom) * moved
    way = np.stack([room * between(-1, 1, place) for place in (5, 6)], axis=1)
    bend = (between(0, 2 * v.bend, 7) * moved).astype(np.float32)  # twice, since the image is two halves wide
    return _Form(matrix, (matrix @ way[..., None])[..., 0], bend[:, None, None, None] * numbers.normal)


def _needed(cos: np.ndarray, sin: np.ndarray, ratio: float) -> np.ndarray:
    """How much smaller the ellipse with axes 1 and ``ratio`` has to become, turned by an angle, to stay in its frame."""
    return np.maximum(np.hypot(cos, sin * ratio), np.hypot(cos, sin / ratio))


def _matrices(*entries: np.ndarray) -> np.ndarray:
    """``[n, 2, 2]`` of their four entries ``[n]``."""
    return np.stack(entries, axis=-1).reshape(-1, 2, 2)


def _moved(pixels: Tensor, form: _Form) -> Tensor:
    """The pixels ``[n, channels, h, w]`` in another form. Beyond its edge an image goes on as it ends."""
    height, width = pixels.shape[2:]
    rows, columns = ((torch.arange(size) + 0.5) * 2 / size - 1 for size in (height, width))
    a, t = (torch.from_numpy(part).float()[..., None, None] for part in (form.matrix, form.shift))
    at = a[:, :, 0] * columns + a[:, :, 1] * rows[:, None] + t  # [n, 2, h, w]
    at += _spread(_spread(torch.from_numpy(form.points), width).mT, height).mT
    return grid_sample(pixels, at.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def _spread(points: Tensor, size: int) -> Tensor:
    """Values at 5 points in a row ``[..., 5]`` as those at ``size`` px, without a matrix product, which rounds by its batch."""
    taps = _spline(size)
    values = points[..., 0, None] * taps[:, 0]
    for i in range(1, _POINTS):
        values = values + points[..., i, None] * taps[:, i]
    return values


@cache
@own_defaults()
def _spline(size: int) -> Tensor:
    """What bicubic interpolation takes of 5 points in a row for each of ``size`` px, ``[size, 5]``."""
    return interpolate(torch.eye(_POINTS)[None, None], (size, _POINTS), mode="bicubic", align_corners=True)[0, 0]


def _moved_boxes(boxes: np.ndarray, matrix: np.ndarray, shift: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Boxes around the moved corners, rounded outwards and cut off at the edge; -1 where nothing is left."""
    half = np.array(size[::-1]) / 2
    low, high = boxes[:, 1::-1], boxes[:, 1::-1] + boxes[:, :1:-1]  # (column, row)
    corners = np.stack([low, np.stack([high[:, 0], low[:, 1]], 1), np.stack([low[:, 0], high[:, 1]], 1), high], 1)
    moved = (np.linalg.inv(matrix) @ ((corners / half - 1) - shift)[..., None])[..., 0]
    moved = (moved + 1) * half  # [n, 4, 2]
    start = np.clip(np.floor(moved.min(axis=1)), 0, size[::-1]).astype(np.int64)
    stop = np.clip(np.ceil(moved.max(axis=1)), 0, size[::-1]).astype(np.int64)
    found = np.concatenate([start[:, ::-1], (stop - start)[:, ::-1]], axis=1)
    found[(boxes[:, 0] < 0) | (stop <= start).any(axis=1)] = -1
    return found


def _blurred(pixels: Tensor, blur_px: float) -> Tensor:
    weights = torch.exp(-(torch.arange(-_TAPS, _TAPS + 1) ** 2) / (2 * blur_px**2))
    taps = (weights / weights.sum()).tolist()
    for axis, ends in ((3, (_TAPS, _TAPS, 0, 0)), (2, (0, 0, _TAPS, _TAPS))):
        length, padded = pixels.shape[axis], pad(pixels, ends, mode="replicate")
        pixels = padded.narrow(axis, 0, length) * taps[0]
        for first, tap in enumerate(taps[1:], 1):  # several times faster than a convolution by channels
            pixels.add_(padded.narrow(axis, first, length), alpha=tap)
    return pixels


def _covered(pixels: Tensor, number: int, side: float, random: np.random.Generator) -> Tensor:
    for _ in range(number):
        size = [math.ceil(random.uniform(0, side) * length) for length in pixels.shape[2:]]
        top, left = (random.integers(length) for length in pixels.shape[2:])
        colour = torch.from_numpy(random.random((pixels.shape[1], 1, 1), np.float32))
        pixels[0, :, top : top + size[0], left : left + size[1]] = colour
    return pixels


def _recoloured(pixels: Tensor, v: Variation, random: np.random.Generator) -> Tensor:
    channels = pixels.shape[1]
    factor = math.exp(random.uniform(*np.log(v.contrast)))
    angle = math.radians(random.uniform(-v.hue_deg, v.hue_deg)) if random.random() < 0.5 else 0.0
    saturation, negative = random.uniform(*v.saturation), random.random() < v.negative
    light = random.uniform(-v.light, v.light) + random.uniform(-v.light / 4, v.light / 4, channels)
    mean = pixels.mean(dim=(2, 3))[0].double().numpy()  # [channels]
    colours = np.eye(channels)
    if channels == 3:
        grey, axis = np.full((3, 3), 1 / 3), np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        turn = math.cos(angle) * colours + (1 - math.cos(angle)) * grey + math.sin(angle) * axis
        colours = (saturation * colours + (1 - saturation) * np.tile(_LUMINANCE, (3, 1))) @ turn
    colours *= -factor if negative else factor
    offset = (1 - mean if negative else mean) - colours @ mean + light
    flat = torch.from_numpy(colours).float() @ pixels[0].flatten(1) + torch.from_numpy(offset).float()[:, None]
    return flat.view_as(pixels)
