"""Memory in the system's large pages, for what is read from end to end again and again: weights, keys and values.

The processor keeps the addresses of some thousand pages at hand, and has to look up every other one, which in a virtual
machine takes two tables. In pages of 4 KiB half a gigabyte of weights are 130,000 of them, in large pages 260. Linux
gives those where it is asked (``transparent_hugepage`` is ``madvise`` or ``always``); elsewhere the memory is as any
other.

Example::

    memory = zeros(30, 2, 3, capacity, 64, dtype=torch.bfloat16)
    weight = keep(weight)                                           # a copy, beside those that were kept before
"""

from __future__ import annotations

import contextlib
import mmap
from math import prod
from threading import Lock

import torch
from jaxtyping import Shaped
from torch import Tensor

CPU = torch.device("cpu")
LARGE = 1 << 21  # bytes of a large page, on x86 and on Arm with small pages of 4 KiB
STRETCH = 32 * LARGE  # bytes that what is kept shares; of those that nothing was written to, there is no memory
LINE = 64  # bytes of a line of the processor's cache


def zeros(*shape: int, dtype: torch.dtype, device: torch.device = CPU) -> Shaped[Tensor, "*shape"]:
    """Return zeros: on a processor in large pages, where the system has them and one of them would be filled."""
    num_bytes = prod(shape) * dtype.itemsize
    memory = _map(num_bytes + LARGE) if device.type == "cpu" and num_bytes >= LARGE else None
    if memory is None:
        return torch.zeros(shape, dtype=dtype, device=device)
    everything = torch.frombuffer(memory, dtype=torch.uint8)
    first = -everything.data_ptr() % LARGE
    return everything[first : first + num_bytes].view(dtype).view(shape)


def _map(num_bytes: int) -> mmap.mmap | None:
    """Return memory that has asked for large pages, or None where there is none to be had."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # too little is free: torch, which is asked next, says so in its own words
        return None
    with contextlib.suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class Stretches:
    """Copies side by side, each at the start of a line, in stretches of memory that live as long as any of them."""

    def __init__(self) -> None:
        self._free = zeros(0, dtype=torch.uint8)
        self._lock = Lock()

    def keep(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return a copy of a contiguous tensor."""
        size = tensor.nbytes + -tensor.nbytes % LINE
        with self._lock:
            if size > len(self._free):
                self._free = zeros(max(size, STRETCH), dtype=torch.uint8)
            memory, self._free = self._free[: tensor.nbytes], self._free[size:]
        return memory.view(tensor.dtype).view(tensor.shape).copy_(tensor)


keep = Stretches().keep
