"""Memory in large pages: zeros of any shape, at the start of a large page, that live as long as who looks at them."""

from __future__ import annotations

import gc
import mmap
import re
from pathlib import Path

import pytest
import torch

from decoding.native import NativeLinear
from decoding.native.layers import move_to_large_pages
from decoding.pages import LARGE, zeros

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def kilobytes_in_large_pages(address: int) -> int:
    """What the kernel says of the mapping that holds ``address``."""
    mapping = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := mapping.match(line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    raise AssertionError(f"no mapping holds {address:#x}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", [(3,), (2, 0, 5), (5, 300, 701)])
def test_they_are_zeros_of_their_shape_and_can_be_written(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    memory = zeros(*shape, dtype=dtype)
    assert memory.shape == shape
    assert memory.dtype == dtype
    assert memory.is_contiguous()
    assert not memory.any()
    memory.fill_(3)
    assert (memory == 3).all()


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="this kernel gives no large pages")
def test_they_are_in_large_pages() -> None:
    memory = zeros(3 * LARGE, dtype=torch.uint8).fill_(1)
    assert memory.data_ptr() % LARGE == 0
    held = kilobytes_in_large_pages(memory.data_ptr())
    if held == 0:
        pytest.skip("no large page is free")
    assert held >= 2 * LARGE // 1024


def test_without_them_the_memory_is_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    memory = zeros(LARGE, dtype=torch.float32)
    assert memory.shape == (LARGE,)
    assert not memory.any()


def test_a_part_of_it_outlives_the_whole() -> None:
    part = zeros(2, LARGE, dtype=torch.float32)[1].fill_(7)
    gc.collect()
    others = [zeros(LARGE, dtype=torch.float32).fill_(k) for k in range(3)]
    assert (part == 7).all()
    assert [int(other[5]) for other in others] == [0, 1, 2]


def test_weights_lie_side_by_side_and_say_what_they_said() -> None:
    torch.manual_seed(0)
    layers = [
        NativeLinear(torch.randn(48, 1700)),
        NativeLinear(torch.randn(33, 1701).bfloat16()),
        NativeLinear(torch.randn(900, 700)),
    ]
    before = [layer.weight.clone() for layer in layers]
    move_to_large_pages(layers)
    for layer, weight in zip(layers, before, strict=True):
        assert torch.equal(layer.weight, weight)
        assert layer.whole().weight == layer.weight.data_ptr()
        assert layer.weight.data_ptr() % 64 == 0
    starts = [layer.weight.data_ptr() for layer in layers]
    ends = [layer.weight.data_ptr() + layer.weight.nbytes for layer in layers]
    assert all(0 <= start - end < 64 for start, end in zip(starts[1:], ends, strict=False))
