"""Put a trained agent into the package, with its model card.

    python train/bundle_agent.py runs/mnist-multiset/seed-0 --name mnist-multiset

It reads the run's checkpoint.pt and metrics.json. It writes agents/bundled/NAME.pt, which holds the weights in half precision
and no optimiser, and the card NAME.md. The table in the card is a new test of the half-precision agent.
"""

from __future__ import annotations

import dataclasses
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.reports.metrics_file import read_metrics
from agents.reports.tables import method_in_words
from hsal_env.command_line import run_command
from hsal_env.config import EnvConfig
from hsal_env.data.sources import SOURCES
from hsal_env.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Args:
    """Bundle a trained agent."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of the run, which holds checkpoint.pt and metrics.json"""
    name: str
    """name of the agent for agents.load"""
    output_dir: Path = Path("agents/bundled")
    """folder for NAME.pt and NAME.md"""
    data_root: str | None = None
    """folder of the data sets"""
    episodes: int = 10_000
    """number of test canvases"""
    trust_names: bool = False
    """import and call any package.module:Name that the checkpoint names; only for files of people you trust"""


def card(name: str, content: dict[str, Any], metrics: dict[str, Any], table: str) -> str:
    """The model card."""
    env, learner, source = EnvConfig.from_kwargs(content["env"]), content["run"]["learner"], SOURCES[content["source"]]
    threads = metrics.get("processes", 1) * metrics["threads"]
    apart = f"No training canvas holds a {'type face' if source.synthetic else 'digit'} of the test canvases."
    if source.finite:
        apart = "No photograph is in two of the parts for training, validation and test. The weights come under these terms, too."
    elif env.glyphs == "paper":
        apart = "The test canvases are made from the same digits as the training canvases."
    size = "" if source.synthetic or source.finite else f" of {env.min_size_px} to {env.max_size_px} px"
    method = method_in_words(learner)
    return f"""# {name}

The two-level recurrent attention agent of Welleck et al. (NIPS 2017) as HSAL trains it, for the task
`{env.task}` with {env.min_objects} to {env.objects_limit} digits{size}.

- Use: `agents.load("{name}")`, or `hsal-evaluate {name}`.
- Training: `{shlex.join(metrics["command"])}`, {method}, seed {content["run"]["seed"]},
  {metrics["train_seconds"] / 60:.1f} minutes on {threads} thread(s), then weights rounded to half precision.
- Features: activation model `{env.activation}`, whose weights are part of the package; the agent works with no others.
- Data: {"" if source.finite else "canvases composed of "}{source.licence}. {apart}
{textwrap.fill(f"- Limits: {source.limits} It always answers.", 120, subsequent_indent="  ")}

Greedy, one trained seed:

```
{table}
```
"""


def main(args: Args) -> None:
    """Round the weights, test the agent, and write agent and card.

    Raises:
        ConfigError: fewer than one episode, an agent that was trained on other images than digits, or an activation model
            that is not bundled.
        CheckpointError: the run is not finished, or the folder cannot be written.
    """
    import torch

    from agents import checkpoint
    from agents.evaluation import evaluation_config, score_agent
    from agents.reports.tables import format_table
    from hsal_env.perception.registry import BUNDLED
    from hsal_env.storage.files import write_text

    if args.episodes < 1:
        raise ConfigError(f"Expected --episodes of at least 1; got {args.episodes}.")
    content = checkpoint.read(args.run / "checkpoint.pt")
    if content["source"] not in SOURCES or SOURCES[content["source"]].limits is None:
        trained_on = " or ".join(name for name, source in SOURCES.items() if source.limits)
        raise ConfigError(
            f"Expected an agent that was trained on {trained_on}; got one trained on {content['source']!r}."
        )
    activation = content["env"].get("activation")
    if activation not in BUNDLED:
        raise ConfigError(
            f"Expected an agent that uses a bundled activation model, {', '.join(BUNDLED)}; got one that uses "
            f"{activation}."
        )
    checkpoint.check_names(content, args.run / "checkpoint.pt", args.trust_names)
    try:
        metrics, _ = read_metrics(args.run / "metrics.json")
        card(args.name, content, metrics, "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{args.run} holds no finished run ({error!r}); finish it with hsal-train --resume."
        ) from error
    kept = {name: content[name] for name in content if name not in ("last", "best", "optimiser", "rows")}
    kept["model"] = {
        name: part.half() if isinstance(part, torch.Tensor) and part.is_floating_point() else part
        for name, part in content["model"].items()
    }
    path = args.output_dir / f"{args.name}.pt"
    checkpoint.save(path, kept)
    loaded = checkpoint.load(path, trust=args.trust_names)
    env = dataclasses.replace(loaded.env, source=loaded.source, data_root=args.data_root)
    results = {
        "source": loaded.source,
        "test": score_agent(loaded.agent, evaluation_config(env, "test", args.episodes)),
    }
    table = format_table(results)
    print(table)
    write_text(path.with_suffix(".md"), card(args.name, content, metrics, table))


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
