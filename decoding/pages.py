"""Memory in the system's large pages, for what is read from end to end again and again: weights, keys and values.

The processor keeps the addresses of some thousand pages at hand, and has to look up every other one, which in a virtual
machine takes two tables. In pages of 4 KiB half a gigabyte of weights are 130,000 of them, in large pages 260. Linux
gives those where it is asked (``transparent_hugepage`` is ``madvise`` or ``always``); elsewhere the memory is as any
other.

Example::

    memory = zeros(30, 2, 3, capacity, 64, dtype=torch.bfloat16)
"""

from __future__ import annotations

import contextlib
import mmap
from math import prod

import torch
from jaxtyping import Shaped
from torch import Tensor

LARGE = 1 << 21  # bytes of a large page, on x86 and on Arm with small pages of 4 KiB


def zeros(*shape: int, dtype: torch.dtype) -> Shaped[Tensor, "*shape"]:
    """Return zeros, in large pages where the system has them and one of them would be filled."""
    num_bytes = prod(shape) * dtype.itemsize
    if num_bytes < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes + LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    everything = torch.frombuffer(memory, dtype=torch.uint8)
    first = -everything.data_ptr() % LARGE
    return everything[first : first + num_bytes].view(dtype).view(shape)
