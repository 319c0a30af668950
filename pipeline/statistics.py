"""Paired speed-up: how many times the baseline's speed, with an interval that says how sure that is.

The method and the baseline ran on the same prompts, in turn, in one process; so machine noise that both shared cancels.
The speed-up is the ratio of totals: tokens by seconds over all prompts together, of the method by that of the baseline.

Its 95 % interval is Student's on the logarithm of that ratio. By the delta method the logarithm of a total moves with
prompt i by what prompt i is of it, so that

    d_i = tokens_i / sum(tokens) - seconds_i / sum(seconds)   of the method, less that of the baseline
    error^2 = n / (n - 1) * sum(d_i^2),   n - 1 degrees of freedom

(Cochran 1977, Sampling Techniques, chapter 6; where both gave the same tokens, d is that of the seconds alone). Prompts
say nothing of the day: the same cell timed again is off by ``RUN_TO_RUN`` more, which is added in quadrature. A
percentile bootstrap, which this replaces, held the truth in 50 % of cells of two prompts, and in 88 % of those of four.

Example::

    paired_speedup([(10, 1.0), (22, 2.0)], [(10, 2.0), (22, 4.4)])      # Speedup(ratio=2.13, low=1.25, high=3.65)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # scipy.stats has the same, and takes a second more to load in each cell

Timed = tuple[float, float]  # what was made (tokens, images), and in how many seconds

# The same cell, timed again, differs by more than its prompts say: standard deviation of the logarithm of its speed-up
# from run to run. Measured over ten runs of the smoke profile, on the four cells of our method there and on those of
# transformers' methods, whose Python the day disturbs more than it does the baseline.
RUN_TO_RUN, RUN_TO_RUN_OF_PEERS = 0.045, 0.1
NORMAL = 1.959964  # 95 % of a normal distribution lie within this many standard deviations


class Speedup(NamedTuple):
    """A ratio of speeds and its 95 % interval; the interval is None where one prompt cannot give any."""

    ratio: float
    low: float | None
    high: float | None


def student(num_prompts: np.ndarray | int) -> np.ndarray:
    """Return within how many standard errors 95 % lie, where those are estimated from so many prompts."""
    return np.asarray(stdtrit(np.asarray(num_prompts) - 1, 0.975))


def log_error(method: np.ndarray, baseline: np.ndarray) -> float:
    """Return the standard error over prompts of the logarithm of the ratio of totals; of two prompts or more.

    Args:
        method: made and seconds of each prompt, ``[n, 2]``.
        baseline: the same of the baseline, ``[n, 2]``.
    """
    (made, seconds), (base_made, base_seconds) = (
        totals.T / totals.sum(axis=0)[:, None] for totals in (method, baseline)
    )
    influence = made - seconds - (base_made - base_seconds)
    count = len(influence)
    return float(np.sqrt(count / (count - 1) * (influence @ influence)))


def once_each(seconds: Sequence[float]) -> list[Timed]:
    """Return what :func:`paired_speedup` takes, where one thing was made in each of these times."""
    return [(1.0, each) for each in seconds]


def paired_speedup(method: Sequence[Timed], baseline: Sequence[Timed], run_to_run: float = RUN_TO_RUN) -> Speedup:
    """Return the speed-up of what was timed in pairs, one a prompt (or a round, or a trial).

    Args:
        method: what was made and the seconds it took, for each prompt.
        baseline: the same of the baseline.
        run_to_run: standard deviation of the ratio's logarithm between runs, which prompts do not tell.

    Raises:
        ValueError: the two have different lengths, or none.
    """
    if len(method) != len(baseline) or not method:
        raise ValueError(f"{len(method)} and {len(baseline)} values are not pairs")
    pairs = np.asarray(method, dtype=float), np.asarray(baseline, dtype=float)
    (made, seconds), (base_made, base_seconds) = (pair.sum(axis=0) for pair in pairs)
    ratio = float(made / seconds / (base_made / base_seconds))
    if len(method) == 1 or not ratio:
        return Speedup(ratio, None, None)
    margin = np.hypot(student(len(method)) * log_error(*pairs), NORMAL * run_to_run)
    return Speedup(ratio, float(ratio * np.exp(-margin)), float(ratio * np.exp(margin)))


def interval_errors(
    ratio: np.ndarray, low: np.ndarray, high: np.ndarray, num_prompts: np.ndarray, run_to_run: float = RUN_TO_RUN
) -> np.ndarray:
    """Return the standard errors over prompts of the logarithms of speed-ups, from their 95 % intervals.

    The inverse of :func:`paired_speedup`: ``run_to_run`` is taken out again, so that whoever pools adds it once a run.
    Tables of before (``results/reference``) have intervals of a percentile bootstrap of another ratio, that of medians,
    without what runs differ by. Those are known by lying unevenly about their ratio, which none of ours does; theirs is
    the normal's width, and n / (n - 1) wider: with two prompts it is their error itself, and never less with more.

    Returns:
        NaN where there is no interval.
    """
    ratio, low, high = (np.asarray(ends, dtype=float) for ends in (ratio, low, high))
    count = np.maximum(np.asarray(num_prompts, dtype=float), 2.0)
    margin = np.log(high / low) / 2
    ours = np.sqrt(np.maximum(margin**2 - (NORMAL * run_to_run) ** 2, 0)) / student(count)
    # Six significant digits are written.
    even = (np.abs(np.log(high * low / ratio**2)) < 1e-4) & (margin > 0.99 * NORMAL * run_to_run)
    errors: np.ndarray = np.where(even, ours, margin / NORMAL * count / (count - 1))
    return errors
