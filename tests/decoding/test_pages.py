"""Memory in large pages: zeros of any shape, at the start of a large page, that live as long as who looks at them."""

from __future__ import annotations

import gc
import mmap
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from decoding.native import NativeLinear
from decoding.pages import LARGE, STRETCH, Stretches, zeros

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_of(address: int) -> list[str]:
    """What the kernel notes of the mapping that holds ``address``."""
    mapping = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := mapping.match(line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
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


@pytest.mark.skipif(not SETTING.exists(), reason="this kernel has no large pages to ask for")
def test_large_pages_are_asked_for() -> None:
    memory = zeros(3 * LARGE, dtype=torch.uint8)
    assert memory.data_ptr() % LARGE == 0
    assert "hg" in flags_of(memory.data_ptr())  # whether there are any left is the system's affair
    assert "hg" not in flags_of(zeros(LARGE // 2, dtype=torch.uint8).data_ptr())


def test_another_device_has_memory_of_its_own() -> None:
    assert zeros(2 * LARGE, dtype=torch.float32, device=torch.device("meta")).is_meta


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


def test_what_is_kept_lies_side_by_side_and_as_it_was() -> None:
    torch.manual_seed(0)
    stretches = Stretches()
    tensors = [torch.randn(48, 17), torch.randn(33, 5).bfloat16(), torch.randint(0, 9, (7,)).byte(), torch.randn(0, 3)]
    kept = [stretches.keep(tensor) for tensor in (*tensors, tensors[0])]
    for copy, tensor in zip(kept, (*tensors, tensors[0]), strict=True):
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)
        assert copy.data_ptr() != tensor.data_ptr() or not tensor.numel()
    starts = [copy.data_ptr() for copy in kept if copy.numel()]
    ends = [copy.data_ptr() + copy.nbytes for copy in kept if copy.numel()]
    assert all(start % 64 == 0 for start in starts)
    assert all(0 <= start - end < 64 for start, end in zip(starts[1:], ends, strict=False))


def test_where_a_stretch_has_too_little_left_another_begins() -> None:
    stretches = Stretches()
    small, large = torch.full((5,), 1.0), torch.full((STRETCH // 4 - 8,), 2.0)
    first, second, third, fourth = (stretches.keep(tensor) for tensor in (small, large, large, small))
    assert (first == 1).all()
    assert (second == 2).all()
    assert (third == 2).all()
    assert torch.equal(fourth, small)
    larger = torch.arange(STRETCH // 4 + 1)
    assert torch.equal(stretches.keep(larger), larger)


def test_threads_are_given_memory_of_their_own() -> None:
    stretches = Stretches()
    tensors = [torch.full((4000,), float(k)) for k in range(200)]
    with ThreadPoolExecutor(4) as threads:
        kept = list(threads.map(stretches.keep, tensors))
    assert all(map(torch.equal, kept, tensors))


def test_a_layer_of_the_compiled_code_says_where_it_was_kept() -> None:
    layer = NativeLinear(torch.randn(48, 17))
    assert layer.whole().weight == layer.weight.data_ptr()
    assert layer.weight.data_ptr() % 64 == 0
