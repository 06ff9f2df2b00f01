"""Checksums that files carry, and that their readers do not compare, or not all of them."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path


class BlockChecksums:
    """CRC-32 of every block of a stream of bytes.

    Args:
        block_bytes: bytes of a block; the last one may be shorter.
    """

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes, self._length = block_bytes, 0
        self.values: list[int] = []

    def add(self, content: memoryview) -> None:
        """The next bytes of the stream."""
        start = 0
        while start < len(content):
            room = self._block_bytes - self._length % self._block_bytes
            part = content[start : start + room]
            if room == self._block_bytes:
                self.values.append(0)
            self.values[-1] = zlib.crc32(part, self.values[-1])
            start += len(part)
            self._length += len(part)


_PNG = b"\x89PNG\r\n\x1a\n"


def check_zip(path: Path) -> None:
    """Compare every part of a zip archive with its checksum.

    Raises:
        OSError: the file cannot be read.
        ValueError: one differs, or the file is no archive, or cut off.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except OSError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        raise ValueError(f"it is no whole zip archive: {error}") from error
    if part is not None:
        raise ValueError(f"{part} does not match its checksum")


def check_png(content: bytes) -> None:
    """Compare every part of a PNG file with its checksum. Anything but a PNG passes.

    Raises:
        ValueError: one differs, or the file is cut off.
    """
    if not content.startswith(_PNG):
        return
    start, kind = len(_PNG), b""
    while kind != b"IEND":
        if start + 12 > len(content):
            raise ValueError("it is cut off")
        (length,) = struct.unpack_from(">I", content, start)
        body = memoryview(content)[start + 4 : start + 8 + length]
        kind = bytes(body[:4])
        if content[start + 8 + length : start + 12 + length] != struct.pack(">I", zlib.crc32(body)):
            raise ValueError(f"its part {kind.decode('latin-1')} does not match its checksum")
        start += 12 + length
