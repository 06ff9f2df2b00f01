"""What the page to play with shows: an agent on one image, under rules and saliency of one's choice.

No web library here: :mod:`agents.demo.server` serves it, ``python train/demo.py`` starts it.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import threading
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

import agents
from agents.checkpoint import Loaded
from agents.tracing import record
from hsal_env.config import EnvConfig
from hsal_env.data.custom import LabelledImages
from hsal_env.data.glyphs import NUM_CLASSES
from hsal_env.data.sources import SOURCES
from hsal_env.errors import CheckpointError, ConfigError, DataError
from hsal_env.perception.examples import Examples
from hsal_env.perception.registry import SALIENCY_MODELS
from hsal_env.trace import Trace

CANVAS_PX = 100
MOST_UPLOAD_BYTES = 5 * 2**20
MOST_UPLOAD_PIXELS = 25_000_000  # a small file can hold a huge image
MOST_LABELS = 10
MOST_GLIMPSES = 4
UPDATES = {
    "paper": "glimpsed cells become 0, M is subtracted",
    "peak": "glimpsed cells become 0, M / max M is subtracted",
    "none": "S stays as it is",
}
SALIENCY = {name: model.words for name, model in SALIENCY_MODELS.items() if "boxes" not in model.build.reads}
"""By name: what the model is in words. Those of true objects are left out: of an uploaded image nobody knows them."""


@dataclass(frozen=True)
class Settings:
    """How an image is to be looked at.

    Attributes:
        agent: one of the player's agents; None: the chosen one.
        glimpses: k, 0 to 4; None: as the agent was trained.
        update: of the saliency map, a key of :data:`UPDATES`; None: as the agent was trained.
        saliency: a key of :data:`SALIENCY`; None: as the agent was trained.
        deterministic: the most probable actions; else they are drawn.
        seed: of the draws, 0 to 2**32 - 1.

    Raises:
        ConfigError: a value of another kind or outside its range.
    """

    agent: str | None = None
    glimpses: int | None = None
    update: str | None = None
    saliency: str | None = None
    deterministic: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.glimpses is not None and not _whole(self.glimpses, MOST_GLIMPSES):
            raise ConfigError(f"Expected glimpses as a whole number from 0 to {MOST_GLIMPSES}; got {self.glimpses!r}.")
        for name, known in (("update", UPDATES), ("saliency", SALIENCY)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or value not in known):
                raise ConfigError(f"Expected {name} to be one of {', '.join(known)}; got {value!r}.")
        if not isinstance(self.deterministic, bool):
            raise ConfigError(f"Expected deterministic as true or false; got {self.deterministic!r}.")
        if not _whole(self.seed, 2**32 - 1):
            raise ConfigError(f"Expected seed as a whole number from 0 to 2**32 - 1; got {self.seed!r}.")


class LabelledCanvas(NamedTuple):
    """A canvas of the test split.

    Attributes:
        image: uint8 ``[100, 100]``.
        labels: its multiset.
        source: ``"mnist"`` or ``"digits"``.
    """

    image: np.ndarray
    labels: list[int]
    source: str


class Player:
    """Runs agents on single images; may be called from several threads.

    Args:
        chosen: the agent that plays where none is named: a bundled agent's name, or the path of a checkpoint.

    Raises:
        CheckpointError: see :func:`agents.load`; or the agent cannot read grey images of 100x100 px.
    """

    def __init__(self, chosen: str | Path = "mnist-multiset") -> None:
        found = {name: agents.load(name) for name in agents.bundled()}
        self.agents = {name: loaded for name, loaded in found.items() if _fits(loaded)}
        self.chosen = str(chosen)
        if self.chosen not in found:
            loaded = agents.load(chosen)
            path = Path(chosen)
            self.chosen = f"{path.parent.name}/{path.name}".lstrip("/")  # where it lies is nobody's business
            found[self.chosen] = loaded
            if _fits(loaded):
                self.agents = {self.chosen: loaded, **self.agents}
        if self.chosen not in self.agents:
            raise CheckpointError(
                f"{chosen}: expected an agent for grey images of {CANVAS_PX}x{CANVAS_PX} px; this one was trained on "
                f"others, {found[self.chosen].env.image_shape}."
            )
        self._playing, self._looking = threading.Lock(), threading.Lock()

    def options(self) -> dict[str, Any]:
        """What can be chosen, in plain values."""
        return {
            "chosen": self.chosen,
            "agents": {
                name: {
                    "glimpses": loaded.env.glimpses,
                    "update": loaded.env.update,
                    "saliency": loaded.env.saliency if loaded.env.saliency in SALIENCY else None,
                    "max_objects": loaded.env.objects_limit,
                }
                for name, loaded in self.agents.items()
            },
            "most_glimpses": MOST_GLIMPSES,
            "updates": UPDATES,
            "saliency": SALIENCY,
            "canvas_px": CANVAS_PX,
            "most_upload_bytes": MOST_UPLOAD_BYTES,
        }

    def play(self, image: np.ndarray, labels: list[int] | None = None, settings: Settings | None = None) -> Trace:
        """One episode on an image, free protocol.

        Args:
            image: uint8 ``[100, 100]``, bright ink on black.
            labels: the true multiset; None: unknown, and then rewards, remaining and true labels of the trace mean nothing.
            settings: how it is played.

        Raises:
            ConfigError: an unknown agent, or another k for an agent that is built for one.
            DataError: labels that the agent does not know, or more than 10.
        """
        settings = settings or Settings()
        name = settings.agent if settings.agent is not None else self.chosen
        if not isinstance(name, str) or name not in self.agents:
            raise ConfigError(f"Expected agent to be one of {', '.join(self.agents)}; got {name!r}.")
        loaded = self.agents[name]
        config = environment(loaded, image, labels, settings)
        with self._playing:
            return record(with_rules_of(loaded.agent, config), config, 0, settings.deterministic, settings.seed)

    def canvas(self, index: int) -> LabelledCanvas:
        """A canvas of the test split, of MNIST where it can be had, else of scikit-learn's digits.

        Raises:
            DataError: an index outside the split, or MNIST is there but damaged.
        """
        with self._looking:
            examples = self._examples
        if not _whole(index, len(examples) - 1):
            raise DataError(f"Expected the index of a test canvas, 0 to {len(examples) - 1}; got {index!r}.")
        canvas = examples.canvases.compose([index])
        return LabelledCanvas(
            canvas.images[0], [label for label in canvas.labels[0].tolist() if label >= 0], examples.source
        )

    @cached_property
    def _examples(self) -> Examples:
        """Of the test split. Looked for when first asked for: a download, or its failure, may take its time."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the page says which digits they are
            return Examples(EnvConfig(source="auto", split="test", canvas_px=CANVAS_PX))


def environment(loaded: Loaded, image: np.ndarray, labels: list[int] | None, settings: Settings) -> EnvConfig:
    """An environment of one canvas, ``image``, with the rules of ``settings``.

    Raises:
        DataError: labels that the agent does not know, or more than 10.
    """
    true = labels or []
    classes = loaded.env.num_classes or NUM_CLASSES
    wrong = [label for label in true if not _whole(label, classes - 1)]
    if wrong or len(true) > MOST_LABELS:
        raise DataError(
            f"Expected at most {MOST_LABELS} labels, whole numbers from 0 to {classes - 1}; got "
            + (f"{wrong[0]!r}." if wrong else f"{len(true)}.")
        )
    env = loaded.env_on("all", images=LabelledImages(image[None], [true]))
    names = ("glimpses", "update", "saliency")
    changed = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    limit = max(env.max_objects or 0, len(true))
    return dataclasses.replace(
        env, split="all", num_examples=1, max_objects=limit, protocol="free", features="lazy", **changed
    )


def with_rules_of(agent: Any, config: EnvConfig) -> Any:
    """The agent, its weights shared, for the rules of ``config``.

    Raises:
        ConfigError: the agent has no ``world`` that says how many glimpses it takes.
    """
    if not hasattr(agent, "world"):
        raise ConfigError("This agent has no attribute world, so its rules cannot be changed.")
    same = copy.copy(agent)
    same.world = agent.world._replace(rules=config.rules)
    return same


def read_image(content: bytes, invert: bool = False) -> np.ndarray:
    """An uploaded PNG or JPEG as a canvas: grey, fitted into 100x100 px, its sides filled up with black.

    Args:
        content: of the file.
        invert: dark ink on a bright ground becomes bright ink on black.

    Returns:
        uint8 ``[100, 100]``.

    Raises:
        DataError: empty, too large, or no PNG or JPEG.
    """
    if not content:
        raise DataError("The file is empty. Expected a PNG or JPEG.")
    if len(content) > MOST_UPLOAD_BYTES:
        raise DataError(
            f"The file is too large: {len(content):,} bytes; at most {MOST_UPLOAD_BYTES:,}. Make it smaller."
        )
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened:
            width, height = opened.size
            if width * height <= MOST_UPLOAD_PIXELS:
                grey = _grey(ImageOps.exif_transpose(opened), ground=255 if invert else 0)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise DataError("The file is not an image that can be read. Expected a PNG or JPEG.") from error
    if width * height > MOST_UPLOAD_PIXELS:
        raise DataError(
            f"The image is too large: {width}x{height} px; at most {MOST_UPLOAD_PIXELS:,} pixels. Make it smaller."
        )
    if invert:
        grey = ImageOps.invert(grey)
    return np.array(ImageOps.pad(grey, (CANVAS_PX, CANVAS_PX), Image.Resampling.BILINEAR, color=0))


def plain(trace: Trace, labels_known: bool) -> dict[str, Any]:
    """A trace as JSON takes it: lists for arrays and None for NaN; what depends on true labels is None where unknown."""
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


def _grey(image: Image.Image, ground: int) -> Image.Image:
    """8-bit grey; what is transparent shows the ``ground``."""
    if image.mode.startswith("I"):  # 16 bits
        return Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (ground, ground, ground, 255)), over)
    return image.convert("L")


def _fits(loaded: Loaded) -> bool:
    """Whether the agent knows grey images and gets through an episode on a blank canvas."""
    if SOURCES[loaded.env.source].colour:  # a model that reads colour would take grey, too
        return False
    try:
        config = environment(loaded, np.zeros((CANVAS_PX, CANVAS_PX), np.uint8), None, Settings())
        record(loaded.agent, config, 0)
    except (RuntimeError, ValueError):  # maps of another size, another number of channels
        return False
    return True


def _whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
