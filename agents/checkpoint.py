"""Checkpoints: weights, with everything needed to rebuild the agent, its environment and its training.

A checkpoint holds plain tensors, numbers, texts, lists and dicts, and is read with ``weights_only=True``. It holds no code. It
names its agent, its activation model and its saliency model; :func:`load` says which names it follows.
"""

from __future__ import annotations

import dataclasses
import inspect
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args, overload

import torch

from agents.config import AgentConfig
from agents.protocol import Agent, World, build_agent, check_agent_in_file, find_agent
from hsal_env.config import EnvConfig
from hsal_env.data.glyphs import NUM_CLASSES, GlyphSource, Split, load_glyphs
from hsal_env.data.sources import SOURCES, SourceName
from hsal_env.errors import CheckpointError, ConfigError, DataError
from hsal_env.isolation import own_torch
from hsal_env.memory import require_memory
from hsal_env.perception.activation import same_volumes, sample_volume
from hsal_env.perception.model_file import fingerprint
from hsal_env.perception.registry import activation_model, check_models_in_file
from hsal_env.plugins import Trust, check_place_in_file, trusted
from hsal_env.rules import Rules
from hsal_env.storage.files import as_path
from hsal_env.storage.weights import load_weights, save_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from agents.naming import NamedObject

FORMAT = 1
_PIXEL_BYTES = 64  # that a small activation model takes
_MOST_SIZE = 65_536  # of a map's side, and of channels and classes
_PARTS = {
    "format": int, "agent": str, "agent_config": dict, "env": dict, "world": dict, "source": str, "perception": str,
    "model": dict,
}  # fmt: skip
_OF_VOLUME = ("sum-of-squares", "sum-of-magnitudes")  # saliency models that read the volume alone
_NAMES = {"activation": str, "saliency": str, "images": str | None}  # of env: an EnvConfig also takes objects


class Loaded(NamedTuple):
    """A rebuilt agent.

    Attributes:
        agent: the agent, in evaluation mode.
        env: the environment that it was trained on.
        source: the images that it was trained on: ``"mnist"``, ``"digits"``, ``"house-numbers"``, ``"svhn"`` or ``"custom"``.
    """

    agent: Agent
    env: EnvConfig
    source: SourceName

    def env_on(
        self, split: str, source: str | None = None, data_root: str | None = None, images: Any = None, **changes: Any
    ) -> EnvConfig:
        """``env`` on images that can be had here.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            source: of the images. None: those that the agent was trained on, or ``"digits"`` where MNIST cannot be had.
            data_root: folder of the data.
            images: your own images. They are taken with as many classes as the agent knows, and brought to the size that it was
                trained on.
            changes: other fields of ``env`` to replace.

        Raises:
            ConfigError: the agent knows another number of classes than the source has; the fields of ``env`` do not suit the
                source; or see :func:`hsal_env.data.load_glyphs`.
            DataError: see :func:`hsal_env.data.load_glyphs`.
        """
        classes = self.env.num_classes or NUM_CLASSES
        wished = source or ("auto" if self.source == "mnist" else self.source)
        if images is not None or wished == "custom":
            images = self.env.images if images is None else images
            limit = self.env.objects_limit if self.env.max_objects is None else self.env.max_objects
            own = {"images": images, "num_classes": classes, "max_objects": limit, "data_root": data_root}
            if not self.env.is_custom:
                size = self.env.image_fit
                own |= {"image_px": size.image_px, "fit": size.fit}
            return self.env.on_source("custom", **{**own, **changes})
        found = wished
        if wished in get_args(GlyphSource):  # load_glyphs checks both, and says what "auto" turns out to be
            found = load_glyphs(cast(GlyphSource, wished), cast(Split, split), data_root).source
        if classes != NUM_CLASSES:
            raise ConfigError(f"The agent names {classes} labels, {found} has {NUM_CLASSES}; leave out the source.")
        return self.env.on_source(found, data_root=data_root, **changes)

    @overload
    def name_objects(self, images: str | PathLike[str] | Image) -> list[NamedObject]: ...
    @overload
    def name_objects(self, images: list[Any] | tuple[Any, ...]) -> list[list[NamedObject]]: ...
    @overload
    def name_objects(self, images: Any) -> Any: ...
    def name_objects(self, images: Any) -> Any:
        """Name the objects in images of any size: the agent takes its most probable actions until it says stop.

        Images are brought to the size and colours that the agent reads, see :class:`hsal_env.data.fitting.Fit`. The answer for an
        image does not depend on the others, but for the rounding of probabilities. An agent names at most
        ``env.objects_limit + 1`` objects.

        Args:
            images: one image: a path, an image of Pillow, or an array uint8 ``[h, w]`` or ``[h, w, 3]``. Or several: a list of
                these, or an array uint8 ``[N, h, w]`` or ``[N, h, w, 3]``.

        Returns:
            Of one image a list of :class:`agents.naming.NamedObject`, in the order of naming; of several a list of such lists.

        Raises:
            DataError: no image; an image that cannot be read, that is not of 8 bits, grey or RGB, or with a side below 2 px.
            ConfigError: the agent's saliency model knows certain images only.

        Example:
            >>> import agents
            >>> from hsal_env.config import EnvConfig
            >>> canvas = EnvConfig(source="digits", split="test").canvases.compose([0])
            >>> named = agents.load("mnist-multiset").name_objects(canvas.images[0])
            >>> sorted(thing.label for thing in named) == sorted(label for label in canvas.labels[0].tolist() if label >= 0)
            True
        """
        from agents import naming

        return naming.name_objects(self, images)

    def picture(self, image: Any) -> Figure:
        """A picture of what the agent names in one image and where it looks, as :func:`hsal_env.rendering.draw_trace` has it.

        Its ``savefig`` writes it to a file.

        Args:
            image: see :meth:`name_objects`.

        Raises:
            DataError, ConfigError: as of :meth:`name_objects`.
        """
        from agents import naming

        return naming.picture(self, image)


def describe(name: str, agent: Agent, config: AgentConfig, env: EnvConfig, source: str, world: World) -> dict[str, Any]:
    """The part of a checkpoint that rebuilds an agent.

    Raises:
        ConfigError: see :meth:`EnvConfig.plain`.
    """
    return {
        "format": FORMAT,
        "agent": name,
        "agent_config": dataclasses.asdict(config),
        # the folder of the data belongs to the machine, not to the agent
        "env": {key: value for key, value in env.plain().items() if key != "data_root"},
        "world": {**world._asdict(), "rules": dataclasses.asdict(world.rules), "map_size": list(world.map_size)},
        "source": source,
        **features(env),
        "model": agent.state_dict(),
    }


def perception(env: EnvConfig) -> str:
    """A fingerprint of the activation model. An agent can work only on the features that it was trained on.

    It covers the weights, and the arguments of the architecture that differ from their defaults. ``first_px`` changes no volume,
    but says where cells are. So it counts only for saliency maps that are not made of the volume alone.
    """
    model = activation_model(env.activation)
    defaults = inspect.signature(type(model)).parameters
    without = {"in_channels", "first_px"} if env.saliency in _OF_VOLUME else {"in_channels"}
    unusual = {
        name: value
        for name, value in model.arguments.items()
        if name not in without and name in defaults and value != defaults[name].default
    }
    return fingerprint(model, *([repr(unusual)] if unusual else []))


def features(env: EnvConfig) -> dict[str, Any]:
    """The parts of a checkpoint that tell its activation model: a fingerprint, and the volume of a sample image."""
    image_px = env.image_shape[:2]
    volume = sample_volume(activation_model(env.activation), image_px)
    return {"perception": perception(env), "sample": {"image_px": list(image_px), "volume": volume}}


def check_features(content: dict[str, Any], env: EnvConfig, path: Path) -> None:
    """Refuse a checkpoint that was trained with another activation model than ``env`` has.

    The fingerprint shows its weights. What they do not show, the volume of a sample image does. Checkpoints of version 0.2 have
    no sample.

    Raises:
        CheckpointError: the activation model is another, or is not there.
    """
    sample = content.get("sample")
    try:
        same = content["perception"] == perception(env)
        if same and sample:
            rows, columns = sample["image_px"]
            require_memory(_PIXEL_BYTES * rows * columns, f"a sample image of {rows}x{columns} px")
            volume = sample_volume(activation_model(env.activation), (rows, columns))
            same = same_volumes(volume, sample["volume"])
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be loaded without its activation model. {error}") from error
    except DataError:
        raise
    except Exception as error:  # of many types: anything may stand in the place of the sample
        raise CheckpointError(f"{path} holds no sample of its activation model ({error}). Train it again.") from error
    if not same:
        raise CheckpointError(
            f"{path} was trained on the features of another activation model than {env.activation!r} is here. "
            "Train it again, or bring back "
            + ("the file" if env.activation.endswith(".pt") else "the version of the model")
            + " that it was trained with."
        )


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint. An interrupted or failed write leaves the previous file as it was.

    Raises:
        CheckpointError: the file cannot be written.
    """
    save_weights(path, content)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint's content.

    Raises:
        CheckpointError: the file is missing, cut off, damaged, or no checkpoint of HSAL.
    """
    path = as_path(path)
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}.")
    try:
        content = load_weights(path)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{path} is cut off, damaged, or not a checkpoint ({type(error).__name__}: {error})."
        ) from error
    missing = _PARTS.keys() - set(content) if isinstance(content, dict) else _PARTS.keys()
    if missing:
        raise CheckpointError(f"{path} is not an agent's checkpoint: it lacks {', '.join(sorted(missing))}.")
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {content['format']!s:.60}; this version reads {FORMAT}.")
    for part, kinds in ((content, _PARTS), (content["env"], _NAMES)):
        for name, kind in kinds.items():
            if name in part and not isinstance(part[name], kind):
                raise CheckpointError(
                    f"{path} does not fit this version of HSAL: expected {name} as {getattr(kind, '__name__', kind)}; got "
                    f"{type(part[name]).__name__}."
                )
    return content


def check_names(content: dict[str, Any], path: Path, trust: Trust = False) -> None:
    """Refuse a checkpoint that names code which nobody here has chosen. See :func:`load`.

    Raises:
        CheckpointError: the message says what would have been run, and how to allow it.
        ConfigError: ``trust`` is neither a bool nor a list.
    """
    env = content["env"]
    _ = trusted("", trust)  # raises if it is of another kind
    try:
        check_agent_in_file(content["agent"], trust)
        check_models_in_file(env.get("activation", ""), env.get("saliency", ""), trust)
        check_place_in_file(env.get("images") or "", "images", trust)
    except ConfigError as error:
        raise CheckpointError(f"{path} is not loaded. {error}") from error


@own_torch()
def load(path: Path, *, trust: Trust = False, **switches: Any) -> Loaded:
    """Rebuild the agent of a checkpoint. ``switches`` replace fields of its :class:`AgentConfig`.

    A checkpoint names its agent and its models. A name of a bundled one, or of an entry point of an installed package, is
    followed. Any other ``package.module:Name`` would be imported and called, so whoever made the file could run what they like:
    it needs ``trust``. Files that a checkpoint names (a model file, saliency maps, a folder of images) are data; they are read,
    unless they lie on another machine.

    Args:
        path: the file.
        trust: follow every name in the file, or those listed.
        switches: see above.

    Raises:
        CheckpointError: see :func:`read`; or it names code that is not trusted; or its agent is not installed; or its
            configuration or weights do not fit this version's agent or the switches; or the activation model has other weights
            now.
        ConfigError: a switch is unknown or outside its range; or ``trust`` is neither a bool nor a list.
    """
    content = read(path)
    check_names(content, path, trust)
    known = [field.name for field in dataclasses.fields(AgentConfig)]
    if unknown := sorted(set(switches) - set(known)):
        raise ConfigError(f"Unknown switches {', '.join(unknown)}. Known ones: {', '.join(known)}.")
    _ = AgentConfig(**switches)  # raises if a value is outside its range
    try:
        find_agent(content["agent"])
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"{path} holds an agent that is not available here: {error}") from error
    try:
        if content["source"] not in SOURCES:
            raise ConfigError(f"Expected source to be one of {', '.join(SOURCES)}; got {content['source']!r}.")
        config = AgentConfig(**{**content["agent_config"], **switches})
        plain = {key: value for key, value in content["env"].items() if key != "data_root"}
        if "activation" in plain:
            plain["activation"] = _found(plain["activation"], path)
        env = EnvConfig.from_kwargs(plain)
        agent = build_agent(content["agent"], _world(content["world"]), config)
        restore(agent, content["model"], path)
        check_features(content, env, path)
    except (CheckpointError, DataError):
        raise
    except Exception as error:  # of many types: anything may stand in the place of anything
        reason = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} does not fit this version of HSAL: {reason}") from error
    return Loaded(agent.eval(), env, content["source"])


def _found(activation: str, path: Path) -> str:
    """The activation model that a checkpoint at ``path`` names. A model file that is not there may lie beside the checkpoint."""
    beside = path.parent / Path(activation).name
    return (
        str(beside)
        if activation.endswith(".pt") and not as_path(activation).is_file() and beside.is_file()
        else activation
    )


def _world(plain: dict[str, Any]) -> World:
    rules, (rows, columns) = Rules(**plain["rules"]), plain["map_size"]
    for name, size in (
        ("map_size", rows),
        ("map_size", columns),
        *((k, plain[k]) for k in ("channels", "num_classes")),
    ):
        if type(size) is not int or not 1 <= size <= _MOST_SIZE:
            raise ConfigError(f"Expected {name} as whole numbers in 1..{_MOST_SIZE}; got {plain[name]!r:.60}.")
    return World(rules, (rows, columns), plain["channels"], plain["num_classes"])


def restore(agent: Agent, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Load weights into an agent.

    Raises:
        CheckpointError: names or shapes of the weights differ from the agent's.
    """
    try:
        agent.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:  # the last two for what are no weights
        raise CheckpointError(f"{path} holds weights of another shape: {error}") from error
