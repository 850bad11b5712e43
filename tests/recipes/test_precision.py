"""The precision that a device is fast in."""

import pytest
import torch
from common import precision
from common.precision import fast_dtype, fast_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("has_instructions", "dtype"), [(True, torch.bfloat16), (False, torch.float32)]
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(
    monkeypatch, has_instructions, dtype
):
    class Ops:
        class mkldnn:  # noqa: N801
            _is_mkldnn_bf16_supported = staticmethod(lambda: has_instructions)

    monkeypatch.setattr(precision.torch, "ops", Ops)
    assert fast_dtype(CPU) == dtype
    with fast_precision(CPU):
        product = torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3))
    assert product.dtype == dtype


def test_other_devices_compute_in_float32():
    assert fast_dtype(torch.device("meta")) == torch.float32
