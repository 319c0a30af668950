"""Stand-ins of torch.cuda that freeze what a CUDA graph freezes, for a CPU.

A stand-in graph records nothing but the call: a replay runs it again, on the tensors and with the cache length of the
capture, into the outputs of the capture. Whatever entered by another way than the static tensor is stale then, as it
would be on a GPU. None of this says that the kernels can be captured: that needs hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines import recycling
from decoding import graphs, pool


class Device:
    """What the stand-ins saw, in order, and the capture that is under way."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.capturing: Graph | None = None
        self.problem: str | None = None

    def stream(self, name: str) -> Any:
        device = self

        class Stream:
            def wait_stream(self, other: Any) -> None:
                device.calls.append(f"{name} waits")

            def __enter__(self) -> None:
                device.calls.append(f"on {name}")

            def __exit__(self, *error: object) -> None:
                pass

        return Stream()


class Graph:
    """Runs the captured call again, as it was when it was captured."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.again: Callable[[], None] | None = None

    def replay(self) -> None:
        self.device.calls.append("replay")
        assert self.again is not None
        self.again()


def refuse(*arguments: object) -> None:
    raise RuntimeError("a capture cannot wait for a number of the device")


def frozen(
    seen: Device, run: Callable[..., tuple[Tensor, ...]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Tensor, ...]]:
    """``run`` as a capture has it: it may ask no tensor for a number, and fills its outputs when it is replayed."""

    def run_or_record(*given: Any) -> tuple[Tensor, ...]:
        if seen.capturing is None:
            return run(*given)
        with monkeypatch.context() as patch:
            for name in ("__int__", "__index__", "__bool__", "__float__", "item", "tolist"):
                patch.setattr(Tensor, name, refuse)
            outputs = tuple(each.clone() for each in run(*given))
        for output in outputs:
            output.zero_()

        def again() -> None:
            for output, found in zip(outputs, run(*given), strict=True):
                output.copy_(found)

        seen.capturing.again = again
        return outputs

    return run_or_record


def ranking_frozen(seen: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeze what recycling ranks by, as a capture has it."""
    ranked = recycling.most_likely
    monkeypatch.setattr(
        recycling, "most_likely", lambda rows, k: frozen(seen, lambda each: ranked(each, k), monkeypatch)(rows)
    )


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Put the stand-ins in the place of ``torch.cuda`` and make the processor a device that graphs are captured on."""
    seen = Device()
    main = seen.stream("main")

    @contextmanager
    def capturing(graph: Graph) -> Iterator[None]:
        seen.calls.append("capture")
        if seen.problem:
            raise RuntimeError(seen.problem)
        seen.capturing = graph
        yield
        seen.capturing = None

    def recording(decode: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return ``decode`` as a capture has it: frozen but for its static tensor, the last argument."""

        def decode_or_record(*given: Any) -> tuple[Tensor, Tensor]:
            if seen.capturing is None:
                seen.calls.append("decode")
                return decode(*given)
            cache = given[-2]
            frozen, before = getattr(cache, "length", 0), cache.buffer.clone()
            with monkeypatch.context() as patch:
                for name in ("__int__", "__index__", "__bool__", "__float__", "item", "tolist"):
                    patch.setattr(Tensor, name, refuse)
                outputs = decode(*given)
            cache.buffer.copy_(before)  # a capture runs nothing
            for output in outputs:
                output.fill_(torch.nan)

            def again() -> None:
                length = getattr(cache, "length", 0)
                cache.length = frozen
                for output, found in zip(outputs, decode(*given), strict=True):
                    output.copy_(found)
                cache.length = length

            seen.capturing.again = again
            return outputs

        return decode_or_record

    monkeypatch.setattr(graphs, "DEVICE_TYPES", ("cpu",))
    monkeypatch.setattr(graphs, "decode", recording(graphs.decode))
    monkeypatch.setattr(pool, "decode_texts", recording(pool.decode_texts))
    monkeypatch.setattr(torch.cuda, "device", lambda device: seen.stream("device"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: seen.stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(seen))
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    return seen
