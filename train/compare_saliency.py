"""Compare saliency models by how well their maps find the objects, on any environment with known boxes.

    python train/compare_saliency.py --output-dir saliency
    python train/compare_saliency.py --models sum-of-squares itti-koch package.module:Name file:maps.npy

Writes saliency.json, saliency.md (a table) and saliency.png (six images and their maps). How well an agent does with a saliency
model is another question: train one with train/ppo_or_reinforce.py --saliency NAME.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hsal_env import ENVIRONMENTS
from hsal_env.command_line import run_command
from hsal_env.config import EnvConfig
from hsal_env.data.sources import SOURCES
from hsal_env.errors import ConfigError
from hsal_env.fields import check_fields

if TYPE_CHECKING:
    import numpy as np

    from hsal_env.perception.examples import Examples

_BATCH = 100
_PICTURED = 6


@dataclass(frozen=True)
class Args:
    """Compare saliency models by how well their maps find the objects."""

    env_id: str = "HSAL-MNISTMultiset-v0"
    """the environment whose canvases are used"""
    models: tuple[str, ...] = ()
    """saliency models: names, package.module:Name, or file:PATH of maps; default: all that have a name"""
    activation: str | None = None
    """activation model; default: the environment's"""
    split: Literal["train", "val", "test"] = "test"
    """the split of the canvases"""
    episodes: int = 1_000
    """number of canvases; the whole split if it holds fewer"""
    seed: int = 0
    """seed of the canvases"""
    source: str | None = None
    """source of the images; default: the environment's"""
    data_root: str | None = None
    """folder of MNIST or SVHN; default: $HSAL_DATA, else the cache folder"""
    output_dir: Path = Path("saliency")
    """folder for saliency.json, saliency.md and saliency.png"""


def markdown(results: dict[str, Any]) -> str:
    """The results as a table."""
    from agents.reports.tables import source_in_words

    images = source_in_words(results["source"])
    head = f"{results['episodes']} {results['split']} canvases of {results['env_id']}, {images}"
    lines = [
        f"# Objects found by saliency maps: {head}", "",
        "found: share of the objects with a local maximum of the map inside; spurious: local maxima outside of all objects, per",
        "image; high: counting only maxima in the upper half of the map's range; AUC: the chance that a cell inside an object is",
        "higher than a cell outside.",
        "", "| saliency model | found | spurious | found, high | spurious, high | AUC |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in results["models"].items():
        lines.append(f"| {name} | {' | '.join('' if value is None else f'{value:.3f}' for value in row.values())} |")
    return "\n".join(lines) + "\n"


def maps_by_model(args: Args) -> tuple[dict[str, np.ndarray], Examples]:
    """The raw saliency maps of each model, ``[B, H, W]``, and the examples that they are of.

    Raises:
        ConfigError, DataError, CheckpointError: see :func:`main`.
    """
    import numpy as np
    from tqdm import tqdm

    from hsal_env.perception.examples import Examples
    from hsal_env.perception.registry import SALIENCY_MODELS

    given = {name: getattr(args, name) for name in ("activation", "source", "data_root")}
    config = {name: value for name, value in given.items() if value is not None} | {
        "split": args.split, "num_examples": args.episodes, "seed": args.seed, "features": "store",
    }  # fmt: skip
    base = {**ENVIRONMENTS[args.env_id], **config}
    if not SOURCES[EnvConfig.from_kwargs({**base, "images": None}).source].boxes:
        raise ConfigError(
            f"{args.env_id}: saliency models are compared by the boxes of the objects, which are unknown for images of your own. "
            "Choose another environment."
        )
    maps: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(args.models or SALIENCY_MODELS):
        # the first model's examples compute the volumes, and the others find them in the store
        examples = Examples(EnvConfig.from_kwargs({**base, "saliency": name}))
        parts = [np.arange(i, min(i + _BATCH, len(examples))) for i in range(0, len(examples), _BATCH)]
        maps[name] = np.concatenate([examples.load(part)[0].raw_saliency.numpy() for part in tqdm(parts, desc=name)])
    return maps, examples


def main(args: Args) -> None:
    """Compute the maps, compare them with the boxes, and write the files.

    Raises:
        ConfigError: an unknown environment or model, no canvases, or unknown boxes.
        DataError: a map file is missing or damaged, or images are in colour for a model that reads grey.
        CheckpointError: a model file is damaged, or the folder cannot be written.
    """
    check_fields(args)
    if args.env_id not in ENVIRONMENTS:
        raise ConfigError(f"Unknown env id {args.env_id!r}. Expected one of {', '.join(ENVIRONMENTS)}.")
    if args.episodes < 1:
        raise ConfigError(f"Expected --episodes of at least 1; got {args.episodes}.")

    import numpy as np

    from hsal_env.perception.finding import find_objects
    from hsal_env.rendering import save_picture
    from hsal_env.rendering.maps import draw_maps
    from hsal_env.storage.claims import claim_folder
    from hsal_env.storage.files import write_text, writing

    _claim = claim_folder(args.output_dir)
    maps, examples = maps_by_model(args)
    canvases = examples.compose(np.arange(len(examples)))
    results = {
        "env_id": args.env_id,
        "source": examples.source,
        "split": args.split,
        "episodes": len(examples),
        "seed": args.seed,
        "activation": examples.config.activation,
        "models": {name: find_objects(part, canvases.boxes, examples.grid).summary() for name, part in maps.items()},
    }
    text = markdown(results)
    print(text)
    first = slice(_PICTURED)
    picture = draw_maps(
        canvases.images[first], canvases.boxes[first], {name: part[first] for name, part in maps.items()}, examples.grid
    )
    write_text(args.output_dir / "saliency.json", json.dumps(results, indent=2) + "\n")
    write_text(args.output_dir / "saliency.md", text)
    with writing(args.output_dir):
        save_picture(picture, args.output_dir / "saliency.png")


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
