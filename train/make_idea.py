"""Draw one meta-step of an agent, and the end of its episode, in nine pictures: those of docs/idea.md.

    python train/make_idea.py                                                # docs/idea/1-image.png, ..., 9-stop.png
    python train/make_idea.py --agent mnist-multiset-faithful --index 4 --output-dir idea

Each picture is drawn to be shown 300 px wide, and has twice as many pixels. The same agent and canvas give the same files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hsal_env.command_line import run_command

_COLOURS = 256  # a picture's, so that its file is small


@dataclass(frozen=True)
class Args:
    """Draw one meta-step of an agent, and the end of its episode, in nine pictures."""

    agent: str = "mnist-multiset"
    """a bundled agent's name, or the path of a checkpoint.pt"""
    index: int = 12
    """which canvas of the split"""
    output_dir: Path = Path("docs/idea")
    """where 1-image.png, ... go"""
    split: str = "test"
    """train, val or test"""
    seed: int = 0
    """which canvases the split holds"""
    source: str | None = None
    """auto, mnist, digits, house-numbers or svhn; default: that of the training, digits for MNIST where it cannot be had"""
    data_root: str | None = None
    """where the data lie"""
    trust_names: bool = False
    """import and call any package.module:Name that the checkpoint names; only for files of people you trust"""


def main(args: Args) -> None:
    """Record, draw, write.

    Raises:
        DataError: an index outside the split.
        CheckpointError: no such agent, or the folder cannot be written.
    """
    import dataclasses

    from PIL import Image

    from agents import load
    from agents.evaluation import evaluation_config
    from agents.tracing import record
    from hsal_env.perception.examples import Examples
    from hsal_env.rendering.steps import draw_steps
    from hsal_env.storage.files import replacing, writing

    loaded = load(args.agent, trust=args.trust_names)
    env = loaded.env_on(args.split, args.source, args.data_root)
    config = dataclasses.replace(evaluation_config(env, args.split, 1, args.seed), num_examples=None, features="lazy")
    trace = record(loaded.agent, config, args.index)
    volume = Examples(config).load([args.index])[0].volume[0].numpy()
    for name, picture in draw_steps(trace, volume).items():
        path = args.output_dir / f"{name}.png"
        image = Image.fromarray(picture)
        with writing(path), replacing(path) as temporary:
            image.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
                temporary, format="PNG", optimize=True
            )
        print(path)


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
