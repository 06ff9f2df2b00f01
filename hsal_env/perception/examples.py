"""Examples: canvases together with their activation volumes and saliency maps. An environment draws from them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hsal_env import functional as F
from hsal_env.config import EnvConfig
from hsal_env.data.canvases import CanvasBatch
from hsal_env.data.glyphs import cache_folder
from hsal_env.dynamics import Example
from hsal_env.errors import ConfigError, DataError
from hsal_env.isolation import own_defaults
from hsal_env.multiset import label_counts
from hsal_env.perception.activation import same_volumes
from hsal_env.perception.grid import Grid
from hsal_env.perception.model_file import fingerprint
from hsal_env.perception.places import Views, places_px, views
from hsal_env.perception.precision import native_bfloat16
from hsal_env.perception.registry import activation_model, model_name, saliency_model
from hsal_env.perception.saliency import known_boxes
from hsal_env.storage.array_store import ArrayStore
from hsal_env.storage.filling import Record

_COMPARED = 16  # canvases that are encoded again when a store is opened
_COMPOSE_BATCH = 256  # large batches are faster to compose; small ones are faster to encode
_ENCODE_BATCH = {
    True: 64,
    False: 32,
}  # True: in bfloat16. Fixed, since a convolution may round differently in another batch


def to_images(canvases: np.ndarray, channels: int) -> Tensor:
    """Canvases to float32 ``[B, channels, h_px, w_px]`` in [0, 1], grey repeated over channels (D5).

    Args:
        canvases: uint8 ``[B, h_px, w_px]`` or ``[B, h_px, w_px, 3]``.
        channels: 1 or 3, the channels that the activation model reads.

    Raises:
        DataError: the canvases are in colour and the model reads grey.
    """
    pixels = torch.from_numpy(canvases).float().div_(255)
    if pixels.dim() == 3:
        return pixels[:, None].expand(-1, channels, -1, -1)
    if channels != 3:
        raise DataError(
            f"The images are in colour and the activation model reads {channels} channel(s). Convert them to grey (with Pillow: "
            "image.convert('L')), or choose an activation model with in_channels = 3: 'resnet34', of house numbers "
            "'compact-house-numbers', or one of yours."
        )
    return pixels.permute(0, 3, 1, 2)


class Examples:
    """The canvases of one split, with their volumes and saliency maps.

    Volumes are computed in bfloat16 where the processor multiplies it in hardware. They are always rounded to half precision, so
    that ``features="lazy"`` and ``features="store"`` give the same numbers up to the rounding of the convolutions.

    Args:
        config: which canvases, and which perception models.
        progress: whether a progress bar is shown while the feature store is filled. A thread fills it; :meth:`load` waits for
            what it needs.

    Raises:
        ConfigError, DataError: see :func:`load_glyphs`, :class:`EnvConfig`, :func:`activation_model` and
            :class:`ArrayStore`; or the images are in colour and the model reads grey.
        CheckpointError, DataUnavailableError: see :func:`activation_model`.
    """

    def __init__(self, config: EnvConfig, progress: bool = True) -> None:
        self.config = config
        self.canvases = config.canvases
        self.source = self.canvases.source
        self.num_classes = config.classes
        self._activation = activation_model(config.activation)
        self._saliency = saliency_model(config.saliency)
        self._store = self._open_store(progress) if config.features == "store" else None
        self._raw = np.empty((0, 0, 0), np.float32)  # raw saliency of the store's canvases, where _known says so
        self._known = np.zeros(0, bool)
        self._viewed: tuple[np.ndarray, Views] | None = None  # the images that were looked at last
        probe = (
            self._store.read([0], "volume")["volume"].transpose(0, 3, 1, 2)
            if self._store
            else self.encode(self.canvases.compose([0]).images)
        )
        self.channels, rows, columns = (int(size) for size in probe.shape[1:])
        self.map_size = (rows, columns)
        self.grid = Grid.of(self._activation, config.image_shape[:2], self.map_size)

    def __len__(self) -> int:
        return self.config.size

    @torch.no_grad()
    @own_defaults()
    def encode(self, images: np.ndarray) -> Tensor:
        """The volumes V ``[B, D, H, W]``, float16, of uint8 canvases ``[B, h_px, w_px]`` or ``[B, h_px, w_px, 3]``.

        Raises:
            DataError: images of another dtype or shape, or in colour for a model that reads grey; or the model's volume is not
                finite, or not ``[B, D, H, W]`` with D as its ``channels`` says.
        """
        if images.dtype != np.uint8 or images.ndim < 3 or images.shape[3:] not in ((), (3,)):
            raise DataError(
                f"Expected images uint8 [B, h_px, w_px] or [B, h_px, w_px, 3]; got {images.dtype} of shape {images.shape}."
            )
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native_bfloat16()):
            volume = self._activation(to_images(images, self._activation.in_channels))
        volume = volume.to(torch.float16)
        channels = self._activation.channels
        if volume.dim() != 4 or volume.shape[1] != channels or not bool(volume.isfinite().all()):
            raise DataError(
                f"activation={model_name(self.config.activation)}: expected a finite volume [B, D, H, W] of D = {channels} "
                f"channels, as the model names; got shape {tuple(volume.shape)}"
                f"{'' if volume.isfinite().all() else ' with NaN or infinity'}."
            )
        return volume

    def load(self, indices: Sequence[int] | np.ndarray) -> tuple[Example, CanvasBatch | None]:
        """The examples of ``indices`` ``[B]``, and their canvases (None where the volumes come from the store).

        Raises:
            DataError: an index outside 0..len - 1, or a saliency map of the wrong shape, negative or not finite.
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
            raise DataError(f"Expected integer indices [B]; got {indices.dtype} of shape {indices.shape}.")
        indices = indices.astype(np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise DataError(f"Expected example indices in 0..{len(self) - 1}; got {indices.min()}..{indices.max()}.")
        if self._store:
            canvases, record = None, self._store.read(indices, "volume", "labels")
            volume, labels = torch.from_numpy(record["volume"]).permute(0, 3, 1, 2), record["labels"]
        else:
            canvases = self.canvases.compose(indices)
            # one image at a time: in a batch a convolution may round differently, and the other lanes must not matter
            volume = torch.cat([self.encode(image[None]) for image in canvases.images])
            labels = canvases.labels
        volume = volume.float().contiguous(memory_format=torch.channels_last)  # a glimpse reads one column
        raw = self._known_saliency(indices, volume) if self._store else self._raw_saliency(indices, volume, canvases)
        counts = torch.from_numpy(label_counts(labels, self.num_classes))
        return Example(volume, raw, counts, torch.from_numpy(indices)), canvases

    def _known_saliency(self, indices: np.ndarray, volume: Tensor) -> Tensor:
        """Raw saliency of canvases in the store. Each map is computed once and kept: 4 H W bytes per canvas."""
        if not len(self._known):
            self._raw = np.empty((len(self), *self.map_size), np.float32)
            self._known = np.zeros(len(self), bool)
        new = np.flatnonzero(~self._known[indices])
        if len(new):
            self._raw[indices[new]] = self._raw_saliency(indices[new], volume[new], None).numpy()
            self._known[indices[new]] = True
        return torch.from_numpy(self._raw[indices])

    @own_defaults()
    def _raw_saliency(self, indices: np.ndarray, volume: Tensor, canvases: CanvasBatch | None) -> Tensor:
        images, parts = None, {"indices": torch.from_numpy(indices), "grid": self.grid, "config": self.config}
        if self._saliency.needs_images:
            canvases = canvases or self.compose(indices)
            images = to_images(canvases.images, self._activation.in_channels)
        if "boxes" in self._saliency.reads:
            canvases = canvases or self.compose(indices)
            parts["boxes"] = known_boxes(canvases.labels, canvases.boxes)
        volume = volume[:, : self._activation.saliency_channels]
        raw = self._saliency(images, volume, **{name: parts[name] for name in self._saliency.reads}).float()
        if raw.shape != (len(volume), *self.map_size) or not bool((raw >= 0).all() & raw.isfinite().all()):
            raise DataError(
                f"saliency={model_name(self.config.saliency)}: expected a map {(len(volume), *self.map_size)} of finite values "
                f"of at least 0; got shape {tuple(raw.shape)}{'' if raw.isfinite().all() else ' with NaN or infinity'}."
            )
        return raw

    def compose(self, indices: np.ndarray) -> CanvasBatch:
        """The canvases of ``indices`` ``[B]``."""
        return self.canvases.compose(indices)

    def places_px(self, images: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Where a glimpse at a cell looks on the image, as ``config.places`` says.

        Args:
            images: as composed, uint8 ``[B, h_px, w_px]`` or ``[B, h_px, w_px, 3]``.
            cells: row-major, int64 ``[B, M]``; -1: none.

        Returns:
            (row, col) in px, float64 ``[B, M, 2]``; NaN where there is no cell.
        """
        columns = self.map_size[1]
        if self.config.places == "cells" or not (cells >= 0).any():
            return self.grid.centres(cells, columns)
        if self._viewed is None or not np.array_equal(self._viewed[0], images):
            self._viewed = (images.copy(), views(self._sums_of_squares, images, self.grid))
        return places_px(self._viewed[1], cells, self.grid, columns)

    def _sums_of_squares(self, images: np.ndarray) -> np.ndarray:
        """The saliency ``[B, H, W]`` of any number of images, encoded in batches."""
        size, channels = _ENCODE_BATCH[native_bfloat16()], self._activation.saliency_channels
        found = []
        for first in range(0, len(images), size):
            volume = self.encode(images[first : first + size])
            found.append(F.sum_of_squares(volume[:, :channels].float()).numpy())
        return np.concatenate(found)

    def _open_store(self, progress: bool) -> ArrayStore:
        key = fingerprint(
            repr((len(self), native_bfloat16())), inspect.getsource(sys.modules[type(self).__module__]),
            *self.canvases.content, self._activation, *_code(self._activation),
        )  # fmt: skip
        return ArrayStore.open(
            cache_folder() / "features" / key,
            lambda: self._encode_all(progress),
            len(self),
            ", or use features='lazy'",
            self._makes,
            ahead=True,
        )

    def wait_until_stored(self) -> None:
        """Wait for the thread that fills the feature store, if there is one.

        Raises:
            DataError: the store cannot be written.
        """
        if self._store:
            self._store.wait_until_written()

    def _makes(self, store: ArrayStore) -> bool:
        """Whether the activation model makes the volumes that a store holds, as far as a few canvases tell.

        The key of a store does not show all that decides a model's output: a list in it, or a function in another module.
        """
        some = np.unique(np.linspace(0, len(self) - 1, _COMPARED).astype(np.int64))
        volume = self.encode(self.canvases.compose(some).images)
        return same_volumes(volume, torch.from_numpy(store.read(some, "volume")["volume"]).permute(0, 3, 1, 2))

    def _encode_all(self, progress: bool) -> Iterator[Record]:
        with tqdm(total=len(self), desc=f"features, {self.config.split}", disable=not progress, mininterval=1) as bar:
            for composed in self._compose_all():
                batch = _ENCODE_BATCH[native_bfloat16()]
                for first in range(0, len(composed.images), batch):
                    part = slice(first, first + batch)
                    columns = self.encode(composed.images[part]).permute(0, 2, 3, 1)  # [B, H, W, D]
                    yield {"volume": columns.numpy(), "labels": composed.labels[part]}
                    bar.update(len(columns))

    def _compose_all(self) -> Iterator[CanvasBatch]:
        """All canvases in batches. A thread composes each batch while the batch before it is in use."""
        parts = [range(i, min(i + _COMPOSE_BATCH, len(self))) for i in range(0, len(self), _COMPOSE_BATCH)]
        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(self.canvases.compose, parts[0])
            for part in parts[1:]:
                composed, ahead = ahead.result(), thread.submit(self.canvases.compose, part)
                yield composed
            yield ahead.result()


def _code(model: nn.Module) -> list[str]:
    """What decides the features of a model beside its weights: its structure, plain attributes, and the source of its classes.

    Raises:
        ConfigError: the source of a class cannot be read.
    """
    plain = [
        sorted(
            (name, repr(value)) for name, value in vars(part).items() if isinstance(value, int | float | str | tuple)
        )
        for part in model.modules()
    ]
    modules = sorted({type(part).__module__ for part in model.modules()})
    try:
        sources = [inspect.getsource(sys.modules[name]) for name in modules if name.split(".")[0] != "torch"]
    except (OSError, TypeError, KeyError) as error:
        raise ConfigError(
            f"features='store' has to read the source code of the activation model to recognise its features. The source of "
            f"{type(model).__name__} cannot be read ({error}). Put the class into a file that is imported, or use "
            "features='lazy'."
        ) from error
    return [repr(model), repr(plain), *sources]
