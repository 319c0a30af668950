"""How a cell times: both sides warm, in turn, each trial apart and quiet; the peak is the method's own; the lock held.

What generates is replaced by a list that notes who was asked for how much: nothing depends on a machine's speed.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from decoding import Generation
from pipeline import cell, clock, generate
from pipeline.clock import Limits
from pipeline.precision import precision_of
from tests.pipeline import standins

GROWTH = [3, 7, 5]  # bytes that the method's trials of one prompt take at most


class Meter:
    """A memory of whose bytes a test decides."""

    in_use = 1000
    highest = 10**9  # of something long ago: who does not reset it sees it

    def resident(self) -> int:
        return self.in_use

    def reset_peak(self) -> None:
        self.highest = self.in_use

    def peak(self) -> int:
        return self.highest


def spec_of(folder: Path, **changes: Any) -> cell.CellSpec:
    values = {"model_dir": folder / "model", "dtype": "float32", "method": "prompt_lookup", "options": {}}
    values |= {"task": "toy", "requests": folder / "toy.jsonl", "seed": 0, "sampling": {"temperature": 0.0}}
    values |= {"repeats": 3, "warmup_prompts": 2, "device": "cpu", "num_threads": 1, "output": folder / "cell"}
    return cell.CellSpec(**(values | {"parts": {}} | changes))


@pytest.mark.parametrize(("asked", "given"), [(None, "default"), (1, 1), (8, 8)])
def test_the_target_is_loaded_with_the_rows_that_the_cell_asks_for(
    asked: int | None, given: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(cell.TargetModel, "from_pretrained", lambda folder, **options: seen.update(options))
    bench = SimpleNamespace(
        spec=spec_of(tmp_path, decode_width=asked), precision=precision_of("float32"), device="cpu", devices=["cpu"]
    )
    cell.Bench.load_target(bench)  # type: ignore[arg-type]
    assert seen["decode_width"] == given


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Who was asked for how many tokens at most, and when it was quiet."""
    noted: list[Any] = []

    def note(bench: cell.Bench, generates: Any, request: dict[str, Any], limit: int | None = None) -> Generation:
        is_method, meter = generates is bench.method, bench.meter
        noted.append(("method" if is_method else "baseline", limit))
        if limit == cell.WARM_UP_TOKENS:
            meter.in_use += 100  # what is loaded and kept; the baseline's comes after the method's was read
        elif limit is None:
            trial = noted.count(("method", None)) - 1
            meter.highest = max(meter.highest, meter.in_use + (GROWTH[trial % 3] if is_method else 5000))
        return Generation((3, 4), 1, truncated=True, ttft_s=1.0, steps=())

    @contextmanager
    def quiet(device: torch.device) -> Iterator[None]:
        noted.append("quiet")
        yield
        noted.append("loud")

    monkeypatch.setattr(cell.Bench, "run", note)
    monkeypatch.setattr(cell, "quiet", quiet)
    monkeypatch.setattr(cell, "MemoryMeter", lambda *devices: Meter())
    monkeypatch.setattr(cell, "measure_limits", lambda *given: Limits(1.0, 1.0))
    monkeypatch.setattr(cell, "settle", lambda: None)  # it would freeze what other tests leave to be collected
    return noted


@pytest.mark.parametrize("compiled", [True, False])
def test_trials_take_turns_each_apart_and_quiet_behind_warm_ups_of_both(
    log: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    """On torch both also meet each prompt's shape untimed."""
    monkeypatch.setattr(cell, "meets_shapes_anew", lambda generates: not compiled)
    standins.save_target(tmp_path / "model")
    requests = standins.requests(2)
    bench = cell.Bench(spec_of(tmp_path), requests, longest=64)
    assert log == [(name, 16) for name in ("method", "baseline") for _ in requests]
    for request, turns in zip(requests, ("bm mb bm", "mb bm mb"), strict=True):
        log.clear()
        record = bench.measure(request)
        untimed, timed = ([], log) if compiled else (log[:2], log[2:])
        assert untimed == ([] if compiled else [("baseline", 2), ("method", 2)])
        assert [timed[0::3], timed[2::3]] == [["quiet"] * 6, ["loud"] * 6]
        assert [name[0] for name, _ in timed[1::3]] == list(turns.replace(" ", ""))
        assert {limit for _, limit in timed[1::3]} == {None}
        # What the method keeps after its two warm-ups, and the most that a trial of its own took above that.
        assert record["peak_memory_bytes"] == 200 + max(GROWTH)


@pytest.mark.parametrize(
    ("compiled", "asked", "met"),
    [(True, 0, [3]), (True, 1, [3]), (True, 2, [0, 3]), (False, 0, []), (False, 1, [0]), (True, 4, [0, 1, 2, 3])],
)
def test_the_longest_prompt_is_met_before_it_is_timed(
    compiled: bool, asked: int, met: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Untimed later where shapes are met anew; else it is one of those that warm up."""
    seen: list[int] = []
    monkeypatch.setattr(cell, "meets_shapes_anew", lambda generates: not compiled)
    monkeypatch.setattr(cell, "unlearned", lambda generates: nullcontext())
    requests = [{"prompt_id": n, "prompt_ids": [1] * (2 + n)} for n in range(4)]

    def run(generates: Any, request: dict[str, Any], limit: int) -> None:
        seen.append(request["prompt_id"])

    bench = SimpleNamespace(spec=spec_of(tmp_path, warmup_prompts=asked), run=run)
    cell.Bench.warm_up(bench, object(), requests)  # type: ignore[arg-type]
    assert seen == met


def test_a_cell_computes_with_as_many_threads_as_it_is_told(log: list[Any], tmp_path: Path) -> None:
    standins.save_target(tmp_path / "model")
    before = torch.get_num_threads()
    try:
        cell.Bench(spec_of(tmp_path, num_threads=before + 1), standins.requests(1), longest=64)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_cell_is_run_while_it_holds_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextmanager
    def machine_lock() -> Iterator[None]:
        events.append("held")
        yield
        events.append("let go")

    def run_cell(*given: Any) -> tuple[list[Any], dict[str, Any]]:
        events.append("run")
        return [], {"status": "ok"}

    spec = spec_of(tmp_path)
    spec.model_dir.mkdir()
    (spec.model_dir / "config.json").write_text("{}")
    spec.requests.write_text('{"prompt_id": 0}\n')
    monkeypatch.setattr(clock, "machine_lock", machine_lock)
    monkeypatch.setattr(cell, "run_cell", run_cell)
    generate.work(Namespace(**vars(spec), worker=True))
    assert events == ["held", "run", "let go"]
    assert (spec.output / "cell.json").is_file()
