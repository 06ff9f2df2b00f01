"""Files of weights: nested dicts of tensors and plain values, as torch writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hsal_env.storage.checksums import check_zip
from hsal_env.storage.files import replacing, writing


def save_weights(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` completely or not at all; what stood in ``path`` before stays until then.

    Raises:
        CheckpointError: the file cannot be written.
    """
    full = (OSError, RuntimeError)  # torch raises RuntimeError on a full disk
    with writing(path, full), replacing(path) as temporary:
        torch.save(content, temporary)


def load_weights(path: Path) -> Any:
    """The content of a file, on the CPU. No code in it is run.

    The file is a zip archive with a checksum of each part. ``torch.load`` does not look at them: with one wrong bit it gives
    a wrong weight. So they are compared here.

    Raises:
        Exception: the file is cut off, damaged, or of another kind; of many types, since torch raises many.
    """
    check_zip(path)
    return torch.load(path, map_location="cpu", weights_only=True)
