"""One variation of a photograph: the arithmetic behind :mod:`hsal_env.data.augmentation`, in torch."""

from __future__ import annotations

import math
from functools import cache

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
    matrix, way = _place(v, image.shape[1] / image.shape[0], random)
    if v.mirrored:
        matrix = matrix * np.array([[random.choice([-1.0, 1.0])], [1.0]])
    half = np.array(image.shape[1::-1]) / 2
    matrix = matrix * half / half[:, None]  # angles are measured in px
    shift = matrix @ way
    pixels = _moved(pixels, matrix, shift, random.uniform(0, v.bend), random)
    if random.random() < 0.5:
        pixels = _blurred(pixels, random.uniform(0.3, max(v.blur_px, 0.3)))
    pixels = _recoloured(pixels, v, random)
    pixels = _covered(pixels, *v.covered, random)
    pixels += random.uniform(0, v.noise) * torch.from_numpy(random.standard_normal(pixels.shape, np.float32))
    values = (pixels.clamp_(0, 1) * 255).round_().byte()[0].permute(1, 2, 0).numpy()
    return values.reshape(image.shape), _moved_boxes(boxes, matrix, shift, image.shape[:2])


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


def _squeezed(image: np.ndarray, width: int) -> np.ndarray:
    """An image brought to another width."""
    pixels = torch.from_numpy(image.reshape(*image.shape[:2], -1)).permute(2, 0, 1)[None].float()
    narrow = interpolate(pixels, (image.shape[0], width), mode="bilinear", antialias=True)
    return narrow.round_().byte()[0].permute(1, 2, 0).numpy().reshape(image.shape[0], width, *image.shape[2:])


def _place(v: Variation, ratio: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A ``[2, 2]``, of (column, row) in px, and the way ``[2]`` of the content in half images; ``ratio`` is width over height."""
    zoom, stretch = math.exp(random.uniform(*np.log(v.zoom))), math.exp(random.uniform(-v.stretch, v.stretch) / 2)
    shear = np.array([[1.0, random.uniform(-v.shear, v.shear)], [0.0, 1.0]])
    angle_deg = random.uniform(-v.turn_deg, v.turn_deg)
    turn = _turned(angle_deg) / _fitting(angle_deg, ratio)
    room = max(1 - zoom, 0.0) + 2 * v.shift * zoom
    return np.diag([stretch, 1 / stretch]) @ shear @ turn / zoom, random.uniform(-room, room, 2)


def _fitting(angle_deg: float, ratio: float) -> float:
    """The greatest zoom at which the ellipse with axes 1 and ``ratio`` stays in its frame when it is turned."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return 1 / max(math.hypot(cos, sin * ratio), math.hypot(cos, sin / ratio))


def _turned(angle_deg: float) -> np.ndarray:
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return np.array([[cos, -sin], [sin, cos]])


def _moved(pixels: Tensor, matrix: np.ndarray, shift: np.ndarray, bend: float, random: np.random.Generator) -> Tensor:
    height, width = pixels.shape[2:]
    rows, columns = ((torch.arange(size) + 0.5) * 2 / size - 1 for size in (height, width))
    a, t = matrix.tolist(), shift.tolist()
    at = torch.stack([a[i][0] * columns + a[i][1] * rows[:, None] + t[i] for i in range(2)], dim=-1)  # [h, w, 2]
    if bend:
        points = torch.from_numpy(random.standard_normal((1, 2, _POINTS, _POINTS), np.float32)) * (2 * bend)
        at += (_spline(height) @ points[0] @ _spline(width).T).permute(1, 2, 0)
    return grid_sample(pixels, at[None], padding_mode="border", align_corners=False)


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
