"""Whether this machine computes faster in bfloat16 than in float32."""

from __future__ import annotations

import time
from functools import cache

import torch

from hsal_env.isolation import own_defaults

_SIDE = 384  # of the matrices that are measured
_REPEATS = 8
_FASTER = 1.3


@cache
def native_bfloat16() -> bool:
    """Whether this processor has a unit for bfloat16 matrices (AMX). Features are encoded in bfloat16 only there."""
    return bool(torch.cpu._is_amx_tile_supported())


def has_matrix_unit(device: str) -> bool:
    """Whether ``device`` learns faster in bfloat16: an accelerator does, and some CPUs."""
    return device != "cpu" or native_bfloat16() or faster_bfloat16()


@cache
def faster_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones, as measured once in this process.

    With AVX512-BF16 alone some take half as long and others twice as long. All others emulate bfloat16.
    """
    return bool(torch.cpu._is_avx512_bf16_supported()) and seconds(torch.float32) > _FASTER * seconds(torch.bfloat16)


@own_defaults()
def seconds(dtype: torch.dtype) -> float:
    """The least time that the product of two square matrices took."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype)
    took = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        matrix @ matrix
        took.append(time.perf_counter() - started)
    return min(took)
