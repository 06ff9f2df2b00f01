"""Write the README's results table from the files in results/.

python train/make_results_table.py          # rewrite README.md
python train/make_results_table.py --check  # fail if README.md is out of date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results: made by python train/make_results_table.py -->\n", "<!-- /results -->"


def row(folder: Path) -> str:
    """One line of the table."""
    results: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    test = results["test"]
    counts = " / ".join(f"{part['exact_match']:.3f}" for part in test["by_count"].values())
    ratio = "" if test["attn_saliency_ratio"] is None else f"{test['attn_saliency_ratio']:.1f}"
    minutes = f"{results['train_seconds'] / 60:.1f}"
    command = " ".join(results["command"])
    return (
        f"| [{folder.name}](results/{folder.name}) | {results['source']} | {test['exact_match']:.3f} | {test['macro_f1']:.3f} "
        f"| {counts} | {ratio} | {minutes} | {results['blind_guess']['exact_match']:.3f} | `{command}` |"
    )


def table(root: Path = ROOT) -> str:
    """The table of every folder in results/."""
    folders = sorted(path.parent for path in (root / "results").glob("*/metrics.json"))
    head = (
        "| run | images | 0-1 | macro-F1 | 0-1 by objects | glimpses / uniform | minutes | blind 0-1 | command |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(row(folder) + "\n" for folder in folders)


def main() -> None:
    """Rewrite the README, or check it."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(START)
    after = rest.split(END)[1]
    made = before + START + table() + END + after
    if "--check" in sys.argv[1:]:
        if made != text:
            sys.exit("README.md's results table is out of date; run python train/make_results_table.py")
    else:
        readme.write_text(made)


if __name__ == "__main__":
    main()
