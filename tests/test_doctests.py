"""The examples in docstrings, in every module that can be imported here. They need no network: digits are scikit-learn's."""

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import agents
import hsal_env

NEEDED = {"agents.load", "agents.tracing.record", "hsal_env.functional.attention_mask", "hsal_env.multiset.scores"}


def with_examples() -> dict[str, doctest.DocTest]:
    """By name. Modules of packages that are not installed are left out."""
    found: dict[str, doctest.DocTest] = {}
    finder = doctest.DocTestFinder(exclude_empty=True)
    for package in (hsal_env, agents):
        names = [
            package.__name__,
            *(part.name for part in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")),
        ]
        for name in names:
            module = imported(name)
            if module:
                found |= {test.name: test for test in finder.find(module) if test.examples}
    return found


def imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("ray", "sb3_contrib", "flask", "pyarrow", "h5py", "moviepy"):
            return None
        raise


EXAMPLES = with_examples()


def test_the_functions_that_people_call_have_examples():
    assert set(EXAMPLES) >= NEEDED


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_examples_of_a_docstring_are_right(name: str):
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(EXAMPLES[name], out=said.append)
    assert said == [], "".join(said)
