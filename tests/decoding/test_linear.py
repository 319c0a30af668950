"""Layers on the CPU, and what a device gives that keeps a product's sums in float32, by a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from decoding import CandidateTree, TargetModel
from decoding.linear import DenseLinear, gives_float32, make_linear
from tests.decoding.tiny import save_model

CPU = torch.device("cpu")


@pytest.fixture
def keeps_sums(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the CPU multiply as CUDA does: bfloat16 numbers, float32 sums."""

    def mm(a: Tensor, b: Tensor, out_dtype: Any) -> Tensor:
        return (a.float() @ b.float()).to(out_dtype)

    gives_float32.cache_clear()
    monkeypatch.setattr(torch, "mm", mm)
    yield
    gives_float32.cache_clear()


def layer_and_rows(bias: bool = False) -> tuple[DenseLinear, Tensor]:
    numbers = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 24, generator=numbers).bfloat16()
    return DenseLinear(weight, weight[:, 0].clone() if bias else None), torch.randn(3, 24, generator=numbers).bfloat16()


def test_sums_that_a_device_keeps_are_not_rounded(keeps_sums: None) -> None:
    layer, rows = layer_and_rows()
    found = layer.in_float32(rows)
    assert found.dtype == torch.float32
    assert torch.equal(found, rows.float() @ layer.weight.float().T)
    assert not torch.equal(found, found.bfloat16().float())  # else this would show nothing


def test_with_a_bias_or_without_such_a_device_a_layer_is_as_called() -> None:
    gives_float32.cache_clear()
    assert not gives_float32(CPU, torch.bfloat16)
    for bias in (False, True):
        layer, rows = layer_and_rows(bias)
        assert torch.equal(layer.in_float32(rows), layer(rows))
    packed = make_linear(layer.weight)
    assert torch.equal(packed.in_float32(rows), packed(rows))


def test_a_bias_is_not_left_out(keeps_sums: None) -> None:
    layer, rows = layer_and_rows(bias=True)
    assert torch.equal(layer.in_float32(rows), layer(rows))


def test_float32_has_nothing_to_keep(keeps_sums: None) -> None:
    assert not gives_float32(CPU, torch.float32)


def test_an_engine_s_logits_are_those_sums(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keeps_sums: None) -> None:
    monkeypatch.setattr("decoding.linear.can_pack", lambda device, dtype: False)  # as on a GPU
    save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path, dtype=torch.bfloat16, engine="eager")
    cache = target.new_cache(64)
    outputs = [target.prefill(cache, [5, 6, 7]), target.read(cache, CandidateTree.chain(8, [9]))]
    for output in outputs:
        assert output.logits.dtype == torch.float32
        assert torch.equal(output.logits, output.hidden.float() @ target.weights.embedding.float().T)
