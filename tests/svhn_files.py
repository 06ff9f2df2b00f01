"""SVHN's files as tests write them: PNG images, and digitStruct.mat as MATLAB lays it out."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

FIELDS = ("top", "left", "height", "width", "label")
Digit = Sequence[float]  # of the fields above


def write_digit_struct(path: Path, entries: Sequence[tuple[str, Sequence[Digit]]]) -> None:
    """One digit: the numbers themselves; more: references to them; none: an empty array in place of the group."""
    with h5py.File(path, "w", userblock_size=512) as file:
        refs = file.create_group("#refs#")

        def stored(value) -> h5py.Reference:
            return refs.create_dataset(str(len(refs)), data=value).ref

        def column(references: list) -> np.ndarray:
            return np.array(references, h5py.ref_dtype).reshape(-1, 1)

        names, boxes = [], []
        for name, digits in entries:
            names.append(stored(np.array([[ord(letter)] for letter in name], np.uint16)))
            if not digits:
                boxes.append(stored(np.zeros(2, np.uint64)))
                continue
            group = refs.create_group(str(len(refs)))
            boxes.append(group.ref)
            for field, values in zip(FIELDS, zip(*digits, strict=True), strict=True):
                one = len(values) == 1
                group[field] = np.array([values], float) if one else column([stored([[float(v)]]) for v in values])
        file["digitStruct/name"] = column(names)
        file["digitStruct/bbox"] = column(boxes)


def write_part(folder: Path, numbers: Sequence[tuple[np.ndarray, Sequence[Digit]]]) -> Path:
    """Images 1.png, 2.png, ... and what stands in them."""
    folder.mkdir(parents=True)
    for place, (image, _) in enumerate(numbers):
        Image.fromarray(image).save(folder / f"{place + 1}.png")
    write_digit_struct(folder / "digitStruct.mat", [(f"{i + 1}.png", digits) for i, (_, digits) in enumerate(numbers)])
    return folder


def random_part(folder: Path, count: int, seed: int) -> Path:
    """Images of noise of several sizes, with 1 to 4 digits side by side; labels are 1 to 10."""
    rng = np.random.default_rng(seed)
    numbers = []
    for _ in range(count):
        digits = int(rng.integers(1, 5))
        height, width = int(rng.integers(20, 40)), 14 * digits + int(rng.integers(8, 30))
        left = int(rng.integers(0, 8))
        places = [[int(rng.integers(0, 8)), left + 14 * i, 12, 12, int(rng.integers(1, 11))] for i in range(digits)]
        numbers.append((rng.integers(0, 256, (height, width, 3), dtype=np.uint8), places))
    return write_part(folder, numbers)


def random_root(root: Path) -> str:
    """A folder with ``SVHN/train``, ``test`` and ``extra`` as the official files are laid out: images of noise."""
    for seed, (part, count) in enumerate({"train": 40, "test": 12, "extra": 15}.items()):
        random_part(root / "SVHN" / part, count, seed)
    return str(root)
