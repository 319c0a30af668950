"""What is recorded once and replayed, on a CPU against stand-ins of torch.cuda: heads and mixer as they draft."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_model

from baselines.medusa import MedusaDrafter
from decoding import Sampling, TargetModel, part_layers
from decoding.pool import CachePool
from decoding.replay import Replayed, ReplayedRows
from pipeline.methods import build_decoder
from shuffle.fasterdecodemixer.guesses import DecodingMixer
from tests.decoding.cuda_standins import Device, frozen, ranking_frozen, stand_in
from tests.pipeline.standins import save_parts, save_target

CPU = torch.device("cpu")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return stand_in(monkeypatch)


def as_captured(seen: Device, method: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    return lambda self, *given: frozen(seen, lambda *inputs: tuple(method(self, *inputs)), monkeypatch)(*given)


def test_every_call_gives_what_the_function_gives(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed = Replayed(frozen(device, lambda a, b: (a + b, a * b), monkeypatch), CPU)
    for a in (2.0, 3.0, -1.0):
        total, product = replayed(torch.tensor([a]), torch.tensor([5]))
        assert (total.item(), product.item()) == (a + 5, a * 5)
    assert device.calls.count("capture") == 1
    assert device.calls.count("replay") == 3


def test_where_it_cannot_be_recorded_it_is_run_and_says_why(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.problem = "operation not permitted when stream is capturing\nand more"
    replayed = Replayed(frozen(device, lambda a: (a + 1,), monkeypatch), CPU)
    assert [replayed(torch.tensor([a]))[0].item() for a in (1, 7)] == [2, 8]
    assert replayed.problem == "operation not permitted when stream is capturing"
    assert device.calls.count("capture") == 1  # not tried again


def test_on_a_processor_nothing_is_recorded() -> None:
    replayed = Replayed(lambda a: (a + 1,), CPU)
    assert replayed(torch.tensor([1]))[0].item() == 2
    assert replayed.problem is None


def test_rows_are_recorded_for_powers_of_two(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed = ReplayedRows(frozen(device, lambda rows: (rows.sum(1), 2 * rows), monkeypatch), most=6)
    replayed(torch.randn(3, 7))
    assert device.calls.count("capture") == 4  # of 1, 2, 4 and 8 rows, at once
    for _ in range(2):
        for count in (1, 2, 3, 4, 5, 8):
            rows = torch.randn(count, 7)
            total, double = replayed(rows)
            assert torch.equal(total, rows.sum(1))
            assert torch.equal(double, 2 * rows)
    assert device.calls.count("capture") == 4
    replayed(torch.randn(3, 9))  # another width
    replayed(torch.randn(9, 7))  # more rows than was said
    assert device.calls.count("capture") == 6


# How many graphs each records: heads or mixer one, recycling's ranking one for each power of two up to its trees' 16.
@pytest.mark.parametrize(
    ("method", "captures"),
    [("medusa", 1), ("fasterdecodemixer", 1), ("fasterdecodemixer_raw", 1), ("recycling", 5), ("union", 6)],
)
def test_drafts_that_are_replayed_are_those_that_are_computed(
    method: str, captures: int, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(part_layers, "can_multiply", lambda device: False)  # as on a GPU
    folder, parts = save_target(tmp_path / "target"), save_parts(tmp_path / "parts")
    prompt = list(range(3, 20))

    def steps() -> list[tuple[int, int]]:
        target = TargetModel.from_pretrained(folder, engine="eager")
        target._graphs = None
        decoder = build_decoder(method, {}, target, parts, Sampling())
        generations = [decoder.generate(prompt, max_new_tokens=24) for _ in range(2)]
        return [(step.candidates, step.accepted) for each in generations for step in each.steps]

    for owner, name in ((MedusaDrafter, "_top"), (DecodingMixer, "_guess")):
        monkeypatch.setattr(owner, name, as_captured(device, getattr(owner, name), monkeypatch))
    ranking_frozen(device, monkeypatch)
    found = steps()
    assert device.calls.count("capture") == captures
    assert device.calls.count("replay") > 2
    with monkeypatch.context() as patch:
        patch.setattr("decoding.graphs.DEVICE_TYPES", ())
        assert found == steps()


def test_a_pool_is_gone_with_its_caches(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path, engine="eager")
    pool = CachePool(2, target.weights, 64)
    caches, gone = pool.caches(), weakref.ref(pool)
    del pool
    gc.disable()
    try:
        target.read_each(caches, [3, 4])
        assert gone() is not None
        del caches
        assert gone() is None
    finally:
        gc.enable()
