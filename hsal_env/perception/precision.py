"""Where bfloat16 pays."""

from __future__ import annotations

from functools import cache

import torch


@cache
def native_bfloat16() -> bool:
    """Whether this processor has a unit that multiplies bfloat16 matrices (AMX).

    Otherwise float32 is finer and faster: a processor with AVX512-BF16 alone was measured at half of its float32 rate.
    """
    return bool(torch.cpu._is_amx_tile_supported())


def has_matrix_unit(device: str) -> bool:
    """Whether bfloat16 matrices are multiplied faster than float32 ones: an accelerator, or a CPU with AMX."""
    return device != "cpu" or native_bfloat16()
