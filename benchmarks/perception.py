"""What activation models cost: arithmetic, encoding, fine-tuning and storage, beside the compact one, taking turns.

    python benchmarks/perception.py --json FILE

Weights are random: speed does not depend on them. Encoding is a forward pass in evaluation mode, fine-tuning a forward and a
backward pass of all layers and a step of AdamW, both in float32 on images of 100 px, which ResNets resize to 224.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from measuring import ratio, taking_turns, write_numbers

from hsal_env.perception import Architecture

VARIANTS: dict[str, tuple[Architecture, dict[str, Any]]] = {
    "compact": ("compact", {}),
    "compact, lower level": ("compact", {"lower_level": True}),
    "compact, 14x14": ("compact", {"output_stride": 8}),
    "compact, 28x28": ("compact", {"output_stride": 4}),
    "resnet18": ("resnet18", {}),
    "resnet34": ("resnet34", {}),
    "resnet34, lower level": ("resnet34", {"lower_level": True}),
    "resnet34, 14x14": ("resnet34", {"output_stride": 16}),
    "resnet34, 28x28": ("resnet34", {"output_stride": 8}),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What activation models cost.")
    parser.add_argument("--models", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--images", type=int, default=16, help="in a batch")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from hsal_env.perception.registry import initial_model

    runs: dict[str, Callable[[], Any]] = {}
    numbers: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(["compact", *args.models]):
        architecture, arguments = VARIANTS[name]
        model: Any = initial_model(architecture, "scratch", **arguments)
        images = torch.rand(args.images, model.in_channels, 100, 100)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)

        @torch.no_grad()
        def encode(model: Any, images: Any) -> Any:
            return model.eval()(images)

        def fine_tune(model: Any, images: Any, optimiser: Any) -> None:
            optimiser.zero_grad()
            model.train()(images).square().mean().backward()
            optimiser.step()

        with FlopCounterMode(display=False) as counter:
            volume = encode(model, images[:1])
        numbers[name] = {
            "gflop_per_image": counter.get_total_flops() / 1e9,  # a multiplication and an addition are two
            "kilobytes_per_image": 2 * volume.numel() / 1000,  # as the feature store keeps them
        }
        runs[f"encode {name}"] = partial(encode, model, images)
        runs[f"fine-tune {name}"] = partial(fine_tune, model, images, optimiser)
    seconds = taking_turns(runs, args.turns)
    for name, row in numbers.items():
        for kind in ("encode", "fine-tune"):
            row[f"{kind}_per_second"] = args.images / statistics.median(seconds[f"{kind} {name}"])
            row[f"{kind}_ratio_to_compact"] = ratio(seconds[f"{kind} {name}"], seconds[f"{kind} compact"])
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()))
    write_numbers(args.json, {"threads": torch.get_num_threads(), "images": args.images, "models": numbers})


if __name__ == "__main__":
    main()
