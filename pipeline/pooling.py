"""Whether something changed between two runs, told over several cells together.

A random-effects mean (DerSimonian and Laird 1986): each cell's own interval, and how far the cells disagree, both make
it less sure. Example::

    pooled_change(np.log([0.82, 0.85, 0.80]), [0.03, 0.02, 0.04])       # Change(mean=-0.17, low=-0.23, high=-0.11)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.statistics import RUN_TO_RUN

SURE = 2.576  # 99 % of a normal distribution lie within this many standard errors


class Change(NamedTuple):
    """A relative change, 0.1 for a tenth more, and its 99 % interval."""

    mean: float
    low: float
    high: float

    @property
    def told(self) -> str:
        """The change and its interval in per cent."""
        return f"{self.mean:+.1%} [{self.low:+.1%}, {self.high:+.1%}]"


def one_a_task(
    tasks: Sequence[str] | pd.Series, log_ratios: np.ndarray | pd.Series, errors: np.ndarray | pd.Series
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean log ratio and error of each task: its seeds have the same prompts, and are no further data."""
    table = pd.DataFrame({"task": list(tasks), "ratio": np.asarray(log_ratios), "error": np.asarray(errors)})
    means = table.groupby("task", sort=True)[["ratio", "error"]].mean()
    return means["ratio"].to_numpy(), means["error"].to_numpy()


def pooled_change(
    log_ratios: Sequence[float] | np.ndarray, errors: Sequence[float] | np.ndarray, num_runs: int = 2
) -> Change:
    """Return the mean change over several cells.

    Args:
        log_ratios: logarithm of new by old, one a cell.
        errors: standard error of each, over its prompts alone; what runs differ by is added here.
        num_runs: how many the ratios are of; 1 for those of methods within one run.

    Raises:
        ValueError: the two have different lengths, or none.
    """
    changes, variances = np.asarray(log_ratios, dtype=float), np.asarray(errors, dtype=float) ** 2
    variances += num_runs * RUN_TO_RUN**2
    if len(changes) != len(variances) or not len(changes):
        raise ValueError(f"{len(changes)} changes and {len(variances)} errors are not pairs")
    weights = 1 / variances
    mean = np.average(changes, weights=weights)
    freedom = len(changes) - 1
    excess = float(weights @ (changes - mean) ** 2) - freedom
    scale = weights.sum() - (weights @ weights) / weights.sum()
    between = max(0.0, excess / scale) if freedom else 0.0
    weights = 1 / (variances + between)
    mean, error = np.average(changes, weights=weights), weights.sum() ** -0.5
    low, middle, high = np.expm1([mean - SURE * error, mean, mean + SURE * error])
    return Change(float(middle), float(low), float(high))
