"""Processes that tests start and stop."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from commands import ROOT


@contextmanager
def python(*command: object, cwd: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """A Python process that is killed at the end."""
    running = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with running:
        try:
            yield running
        finally:
            running.kill()
