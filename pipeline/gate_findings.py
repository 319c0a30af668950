"""What the gate tells, and when two values of a column are two; for cells (``gate``) and methods (``gate_methods``).

A *pair* is a row of the run with the reference's columns beside it as ``…_before``. Example::

    if differs(pair, "output_sha256"):
        found = difference("humaneval · medusa", "output_sha256", pair, "regression")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

Verdict = Literal["regression", "improvement", "note"]
ASKED = ["data_sha256", "requests_sha256", "num_prompts", "options", "sampling", "metric"]
PLATFORM = ["hardware", "device", "engine", "num_threads"]
TRAINED = ["weights_sha256", "parts"]
ROUNDED = 1e-5  # the table has six significant digits


@dataclass(frozen=True)
class Finding:
    """One difference: where, in which column, before and now, and what it means."""

    where: str
    what: str
    before: str
    now: str
    verdict: Verdict


def asked_of(pair: pd.Series) -> list[str]:
    """Return what must not have changed: also the weights, unless they are trained on the spot."""
    return ASKED + ["weights_sha256"] * (not str(pair["model_source"]).startswith("trained:"))


def differs(pair: pd.Series, name: str) -> bool:
    """Whether a column changed; what an older reference does not have is not held against it."""
    before, now = pair[f"{name}_before"], pair[name]
    if pd.isna(before) or before == "":
        return False
    if isinstance(now, float) and isinstance(before, float):
        return not np.isclose(now, before, rtol=ROUNDED)
    return bool(pd.isna(now) or now != before)


def is_same_platform(pair: pd.Series) -> bool:
    """Whether texts and counters must be the same: hardware, engine, threads and all weights are."""
    return not any(differs(pair, name) for name in PLATFORM) and not is_trained_anew(pair)


def is_trained_anew(pair: pd.Series) -> bool:
    """Whether the model, or a part of the method, has other weights than before."""
    return any(differs(pair, name) for name in TRAINED)


def difference(where: str, what: str, pair: pd.Series, verdict: Verdict, column: str = "") -> Finding:
    """Return the finding that a column (``what`` itself if not given) has another value."""
    name = column or what
    return Finding(where, what, shown(pair[f"{name}_before"]), shown(pair[name]), verdict)


def shown(value: Any) -> str:
    """Return a value short enough for a table."""
    if pd.isna(value):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:40]
