"""The clock: one timed job at a time, a quiet collector, a peak that nothing hides from."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline import clock
from pipeline.clock import MemoryMeter, machine_lock, measure_limits, quiet

CPU = torch.device("cpu")
HOLD = """
import time
from pipeline.clock import machine_lock
with machine_lock({name!r}):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(name: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD.format(name=name)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_machine_is_held_by_one_job_and_let_go_when_it_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"shufflebench-test-{os.getpid()}.lock"
    first = holder(name)
    second = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(name=name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert second.stderr is not None
    assert second.stdout is not None
    assert "waiting for another timed job" in second.stderr.readline()
    assert second.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    assert second.stdout.readline() == "held\n"
    second.kill()
    first.wait()
    second.wait()
    with machine_lock(name):
        pass


def test_the_collector_is_quiet_inside_and_on_again_after_an_error() -> None:
    seen = []

    def fail() -> None:
        with quiet(CPU):
            seen.append(gc.isenabled())
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert seen == [False]
    assert gc.isenabled()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak between two looks is not seen")
def test_a_peak_that_is_freed_again_is_seen_and_an_old_one_is_forgotten() -> None:
    meter = MemoryMeter(CPU)
    size = 200 * 2**20
    before = meter.resident()
    meter.reset_peak()
    # Not malloc's memory: it may still hold as much that earlier tests freed, and then nothing grows.
    with mmap.mmap(-1, size) as block:
        for _ in range(200):
            block.write(b"\1" * 2**20)
    assert meter.peak() - before > 0.9 * size
    meter.reset_peak()
    assert meter.peak() - meter.resident() < 0.2 * size


def test_limits_are_what_a_plain_loop_measures_within_an_order_of_magnitude() -> None:
    limits = measure_limits(CPU, torch.float32, trials=2)
    data = torch.ones(64 * 2**20)
    started = time.perf_counter()
    data.sum()
    plain = data.nbytes / (time.perf_counter() - started)
    assert plain / 10 < limits.bandwidth_bytes_per_s < 100 * plain
    assert limits.flops_per_s > 1e9


def test_two_threads_are_compared_with_one_and_stay_two() -> None:
    """On one core two threads are as fast as one, on two up to twice as fast; other tests may run beside either."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        scaling = measure_limits(CPU, torch.float32, trials=2).thread_scaling
        assert scaling is not None
        assert 0.1 < scaling < 20.0
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert measure_limits(CPU, torch.float32, trials=2).thread_scaling is None
    finally:
        torch.set_num_threads(before)


def test_threads_that_halve_the_time_scale_by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_best_s", lambda *_: 6.0 / torch.get_num_threads())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert measure_limits(CPU, torch.float32).thread_scaling == 2.0
    finally:
        torch.set_num_threads(before)


def test_a_processor_without_bfloat16_is_held_to_what_it_does_in_float32() -> None:
    """There torch's products in bfloat16 take a hundred times as long: a limit that any engine would be far beyond."""
    in_float32, in_bfloat16 = (measure_limits(CPU, dtype, trials=2) for dtype in (torch.float32, torch.bfloat16))
    assert in_bfloat16.flops_per_s > 0.2 * in_float32.flops_per_s
