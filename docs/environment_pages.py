"""Write a page for each environment id, from the registration table and the docstrings. No data are read.

``docs/conf.py`` calls :func:`write_pages` at each build. The pages are not committed; their moving pictures are, and
``python docs/make_pictures.py`` makes those.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from docstrings import attributes, markdown, sections, table
from gymnasium import spaces

from hsal_env.config import EnvConfig
from hsal_env.data.custom import LabelledImages
from hsal_env.data.sources import ARGUMENTS, SOURCES
from hsal_env.env import HSALEnv
from hsal_env.perception.registry import activation_model
from hsal_env.registration import ENVIRONMENTS, VIEW_ENVIRONMENTS
from hsal_env.views import VIEWS, make_view

FOLDER = Path(__file__).with_name("environments")

_DIGITS = "Images are grey, 100 by 100 px. Handwritten digits of 20 to 50 px lie on eight small crops of other digits."
_MNIST = (
    "The digits are MNIST's. Where MNIST can neither be found nor downloaded, the environment uses scikit-learn's digits instead "
    'and `info["source"]` says so.'
)
_SKLEARN = "The digits are the 1,797 that come with scikit-learn, so nothing is downloaded."
_HOUSE = "Images are synthetic house numbers in colour, 100 by 100 px. The program draws them; none is a photograph."
_SVHN = "Images are photographs of house numbers in colour, from the Street View House Numbers data set."
_OBJECTS = {
    "single": "Each image holds one digit.",
    "set": "Each image holds 1 to 4 digits, all different.",
    "multiset": "Each image holds 1 to 4 digits. A digit may occur several times.",
}
_VIEW = {
    "flat": "One `Discrete` action space and an action mask replace the two levels, for algorithms that know no hierarchy.",
    "option": "The learner is the meta-controller alone: it places attention. The bundled agent looks and names.",
    "controller": "The learner is the controller alone: it looks and names. The bundled agent places attention.",
    "macro": "One step is a whole meta-step. The learner chooses attention, glimpses and label at once.",
}
PLAYERS = {
    "HSAL-MNISTSet-v0": "mnist-set",
    "HSAL-DigitsSet-v0": "mnist-set",
    "HSAL-HouseNumbersSingle-v0": "house-numbers",
    "HSAL-HouseNumbersMultiset-v0": "house-numbers",
    **dict.fromkeys(
        (
            "HSAL-MNISTSingle-v0",
            "HSAL-MNISTMultiset-v0",
            "HSAL-DigitsSingle-v0",
            "HSAL-DigitsMultiset-v0",
        ),
        "mnist-multiset",
    ),
}
"""The bundled agent in the moving picture of an id. In the other pictures a rule plays: :data:`_RULES`."""
_RULES = {
    "native": "A fixed rule plays: attention and glimpses go to the most salient cell, and labels are drawn at random. No "
    "bundled agent fits this environment.",
    "flat": "A fixed rule plays: it chooses the most salient cell three times and then a label at random.",
    "option": "A fixed rule puts attention on the most salient cell. The bundled agent looks and names.",
    "controller": "The bundled agent places attention. A fixed rule looks where the priority is highest and draws labels at "
    "random.",
    "macro": "A fixed rule plays: it chooses the most salient cell three times and a label at random, all in one action.",
}


def description(env_id: str, kwargs: dict[str, Any]) -> list[str]:
    """A few sentences on what is in the images."""
    task = kwargs.get("task", "multiset")
    match kwargs["source"]:
        case "custom":
            return [
                "The images are yours: arrays, or a folder with a file `labels.csv`. [Images of your own](../own-images.md) "
                "shows both.",
                "The numbers below are for images of 48 by 64 px with five labels, at most three of them in an image.",
            ]
        case "house-numbers":
            return [_HOUSE, "Each holds one digit." if task == "single" else "Each holds a number of 1 to 5 digits."]
        case "svhn":
            objects = "the common box of one number" if task == "multiset" else "numbers that are one digit"
            return (
                [_SVHN, f"Each shows {objects}; at most 6 digits count."]
                if task == "multiset"
                else [
                    _SVHN,
                    "Only the numbers of a single digit are used.",
                ]
            )
        case source:
            objects = "Each image holds 10 digits of 20 px." if kwargs.get("min_objects") == 10 else _OBJECTS[task]
            view = [_VIEW[kwargs["action_mode"]]] if "action_mode" in kwargs else []
            return [*view, objects, _DIGITS, _SKLEARN if source == "digits" else _MNIST]


def page(env_id: str) -> str:
    """The page, in MyST's Markdown."""
    kwargs = {**ENVIRONMENTS, **VIEW_ENVIRONMENTS}[env_id]
    config = EnvConfig(**_with_images(kwargs))
    view_class = VIEWS[config.action_mode]
    model = activation_model(config.activation)
    side = tuple(-(-size // 16) for size in config.image_shape[:2])
    view = make_view(config, model.channels, side, kwargs.get("policy"))
    said, of_view = sections(HSALEnv), table(inspect.getdoc(view_class) or "")
    names = {
        "H": side[0],
        "W": side[1],
        "D": model.channels,
        "C": config.classes,
        "k": config.glimpses,
        "K": config.components,
    }
    facts = {
        "Action space": f"`{_short(view.action_space)}`",
        "Objects in an image": f"{config.min_objects} to {config.objects_limit}"
        if not config.is_custom
        else "as in your data",
        "Make it": f'`gymnasium.make("{env_id}")`',
        "Make many at once": f'`gymnasium.make_vec("{env_id}", num_envs=64)`',
    }
    letters = ", ".join(f"{letter} = {value}" for letter, value in names.items())
    actions = _actions(config.action_mode, view_class, of_view)
    return (
        "\n\n".join(
            [
                f"# {env_id}",
                _picture(env_id, config.source, config.action_mode),
                " ".join(description(env_id, kwargs)),
                _rows(("property", "value"), facts.items()),
                f"Here {letters}: the map has H rows and W columns, a column of the activation volume has D channels, there are "
                "C labels, and a meta-step has k glimpses and K Gaussians.",
                "## Description",
                said["Description"],
                "## Action space",
                actions,
                f"```text\n{_long(view.action_space)}\n```",
                "## Observation space",
                _observations(view.observation_space, table(said["Observation space"])),
                "## Rewards",
                sentence(of_view.get("reward")) or said["Rewards"],
                "## Starting state",
                said["Starting state"],
                "## Episode end",
                sentence(of_view.get("episode")) or said["Episode end"],
                "## Information",
                said["Information"],
                "## Arguments",
                f'Pass them to `gymnasium.make("{env_id}", ...)`. The values are this id\'s; bold ones differ from the default. '
                "Letters with a number, such as D1 and S4, name rows of [the decisions](../decisions.md).",
                _rows(("argument", "value", "meaning"), _arguments(kwargs)),
                "## Version history",
                "- v0: the first version.",
            ]
        )
        + "\n"
    )


def write_pages(folder: Path = FOLDER) -> None:
    """One file per id. A file that would not change is left alone, so that Sphinx does not read it again."""
    for env_id in (*ENVIRONMENTS, *VIEW_ENVIRONMENTS):
        path, text = folder / f"{env_id}.md", page(env_id)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def sentence(text: str | None) -> str:
    """A cell of a table as a sentence; nothing for None."""
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _with_images(kwargs: dict[str, Any]) -> dict[str, Any]:
    if kwargs["source"] != "custom":
        return {name: value for name, value in kwargs.items() if name != "policy"}
    return {**kwargs, "images": LabelledImages(np.zeros((1, 48, 64), np.uint8), [[0, 4, 4]])}


def _picture(env_id: str, source: str, mode: str) -> str:
    shown = "HSAL-HouseNumbers" + env_id.removeprefix("HSAL-SVHN") if source == "svhn" else env_id
    player = PLAYERS.get(shown)
    caption = f"The bundled agent `{player}` plays." if player else _RULES[mode]
    if source == "svhn":
        caption = (
            f"This picture is of `{shown}`, whose images are synthetic. SVHN's photographs are for non-commercial use and are "
            "not ours, so none is shown here. " + caption
        )
    return f"![An episode of {shown}, step by step](pictures/{shown}.gif)\n\n*{caption}*"


def _actions(mode: str, view_class: type, of_view: dict[str, str]) -> str:
    text = sections(HSALEnv)["Action space"]
    about = text.split("\n\n")[1] if mode == "native" else ""  # after the table of all views
    if mode == "flat":
        about = markdown(inspect.getdoc(view_class) or "")
    return about or sentence(of_view["action"])


def _observations(space: spaces.Dict, meanings: dict[str, str]) -> str:
    # a row of three cells is read as (key, "space | meaning")
    rows = [
        (f"`{name}`", f"`{_short(space[name])}`", said.split("|")[-1].strip())
        for name, said in meanings.items()
        if name in space.spaces
    ]
    return "A `Dict` of:\n\n" + _rows(("key", "space", "meaning"), rows)


def _arguments(kwargs: dict[str, Any]) -> list[tuple[str, str, str]]:
    about, hidden = attributes(EnvConfig), ARGUMENTS.difference(SOURCES[kwargs["source"]].arguments)
    known = {field.name: field.default for field in fields(EnvConfig) if field.name not in hidden}
    defaults = {name: known[name] for name in about if name in known}
    own = {"policy": "the given policy of the other level, see {py:func}`hsal_env.policies.given_policy`"}
    own["render_mode"] = '`"rgb_array"`: `render()` returns a frame of 400x400 px; `"human"`: a window shows it'
    rows = {"render_mode": None, **({"policy": None} if "policy" in kwargs else {}), **defaults}
    return [
        (
            f"`{name}`",
            f"**`{kwargs[name]!r}`**" if kwargs.get(name, value) != value else f"`{value!r}`",
            (own | about)[name],
        )
        for name, value in rows.items()
    ]


def _short(space: spaces.Space[Any]) -> str:
    match space:
        case spaces.Dict():
            return f"Dict({', '.join(f'{name}: {_short(part)}' for name, part in space.spaces.items())})"
        case spaces.Box() if len(np.unique(space.low)) == len(np.unique(space.high)) == 1 and space.high.max() <= 255:
            return f"Box({space.low.min():g}, {space.high.max():g}, {space.shape}, {space.dtype})"
        case spaces.Box():
            return f"Box({space.shape}, {space.dtype})"
        case spaces.MultiDiscrete():
            return f"MultiDiscrete({space.nvec.tolist()})"
        case _:
            return repr(space)


def _long(space: spaces.Space[Any]) -> str:
    if not isinstance(space, spaces.Dict):
        return _short(space)
    lines = [f"    {name}: {_short(part)}," for name, part in space.spaces.items()]
    return "\n".join(["Dict(", *lines, ")"])


def _rows(head: tuple[str, ...], rows: Any) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])
