"""metrics.json: the results of a run, with checksums of itself and of the progress.csv beside it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from hsal_env.storage.files import write_text

_OWN, _OF_PROGRESS = "checksum", "progress_checksum"


def write_metrics(path: Path, results: dict[str, Any]) -> None:
    """Write results as JSON, with checksums.

    Raises:
        CheckpointError: the file cannot be written.
    """
    progress = path.with_name("progress.csv")
    content = json.loads(json.dumps(results))
    if path.name == "metrics.json" and progress.exists():
        content[_OF_PROGRESS] = checksum(progress.read_text())
    write_text(path, json.dumps({**content, _OWN: checksum(json.dumps(content))}, indent=2) + "\n")


def read_metrics(path: Path) -> tuple[dict[str, Any], str | None]:
    """The results in a file, and the checksum of progress.csv; None in files of version 0.2, which hold no checksums.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or does not match its checksum.
        TypeError: it holds no table.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise TypeError("it holds no table")
    own = content.pop(_OWN, None)
    if own is not None and own != checksum(json.dumps(content)):
        raise ValueError("it does not match its checksum")
    return content, content.pop(_OF_PROGRESS, None)


def checksum(text: str) -> str:
    """CRC-32 as 8 hexadecimal digits."""
    return f"{zlib.crc32(text.encode()):08x}"
