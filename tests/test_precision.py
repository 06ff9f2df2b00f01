"""Where bfloat16 is used: as the device says, or as it is measured."""

import pytest
import torch

from hsal_env.perception import precision


@pytest.mark.parametrize(
    ("amx", "avx512", "float32", "bfloat16", "wanted"),
    [
        (True, False, 1.0, 9.0, True),
        (False, True, 2.0, 1.0, True),
        (False, True, 1.0, 2.0, False),
        (False, True, 1.2, 1.0, False),  # no faster than the noise of a measurement
        (False, False, 2.0, 1.0, False),
    ],
)
def test_a_processor_learns_in_bfloat16_where_that_is_faster(monkeypatch, amx, avx512, float32, bfloat16, wanted):
    precision.native_bfloat16.cache_clear()
    precision.faster_bfloat16.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(precision, "seconds", {torch.float32: float32, torch.bfloat16: bfloat16}.__getitem__)
    try:
        assert precision.has_matrix_unit("cpu") is wanted
        assert precision.has_matrix_unit("cuda")
        assert precision.native_bfloat16() is amx  # features are encoded alike on all others
    finally:
        precision.native_bfloat16.cache_clear()
        precision.faster_bfloat16.cache_clear()


def test_a_measurement_takes_time():
    assert 0 < precision.seconds(torch.float32) < 10
