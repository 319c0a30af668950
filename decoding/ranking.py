"""The k most likely tokens of each row of logits: what every drafter asks of every forward pass.

With rows of 50,000 logits and 16 rows a step, sorting them would cost more than drafting itself. The compiled engine
scans; elsewhere torch selects. Both give the same ids, the first of equal ones first.

Example::

    top = most_likely(logits, k=8)         # logits [W, V]
    top.ids[0], top.log_probabilities[0]   # of the first row, the most likely first
"""

from __future__ import annotations

from ctypes import c_int64, c_void_p
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decoding.native.build import BuildError, load_library


class Top(NamedTuple):
    """Ids and natural logarithms of the probabilities, ``[W, k]``, the most likely first."""

    ids: Int[Tensor, "w k"]
    log_probabilities: Float[Tensor, "w k"]


def most_likely(logits: Float[Tensor, "w v"], k: int) -> Top:
    """Return the ``k`` most likely tokens of each row."""
    k = min(k, logits.shape[1])
    values, ids, totals = _scan(logits, k, with_totals=True) or _select(logits, k)
    return Top(ids, values - totals[:, None])


def choices(logits: Float[Tensor, "w v"]) -> tuple[int, ...]:
    """Return the most likely token of each row."""
    scanned = _scan(logits, 1, with_totals=False)
    ids = logits.argmax(-1) if scanned is None else scanned[1][:, 0]
    return tuple(ids.tolist())


def _scan(logits: Tensor, k: int, with_totals: bool) -> tuple[Tensor, Tensor, Tensor] | None:
    """Run the compiled scan, or return None where it cannot run."""
    if logits.device.type != "cpu" or logits.dtype != torch.float32 or logits.stride(1) != 1:
        return None
    try:
        library = load_library()
    except BuildError:
        return None
    rows, width = logits.shape
    values, ids, totals = torch.empty(rows, k), torch.empty(rows, k, dtype=torch.int64), torch.empty(rows)
    library.top_k(
        c_void_p(logits.data_ptr()),
        c_int64(rows),
        c_int64(width),
        c_int64(logits.stride(0)),
        c_int64(k),
        c_void_p(values.data_ptr()),
        c_void_p(ids.data_ptr()),
        c_void_p(totals.data_ptr() if with_totals else None),
    )
    return values, ids, totals


def _select(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Select with torch. Its ``topk`` leaves open which of equal values it takes, so no two are let be equal.

    The bits of a float, read as a whole number, are in the order of the floats (those of negative ones the other way
    round); beside them goes the id, the lower one the greater.
    """
    values = logits.float() + 0.0  # of -0 it makes 0, which it is equal to
    bits = values.view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    ids = torch.arange(values.shape[1] - 1, -1, -1, device=values.device)
    ids = (ordered << 32 | ids).topk(k, dim=-1).indices
    return values.gather(1, ids), ids, values.logsumexp(-1)
