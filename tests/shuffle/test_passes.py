"""The clock of parallel generation: no pass, and no time between passes, is lost."""

from __future__ import annotations

import pytest

from shuffle import passes
from tests.decoding.test_seconds import Clock


def test_time_to_first_token_is_of_all_passes_until_it_and_the_rest_is_of_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(passes, "time", clock)
    ticks = passes.PassClock(prompt_length=5)
    for seconds, settled, first_is_known in ((1, 2, False), (10, 2, True), (100, 1, True)):
        clock.now += seconds
        ticks.tick(settled, first_is_known)
    clock.now += 1000  # what follows the last pass counts to it
    found = ticks.generation([4, 5, 6, 7, 8], truncated=False)
    assert found.ttft_s == 1 + 10
    assert [step.total_s for step in found.steps] == [100 + 1000]
    assert (found.prefill_emitted, [step.emitted for step in found.steps]) == (4, [1])
