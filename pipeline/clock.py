"""The one timed path: what surrounds every timed call, and the machine's limits that its time is held against.

What makes a time comparable: nothing else is timed on the machine (:func:`machine_lock`), the garbage collector is
quiet and the device idle when it starts (:func:`quiet`). The limits are measured in the same process, since a shared
machine's speed drifts.

Times are the host's on a GPU too, and need no CUDA events: drafting ends with token ids on the host, and so does
verification, so each has waited for the device when its time is read. What events would leave out, the host's own
work between the kernels, is part of what a method costs.

Example::

    with machine_lock():
        limits = measure_limits(torch.device("cpu"), torch.bfloat16)
        with quiet(device):
            generation = decoder.generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

import contextlib
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

from decoding.native import can_sum, sum_of
from decoding.pages import zeros
from pipeline.precision import multiplies_in

# Not the environment's temporary folder, which may be another for each job: the lock is the machine's.
LOCK_FOLDER = Path("/tmp" if os.name == "posix" else tempfile.gettempdir())
READ_BYTES = 512 * 2**20  # more than most caches hold
SCALED_SIDE = 1024  # of a matrix that one thread multiplies in some hundredths of a second
LONG_S = 0.2  # of measuring one limit: a profile has a hundred cells, each of which measures them twice


@contextmanager
def machine_lock(name: str = "shufflebench-timed.lock") -> Iterator[None]:
    """Hold the machine for one timed job; the operating system lets go of it however the process ends."""
    path = LOCK_FOLDER / name
    descriptor = _open_shared(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another timed job on this machine ({path})", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open_shared(path: Path) -> int:
    """Open a file that every user of the machine can lock; a lock needs no right to write."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
        with contextlib.suppress(PermissionError):  # another user was faster
            os.fchmod(descriptor, 0o666)
        return descriptor


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

    A shared machine's best changes, so the limits are measured before and after a cell and the better ones are taken.

    Attributes:
        bandwidth_bytes_per_s: reading memory with all threads.
        flops_per_s: multiplying large matrices in the cell's dtype, or in float32 where a processor lacks that.
        thread_scaling: how many times as fast all threads multiply as one; None on a GPU, and of one thread. Of two
            measurements the lower one counts: it tells whether the threads had cores of their own all along.
    """

    bandwidth_bytes_per_s: float
    flops_per_s: float
    thread_scaling: float | None = None

    def or_better(self, other: Limits) -> Limits:
        """Return the better of two measurements, limit by limit; of how threads scaled, the worse."""
        scalings = [each.thread_scaling for each in (self, other) if each.thread_scaling is not None]
        return Limits(
            max(self.bandwidth_bytes_per_s, other.bandwidth_bytes_per_s),
            max(self.flops_per_s, other.flops_per_s),
            min(scalings, default=None),
        )


def measure_limits(device: torch.device, dtype: torch.dtype, trials: int = 5) -> Limits:
    """Measure memory bandwidth (reading 512 MiB once), the peak of a matrix product and how it grows with threads.

    Of each the best trial counts.

    What is read lies in large pages on a processor, as the engine's weights do, and is summed up: by the compiled
    engine's own loop where there is one, which leaves more of memory's speed than torch's product of matrix and vector
    does; on other machines by that product; on a GPU by the faster of it and torch's sum, many queued at once, so that
    the time of starting them does not count.
    """
    side, queued = (8192, 20) if device.type == "cuda" else (2048, 1)
    bandwidth = _bandwidth(device, side, queued, trials)  # apart, so that what it read is freed
    if not multiplies_in(device, dtype):
        # It lacks this arithmetic: torch is 5 to 100 times slower in it, and the compiled engine is in float32.
        dtype = torch.float32
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    flops_per_s = 2 * side**3 / _best_s(lambda: matrix.matmul(matrix), device, queued, trials)
    return Limits(bandwidth, flops_per_s, _thread_scaling(device, trials))


def _thread_scaling(device: torch.device, trials: int) -> float | None:
    """Compare all threads with one on the same product, within half a second.

    A virtual machine may show two threads of one core as two cores, from one hour to the next.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return None
    matrix = torch.ones(SCALED_SIDE, SCALED_SIDE)
    together = _best_s(lambda: matrix.matmul(matrix), device, 1, trials)
    try:
        torch.set_num_threads(1)
        alone = _best_s(lambda: matrix.matmul(matrix), device, 1, trials)
    finally:
        torch.set_num_threads(threads)
    return alone / together


def _bandwidth(device: torch.device, side: int, queued: int, trials: int) -> float:
    data = zeros(READ_BYTES // (4 * side), side, dtype=torch.float32, device=device).fill_(1)
    if device.type == "cpu" and can_sum():
        return data.nbytes / _best_s(lambda: sum_of(data), device, queued, trials)
    seconds = _best_s(lambda: data.matmul(data[0]), device, queued, trials)
    if device.type == "cuda":  # on an H200 that product read 3.4 TB/s of the 4.8 in its data sheet
        seconds = min(seconds, _best_s(data.sum, device, queued, trials))
    return data.nbytes / seconds


def _best_s(run: Callable[[], object], device: torch.device, queued: int, trials: int) -> float:
    """Return the seconds of one run, in the fastest of ``trials`` of ``queued`` runs; fewer where two take long."""
    times: list[float] = []
    for _ in range(trials + 1):  # the first one warms up
        synchronise(device)
        started = time.perf_counter()
        for _ in range(queued):
            run()
        synchronise(device)
        times.append((time.perf_counter() - started) / queued)
        if len(times) > 2 and queued * sum(times) > LONG_S:
            break
    return min(times[1:])


class MemoryMeter:
    """Peak memory of a call: the allocator's on CUDA, else the process's resident set.

    Where a model is spread over several cards their peaks are added up, at most a little more than there was at once.

    Linux keeps the resident set's own high-water mark and lets a process reset it, so no peak between two looks is
    missed. Elsewhere the resident set is read at the end of a call, which misses what was freed before.
    """

    def __init__(self, device: torch.device, *further: torch.device) -> None:
        self.device, self.cards = device, (device, *further)
        self._process = psutil.Process()
        self._can_reset = sys.platform == "linux" and os.access("/proc/self/clear_refs", os.W_OK)

    def resident(self) -> int:
        """Bytes in use now."""
        if self.device.type == "cuda":
            return sum(torch.cuda.memory_allocated(card) for card in self.cards)
        return int(self._process.memory_info().rss)

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        if self.device.type == "cuda":
            for card in self.cards:
                torch.cuda.reset_peak_memory_stats(card)
        elif self._can_reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        """Most bytes in use since the last reset."""
        if self.device.type == "cuda":
            return sum(torch.cuda.max_memory_allocated(card) for card in self.cards)
        if self._can_reset:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            return 1024 * int(status.split("VmHWM:")[1].split()[0])
        return self.resident()
