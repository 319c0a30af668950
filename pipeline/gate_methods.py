"""The gate over all cells of a method together: its speed, what drafting costs it, and its steps where texts differ.

Example::

    for found in of_methods(pairs):  # cells that are in both tables
        print(found.where, found.what, found.now)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from pipeline.gate_findings import (
    PLATFORM,
    Finding,
    Verdict,
    asked_of,
    differs,
    is_same_platform,
    is_trained_anew,
)
from pipeline.parallel import PARALLEL_METHODS
from pipeline.pooling import Change, one_a_task, pooled_change
from pipeline.statistics import RUN_TO_RUN, RUN_TO_RUN_OF_PEERS, interval_errors

TOLERATED_STEP = 0.10  # of tokens a step, on another platform or with weights that were trained anew
TOLERATED_SPEED = 0.05  # of a method's speed-up over all its cells
TOLERATED_BATCH = 0.15  # of the speed-up in a batch, which is of one cell and knows nothing of other texts
BATCH_TRIALS = 7  # pipeline.batch_speed.TRIALS; not imported, since torch comes with it
TOLERATED_MBU = 0.15  # of the baseline's, which is no ratio of two runs in turn
TOLERATED_SHARE = 0.05  # of decode time outside the target, mean over a method's cells
MBU_NOISE = 0.05  # standard error of the logarithm of one cell's
# Standard deviation of the logarithm of a prompt's tokens a step, from text to text: 0.20 to 0.34 for prompt_lookup and
# recycling over seven cells of the smoke and laptop profiles.
STEP_SPREAD = 0.3
# The same from training to training, of the same text: 24 cells of the laptop profile, whose draft model, heads and
# mixer were trained on two processors, differ by 0.076 at some five prompts a cell; 28, trained on two mixtures of
# prompts on one, by 0.060.
TRAINING_SPREAD = 0.12


def of_methods(pairs: pd.DataFrame) -> Iterator[Finding]:
    """Yield the methods whose speed, or drafting, changed over all their cells together by more than is tolerated."""
    well = pairs[(pairs["status"] == "ok") & (pairs["status_before"] == "ok")]
    same = [not any(differs(pair, name) for name in asked_of(pair)) for _, pair in well.iterrows()]
    asked_same = well[np.array(same, dtype=bool)]
    for (model, dtype, method), cells in asked_same.groupby(["model", "dtype", "method"], sort=True):
        where = f"all tasks · {model} · {dtype} · {method}"
        if method == "autoregressive":
            # Weights that fit into the processor's cache are not read from memory: a twin's limit is arithmetic.
            for limit in ("mbu", "mfu"):
                far = cells if limit == "mbu" else cells[cells["mbu"].isna() & cells["mbu_before"].isna()]
                yield from of_speed(where, limit, limit_change(far, limit), TOLERATED_MBU)
        else:
            is_peer = (cells["engine"] == "transformers").all()
            day = RUN_TO_RUN_OF_PEERS if is_peer else RUN_TO_RUN
            found = of_speed(where, "speedup", speed_change(cells, day=day), TOLERATED_SPEED)
            # transformers' own is another program, and a generator's one wide pass against a twin's many narrow ones
            # is arithmetic against reading: how they fare against ours elsewhere is that processor's doing.
            elsewhere = (is_peer or method in PARALLEL_METHODS) and differs_anywhere(cells, "hardware")
            yield from (replace(each, verdict="note") if elsewhere else each for each in found)
            # What a batch gains is arithmetic, and so the processor's own.
            at_home = cells[[not differs(pair, "hardware") for _, pair in cells.iterrows()]]
            yield from of_speed(where, "batch_speedup", speed_change(at_home, "batch_speedup"), TOLERATED_BATCH)
        yield from of_drafting(where, cells)
        yield from of_steps(where, cells)


def differs_anywhere(cells: pd.DataFrame, name: str) -> bool:
    """Whether a column changed in any of the cells."""
    return any(differs(pair, name) for _, pair in cells.iterrows())


def of_speed(where: str, what: str, change: Change | None, tolerated: float) -> Iterator[Finding]:
    """Yield a change that is surely more than is tolerated."""
    if change is None:
        return
    if change.high < -tolerated:
        yield Finding(where, what, "0 %", change.told, "regression")
    elif change.low > tolerated:
        yield Finding(where, what, "0 %", change.told, "improvement")


def of_drafting(where: str, cells: pd.DataFrame) -> Iterator[Finding]:
    """Yield a change of the share of decode time that is not the target's: drafting, and what lies between."""
    shares = pd.DataFrame({when: 1 - cells[f"verify_s{when}"] / cells[f"decode_s{when}"] for when in ("", "_before")})
    shares = shares[(cells["device"] == cells["device_before"])].dropna()
    if shares.empty:
        return
    same = not any(differs_anywhere(cells, name) for name in PLATFORM)
    now, before = shares[""].mean(), shares["_before"].mean()
    if abs(now - before) > TOLERATED_SHARE * (1 if same else 2):
        verdict: Verdict = "regression" if now > before else "improvement"
        yield Finding(where, "decode time outside the target", f"{before:.1%}", f"{now:.1%}", verdict)


def of_steps(where: str, cells: pd.DataFrame) -> Iterator[Finding]:
    """Yield a change of the tokens a step where texts or weights are others; a note if it may be chance."""
    change = step_change(cells)
    if change is None or abs(change.mean) <= TOLERATED_STEP:
        return
    found = list(of_speed(where, "tokens_per_step", change, TOLERATED_STEP))
    yield from found or [Finding(where, "tokens_per_step, of other texts or weights", "0 %", change.told, "note")]


def step_change(cells: pd.DataFrame) -> Change | None:
    """Return the change of a method's tokens a step over the cells that :func:`step_spread` tells of."""
    known = cells.assign(spread=[step_spread(pair) for _, pair in cells.iterrows()])
    known = known.dropna(subset=["spread", "tokens_per_step", "tokens_per_step_before"])
    known = known[(known["tokens_per_step"] > 0) & (known["tokens_per_step_before"] > 0)]
    if known.empty:
        return None
    change = np.log(known["tokens_per_step"] / known["tokens_per_step_before"])
    errors = known["spread"] * np.sqrt(2 / known["num_prompts"].astype(float))
    return pooled_change(*one_a_task(known["task"], change, errors), num_runs=0)


def step_spread(pair: pd.Series) -> float:
    """Return by how much a prompt's tokens a step differ by chance; NaN where the cell is held by itself."""
    if is_same_platform(pair):
        return np.nan
    if differs(pair, "output_sha256"):
        return STEP_SPREAD
    return TRAINING_SPREAD if is_trained_anew(pair) else np.nan


def speed_change(cells: pd.DataFrame, name: str = "speedup", day: float = RUN_TO_RUN) -> Change | None:
    """Return the change of a method's speed-up, alone or in a batch, over its cells, by their paired intervals.

    ``day`` is what its cells differ by from run to run.
    """
    known = cells.dropna(subset=[f"{name}_{end}{when}" for end in ("low", "high") for when in ("", "_before")])
    if known.empty:
        return None
    errors = []
    for when in ("", "_before"):
        count = known[f"num_prompts{when}"] if name == "speedup" else np.full(len(known), BATCH_TRIALS)
        ratio, low, high = (known[f"{column}{when}"] for column in (name, f"{name}_low", f"{name}_high"))
        errors.append(interval_errors(ratio, low, high, count, day))
    change = np.log(known[name] / known[f"{name}_before"])
    return pooled_change(*one_a_task(known["task"], change, np.hypot(*errors)), run_to_run=day)


def limit_change(cells: pd.DataFrame, name: str) -> Change | None:
    """Return the change of the baseline's share of a measured limit (``mbu``, ``mfu``), on the same hardware."""
    known = cells[(cells["hardware"] == cells["hardware_before"]) & (cells["engine"] == cells["engine_before"])]
    known = known.dropna(subset=[name, f"{name}_before"])
    if known.empty:
        return None
    change = np.log(known[name] / known[f"{name}_before"])
    return pooled_change(*one_a_task(known["task"], change, np.full(len(known), MBU_NOISE)))
