"""What tests need and a machine may lack: data and extras, without which tests are skipped unless they were promised.

``HSAL_TESTS_REQUIRE=data,test,browser`` promises MNIST's and SVHN's files and these extras: a test that lacks
one of them fails, so a run that says "passed" has passed them.
"""

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

PROMISES = ("data", "test", "browser", "rllib", "recipes")  # all but the first are extras


def lack(what: str, why: str) -> NoReturn:
    """Skip the test, or the file, for want of one of ``PROMISES``; fail it where that was promised."""
    promised = [word for word in os.environ.get("HSAL_TESTS_REQUIRE", "").split(",") if word]
    if unknown := sorted(set(promised) - set(PROMISES)):
        raise pytest.UsageError(f"Expected HSAL_TESTS_REQUIRE of {', '.join(PROMISES)}; got {', '.join(unknown)}")
    if what in promised:
        pytest.fail(f"HSAL_TESTS_REQUIRE promises {what}: {why}")
    pytest.skip(why, allow_module_level=True)


def module(name: str, what: str, why: str) -> ModuleType:
    """The module ``name``, which the extra ``what`` installs."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        lack(what, why)


def mnist(root: Path) -> str:
    """``root``, where it holds MNIST's files."""
    if len(list((root / "MNIST" / "raw").glob("*-ubyte*"))) < 4:
        lack("data", f"MNIST's files are not under {root}; set HSAL_DATA to the folder that holds MNIST/raw")
    return str(root)


def svhn(root: Path) -> str:
    """``root``, where it holds the annotations of SVHN's two parts."""
    if not all((root / "SVHN" / part / "digitStruct.mat").is_file() for part in ("train", "test")):
        lack(
            "data",
            f"SVHN's files are not under {root}; set HSAL_DATA to the folder that holds SVHN/train and SVHN/test",
        )
    return str(root)


def photographs(root: Path, name: str) -> str:
    """The folder ``root/photographs/name``, where it is."""
    folder = root / "photographs" / name
    if not folder.is_dir():
        lack("data", f"{folder} is not there; set HSAL_DATA to the folder that holds photographs/{name}")
    return str(folder)
