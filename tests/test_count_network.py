"""The rival that counts: the network and its command."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import COUNT, Command, metrics_of, script
from PIL import Image

from agents.supervised.count_network import CountNetwork

FEW = shlex.split("--env-id HSAL-DigitsMultiset-v0 --num-examples 512 --batch-size 64 --hidden 64 --test-episodes 100")


@pytest.mark.parametrize("head", ["volume", "columns"])
def test_a_count_network_learns_to_count(command: Command, trained: Path, tmp_path: Path, head: str):
    command(COUNT, [*FEW, "--head", head, "--passes", 16, "--learning-rate", "4e-3", "--output-dir", "new/x"])
    metrics = metrics_of(tmp_path / "new" / "x")
    assert metrics["source"] == "digits"
    assert metrics["config"]["head"] == head
    assert metrics["test"]["macro_f1"] > metrics["blind_guess"]["macro_f1"] + 0.3
    looked = {"pointing", "mask_in_box", "focus", "several"}  # it looks nowhere
    assert set(metrics["test"]) == set(metrics_of(trained)["test"]) - looked
    assert metrics["test"]["attn_saliency"] is metrics["test"]["attn_saliency_ratio"] is None
    assert sum(part["episodes"] for part in metrics["test"]["by_count"].values()) == 100
    assert str(tmp_path) not in json.dumps(metrics)
    cells = script("make_results.py").cells("rival-count-network", [metrics])
    assert cells["0-1"] == f"{metrics['test']['exact_match']:.3f}"


def test_a_count_network_reads_the_environments_features(command: Command, tmp_path: Path, svhn_folder: str):
    few = "--passes 1 --hidden 16 --test-episodes 4"
    command(COUNT, f"--env-id HSAL-HouseNumbersMultiset-v0 --num-examples 8 --batch-size 8 {few} --output-dir out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["source"] == "house-numbers"
    assert metrics["config"]["activation"] == "compact-house-numbers"
    svhn = ["--env-id", "HSAL-SVHNMultiset-v0", "--data-root", svhn_folder, "--batch-size", 64, *few.split()]
    command.fails(COUNT, svhn, "error: Expected at least batch_size=64 images; got 36")


def test_a_count_network_reads_images_of_your_own(tmp_path: Path):
    lines, rng = ["file,labels"], np.random.default_rng(0)
    (tmp_path / "own").mkdir()
    for i in range(30):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "own" / f"{i}.png")
        lines.append(f"{i}.png,{'cup ' * (i % 3)}plate")
    (tmp_path / "own" / "labels.csv").write_text("\n".join(lines))
    module = script(COUNT)
    own = {"env_id": "HSAL-Custom-v0", "images": str(tmp_path / "own"), "activation": "compact-house-numbers"}
    few = {"batch_size": 16, "num_examples": 32, "passes": 1, "hidden": 8, "output_dir": tmp_path / "out"}
    args = module.Args(**own, image_px=(48, 64), augment="turned", overlaid=0.25, **few)
    task = module.task(args)
    assert (task.split, task.augment, task.image_shape, task.size) == ("train", "turned", (48, 64, 3), 32)
    assert task.overlaid == 0.25
    module.main(args)
    metrics = metrics_of(tmp_path / "out")
    assert set(metrics["test"]["count_error"]["by_class"]) == {"cup", "plate"}
    assert str(tmp_path) not in json.dumps(metrics)


def test_a_count_networks_seed_decides(tmp_path: Path):
    module = script(COUNT)
    few = {"env_id": "HSAL-DigitsMultiset-v0", "num_examples": 512, "batch_size": 64, "hidden": 64, "passes": 1}
    tests = []
    for seed in (0, 0, 1):
        module.main(module.Args(**few, test_episodes=100, seed=seed, output_dir=tmp_path))
        tests.append(metrics_of(tmp_path)["test"])
    assert tests[0] == tests[1]
    assert tests[0] != tests[2]


def count_network(head: str):
    torch.manual_seed(0)
    return CountNetwork(head, (5, 2, 3), 4, most=3, hidden=8), torch.rand(6, 5, 2, 3)


def test_the_columns_heads_counts_are_sums_over_cells():
    net, volume = count_network("columns")
    by_cell = [net(volume[:, :, r : r + 1, c : c + 1]) for r in range(2) for c in range(3)]
    assert torch.allclose(net(volume), torch.stack(by_cell).sum(dim=0))
    assert torch.allclose(net(volume), net(volume.flip(2, 3)))
    assert min(part.min() for part in by_cell) > 0
    assert net.predict(volume).tolist() == [[round(value) for value in row] for row in net(volume).tolist()]
    told = net.layers(volume[1, :, 0, 2])  # one cell of one image by the formula
    assert torch.allclose(by_cell[2][1], (1 + told.exp()).log(), atol=1e-6)


def test_the_volume_heads_counts_are_the_most_probable():
    net, volume = count_network("volume")
    logits = net(volume)
    assert logits.shape == (6, 4, 4)
    assert not torch.allclose(logits, net(volume.flip(2, 3)))
    assert torch.allclose(logits[2].flatten(), net.layers(volume[2].flatten()), atol=1e-6)
    rows = logits.tolist()
    assert net.predict(volume).tolist() == [[label.index(max(label)) for label in row] for row in rows]


def test_the_count_networks_losses_by_hand():
    counts = torch.tensor([[0, 1, 2, 0]] * 3 + [[1, 0, 0, 3]] * 3)
    net, volume = count_network("volume")
    log_probs = net(volume).log_softmax(dim=2)
    each = [-sum(log_probs[b, c, n].item() for c, n in enumerate(row)) for b, row in enumerate(counts.tolist())]
    assert net.loss(volume, counts).item() == pytest.approx(np.mean(each), rel=1e-5)
    net, volume = count_network("columns")
    told = net(volume).tolist()
    each = [
        sum(expected - n * np.log(expected + 1e-3) for expected, n in zip(*pair, strict=True))
        for pair in zip(told, counts.tolist(), strict=True)
    ]
    assert net.loss(volume, counts).item() == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--env-id CartPole-v1", ["error: Unknown env id 'CartPole-v1'", "HSAL-DigitsSet-v0"]),
        ("--head cells", ["--head", "cells"]),
        (
            "--activation nobody",
            [
                "error: Unknown activation model 'nobody'. Expected one of compact, ",
                "compact-single, compact-svhn, compact-ten",
            ],
        ),
        ("--passes 0", ["error: Expected passes, batch_size"]),
        ("--hidden 0", ["error: Expected passes, batch_size"]),
        ("--test-episodes 0", ["error: Expected passes, batch_size"]),
        ("--batch-size 0", ["error: Expected passes, batch_size"]),
        ("--batch-size 513", ["num_examples of at least batch_size"]),
        ("--seed -1", ["error:", "seed"]),
        ("--learning-rate -1", ["error:", "learning_rate"]),
        ("--passes 1 --output-dir file/x", ["error: Cannot write file/x"]),
    ],
)
def test_a_wrong_count_network_is_a_clear_error(command: Command, tmp_path: Path, flags: str, said: list[str]):
    (tmp_path / "file").touch()
    command.fails(COUNT, [*FEW, *shlex.split(flags)], *said)
    assert not list(tmp_path.rglob("metrics.json"))
