"""ResNet-34, the paper's activation model (section 5, "Implementation Details"), and the smaller ResNet-18.

The paper resizes images to 224x224 px and takes the output of the final (4th) convolutional stage, 512x7x7. In its section
"Activation Resolution" it suggests finer maps. There are two ways to them: dilated convolutions (``output_stride`` 16 or 8), and
activations of a lower level (``lower_level``).

The network is torchvision's and has the same parameter names, so torchvision's ImageNet weights fit every variant.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_unshuffle

from hsal_env.data.glyphs import cache_folder
from hsal_env.data.torchvision_import import import_torchvision
from hsal_env.errors import CheckpointError, ConfigError, DataUnavailableError
from hsal_env.isolation import own_torch
from hsal_env.perception.activation import FIRST_PX, ActivationModel, checked_first_px
from hsal_env.storage.files import as_path, temporary_folder
from hsal_env.storage.weights import load_weights

SIDE_PX = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels: red, green, blue
STAGES = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}  # by their stride in px
OUTPUT_STRIDES = (32, 16, 8)
# torchvision's IMAGENET1K_V1; the name holds the first digits of the file's SHA-256
WEIGHTS_FILES = {18: "resnet18-f37072fd.pth", 34: "resnet34-b627a593.pth"}
WEIGHTS_URL = "https://download.pytorch.org/models/"


class ResNet(ActivationModel):
    """Images of any size, resized to 224x224 px, to the activations of the 4th stage.

    With ``output_stride`` S the map has 224 / S cells a side. A stage whose stride would exceed S px is dilated instead: its
    first convolution keeps its filter and skips no position, and the later convolutions reach twice as far (Yu and Koltun,
    "Multi-Scale Context Aggregation by Dilated Convolutions", the paper's [45]). As long as batch norm is fixed, cell (i, j) at
    stride S equals cell (2 i, 2 j) at stride S / 2, also at the border. A finer map has the same features at more places.

    With ``lower_level`` the column of a cell also holds the activations of the last stage of stride S / 2 in its 2x2 finer cells:
    channel ``512 + 4 c + 2 p + q`` at (i, j) is channel ``c`` at (2 i + p, 2 j + q).

    All layers are centred. So cell (i, j) is centred on pixel (S i, S j) of the resized image at every stride S.

    Args:
        output_stride: S, px of the resized image from one cell to the next: 32, 16 or 8.
        lower_level: whether the next finer stage is appended: 1024, 512 or 256 channels at the three strides.
        first_px: as of :class:`hsal_env.perception.activation.CompactResNet`, in px of the resized image.

    Attributes:
        depth: 18 or 34, given by the subclass.
        channels: D, 512 and the channels that are appended.
        saliency_channels: 512; the saliency map is made of the first 512 channels.
        first_px, stride_px, receptive_field_px, resized_px: where the cells lie, see :meth:`hsal_env.perception.grid.Grid.of`.

    Raises:
        ConfigError: ``output_stride`` has another value.
    """

    in_channels = 3
    saliency_channels = 512
    resized_px = SIDE_PX  # see Grid.of
    depth: int
    mean: Tensor
    std: Tensor

    def __init__(
        self, output_stride: int = 32, lower_level: bool = False, first_px: tuple[float, float] = FIRST_PX
    ) -> None:
        super().__init__()
        self.first_px = checked_first_px(first_px)
        if output_stride not in OUTPUT_STRIDES:
            raise ConfigError(f"Expected output_stride to be one of 32, 16, 8; got {output_stride!r}.")
        self.stride_px = output_stride
        self.arguments = {"output_stride": output_stride, "lower_level": lower_level, "first_px": self.first_px}
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1), persistent=False)
        net = getattr(import_torchvision().models, f"resnet{self.depth}")(weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        dilation = 1
        for stride_px, name in STAGES.items():
            if stride_px > output_stride:
                _dilate(getattr(self, name), dilation)
                dilation *= 2
        self.finer = STAGES[output_stride // 2] if lower_level else None
        self.channels = 512 + (4 * getattr(self, self.finer)[-1].conv2.out_channels if self.finer else 0)
        # convolutions in NCHW order are several times slower on a CPU
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, h_px, w_px]`` in [0, 1] to ``[B, D, 224 / S, 224 / S]``, non-negative."""
        x = interpolate(images, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        finer = None
        for name in STAGES.values():
            x = getattr(self, name)(x)
            if name == self.finer:
                finer = x
        return x if finer is None else torch.cat([x, pixel_unshuffle(finer, 2)], dim=1)

    @classmethod
    def published(cls, output_stride: int = 32, lower_level: bool = False, path: str | Path | None = None) -> ResNet:
        """The network with torchvision's ImageNet weights, or with those in ``path``.

        Args:
            output_stride: see :class:`ResNet`.
            lower_level: see :class:`ResNet`.
            path: a file with the parameters of torchvision's ResNet of this depth, trained on anything. Those of its last layer,
                ``fc``, are not read. None: :func:`imagenet_file`.

        Raises:
            ConfigError: see :class:`ResNet`.
            DataUnavailableError: see :func:`imagenet_file`.
            CheckpointError: the file is missing, damaged, or of another architecture.
        """
        with own_torch():  # these random weights are overwritten; later random draws must not change
            model = cls(output_stride, lower_level)
        try:
            if path is None:
                path = imagenet_file(cls.depth)  # which has compared its checksum
                state = torch.load(path, map_location="cpu", weights_only=True)
            else:
                state = load_weights(Path(path))
        except (DataUnavailableError, CheckpointError):
            raise
        except Exception as error:  # torch raises several kinds for a damaged file
            raise CheckpointError(
                f"{path}: the weights of resnet{cls.depth} cannot be read ({type(error).__name__}: "
                f"{str(error).partition(chr(10))[0]}). Delete the file and fetch it again; if torch wrote it before version 1.6, "
                "without checksums, write it again with torch.save."
            ) from error
        try:
            state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
            model.load_state_dict(state)
        except (AttributeError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: expected the weights of torchvision's resnet{cls.depth}; got {_difference(state, model)}."
            ) from error
        return model


class ResNet18(ResNet):
    """ResNet-18: 8 residual blocks, about half of the computation of :class:`ResNet34`."""

    depth, receptive_field_px = 18, 435


class ResNet34(ResNet):
    """ResNet-34: 16 residual blocks, the paper's network."""

    depth, receptive_field_px = 34, 899


def _dilate(stage: nn.Module, dilation: int) -> None:
    """Replace the stride of a stage by dilation; its input is ``dilation`` times as fine as the input it was trained on.

    This is done afterwards because torchvision cannot build its blocks of two convolutions with dilation.
    """
    for part in stage.modules():
        if isinstance(part, nn.Conv2d):
            reach = dilation if part.stride == (2, 2) else 2 * dilation  # those of stride 2 read the stage's input
            part.stride = (1, 1)
            if part.kernel_size == (3, 3):
                part.dilation = part.padding = (reach, reach)


def _difference(state: Any, model: nn.Module) -> str:
    """How the parameters in a file differ from those of the model, in a few words (torch would name every parameter)."""
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        return f"no dictionary of tensors but a {type(state).__name__}"
    ours = model.state_dict()
    counted = {
        "missing": [name for name in ours if name not in state],
        "unknown": [name for name in state if name not in ours],
        "of another shape": [name for name in ours if name in state and state[name].shape != ours[name].shape],
    }
    return ", ".join(f"{len(names)} tensors {what} ({names[0]}, …)" for what, names in counted.items() if names)


def imagenet_file(depth: int) -> Path:
    """Torchvision's file of ImageNet weights.

    The file is looked for in ``$HSAL_DATA``, in ``weights`` in the cache folder, and in the checkpoints of torch.hub. If it is in
    none of them, it is downloaded to the second. The name of the file holds the first digits of its SHA-256, which are checked:
    with other weights the network would give wrong results without an error. Load weights of your own with
    ``published(path=...)``.

    Raises:
        DataUnavailableError: the file was not found, and the download failed.
        CheckpointError: the file was found, but has another SHA-256: it is cut off, damaged or another file.
    """
    name = WEIGHTS_FILES[depth]
    digits = name.rpartition("-")[2].partition(".")[0]
    downloads = cache_folder() / "weights"
    data = os.environ.get("HSAL_DATA")
    folders = [*([as_path(data)] if data else []), downloads, Path(torch.hub.get_dir()) / "checkpoints"]
    path = next((folder / name for folder in folders if (folder / name).is_file()), downloads / name)
    if not path.is_file():
        try:
            with temporary_folder(path) as staging:
                torch.hub.download_url_to_file(WEIGHTS_URL + name, str(staging / name), hash_prefix=digits)
                os.replace(staging / name, path)
        except Exception as error:  # torch raises whatever its transport raises
            raise DataUnavailableError(
                f"ImageNet weights {name} were not found in {', '.join(str(folder) for folder in folders)}, and downloading "
                f"{WEIGHTS_URL}{name} failed ({type(error).__name__}: {error}). Put that file into one of these folders; or "
                f"train without it: hsal-pretrain --architecture resnet{depth} --init scratch."
            ) from error
    found = _sha256(path)
    if not found.startswith(digits):
        raise CheckpointError(
            f"{path}: expected torchvision's ImageNet weights, whose SHA-256 begins with {digits}; got a file whose SHA-256 "
            f"begins with {found[: len(digits)]}. It is cut off, damaged or another file. Delete it and fetch it again. Load "
            f"weights of your own with hsal_env.perception.resnet.ResNet{depth}.published(path=...)."
        )
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
