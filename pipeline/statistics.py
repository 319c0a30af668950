"""Paired speed-up: how many times the baseline's speed, with an interval that says how sure that is.

The method and the baseline ran on the same prompts, in turn, in one process; so the prompts are resampled in pairs and
machine noise that both shared cancels. The speed-up is the ratio of the medians of tokens/s; its 95 % interval is the
percentile bootstrap's (Efron 1979).

Example::

    paired_speedup([40.0, 44.0, 50.0], [20.0, 20.0, 21.0])      # Speedup(ratio=2.2, low=2.0, high=2.38)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 5000


class Speedup(NamedTuple):
    """A ratio of tokens/s and its 95 % interval; the interval is None where one prompt cannot give any."""

    ratio: float
    low: float | None
    high: float | None


def ratio_of_medians(method: np.ndarray, baseline: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return median(method) / median(baseline) along ``axis``."""
    return np.asarray(np.median(method, axis=axis) / np.median(baseline, axis=axis))


def paired_speedup(method: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Speedup:
    """Return the speed-up of paired tokens/s, one value a prompt.

    Raises:
        ValueError: the two have different lengths, or none.
    """
    if len(method) != len(baseline) or not method:
        raise ValueError(f"{len(method)} and {len(baseline)} values are not pairs")
    pairs = np.asarray(method), np.asarray(baseline)
    ratio = float(ratio_of_medians(*pairs))
    if len(method) == 1:
        return Speedup(ratio, None, None)
    interval = bootstrap(
        pairs,
        ratio_of_medians,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    # The point estimate of a median may lie just outside its own percentile interval when prompts are few.
    return Speedup(ratio, min(ratio, float(interval.low)), max(ratio, float(interval.high)))
