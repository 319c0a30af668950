"""The one timed path: what surrounds every timed call, and the machine's limits that its time is held against.

What makes a time comparable: nothing else is timed on the machine (:func:`machine_lock`), the garbage collector is
quiet and the device idle when it starts (:func:`quiet`), and memory is counted from a floor that was read before any
model was loaded (:class:`MemoryMeter`). The limits are measured in the same process: a shared machine's speed drifts.

Example::

    with machine_lock():
        limits = measure_limits(torch.device("cpu"), torch.bfloat16)
        with quiet(device):
            generation = decoder.generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

import fcntl
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

READ_BYTES = 512 * 2**20  # more than most caches hold
MATRIX_SIDE = 2048


@contextmanager
def machine_lock(name: str = "shufflebench-timed.lock") -> Iterator[None]:
    """Hold the machine for one timed job; the operating system lets go of it however the process ends."""
    path = Path(tempfile.gettempdir()) / name
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another timed job on this machine ({path})", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def settle() -> None:
    """Take all that is loaded out of the garbage collector's sight, so that :func:`quiet` costs next to nothing."""
    gc.collect()
    gc.freeze()


@contextmanager
def quiet(device: torch.device) -> Iterator[None]:
    """Keep the garbage collector out of a timed call, and begin and end it with an idle device."""
    gc.collect()
    gc.disable()
    synchronise(device)
    try:
        yield
    finally:
        synchronise(device)
        gc.enable()


@dataclass(frozen=True)
class Limits:
    """What the machine could do at best, measured.

    Attributes:
        bandwidth_bytes_per_s: reading memory with all threads.
        flops_per_s: multiplying large matrices in the cell's dtype.
    """

    bandwidth_bytes_per_s: float
    flops_per_s: float


def measure_limits(device: torch.device, dtype: torch.dtype, trials: int = 5) -> Limits:
    """Measure memory bandwidth (a matrix-vector product over 512 MiB) and the peak of a matrix product; best trial."""
    data = torch.ones(READ_BYTES // (4 * MATRIX_SIDE), MATRIX_SIDE, device=device)
    read_s = _best(data.matmul, data[0], device, trials)
    bandwidth = data.nbytes / read_s
    del data
    matrix = torch.ones(MATRIX_SIDE, MATRIX_SIDE, device=device, dtype=dtype)
    multiply_s = _best(matrix.matmul, matrix, device, trials)
    return Limits(bandwidth, 2 * MATRIX_SIDE**3 / multiply_s)


def _best(
    product: Callable[[torch.Tensor], torch.Tensor], other: torch.Tensor, device: torch.device, trials: int
) -> float:
    """Return the seconds of the fastest of ``trials`` products."""
    times = []
    for _ in range(trials + 1):  # the first one warms up
        synchronise(device)
        started = time.perf_counter()
        product(other)
        synchronise(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


class MemoryMeter:
    """Peak memory of a call: the allocator's on CUDA, else the process's resident set.

    Linux keeps the resident set's own high-water mark and lets a process reset it, so no peak between two looks is
    missed. Elsewhere the resident set is read at the end of a call, which misses what was freed before.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._process = psutil.Process()
        self._can_reset = sys.platform == "linux" and os.access("/proc/self/clear_refs", os.W_OK)

    def resident(self) -> int:
        """Bytes in use now."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return int(self._process.memory_info().rss)

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self._can_reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        """Most bytes in use since the last reset."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self._can_reset:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            return 1024 * int(status.split("VmHWM:")[1].split()[0])
        return self.resident()
