"""The use of a trained agent on images of yours: what it names in them, and where.

:meth:`agents.checkpoint.Loaded.name_objects` and :meth:`agents.checkpoint.Loaded.picture` are the way in.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from agents.tracing import record
from hsal_env.config import EnvConfig
from hsal_env.data.custom import LabelledImages
from hsal_env.data.pixels import read_images
from hsal_env.data.sources import SOURCES
from hsal_env.errors import ConfigError, DataError
from hsal_env.perception.registry import activation_model, saliency_model
from hsal_env.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from agents.checkpoint import Loaded

_LANES = 64
_LEAST_PX = 2
_FORMS = (
    "a path, an image of Pillow or an array uint8 [h, w] or [h, w, 3]; or a list of these, or [N, h, w] or [N, h, w, 3]"
)


class NamedObject(NamedTuple):
    """An object that an agent has named.

    Attributes:
        label: its label, in 0..C - 1.
        name: the label in words: the name of its class, or its number as text.
        probability: the probability that the agent gave to this label, in [0, 1].
        stop_probability: the probability that it gave to saying stop instead; NaN if the agent does not tell.
        cell: (row, column) of the cell of the map at which the agent looked first, from 0 on; None if it takes no glimpses.
        row_px, col_px: where it looked (``location_px`` of :class:`hsal_env.trace.Trace`), in px of the image as it was given,
            cut off at its edges; None without a cell.
    """

    label: int
    name: str
    probability: float
    stop_probability: float
    cell: tuple[int, int] | None
    row_px: float | None
    col_px: float | None


class Fitted(NamedTuple):
    """Images in the size and the colours that an agent reads.

    Attributes:
        images: uint8 ``[h, w]`` or ``[h, w, 3]`` each.
        sizes: (h, w) of each image as it was given.
    """

    images: list[np.ndarray]
    sizes: list[tuple[int, int]]


def name_objects(loaded: Loaded, images: Any) -> list[NamedObject] | list[list[NamedObject]]:
    """See :meth:`agents.checkpoint.Loaded.name_objects`."""
    items, several = _listed(images)
    found: list[list[NamedObject]] = []
    for start in range(0, len(items), _LANES):
        given = fitted(loaded, items[start : start + _LANES], start)
        traces = record(loaded.agent, environment(loaded, given.images), np.arange(len(given.images)))
        found += [_named(loaded, trace, size) for trace, size in zip(traces, given.sizes, strict=True)]
    return found if several else found[0]


def picture(loaded: Loaded, image: Any) -> Figure:
    """See :meth:`agents.checkpoint.Loaded.picture`."""
    from matplotlib import style

    from hsal_env.rendering.episodes import sheet_of  # matplotlib: not before it is needed

    items, several = _listed(image)
    if several:
        raise DataError(f"Expected one image to draw; got {len(items)}. Draw them one at a time.")
    trace = record(loaded.agent, environment(loaded, fitted(loaded, items).images), 0)
    with style.context("default"):
        return sheet_of(trace, labelled=False).finished()


def fitted(loaded: Loaded, images: Sequence[Any], first: int = 0) -> Fitted:
    """Images, each in one of the forms for one image, as the agent reads them. ``first`` is the number of the first one.

    Raises:
        DataError: an image that cannot be read, of another dtype or shape, or of a side below 2 px.
    """
    fit, grey = loaded.env.image_fit, not reads_colour(loaded.env)
    found = Fitted([], [])
    for number, image in enumerate(images, start=first):
        pixels = _pixels(image, number)
        if min(pixels.shape[:2]) < _LEAST_PX:
            raise DataError(
                f"{_name(image, number)}: expected at least {_LEAST_PX}x{_LEAST_PX} px; got {pixels.shape[0]}x{pixels.shape[1]}."
            )
        found.sizes.append((pixels.shape[0], pixels.shape[1]))
        if grey and pixels.ndim == 3:
            pixels = np.array(Image.fromarray(pixels).convert("L"))
        found.images.append(fit.pixels(pixels))
    return found


def reads_colour(env: EnvConfig) -> bool:
    """Whether an agent that was trained on ``env`` has learned from images in colour, as far as its models and source tell."""
    return activation_model(env.activation).in_channels == 3 and (env.is_custom or SOURCES[env.source].colour)


def environment(
    loaded: Loaded, images: Sequence[np.ndarray], labels: Sequence[list[int]] | None = None, **changes: Any
) -> EnvConfig:
    """An environment of :func:`fitted` images for a trained agent, under the free protocol, as split ``"all"``.

    Args:
        loaded: the agent.
        images: uint8 ``[h, w]`` or ``[h, w, 3]``, all of the size that the agent reads.
        labels: of the images; None: unknown. Then the traces' rewards and remaining labels mean nothing.
        changes: other fields of the configuration to replace.

    Raises:
        ConfigError: the agent's saliency model knows certain images only.
        DataError: labels that the agent does not know.
    """
    data = LabelledImages(list(images), labels or [[]] * len(images), labels_are="lists")
    env = loaded.env_on("all", images=data)
    most = max([env.max_objects or 0, *map(len, labels or [])])
    whole = {"split": "all", "num_examples": None, "max_objects": most, "protocol": "free", "features": "lazy"}
    config = dataclasses.replace(env, **{**whole, **changes})
    if known := sorted({"boxes", "indices"} & set(saliency_model(config.saliency).reads)):
        raise ConfigError(
            f"The saliency model {config.saliency!r} reads the {' and '.join(known)} of known images, so it cannot be used on "
            "others. Take an agent with another saliency model."
        )
    return config


def _named(loaded: Loaded, trace: Trace, size: tuple[int, int]) -> list[NamedObject]:
    """The objects named in one image, whose size (h, w) was ``size``."""
    places = loaded.env.image_fit.to_original(trace.location_px, size).clip(0, size)
    found = []
    for decision in np.flatnonzero((trace.label >= 0) & (trace.label < trace.num_classes)).tolist():
        label, first = int(trace.label[decision]), decision - trace.glimpses
        cell = divmod(int(trace.location[first]), trace.map_size[1]) if trace.glimpses else None
        row, col = places[first].tolist() if cell else (None, None)
        found.append(
            NamedObject(
                label, trace.label_name(label), float(np.exp(trace.log_prob[decision])),
                float(trace.label_probs[decision, -1]), cell, row, col,
            )
        )  # fmt: skip
    return found


def _listed(images: Any) -> tuple[list[Any], bool]:
    """The images one by one, and whether they are several.

    Raises:
        DataError: there are none, or they are of another form.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images], False
    if isinstance(images, list | tuple):
        if not images:
            raise DataError("Expected at least one image; got an empty list.")
        return [*images], True
    shape = getattr(images, "shape", None)
    if shape is None:
        raise DataError(f"Expected {_FORMS}; got {type(images).__name__}.")
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 3):
        return [images], False
    if len(shape) not in (3, 4) or (len(shape) == 3 and shape[0] in (1, 3)):
        raise DataError(
            f"Expected {_FORMS}; got shape {tuple(shape)}. Put colours last, and several images into a list."
        )
    if not shape[0]:
        raise DataError(f"Expected at least one image; got shape {tuple(shape)}.")
    return [*images], True


def _pixels(image: Any, number: int) -> np.ndarray:
    """One image as uint8 ``[h, w]`` or ``[h, w, 3]``, upright."""
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
    try:
        return read_images([image]).images[0]
    except DataError as error:
        said, name = str(error).removeprefix("image 0: "), _name(image, number)
        raise DataError(said if said.startswith(name) else f"{name}: {said}") from error


def _name(image: Any, number: int) -> str:
    return str(image) if isinstance(image, str | os.PathLike) else f"image {number}"
