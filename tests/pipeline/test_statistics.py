"""The paired speed-up against resampling by hand."""

from __future__ import annotations

import random
import statistics

import pytest

from pipeline.statistics import paired_speedup


def by_hand(method: list[float], baseline: list[float]) -> tuple[float, float]:
    """Resample whole pairs in a loop; the 2.5 and 97.5 percentiles of the ratio of medians."""
    generator, ratios = random.Random(5), []
    for _ in range(5000):
        drawn = [generator.randrange(len(method)) for _ in method]
        ratios.append(statistics.median(method[i] for i in drawn) / statistics.median(baseline[i] for i in drawn))
    ratios.sort()
    return ratios[125], ratios[-126]


def test_ratio_and_interval_equal_those_found_by_hand() -> None:
    generator = random.Random(0)
    baseline = [generator.uniform(15, 25) for _ in range(21)]
    method = [speed * generator.uniform(1.2, 2.4) for speed in baseline]
    found = paired_speedup(method, baseline)
    low, high = by_hand(method, baseline)
    assert found.ratio == pytest.approx(statistics.median(method) / statistics.median(baseline))
    assert found.low == pytest.approx(low, rel=0.03)
    assert found.high == pytest.approx(high, rel=0.03)


def test_noise_that_both_shared_cancels() -> None:
    noise = [1.0, 0.5, 0.8, 0.3, 0.9, 0.6, 0.7]
    found = paired_speedup([40 * n for n in noise], [20 * n for n in noise])
    assert found == pytest.approx((2.0, 2.0, 2.0))
    shuffled = paired_speedup([40 * n for n in noise], [20 * n for n in sorted(noise)])
    assert shuffled.low is not None
    assert shuffled.low < 1.8


def test_one_prompt_gives_a_ratio_and_no_interval() -> None:
    assert paired_speedup([30.0], [20.0]) == (1.5, None, None)


def test_what_is_not_paired_is_refused() -> None:
    for method, baseline in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="not pairs"):
            paired_speedup(method, baseline)
