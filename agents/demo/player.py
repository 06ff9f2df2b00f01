"""What the demo page shows: an agent plays one image, under rules and a saliency model that the user chooses.

This module needs no web library. :mod:`agents.demo.server` serves the page, and ``hsal-demo`` starts the server.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageOps

import agents
from agents.checkpoint import Loaded
from agents.naming import environment as environment_of
from agents.naming import reads_colour
from agents.tracing import record
from hsal_env.config import EnvConfig
from hsal_env.data.canvases import CanvasSource
from hsal_env.data.fitting import Fit
from hsal_env.data.glyphs import NUM_CLASSES, GlyphSource
from hsal_env.errors import CheckpointError, ConfigError, DataError
from hsal_env.fields import check_fields
from hsal_env.perception.registry import SALIENCY_MODELS
from hsal_env.plugins import Trust
from hsal_env.trace import Trace

MOST_UPLOAD_BYTES = 5 * 2**20
MOST_UPLOAD_PIXELS = 25_000_000  # a small file can hold a huge image
MOST_LABELS = 10  # of an image; more where the agent was trained on more
MOST_GLIMPSES = 4
Update = Literal["paper", "peak", "none"]
UPDATES: dict[Update, str] = {
    "paper": "glimpsed cells become 0, and M is subtracted",
    "peak": "glimpsed cells become 0, and M / max M is subtracted",
    "none": "S stays as it is",
}
SALIENCY = {name: model.words for name, model in SALIENCY_MODELS.items() if "boxes" not in model.build.reads}
"""Each saliency model's name and description. Models that read true boxes are left out: an uploaded image has none."""


@dataclass(frozen=True)
class Settings:
    """How an agent plays an image.

    Attributes:
        agent: one of the player's agents; None: the player's default agent.
        glimpses: k, 0 to 4; None: as in the agent's training.
        update: how the saliency map changes after a label, a key of :data:`UPDATES`; None: as in the agent's training.
        saliency: a key of :data:`SALIENCY`; None: as in the agent's training.
        deterministic: whether the agent takes the most probable actions; otherwise it draws them.
        seed: seed of the draws, 0 to 2**32 - 1.

    Raises:
        ConfigError: a value of another type or outside its range.
    """

    agent: str | None = None
    glimpses: int | None = None
    update: Update | None = None
    saliency: str | None = None
    deterministic: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.glimpses is not None and not 0 <= self.glimpses <= MOST_GLIMPSES:
            raise ConfigError(f"Expected glimpses as a whole number from 0 to {MOST_GLIMPSES}; got {self.glimpses!r}.")
        if self.saliency is not None and self.saliency not in SALIENCY:
            raise ConfigError(f"Expected saliency to be one of {', '.join(SALIENCY)}; got {self.saliency!r}.")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"Expected seed as a whole number from 0 to 2**32 - 1; got {self.seed!r}.")


class LabelledCanvas(NamedTuple):
    """An image of a test split.

    Attributes:
        image: uint8 ``[h, w]`` or ``[h, w, 3]``.
        labels: its multiset.
        source: where it comes from: ``"mnist"``, ``"digits"``, ``"house-numbers"``, ``"svhn"`` or ``"custom"``.
        size: number of images in the split.
    """

    image: np.ndarray
    labels: list[int]
    source: str
    size: int


class Player:
    """Runs agents on single images. Several threads may call it.

    Args:
        chosen: the agent that plays where a request names none: a bundled agent's name, a checkpoint, or the folder of a run.
        trust: which names in that checkpoint are followed, see :func:`agents.load`.

    Raises:
        CheckpointError: the agent cannot be loaded (see :func:`agents.load`), or cannot play an image that it has not seen.
    """

    def __init__(self, chosen: str | Path = "mnist-multiset", trust: Trust = False) -> None:
        self._playing, self._looking = threading.Lock(), threading.Lock()
        self._splits: dict[Any, tuple[CanvasSource, int]] = {}
        self.agents = {name: agents.load(name) for name in agents.bundled()}
        self.chosen = str(chosen)
        if self.chosen not in self.agents:
            loaded, path = agents.load(chosen, trust=trust), Path(chosen)
            name = path if path.is_dir() else Path(path.parent.name, path.name)
            self.chosen = name.name if path.is_dir() else str(name)  # the page does not show where it lies
            self.agents[self.chosen] = loaded
        self.agents = {self.chosen: self.agents[self.chosen], **self.agents}
        own = self.agents[self.chosen].env.saliency in SALIENCY
        try:
            blank = np.zeros(array_shape(self.image_shape()), np.uint8)
            self.play(blank, settings=Settings(saliency=None if own else "sum-of-squares"))
        except (RuntimeError, ValueError) as error:  # maps of another size, another number of channels
            raise CheckpointError(
                f"{chosen}: expected an agent that can play a new image; got one that cannot: {error}"
            ) from error

    def options(self) -> dict[str, Any]:
        """What a user can choose, as values for JSON."""
        return {
            "chosen": self.chosen,
            "agents": {
                name: {
                    "glimpses": loaded.env.glimpses,
                    "update": loaded.env.update,
                    "saliency": loaded.env.saliency if loaded.env.saliency in SALIENCY else None,
                    "max_objects": objects_limit(loaded),
                    "image_shape": self.image_shape(name),
                    "class_names": loaded.env.class_names or [],
                    "digits": _white_digits(loaded),
                }
                for name, loaded in self.agents.items()
            },
            "most_glimpses": MOST_GLIMPSES,
            "updates": UPDATES,
            "saliency": SALIENCY,
            "most_upload_bytes": MOST_UPLOAD_BYTES,
        }

    def named(self, agent: str | None = None) -> Loaded:
        """One of the agents by its name; None: the one that was chosen.

        Raises:
            ConfigError: there is no such agent.
        """
        name = agent if agent is not None else self.chosen
        if not isinstance(name, str) or name not in self.agents:
            raise ConfigError(f"Expected agent to be one of {', '.join(self.agents)}; got {name!r}.")
        return self.agents[name]

    def image_shape(self, agent: str | None = None) -> tuple[int, int, int]:
        """(h, w, 1 or 3) of the images that an agent reads.

        Raises:
            ConfigError: there is no such agent.
        """
        env = self.named(agent).env
        return *env.image_fit.image_px, 3 if reads_colour(env) else 1

    def upload(self, content: bytes, invert: bool = False, agent: str | None = None) -> np.ndarray:
        """An uploaded file as an agent reads it, see :func:`read_image`.

        Raises:
            ConfigError: there is no such agent.
            DataError: as of :func:`read_image`.
        """
        loaded, shape = self.named(agent), self.image_shape(agent)
        fit = None if _white_digits(loaded) else loaded.env.image_fit
        return read_image(content, invert, shape, fit)

    def play(self, image: np.ndarray, labels: list[int] | None = None, settings: Settings | None = None) -> Trace:
        """Play one episode on an image, under the free protocol.

        Args:
            image: uint8 ``[h, w]`` or ``[h, w, 3]``, of the agent's :meth:`image_shape`.
            labels: the true multiset; None: it is unknown. Then the trace's rewards, remaining labels and true labels mean
                nothing.
            settings: how the agent plays.

        Raises:
            ConfigError: an unknown agent, or a k for which the agent was not built.
            DataError: labels that the agent does not know, or too many.
        """
        settings = settings or Settings()
        loaded = self.named(settings.agent)
        config = environment(loaded, image, labels, settings)
        with self._playing:
            return record(with_rules_of(loaded.agent, config), config, 0, settings.deterministic, settings.seed)

    def canvas(self, index: int, agent: str | None = None) -> LabelledCanvas:
        """A test image for an agent.

        Of agents for white digits a canvas of MNIST, or of scikit-learn's digits where MNIST is not available; of others an image
        of the test split that they were trained beside.

        Raises:
            ConfigError: there is no such agent, or its images are not here.
            DataError: an index outside the split, or the images are missing or damaged.
        """
        with self._looking:
            canvases, size = self._test_split(agent)
        if not _whole(index, size - 1):
            raise DataError(f"Expected the index of a test canvas, 0 to {size - 1}; got {index!r}.")
        canvas = canvases.compose([index])
        labels = [label for label in canvas.labels[0].tolist() if label >= 0]
        return LabelledCanvas(canvas.images[0], labels, canvases.source, size)

    def _test_split(self, agent: str | None) -> tuple[CanvasSource, int]:
        """The test images for an agent, and their number. The first call looks for the data, which can take a while."""
        loaded = self.named(agent)
        key = self.image_shape(agent)[:1] if _white_digits(loaded) else agent if agent is not None else self.chosen
        if key not in self._splits:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the page itself says which digits it shows
                if _white_digits(loaded):
                    env = EnvConfig(source="auto", split="test", canvas_px=self.image_shape(agent)[0])
                else:
                    env = dataclasses.replace(loaded.env_on("test"), split="test", num_examples=None)
                self._splits[key] = env.canvases, env.size
        return self._splits[key]


def environment(loaded: Loaded, image: np.ndarray, labels: list[int] | None, settings: Settings) -> EnvConfig:
    """An environment with one canvas, ``image``, under the rules of ``settings``.

    Raises:
        ConfigError: see :func:`agents.naming.environment`.
        DataError: labels that the agent does not know, or more than 10 and than in its training.
    """
    true = labels or []
    classes, most = loaded.env.num_classes or NUM_CLASSES, max(MOST_LABELS, objects_limit(loaded))
    wrong = [label for label in true if not _whole(label, classes - 1)]
    if wrong or len(true) > most:
        raise DataError(
            f"Expected at most {most} labels, whole numbers from 0 to {classes - 1}; got "
            + (f"{wrong[0]!r}." if wrong else f"{len(true)}.")
        )
    names = ("glimpses", "update", "saliency")
    changed = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    return environment_of(loaded, [image], [true], **changed)


def objects_limit(loaded: Loaded) -> int:
    """Most objects in an image of the agent's training."""
    return loaded.env.objects_limit if loaded.env.max_objects is None else loaded.env.max_objects


def with_rules_of(agent: Any, config: EnvConfig) -> Any:
    """A copy of the agent that shares its weights and plays by the rules of ``config``.

    Raises:
        ConfigError: the agent has no attribute ``world``, which holds the rules that it plays by.
    """
    if not hasattr(agent, "world"):
        raise ConfigError(
            "Expected an agent whose attribute world holds its rules; got one without. Choose another agent."
        )
    same = copy.copy(agent)
    same.world = agent.world._replace(rules=config.rules)
    return same


def read_image(
    content: bytes, invert: bool = False, image_shape: tuple[int, int, int] = (100, 100, 1), fit: Fit | None = None
) -> np.ndarray:
    """Turn an uploaded PNG or JPEG, of any size, into an image that an agent reads.

    Args:
        content: the bytes of the file.
        invert: whether dark ink on a bright ground becomes bright ink on black.
        image_shape: (h, w, 1 or 3) of the image to make; 1: it is made grey.
        fit: brings it to that size; None: it is fitted into it, with black at the sides.

    Returns:
        uint8 ``[h, w]`` or ``[h, w, 3]``.

    Raises:
        DataError: the file is empty, too large, or neither PNG nor JPEG.
    """
    if not content:
        raise DataError("The file is empty. Expected a PNG or JPEG.")
    if len(content) > MOST_UPLOAD_BYTES:
        raise DataError(
            f"The file is too large: {len(content):,} bytes; at most {MOST_UPLOAD_BYTES:,}. Make it smaller."
        )
    rows, columns, channels = image_shape
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened:
            width, height = opened.size
            if width * height <= MOST_UPLOAD_PIXELS:
                flat = _flat(ImageOps.exif_transpose(opened), 255 if invert else 0, "RGB" if channels == 3 else "L")
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise DataError("The file is not an image that can be read. Expected a PNG or JPEG.") from error
    if width * height > MOST_UPLOAD_PIXELS:
        raise DataError(
            f"The image is too large: {width}x{height} px; at most {MOST_UPLOAD_PIXELS:,} pixels. Make it smaller."
        )
    if invert:
        flat = ImageOps.invert(flat)
    if fit:
        return fit.pixels(np.array(flat))
    scale = min(columns / flat.width, rows / flat.height)
    fitted = [max(1, round(side * scale)) for side in flat.size]
    if 1 in fitted:  # fitted by Pillow, a line would be 0 px wide
        flat = flat.resize((fitted[0], fitted[1]), Image.Resampling.BILINEAR)
    return np.array(ImageOps.pad(flat, (columns, rows), Image.Resampling.BILINEAR, color=0))


def plain(trace: Trace, labels_known: bool) -> dict[str, Any]:
    """A trace for JSON: arrays become lists, NaN becomes None. Without true labels, what depends on them is None."""
    values: dict[str, Any] = {name: _listed(value) for name, value in trace._asdict().items()}
    values["states"] = {name: _listed(part) for name, part in trace.states.items()}
    values |= {"map_size": list(trace.map_size), "named": trace.named.tolist(), "exact_match": trace.exact_match}
    if not labels_known:
        values |= dict.fromkeys(("labels", "boxes", "reward", "remaining", "exact_match"))
    return values


def _listed(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind != "f":
        return value.tolist()
    listed = value.astype(object)
    listed[np.isnan(value)] = None
    return listed.tolist()


def _flat(image: Image.Image, ground: int, mode: str) -> Image.Image:
    """The image in 8-bit ``mode``, grey or RGB. Transparent pixels show the ``ground``."""
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif "A" in image.mode or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (ground, ground, ground, 255)), over)
    return image.convert(mode)


def _white_digits(loaded: Loaded) -> bool:
    """Whether the agent was trained on white digits on black, which a user can draw."""
    return loaded.env.source in get_args(GlyphSource)


def array_shape(image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The shape of an array of such an image: grey ones have two axes."""
    return image_shape if image_shape[2] == 3 else image_shape[:2]


def _whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
