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
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from hsal_env.fields import check_fields
from hsal_env.perception.examples import Examples
from hsal_env.perception.registry import SALIENCY_MODELS
from hsal_env.plugins import Trust
from hsal_env.trace import Trace

CANVAS_PX = 100
MOST_UPLOAD_BYTES = 5 * 2**20
MOST_UPLOAD_PIXELS = 25_000_000  # a small file can hold a huge image
MOST_LABELS = 10
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
    """Runs agents on single images. Several threads may call it.

    Args:
        chosen: the agent that plays where a request names none: a bundled agent's name, or the path of a checkpoint.
        trust: which names in that checkpoint are followed, see :func:`agents.load`.

    Raises:
        CheckpointError: the agent cannot be loaded (see :func:`agents.load`), or cannot read grey images of 100x100 px.
    """

    def __init__(self, chosen: str | Path = "mnist-multiset", trust: Trust = False) -> None:
        found = {name: agents.load(name) for name in agents.bundled()}
        self.agents = {name: loaded for name, loaded in found.items() if _fits(loaded)}
        self.chosen = str(chosen)
        if self.chosen not in found:
            loaded = agents.load(chosen, trust=trust)
            path = Path(chosen)
            self.chosen = f"{path.parent.name}/{path.name}".lstrip("/")  # the page does not show where it lies
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
        """What a user can choose, as values for JSON."""
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
        """Play one episode on an image, under the free protocol.

        Args:
            image: uint8 ``[100, 100]``, bright ink on black.
            labels: the true multiset; None: it is unknown. Then the trace's rewards, remaining labels and true labels mean
                nothing.
            settings: how the agent plays.

        Raises:
            ConfigError: an unknown agent, or a k for which the agent was not built.
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
        """A canvas of the test split of MNIST, or of scikit-learn's digits where MNIST is not available.

        Raises:
            DataError: an index outside the split, or damaged files of MNIST.
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
        """The test split. The first call looks for the data, because a download, or its failure, can take a while."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the page itself says which digits it shows
            return Examples(EnvConfig(source="auto", split="test", canvas_px=CANVAS_PX))


def environment(loaded: Loaded, image: np.ndarray, labels: list[int] | None, settings: Settings) -> EnvConfig:
    """An environment with one canvas, ``image``, under the rules of ``settings``.

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
    env = loaded.env_on("all", images=LabelledImages(image[None], [true], labels_are="lists"))
    names = ("glimpses", "update", "saliency")
    changed = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    limit = max(env.max_objects or 0, len(true))
    return dataclasses.replace(
        env, split="all", num_examples=1, max_objects=limit, protocol="free", features="lazy", **changed
    )


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


def read_image(content: bytes, invert: bool = False) -> np.ndarray:
    """Turn an uploaded PNG or JPEG into a canvas: grey, fitted into 100x100 px, with black at the sides.

    Args:
        content: the bytes of the file.
        invert: whether dark ink on a bright ground becomes bright ink on black.

    Returns:
        uint8 ``[100, 100]``.

    Raises:
        DataError: the file is empty, too large, or neither PNG nor JPEG.
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
    fitted = [max(1, round(side * CANVAS_PX / max(grey.size))) for side in grey.size]
    if 1 in fitted:  # fitted by Pillow, a line would be 0 px wide
        grey = grey.resize((fitted[0], fitted[1]), Image.Resampling.BILINEAR)
    return np.array(ImageOps.pad(grey, (CANVAS_PX, CANVAS_PX), Image.Resampling.BILINEAR, color=0))


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


def _grey(image: Image.Image, ground: int) -> Image.Image:
    """The image in 8-bit grey. Transparent pixels show the ``ground``."""
    if image.mode.startswith("I"):  # 16 bits
        return Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (ground, ground, ground, 255)), over)
    return image.convert("L")


def _fits(loaded: Loaded) -> bool:
    """Whether the agent reads grey images and can play an episode on a blank canvas."""
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
