"""Results as text tables and as comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from hsal_env.data.sources import SOURCES

_FORMS = {
    "sampled": "REINFORCE (sampled)",
    "exact": "expected reward (exact)",
    "log": "expected success (log)",
    "assigned": "best order (assigned)",
}


OTHER_MEASURES = {
    "pointing": "glimpses in the object",
    "mask_in_box": "mask in the object",
    "focus": "mask in one object",
    "several": "masks of several objects",
    "count_error": "count error of a class",
    "total_error": "error of the number",
}
"""Names of measures beside the scores, and what tables call them. Older files lack them."""


def measure(scores: Mapping[str, Any], name: str) -> float | None:
    """A number of test scores by its name; of the counts' errors the mean. None where it is unknown."""
    value = scores.get(name)
    return value["mean"] if isinstance(value, Mapping) else value


def source_in_words(source: str) -> str:
    """The name of a source of images in tables. Synthetic images are called so."""
    synthetic = source in SOURCES and SOURCES[source].synthetic  # a file may name any source
    return f"synthetic {source}" if synthetic else source


def method_in_words(learner: Mapping[str, Any]) -> str:
    """The name of an algorithm in tables, from the fields of a :class:`agents.config.LearnerConfig`."""
    algorithm = learner["algorithm"]
    return _FORMS[learner["estimator"]] if algorithm == "reinforce" else {"ppo": "PPO"}.get(algorithm, algorithm)


def format_table(results: dict[str, Any]) -> str:
    """The test table of ``metrics.json`` or of ``hsal-evaluate --json`` as text."""
    test = results["test"]
    episodes = sum(part["episodes"] for part in test["by_count"].values())
    lines = [
        f"{results.get('split', 'test')} canvases of {source_in_words(results['source'])}, {episodes} episodes, greedy",
        "",
    ]
    for name in ("exact_match", "macro_f1", "micro_f1", "overall_precision", "overall_recall", "example_f1"):
        lines.append(f"  {name.replace('_', ' '):<24}{test[name]:8.4f}")
    if test["attn_saliency_ratio"] is not None:
        lines.append(
            f"  {'saliency at glimpses':<24}{test['attn_saliency']:8.3f}  {test['attn_saliency_ratio']:.2f} times uniform"
        )
    for name, words in OTHER_MEASURES.items():
        if (value := measure(test, name)) is not None:
            lines.append(f"  {words:<24}{value:8.4f}")
    if len(by_class := test.get("count_error", {}).get("by_class", {})) > 1:
        lines += ["", f"  {'label':<24}{'count error':>12}"]
        lines += [f"  {label:<24.24}{value:12.4f}" for label, value in by_class.items()]
    lines += ["", f"  {'objects':<10}{'episodes':>10}{'exact match':>14}{'macro-F1':>12}"]
    for count, part in test["by_count"].items():
        lines.append(f"  {count:<10}{part['episodes']:>10}{part['exact_match']:>14.4f}{part['macro_f1']:>12.4f}")
    if "blind_guess" in results:
        guess = results["blind_guess"]
        lines += [
            "",
            f"  always the most frequent multiset: exact match {guess['exact_match']:.4f}, macro-F1 {guess['macro_f1']:.4f}",
        ]
        if "mean_counts" in guess:
            lines.append(
                f"  always the mean counts, rounded: count error {measure(guess['mean_counts'], 'count_error'):.4f}"
            )
    return "\n".join(lines)


def format_return(player: str, scores: dict[str, Any]) -> str:
    """One line with the scores of a learner, or of a player that it is compared with."""
    return f"{player:>14}: mean return {scores['mean_return']:7.3f}, 0-1 {scores['exact_match']:.3f}, F1 {scores['macro_f1']:.3f}"


def comma_separated(rows: list[dict[str, float]]) -> str:
    """The text of progress.csv. A row may lack columns that other rows have."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
