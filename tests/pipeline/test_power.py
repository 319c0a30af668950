"""Energy and clocks, against a stand-in of NVIDIA's library."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.cell_summary import drawn
from pipeline.power import PowerMeter, figures, meter_of, summed

CPU = torch.device("cpu")


class Library:
    """Two cards that draw 100 and 50 joules between two looks; the clock of each is its own."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.millijoules = {"GPU-a": 5_000, "GPU-b": 7_000}
        self.fails: set[str] = set()

    def _check(self, name: str) -> None:
        if name in self.fails:
            raise self.NVMLError(name)

    def nvmlInit(self) -> None:  # noqa: N802
        self._check("init")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self._check(uuid)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, card: str) -> int:  # noqa: N802
        self._check("energy")
        self.millijoules[card] += {"GPU-a": 100_000, "GPU-b": 50_000}[card]
        return self.millijoules[card]

    def nvmlDeviceGetClockInfo(self, card: str, kind: int) -> int:  # noqa: N802
        assert kind == self.NVML_CLOCK_SM
        return {"GPU-a": 2000, "GPU-b": 1000}[card]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake = Library()
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    return fake


def read(meter: PowerMeter) -> dict[str, float]:
    with meter.reading() as reading:
        assert reading == {}
    return reading


def test_a_reading_is_what_the_cards_counted_meanwhile(library: Library) -> None:
    reading = read(PowerMeter(["GPU-a", "GPU-b"]))
    assert reading["energy_j"] == pytest.approx(150)
    assert reading["sm_clock_mhz"] == 1500
    assert reading["seconds"] > 0
    assert read(PowerMeter(["GPU-a"]))["energy_j"] == pytest.approx(100)


@pytest.mark.parametrize("fails", ["init", "GPU-a", "energy"])
def test_a_card_that_does_not_tell_gives_no_reading(library: Library, fails: str) -> None:
    library.fails.add(fails)
    assert read(PowerMeter(["GPU-a"])) == {}


def test_without_the_library_or_a_card_there_is_no_reading(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    assert read(meter_of([CPU])) == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)  # what makes an import fail
    assert read(PowerMeter(["GPU-a"])) == {}


def test_cards_are_found_by_what_they_are_and_not_by_their_number(
    monkeypatch: pytest.MonkeyPatch, library: Library
) -> None:
    """CUDA_VISIBLE_DEVICES renumbers the cards for torch, and not for the library."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda card: SimpleNamespace(uuid="ab"[1 - card.index]))
    meter = meter_of([torch.device("cuda", 0)])
    assert read(meter)["energy_j"] == pytest.approx(50)  # card b


def test_figures_are_sums_by_sums() -> None:
    readings = [
        {"energy_j": 100.0, "seconds": 1.0, "sm_clock_mhz": 1000.0},
        {"energy_j": 500.0, "seconds": 3.0, "sm_clock_mhz": 2000.0},
    ]
    assert figures(readings, num_tokens=60) == {
        "mean_power_w": 150.0,
        "sm_clock_mhz": 1750.0,
        "energy_per_token_j": 10.0,
    }
    assert summed([]) == figures([], 3) == figures([*readings, {}], 3) == {}


def test_a_cell_counts_the_tokens_of_every_trial() -> None:
    power = {"energy_j": 90.0, "seconds": 2.0, "sm_clock_mhz": 1000.0}
    record: dict[str, Any] = {"method": {"num_new_tokens": 10}, "power": power}
    assert drawn([record, record], repeats=3)["energy_per_token_j"] == pytest.approx(180 / 60)
    assert drawn([record, {"method": {"num_new_tokens": 10}}], repeats=3) == {}
