"""Values of a configuration are held against the types of its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from hsal_env.errors import ConfigError
from hsal_env.fields import check_fields, choices

Colour = Literal["red", "green"]


@dataclass(frozen=True)
class Config:
    colour: Colour = "red"
    shade: Colour | None = None
    size: int = 1
    most: int | None = None
    rate: float = 0.5
    loud: bool = False
    name: str | None = None
    anything: Any = None


@pytest.mark.parametrize(
    "values",
    [{}, {"shade": "green"}, {"most": 3}, {"rate": 2}, {"name": "x", "loud": True}, {"anything": b"bytes"}],
    ids=str,
)
def test_values_of_their_type_pass(values):
    check_fields(Config(**values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"colour": "blue"}, "Expected colour to be one of red, green; got 'blue'."),
        ({"shade": "blue"}, "Expected shade to be one of red, green, None; got 'blue'."),
        ({"size": 1.0}, "Expected size as a whole number; got 1.0."),
        ({"size": True}, "Expected size as a whole number; got True."),
        ({"most": "3"}, "Expected most as a whole number or None; got '3'."),
        ({"rate": "fast"}, "Expected rate as a number; got 'fast'."),
        ({"rate": None}, "Expected rate as a number; got None."),
        ({"loud": 1}, "Expected loud as True or False; got 1."),
        ({"name": 3}, "Expected name as text or None; got 3."),
    ],
    ids=str,
)
def test_values_of_another_type_are_refused(values, said):
    with pytest.raises(ConfigError) as raised:
        check_fields(Config(**values))
    assert str(raised.value) == said


def test_the_choices_of_a_type():
    assert choices(Colour) == ("red", "green")
    assert choices(Colour | None) == ("red", "green", None)
    assert choices(int) == ()
