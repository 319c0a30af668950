"""What the gate says of a method over all its cells is as sure as its cells are, and no surer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.batch_speed import TRIALS
from pipeline.gate import compare
from pipeline.gate_methods import BATCH_TRIALS, limit_change, speed_change, step_change
from pipeline.statistics import RUN_TO_RUN, Speedup, paired_speedup
from tests.pipeline.benchmark_rows import METRIC, row, table

TASKS = list(METRIC)


def timed(speedup: float, count: int, rng: np.random.Generator) -> Speedup:
    """Time a cell: its prompts are off by 3 %, the whole cell by what runs differ by."""
    seconds = rng.uniform(1, 3, count)
    faster = seconds / speedup * np.exp(rng.normal(0, 0.03, count) + rng.normal(0, RUN_TO_RUN))
    return paired_speedup([(1.0, s) for s in faster], [(1.0, s) for s in seconds])


def bootstrapped(speedup: float, count: int, rng: np.random.Generator) -> Speedup:
    """Time a cell as older references were: the ratio of medians, and its percentile bootstrap."""
    speeds = np.array([np.full(count, speedup), np.ones(count)]) / rng.uniform(1, 3, count)
    speeds[0] *= np.exp(rng.normal(0, 0.03, count) + rng.normal(0, RUN_TO_RUN))
    drawn = np.median(speeds[:, rng.integers(count, size=(400, count))], axis=2)
    ratio = float(np.divide(*np.median(speeds, axis=1)))
    low, high = np.percentile(drawn[0] / drawn[1], [2.5, 97.5])
    return Speedup(ratio, min(ratio, float(low)), max(ratio, float(high)))


def changes(factor: float, count: int, before: Callable[..., Speedup], trials: int = 200) -> list[tuple[float, float]]:
    """Return the 99 % intervals of a method's change over four cells, each timed before and, ``factor`` faster, now."""
    rng, found = np.random.default_rng(5), []
    for _ in range(trials):
        rows = [(task, *timed(1.4 * factor, count, rng), *before(1.4, count, rng), count, count) for task in TASKS]
        names = [f"speedup{end}{when}" for when in ("", "_before") for end in ("", "_low", "_high")]
        change = speed_change(pd.DataFrame(rows, columns=["task", *names, "num_prompts", "num_prompts_before"]))
        assert change is not None
        found.append((change.low, change.high))
    return found


@pytest.mark.parametrize("before", [timed, bootstrapped])
@pytest.mark.parametrize("count", [2, 4, 6])
def test_runs_timed_again_are_told_apart_from_a_slower_drafter(count: int, before: Callable[..., Speedup]) -> None:
    """By the intervals that a table has, of few prompts too: no error is counted twice, and none forgotten."""
    assert sum(high < -0.05 or low > 0.05 for low, high in changes(1.0, count, before)) == 0
    assert np.mean([high < -0.05 for _, high in changes(1 / 1.2, count, before)]) > 0.75


def test_seeds_of_a_task_do_not_make_a_change_surer() -> None:
    cells = pd.DataFrame([row("medusa", task, speedup=1.2) for task in TASKS])
    cells = cells.join(cells.assign(speedup=1.25).add_suffix("_before"))
    seeds = pd.concat([cells] * 3, ignore_index=True)
    assert speed_change(seeds) == pytest.approx(speed_change(cells))
    assert limit_change(seeds, "mbu") == pytest.approx(limit_change(cells, "mbu"))


def test_texts_that_rounding_made_others_of_fire_at_no_method() -> None:
    rng = np.random.default_rng(6)
    before = pd.DataFrame([row("medusa", task, tokens_per_step=2.0, num_prompts=4) for task in TASKS])
    for _ in range(200):
        steps = 2.0 * np.exp(rng.normal(0, 0.3 * 2**0.5 / 2, len(before)))
        now = before.assign(tokens_per_step=steps, hardware="Another CPU", output_sha256="d" * 64)
        change = step_change(now.join(before.add_suffix("_before")))
        assert change is not None
        assert change.high > -0.1
        assert change.low < 0.1


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [
        # A draft model that was trained on two kinds of processor, with the same settings, as they ran hf_assisted.
        ([1.012, 0.826, 0.893, 0.832], "note"),
        ([1.0, 0.932, 0.883, 0.908], None),  # and ouroboros
        ([0.75, 0.70, 0.78, 0.72], "regression"),  # a worse one
        ([1.35, 1.30, 1.40, 1.35], "improvement"),
    ],
)
def test_parts_trained_anew_are_judged_over_all_cells_of_a_method(factors: list[float], verdict: str | None) -> None:
    def with_draft(steps: list[float], weights: str) -> pd.DataFrame:
        parts = f'{{"draft": "{weights * 64}"}}'
        cells = [row("speculative", task, tokens_per_step=n, parts=parts) for task, n in zip(TASKS, steps, strict=True)]
        return table(*(cell | {"num_prompts": 5, "truncated": 0} for cell in cells))

    before = [1.15, 1.58, 1.45, 1.85]
    now = [n * factor for n, factor in zip(before, factors, strict=True)]
    found = compare(with_draft(now, "1"), with_draft(before, "2"))
    assert [each.verdict for each in found] == [verdict] * (verdict is not None)
    assert all(each.what.startswith("tokens_per_step") for each in found)


@pytest.mark.parametrize(
    ("factor", "hardware", "caught"), [(0.5, "", True), (0.92, "", False), (0.5, "another", False)]
)
def test_a_slower_batch_is_caught_on_the_same_hardware(factor: float, hardware: str, caught: bool) -> None:
    def run(scale: float, **changes: Any) -> pd.DataFrame:
        batch = {name: 1.5 * scale * by for name, by in (("", 1), ("_low", 1 / 1.1), ("_high", 1.1))}
        named = {f"batch_speedup{name}": value for name, value in batch.items()}
        return table(*(row("diffusion", task, lossless=False, **named, **changes) for task in TASKS))

    found = compare(run(factor, **({"hardware": hardware} if hardware else {})), run(1.0))
    assert (("regression", "batch_speedup") in {(each.verdict, each.what) for each in found}) is caught


def test_a_batch_has_the_trials_that_the_gate_reckons_with() -> None:
    assert TRIALS == BATCH_TRIALS
