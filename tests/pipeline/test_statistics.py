"""The paired speed-up against leaving prompts out by hand, and its interval against the truth of simulated cells."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from pipeline.statistics import NORMAL, RUN_TO_RUN, Speedup, Timed, interval_errors, paired_speedup, student

# Two-sided 95 % points of Student's distribution, as any table has them, by the number of prompts.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 6: 2.571, 8: 2.365, 21: 2.086}


def drawn(count: int, noise: float, rng: random.Random) -> tuple[list[Timed], list[Timed]]:
    """Return method and baseline of so many prompts: unlike texts, the method a half faster but for noise."""
    baseline = [(rng.randint(20, 60), rng.uniform(1.0, 3.0)) for _ in range(count)]
    method = [
        (tokens + rng.randint(0, 3), seconds / 1.5 * math.exp(rng.gauss(0, noise))) for tokens, seconds in baseline
    ]
    return method, baseline


def ratio_of_totals(method: list[Timed], baseline: list[Timed]) -> float:
    speeds = [sum(tokens for tokens, _ in each) / sum(seconds for _, seconds in each) for each in (method, baseline)]
    return speeds[0] / speeds[1]


def by_leaving_out(method: list[Timed], baseline: list[Timed]) -> float:
    """The jackknife's standard error of the ratio's logarithm: an obvious way to the same figure."""
    count = len(method)
    logs = [math.log(ratio_of_totals(*(each[:i] + each[i + 1 :] for each in (method, baseline)))) for i in range(count)]
    return math.sqrt((count - 1) / count * sum((log - statistics.mean(logs)) ** 2 for log in logs))


@pytest.mark.parametrize("count", [6, 21])
def test_ratio_and_interval_equal_those_found_by_hand(count: int) -> None:
    method, baseline = drawn(count, 0.1, random.Random(0))
    found = paired_speedup(method, baseline, run_to_run=0.0)
    assert found.ratio == pytest.approx(ratio_of_totals(method, baseline))
    assert found.low is not None
    assert found.high is not None
    margin = STUDENT[count] * by_leaving_out(method, baseline)
    assert math.log(found.high / found.ratio) == pytest.approx(margin, rel=0.1)
    assert math.log(found.ratio / found.low) == pytest.approx(margin, rel=0.1)


@pytest.mark.parametrize("count", STUDENT)
def test_the_quantile_is_students(count: int) -> None:
    assert float(student(count)) == pytest.approx(STUDENT[count], abs=5e-4)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize(("noise", "day"), [(0.1, 0.0), (0.03, 0.0), (0.1, RUN_TO_RUN), (0.3, RUN_TO_RUN)])
def test_the_interval_holds_the_truth_as_often_as_it_says(count: int, noise: float, day: float) -> None:
    """Of 1500 cells with texts of unlike length; each prompt is off by ``noise``, the whole cell by ``day``."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1500):
        seconds = np.exp(rng.normal(0, 0.3, count))
        faster = seconds / 1.4 * np.exp(rng.normal(0, noise, count) - noise**2 / 2 + rng.normal(0, day))
        found = paired_speedup([(1.0, s) for s in faster], [(1.0, s) for s in seconds], run_to_run=day)
        held += found.low <= 1.4 <= found.high  # type: ignore[operator]
    assert 0.92 <= held / 1500 <= 0.98


def test_noise_that_both_shared_cancels() -> None:
    noise = [1.0, 0.5, 0.8, 0.3, 0.9, 0.6, 0.7]
    baseline = [(20.0, n) for n in noise]
    assert paired_speedup([(40.0, n) for n in noise], baseline, run_to_run=0.0) == pytest.approx((2.0, 2.0, 2.0))
    shuffled = paired_speedup([(40.0, n) for n in sorted(noise)], baseline, run_to_run=0.0)
    assert shuffled.low is not None
    assert shuffled.low < 1.8


def test_the_day_is_part_of_every_interval() -> None:
    found = paired_speedup([(40.0, 1.0)] * 9, [(20.0, 1.0)] * 9)
    assert found.high == pytest.approx(2.0 * math.exp(NORMAL * RUN_TO_RUN))


def test_one_prompt_gives_a_ratio_and_no_interval() -> None:
    assert paired_speedup([(30.0, 1.0)], [(20.0, 1.0)]) == (1.5, None, None)


def test_no_token_at_all_is_no_speed() -> None:
    assert paired_speedup([(0.0, 1.0)] * 2, [(20.0, 1.0)] * 2) == (0.0, None, None)


def test_what_is_not_paired_is_refused() -> None:
    one = (1.0, 1.0)
    for method, baseline in (([one], [one, one]), ([], [])):
        with pytest.raises(ValueError, match="not pairs"):
            paired_speedup(method, baseline)


@pytest.mark.parametrize("count", [2, 4, 21])
def test_an_interval_gives_back_the_error_over_prompts_alone(count: int) -> None:
    """As a table tells it, with six significant digits; what runs differ by is taken out again."""
    pairs = drawn(count, 0.1, random.Random(2))
    alone = paired_speedup(*pairs, run_to_run=0.0)
    assert alone.high is not None
    error = math.log(alone.high / alone.ratio) / STUDENT[count]
    told = [float(f"{value:.6g}") for value in paired_speedup(*pairs)]
    assert interval_errors(*([value] for value in told), [count])[0] == pytest.approx(error, rel=0.01)  # type: ignore[arg-type]


def test_a_certain_cell_has_no_error_over_prompts() -> None:
    told = [[float(f"{value:.6g}")] for value in paired_speedup([(40.0, 1.0)] * 4, [(20.0, 1.0)] * 4)]
    assert interval_errors(*told, [4])[0] == pytest.approx(0.0, abs=0.005)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 4, 8])
def test_an_older_bootstraps_error_is_not_taken_for_less_than_it_is(count: int) -> None:
    """Intervals as references have them: percentiles of the ratio of medians, pairs drawn with replacement."""
    rng = np.random.default_rng(3)
    errors = []
    for _ in range(300):
        pairs = np.exp(rng.normal(0, [[0.1], [0.0]], (2, count)))
        chosen = pairs[:, rng.integers(count, size=(400, count))]
        ratios = np.median(chosen[0], axis=1) / np.median(chosen[1], axis=1)
        low, high = np.percentile(ratios, [2.5, 97.5])
        ratio = float(np.median(pairs[0]) / np.median(pairs[1]))
        found = Speedup(ratio, min(ratio, float(low)), max(ratio, float(high)))
        errors.append(interval_errors(*([value] for value in found), [count])[0])  # type: ignore[arg-type]
    assert np.sqrt(np.mean(np.square(errors))) >= 0.9 * 0.1 / math.sqrt(count)


def test_no_interval_is_no_error() -> None:
    assert np.isnan(interval_errors(np.array([1.5]), np.array([np.nan]), np.array([np.nan]), np.array([1])))
