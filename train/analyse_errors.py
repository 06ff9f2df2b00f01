"""What a trained agent gets wrong: tables, and pictures of its worst episodes.

    python train/analyse_errors.py mnist-multiset --output-dir errors

It writes errors.json, errors.md and errors.png. agents/reports/mistakes.py defines the kinds of wrong episodes. The worst
episodes are those with most labels missing or too many; among equals, those whose wrong label was most probable.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from tqdm import tqdm

from hsal_env.command_line import run_command
from hsal_env.errors import ConfigError

if TYPE_CHECKING:
    from agents.reports.mistakes import Breakdown

_PICTURED = 20
_BATCH = 500


@dataclass(frozen=True)
class Args:
    """Break down the errors of a trained agent."""

    agent: Annotated[str, tyro.conf.Positional]
    """a bundled agent's name, or the path of a checkpoint.pt"""
    split: str = "val"
    """train, val or test; look at test errors only after all choices are made"""
    episodes: int = 5_000
    """number of episodes; the split may hold fewer"""
    source: str | None = None
    """auto, mnist, digits, house-numbers or svhn; default: the source of the agent's training (digits where MNIST is missing)"""
    data_root: str | None = None
    """folder of the data sets"""
    output_dir: Path = Path("errors")
    """folder for errors.json, errors.md and errors.png"""
    trust_names: bool = False
    """import and call any package.module:Name that the checkpoint names; only for files of people you trust"""


def markdown(found: Breakdown, head: str) -> str:
    """The tables as Markdown."""
    lines = [f"# {head}", ""]
    for name, part in found.items():
        if isinstance(part, dict) and part and isinstance(next(iter(part.values())), dict):
            columns = list(next(iter(part.values())))
            lines += ["", f"| {name} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
            for key, row in part.items():
                cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
                lines.append(f"| {key} | {' | '.join(cells)} |")
        else:
            lines += [""] if lines[-1].startswith("|") else []
            lines.append(f"- {name}: {f'{part:.3f}' if isinstance(part, float) else part}")
    return "\n".join(lines) + "\n"


def main(args: Args) -> None:
    """Record the agent's episodes, sort them, and write the tables and the picture.

    Raises:
        ConfigError: fewer than one episode, or an agent trained on images of your own.
        CheckpointError: no such agent, or the folder cannot be written.
    """
    from agents import bundled, load
    from agents.evaluation import evaluation_config
    from agents.reports.gallery import worst_first
    from agents.reports.mistakes import describe, tables
    from agents.reports.tables import source_in_words
    from agents.tracing import record
    from hsal_env.rendering import draw_traces, save_picture
    from hsal_env.storage.claims import claim_folder
    from hsal_env.storage.files import write_text, writing

    if args.episodes < 1:
        raise ConfigError(f"Expected --episodes of at least 1; got {args.episodes}.")
    loaded = load(args.agent, trust=args.trust_names)
    env = loaded.env_on(args.split, args.source, args.data_root)
    if not env.has_boxes:
        raise ConfigError(
            "Expected images whose objects have known boxes; got images without. Use hsal-evaluate --picture, or pass "
            "--source digits for an agent of ten classes."
        )
    _claim = claim_folder(args.output_dir)
    config = evaluation_config(env, args.split, args.episodes)
    episodes = []
    for start in tqdm(range(0, config.size, _BATCH), desc="record"):
        indices = np.arange(start, min(start + _BATCH, config.size))
        episodes += [describe(trace) for trace in record(loaded.agent, config, indices)]
    found = tables(episodes)
    name = args.agent if args.agent in bundled() else "An agent"
    text = markdown(found, f"{name}: {config.size} {args.split} canvases of {source_in_words(env.source)}, greedy")
    print(text)
    worst = sorted((e for e in episodes if e.kind != "right"), key=worst_first)[:_PICTURED]
    write_text(args.output_dir / "errors.json", json.dumps(found, indent=2) + "\n")
    write_text(args.output_dir / "errors.md", text)
    with writing(args.output_dir):
        (args.output_dir / "errors.png").unlink(missing_ok=True)
        if worst:
            picture = draw_traces(record(loaded.agent, config, np.array([e.canvas_index for e in worst])))
            save_picture(picture, args.output_dir / "errors.png")


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
