"""Layers of drafting parts: the compiled product against rounding by hand, and torch's where there is none."""

from __future__ import annotations

import pytest
import torch

from decoding import part_layers
from decoding.native.product import NativeProduct, can_multiply
from decoding.part_layers import part_layer, rows_dtype

CPU = torch.device("cpu")

needs_library = pytest.mark.skipif(not can_multiply(CPU), reason="no compiled library here")


@needs_library
@pytest.mark.parametrize("rows", [0, 1, 4, 7, 16, 17, 40])
@pytest.mark.parametrize(("inner", "outer"), [(1, 1), (33, 17), (64, 50), (96, 200)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_product_is_that_of_what_was_rounded(rows: int, inner: int, outer: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    weight, x, bias = torch.randn(outer, inner), torch.randn(rows, inner), torch.randn(outer)
    layer = NativeProduct(weight, bias if with_bias else None)
    expected = x.bfloat16().double() @ weight.bfloat16().double().T + (bias.double() if with_bias else 0)
    torch.testing.assert_close(layer(x), expected.float(), atol=1e-4, rtol=1e-4)
    residual = torch.randn(rows, outer)
    torch.testing.assert_close(layer.add(x, residual), (expected + residual).float(), atol=1e-4, rtol=1e-4)
    assert layer.num_bytes == 2 * inner * outer


@needs_library
def test_a_row_is_the_same_whatever_rows_are_beside_it() -> None:
    torch.manual_seed(0)
    layer, x = NativeProduct(torch.randn(40, 33), torch.randn(40)), torch.randn(33, 20).T  # not contiguous
    together = layer(x)
    assert all(torch.equal(layer(x[i : i + 1])[0], together[i]) for i in range(20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_library_torch_computes_in_the_targets_dtype(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_layers, "can_multiply", lambda device: False)
    weight, x = torch.randn(6, 5), torch.randn(3, 5).to(dtype)
    layer = part_layer(weight, None, dtype, CPU)
    assert rows_dtype(dtype, CPU) == layer(x).dtype == dtype
    torch.testing.assert_close(layer(x), x @ weight.to(dtype).T)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_one_the_weight_is_in_bfloat16_beside_any_target(dtype: torch.dtype) -> None:
    layer = part_layer(torch.randn(6, 5), None, dtype, CPU)
    assert layer.num_bytes == 2 * 30
    assert rows_dtype(dtype, CPU) == layer(torch.randn(3, 5)).dtype == torch.float32
