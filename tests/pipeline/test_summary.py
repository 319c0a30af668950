"""A cell's figures over unlike prompts: medians of times, a speed-up of pairs, a prompt counted once if ever so long.

What holds of the speed-up is asked of its interval's behaviour, whichever way the interval is computed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from decoding.trace import Generation, Step
from pipeline.clock import Limits
from pipeline.record import run_record
from pipeline.summary import summarise
from tests.pipeline.test_record import generation

Shape = tuple[int, float]  # tokens and seconds of a text

METHOD: list[Shape] = [(50, 1.0), (4, 0.5), (9, 0.3), (6, 2.0), (30, 0.7)]
FACTORS = [5.0, 1.2, 3.0, 1.1, 2.5]  # how much longer the baseline takes


def text(tokens: int, total_s: float) -> Generation:
    """A text whose first token takes a tenth of its time."""
    return Generation((7,) * tokens, 20, False, total_s / 10, (Step(tokens - 1, 0, 0, 0, 0.0, 0.9 * total_s),))


def figures(
    method: Sequence[Shape], factors: Sequence[float], cut: Sequence[tuple[str, int]] = (), **changes: Any
) -> dict[str, Any]:
    """Return the figures of texts, those of ``cut`` cut off at the limit: whose they are, and of which prompt."""
    records = [
        {"prompt_id": i, "method": run_record([text(n, s)]), "baseline": run_record([text(n, s * factor)])}
        for i, ((n, s), factor) in enumerate(zip(method, factors, strict=True))
    ]
    for whose, prompt in cut:
        records[prompt][whose]["truncated"] = True
    sizes = {"weight_bytes": 10, "parameter_bytes": 2, "cache_bytes_per_token": 1, "limits": Limits(1.0, 1.0)}
    return summarise(records, **(sizes | changes))


def test_figures_of_unlike_prompts_are_medians() -> None:
    found = figures(METHOD, FACTORS)
    assert found["tokens_per_second"] == pytest.approx(30.0)  # of 50, 8, 30, 3, 42.9
    assert found["baseline_tokens_per_second"] == pytest.approx(10.0)  # of 10, 6.7, 10, 2.7, 17.1
    assert found["ttft_s"] == pytest.approx(0.07)
    assert found["decode_tokens_per_second"] == pytest.approx(statistics.median(n - 1 for n, _ in METHOD) / 0.27)
    assert found["tpot_s"] == pytest.approx(0.27 / 8)


def test_a_prompt_is_held_against_the_baseline_on_the_same_prompt() -> None:
    """Everywhere twice as fast, on prompts that differ by a factor of twenty: in pairs there is hardly any doubt."""
    found = figures(METHOD, [2.0] * len(METHOD))
    assert found["speedup"] == pytest.approx(2.0)
    assert 1.8 < found["speedup_low"] <= 2.0 <= found["speedup_high"] < 2.2


def test_a_longer_text_is_no_more_evidence_than_a_shorter_one() -> None:
    """Texts twenty times as long, at the same speed: as many prompts as before, so as much doubt as before."""
    short, long = figures(METHOD, FACTORS), figures([(20 * n, 20 * s) for n, s in METHOD], FACTORS)
    for name in ("speedup", "speedup_low", "speedup_high"):
        assert long[name] == pytest.approx(short[name], rel=1e-6)
    assert short["speedup_low"] < 0.8 * short["speedup"]


def test_texts_that_ended_by_themselves_have_a_speedup_of_their_own() -> None:
    """A long text in circles, ten times as fast, makes half of the ratio of totals and none of theirs."""
    ended = figures(METHOD, FACTORS)
    assert (ended["truncated_tokens"], ended["speedup_ended"]) == (0, ended["speedup"])
    circling = figures([*METHOD, (200, 1.0)], [*FACTORS, 10.0], cut=[("method", 5), ("baseline", 5)])
    assert (circling["truncated"], circling["truncated_tokens"]) == (1, 200)
    for end in ("", "_low", "_high"):
        assert circling[f"speedup_ended{end}"] == pytest.approx(ended[f"speedup{end}"])
    assert circling["speedup"] > 1.5 * ended["speedup"]
    # A lossy method's own text may end where the baseline's does not: what is left is the same for both.
    lossy = figures([*METHOD, (200, 1.0)], [*FACTORS, 10.0], cut=[("baseline", 5)])
    assert (lossy["truncated"], lossy["speedup_ended"]) == (0, pytest.approx(ended["speedup"]))
    assert figures([(200, 1.0)], [10.0], cut=[("method", 0)]).get("speedup_ended") is None


def test_the_weights_of_a_draft_model_or_of_heads_are_read_too() -> None:
    run = run_record([generation(0.5)])  # three steps
    sizes = {"weight_bytes": 1000, "parameter_bytes": 2, "cache_bytes_per_token": 10, "limits": Limits(20_000.0, 1.0)}

    def read(run: dict[str, Any], **parts: int) -> int:
        found = summarise([{"prompt_id": 0, "method": run, "baseline": run}], **sizes, **parts)
        assert found["mbu"] == pytest.approx(found["bytes_read"] / (run["decode_s"] * 20_000))
        return int(found["bytes_read"])

    assert read(run, part_bytes=7) == read(run) + 3 * 7  # heads: once a step
    for passes in (5, 0):  # a draft model: as often as it ran, which is never where the text is beyond its context
        ran = run | {"decode_draft_forwards": passes}
        assert read(ran, part_bytes=7, parts_each_step=False) == read(run) + passes * 7


def test_times_of_a_prompt_are_all_of_one_trial() -> None:
    """Of trials whose first token and whose rest took turns at being slow."""
    shares = {0.9: 0.1, 0.5: 0.3, 0.4: 0.2}  # of each trial the time to first token
    trials = [
        Generation((11, 12), 20, False, ttft_s, (Step(1, 0, 4, 0, ttft_s / 8, total_s - ttft_s, verify_s=ttft_s / 4),))
        for total_s, ttft_s in shares.items()
    ]
    run = run_record(trials)
    times = [run[name] for name in ("total_s", "ttft_s", "decode_s", "draft_s", "verify_s")]
    assert times == pytest.approx([0.5, 0.3, 0.2, 0.3 / 8, 0.3 / 4])


def test_of_two_measurements_of_the_machine_the_better_limit_counts() -> None:
    assert Limits(1.0, 4.0).or_better(Limits(3.0, 2.0)) == Limits(3.0, 4.0)


def test_of_two_measurements_of_the_threads_the_lower_one_counts() -> None:
    """A limit is what the machine can do; that threads had to share a core is what a cell's times suffered from."""
    assert Limits(1.0, 1.0, 1.9).or_better(Limits(1.0, 1.0, 0.9)).thread_scaling == 0.9
    assert Limits(1.0, 1.0).or_better(Limits(1.0, 1.0, 1.9)).thread_scaling == 1.9
