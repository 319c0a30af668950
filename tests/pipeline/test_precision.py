"""Which arithmetic a device has, and which is emulated."""

from __future__ import annotations

import pytest
import torch

from pipeline import machine, precision
from pipeline.precision import multiplies_in
from pipeline.training_work import trains_in_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "answers"),
    [
        ({"avx2", "avx512f", "avx512_vnni"}, False),  # oneDNN supports bfloat16 there, by emulating it
        ({"avx2", "avx512f", "avx512_bf16"}, True),
        ({"asimd"}, False),
        ({"asimd", "bf16"}, True),
    ],
)
def test_emulated_bfloat16_is_none(monkeypatch: pytest.MonkeyPatch, flags: set[str], answers: bool) -> None:
    monkeypatch.setattr(machine, "_cpu", lambda: ("Some processor", flags))
    monkeypatch.setattr(precision, "can_pack", lambda device, dtype: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert multiplies_in(CPU, torch.bfloat16) is answers
    assert trains_in_bfloat16() is answers
    assert multiplies_in(CPU, torch.float32)


def test_what_torch_cannot_multiply_fast_is_none_whatever_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpu", lambda: ("Some processor", {"avx512_bf16"}))
    monkeypatch.setattr(precision, "can_pack", lambda device, dtype: False)
    assert not multiplies_in(CPU, torch.bfloat16)
    assert multiplies_in(torch.device("cuda"), torch.bfloat16)
