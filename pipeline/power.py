"""What the graphics cards draw while a call is timed, where NVIDIA's management library tells.

The library comes with ``nvidia-ml-py`` (``pip install -e .[gpu]``); without it, without a card or on a card that does
not count its energy there are no figures. The card itself counts joules, so that nothing has to sample beside the timed
call; the counter is read before and after it, while the device is idle. It is renewed some ten times a second: a single
short call says little, a cell's sum is right. The clock is read as the call ends.

Tested with a stand-in of the library; on an H200 it told 1.0 J a token of SmolLM2-135M, at 168 W.

Example::

    meter = meter_of([torch.device("cuda", 0)])
    with meter.reading() as reading:
        decoder.generate(prompt_ids, max_new_tokens=64)
    reading            # {"energy_j": 412.0, "seconds": 1.3, "sm_clock_mhz": 2520.0}
    figures([reading], num_tokens=64)    # {"mean_power_w": 317.0, "sm_clock_mhz": 2520.0, "energy_per_token_j": 6.4}
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

Reading = dict[str, float]  # energy_j, seconds, sm_clock_mhz; empty where the cards do not tell


class PowerMeter:
    """Energy and clock of some cards together.

    Args:
        uuids: the cards, as ``nvidia-smi -L`` names them. Not by number: CUDA counts the visible ones alone.
    """

    def __init__(self, uuids: Sequence[str]) -> None:
        self._library: Any = None
        self._cards: list[Any] = []
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            return
        try:
            library.nvmlInit()
            self._cards = [library.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        except library.NVMLError:
            return  # no driver, or a part of a card (MIG), which has no counter of its own
        self._library = library

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Yield what becomes the reading of the block when it ends."""
        reading: Reading = {}
        before, started = self._energy_j(), time.perf_counter()
        yield reading
        seconds, after, clock = time.perf_counter() - started, self._energy_j(), self._sm_clock_mhz()
        if before is not None and after is not None and clock is not None:
            reading.update(energy_j=after - before, seconds=seconds, sm_clock_mhz=clock)

    def _energy_j(self) -> float | None:
        return self._sum(lambda card: self._library.nvmlDeviceGetTotalEnergyConsumption(card) / 1000)  # millijoules

    def _sm_clock_mhz(self) -> float | None:
        total = self._sum(lambda card: self._library.nvmlDeviceGetClockInfo(card, self._library.NVML_CLOCK_SM))
        return None if total is None else total / len(self._cards)

    def _sum(self, ask: Any) -> float | None:
        """Return the sum over the cards; None where one does not answer."""
        if self._library is None or not self._cards:
            return None
        try:
            return float(sum(ask(card) for card in self._cards))
        except self._library.NVMLError:
            return None


def meter_of(devices: Sequence[torch.device]) -> PowerMeter:
    """Return the meter of torch's ``devices``; one that reads nothing where they are no cards."""
    cards = [device for device in devices if device.type == "cuda"]
    return PowerMeter([f"GPU-{torch.cuda.get_device_properties(card).uuid}" for card in cards])


def summed(readings: Sequence[Reading]) -> Reading:
    """Return several readings as one: energy and seconds add up, the clock is their mean by time."""
    if not all(readings) or not readings:
        return {}
    seconds = sum(reading["seconds"] for reading in readings)
    return {
        "energy_j": sum(reading["energy_j"] for reading in readings),
        "seconds": seconds,
        "sm_clock_mhz": sum(reading["sm_clock_mhz"] * reading["seconds"] for reading in readings) / seconds,
    }


def figures(readings: Sequence[Reading], num_tokens: int) -> dict[str, float]:
    """Return what a cell says of its readings, of which ``num_tokens`` tokens came; nothing where one is missing."""
    total = summed(readings)
    if not total or not num_tokens:
        return {}
    return {
        "mean_power_w": total["energy_j"] / total["seconds"],
        "sm_clock_mhz": total["sm_clock_mhz"],
        "energy_per_token_j": total["energy_j"] / num_tokens,
    }
