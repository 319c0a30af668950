"""A function of tensors whose shapes never change, on CUDA recorded at its first call and replayed from then on.

What a drafter computes of its own (Medusa's heads, the mixer, the likeliest tokens of each row) is some dozens of
kernels on a few rows: each shorter than the time that Python takes to start it. The forward passes of a model are
recorded by :mod:`decoding.graphs`, of which there is one for each width and cache. Example::

    read = Replayed(lambda hidden: (most_likely(heads(hidden), 10).ids,), device)
    (ids,) = read(hidden)       # overwritten by the next call
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor

from decoding import graphs


class Recorded(NamedTuple):
    """A recorded call: what it reads, and what a replay overwrites."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Replayed:
    """``run`` as it is on a CPU, recorded on CUDA.

    Args:
        run: takes tensors, each always of one shape and type, and waits for nothing of the device's.
        device: where it computes; inputs may come from elsewhere.

    Attributes:
        problem: why it is not recorded on a device that could, in one line; None while it is.
    """

    def __init__(self, run: Callable[..., tuple[Tensor, ...]], device: torch.device) -> None:
        self.run, self.device = run, device
        self.problem: str | None = None
        self._recorded: Recorded | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what ``run`` returns; on CUDA the next call overwrites it."""
        if self._recorded is None and self.problem is None and self.device.type in graphs.DEVICE_TYPES:
            try:
                self._recorded = Recorded(*graphs.record(self.run, inputs, self.device))
            except RuntimeError as error:
                self.problem = graphs.told_reason(error)
        if self._recorded is None:
            return self.run(*(given.to(self.device) for given in inputs))
        for static, given in zip(self._recorded.inputs, inputs, strict=True):
            static.copy_(given)
        self._recorded.graph.replay()
        return self._recorded.outputs


class ReplayedRows:
    """A function of the rows of one tensor, each for itself: recorded on CUDA for a few numbers of rows.

    Fewer rows are padded to the next power of two, and what comes back is cut to theirs. The first call records all of
    them, so that nothing is left to record while a later text is timed.

    Args:
        run: takes a tensor ``[w, d]`` and returns tensors of ``w`` rows; otherwise as :class:`Replayed`'s.
        most: rows that a call has at most, more or less: for more, it is recorded when they come.
    """

    def __init__(self, run: Callable[[Tensor], tuple[Tensor, ...]], most: int) -> None:
        self.run, self.most = run, most
        self._by_shape: dict[tuple[object, ...], Replayed] = {}

    def __call__(self, rows: Shaped[Tensor, "w d"]) -> tuple[Tensor, ...]:
        """Return what ``run`` returns; on CUDA a later call overwrites it."""
        if rows.device.type not in graphs.DEVICE_TYPES:
            return self.run(rows)
        if not self._by_shape:
            for count in sorted({graphs.graph_width(count, None) for count in range(1, self.most + 1)}):
                self._replay(rows.new_zeros(count, rows.shape[1]))
        return self._replay(rows)

    def _replay(self, rows: Shaped[Tensor, "w d"]) -> tuple[Tensor, ...]:
        count, width = rows.shape
        padded = graphs.graph_width(count, None)
        shape = (padded, width, rows.dtype, rows.device)
        replayed = self._by_shape.setdefault(shape, Replayed(self.run, rows.device))
        return tuple(output[:count] for output in replayed(F.pad(rows, (0, 0, 0, padded - count))))
