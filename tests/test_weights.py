"""Files of weights: what is read back is what was written, or an error."""

from pathlib import Path

import pytest
import torch

from agents import checkpoint
from hsal_env.errors import CheckpointError
from hsal_env.perception.model_file import read_model
from hsal_env.storage.weights import load_weights, save_weights


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_weights(tmp_path / "weights.pt", {"weight": torch.linspace(-1, 1, 32), "step": 3})
    return tmp_path / "weights.pt"


def assert_whole(content: object) -> None:
    assert isinstance(content, dict)
    assert content["step"] == 3
    assert torch.equal(content["weight"], torch.linspace(-1, 1, 32))


def test_what_was_written_is_read_back(path: Path):
    assert_whole(load_weights(path))


def test_whichever_bit_is_flipped_no_other_weight_is_read(path: Path):
    whole, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(whole), 11):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            content = load_weights(path)
        except Exception:  # torch and zipfile raise many kinds
            refused += 1
        else:
            assert_whole(content)  # the bit was in padding, or in a date
    assert refused > len(whole) // 22  # every third or so at least


@pytest.mark.parametrize(
    ("read", "said"), [(checkpoint.read, "is cut off, damaged"), (read_model, "is cut off, damaged")]
)
def test_one_flipped_bit_in_a_weight_is_said(path: Path, read, said: str):
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(torch.linspace(-1, 1, 32).numpy().tobytes()) + 7] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=f"{said}.*does not match its checksum"):
        read(path)
