"""Make the moving picture of each environment page: docs/environments/pictures/ID.gif.

python docs/make_pictures.py                        # all of them; MNIST must be there
python docs/make_pictures.py HSAL-MNISTSet-v0       # some

Where a bundled agent fits the environment, it plays: :data:`environment_pages.PLAYERS`. Elsewhere a fixed rule does. No picture
is made of SVHN's photographs, which are not ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from environment_pages import FOLDER, PLAYERS

import agents
from agents.protocol import Decision
from agents.tracing import record
from hsal_env import functional as F
from hsal_env.config import EnvConfig
from hsal_env.policies import WinnerTakeAll
from hsal_env.registration import ENVIRONMENTS, VIEW_ENVIRONMENTS
from hsal_env.rendering import draw_trace
from hsal_env.rendering.animation import Frame, frames, save_animation
from hsal_env.spaces import attention_action

MOST_KB = 250
SHAPES = 5
CHOSEN = {
    "HSAL-MNISTMultiset10-v0": (0,),
    "HSAL-MNISTMultisetFlat-v0": (2,),
    "HSAL-MNISTMultisetOption-v0": (4,),
    "HSAL-MNISTMultisetController-v0": (5,),
    "HSAL-MNISTMultisetMacro-v0": (7,),
}
"""Canvases that are shown, where they are not the test split's 0 and 2."""


class Ruled:
    """Attention and glimpses as in winner-take-all; labels at random, never stop."""

    def __init__(self, config: EnvConfig) -> None:
        self.attends = WinnerTakeAll(config.rules)
        self.labels = config.classes
        self.rng = np.random.default_rng(1)

    def initial(self, lanes: int) -> tuple[()]:
        """It remembers nothing."""
        return ()

    def act(
        self, observation: dict[str, Any], state: Any, deterministic: bool = False, generator: Any = None
    ) -> Decision:
        """A decision in each lane, whose probability nobody knows."""
        choice = self.attends.act(observation, state)
        lanes = len(observation["phase"])
        label = torch.from_numpy(self.rng.integers(self.labels, size=lanes))
        unknown = torch.full((lanes,), torch.nan)
        return Decision({**choice.action, "label": label}, unknown, unknown, ())


def own_images() -> dict[str, Any]:
    """Images of 48 by 64 px that hold 1 to 3 shapes of five kinds, as somebody's own images."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[-7:8, -7:8]
    kinds = [
        np.maximum(abs(rows), abs(cols)) <= 6,  # a square
        rows**2 + cols**2 <= 42,  # a disc
        abs(rows) + abs(cols) <= 7,  # a diamond
        np.minimum(abs(rows), abs(cols)) <= 1,  # a cross
        (rows**2 + cols**2 <= 48) & (rows**2 + cols**2 >= 20),  # a ring
    ]
    images, labels = np.zeros((8, 48, 64), np.uint8), []
    for image in images:
        places = rng.permutation([(row, col) for row in (2, 26) for col in (2, 23, 46)])[: rng.integers(2, 4)]
        labels.append(rng.integers(SHAPES, size=len(places)).tolist())
        for (row, col), label in zip(places, labels[-1], strict=True):
            image[row : row + 15, col : col + 15] = 255 * kinds[label]
    return {"images": images, "labels": labels}


def episodes(env_id: str) -> list[Frame]:
    """An episode or two on the native view."""
    kwargs = ENVIRONMENTS[env_id]
    more = own_images() if kwargs["source"] == "custom" else {"split": "test"}
    config = EnvConfig(**{**kwargs, **more})
    player: Any = Ruled(config)
    if env_id in PLAYERS:
        loaded = agents.load(PLAYERS[env_id])
        player, config = loaded.agent, dataclasses.replace(config, components=loaded.env.components)
    return frames(record(player, config, np.array(CHOSEN.get(env_id, (0, 2)))))


def episode_of_view(env_id: str) -> list[Frame]:
    """An episode on another view; the rule plays what is left to the learner."""
    env = gymnasium.make(env_id, split="test", render_mode="rgb_array")
    config = env.unwrapped.simulation.config
    rng = np.random.default_rng(1)
    observation, _ = env.reset(options={"index": CHOSEN.get(env_id, (0,))[0]})

    def drawn() -> np.ndarray:
        return draw_trace(env.unwrapped.trace(), columns=config.rules.max_meta_steps)

    shown, ended = [Frame(drawn(), 1)], False
    while not ended:
        salient, label = int(observation["saliency"].argmax()), int(rng.integers(config.classes))
        cells = observation["saliency"].size
        if config.action_mode == "option":
            raw = F.spotlight(torch.tensor([salient]), (7, 7), config.components, config.coordinates)
            action: Any = attention_action(raw[0]).numpy()
        elif config.action_mode == "macro":
            action = np.array([salient] * (config.glimpses + 1) + [label])
        elif observation["phase"] == 0:
            action = salient
        else:
            looks = observation["phase"] <= config.glimpses
            action = int(observation["priority"].argmax()) if looks else cells + label
        observation, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
        shown.append(Frame(drawn(), 8 if ended else 1 if "phase" in observation else 3))
    return shown


def make_picture(env_id: str, folder: Path) -> None:
    """Animate what an id looks like."""
    path = folder / f"{env_id}.gif"
    save_animation(episode_of_view(env_id) if env_id in VIEW_ENVIRONMENTS else episodes(env_id), path)
    size = path.stat().st_size / 1000
    if size > MOST_KB:
        sys.exit(f"error: {path.name} has {size:.0f} kB, more than {MOST_KB}. Show fewer canvases: CHOSEN.")
    print(f"{path}: {size:.0f} kB")


def main() -> None:
    """Make them."""
    shown = [env_id for env_id in (*ENVIRONMENTS, *VIEW_ENVIRONMENTS) if "SVHN" not in env_id]
    parser = argparse.ArgumentParser(description="Make the moving pictures of the environment pages.")
    parser.add_argument("env_id", nargs="*", help=f"some of {', '.join(shown)}; default: all", metavar="ID")
    parser.add_argument("--output-dir", type=Path, default=FOLDER / "pictures", help="where ID.gif goes")
    args = parser.parse_args()
    unknown = sorted(set(args.env_id) - set(shown))
    if unknown:
        parser.error(f"no picture of {', '.join(unknown)}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for env_id in args.env_id or shown:
        make_picture(env_id, args.output_dir)


if __name__ == "__main__":
    main()
