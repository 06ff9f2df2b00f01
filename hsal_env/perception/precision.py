"""Whether this machine computes faster in bfloat16 than in float32."""

from __future__ import annotations

from functools import cache

import torch


@cache
def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (AMX).

    If it does not, float32 is both more precise and faster: a processor with AVX512-BF16 but no AMX was measured at half of its
    float32 rate.
    """
    return bool(torch.cpu._is_amx_tile_supported())


def has_matrix_unit(device: str) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices faster than float32 ones: an accelerator does, and a CPU with AMX."""
    return device != "cpu" or native_bfloat16()
