"""What metrics.json tells beside settings and scores: versions of packages, time and memory, the command that was typed."""

from __future__ import annotations

import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import hsal_env

_PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3", "torchvision", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of Python, of HSAL, and of the packages that results may depend on."""
    found = {"python": platform.python_version(), "hsal": hsal_env.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def resources(before: float = 0.0) -> dict[str, float | None]:
    """Processor seconds of all threads of this process, and its peak memory in MiB (None where the system does not tell).

    Args:
        before: processor seconds that earlier processes of the same run have used; they are added.
    """
    cpu_seconds = before + time.process_time()
    try:
        import resource  # not on Windows
    except ImportError:
        return {"cpu_seconds": cpu_seconds, "max_memory_mib": None}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return {"cpu_seconds": cpu_seconds, "max_memory_mib": peak / unit}


def without_paths(argv: list[str]) -> list[str]:
    """The command line for metrics.json: without ``--resume``, and without the paths of this machine."""
    argv = [arg for arg in argv if arg != "--resume"]
    places = ("--output-dir", "--output_dir", "--data-root", "--data_root", "--images")
    after = [False, *(arg in places for arg in argv)]
    return [arg for arg, follows in zip(argv, after, strict=False) if not follows and arg.split("=")[0] not in places]
