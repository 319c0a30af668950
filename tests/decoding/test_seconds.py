"""What a step counts: on a made-up clock each second goes to what it is called after, and no token counts twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from decoding import CandidateTree, SpeculativeDecoder, TargetModel, Verdict
from tests.decoding.tiny import greedy_of, save_model

PROMPT = [7, 8, 9]  # its first four tokens differ, so that each of them can be an end token


class Clock:
    """A module ``time`` whose seconds pass only where a test lets them."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowDrafter:
    """Proposes a chain, and takes another number of seconds for each thing that it is asked to do."""

    max_width = 8

    def __init__(self, chain: Sequence[int], clock: Clock | None = None) -> None:
        self.chain, self.clock = chain, clock or Clock()

    def begin(self, prompt_ids: Sequence[int]) -> None:
        self.clock.now += 1

    def propose(self, context: Sequence[int]) -> CandidateTree:
        self.clock.now += 10
        return CandidateTree.chain(context[-1], self.chain)

    def observe(self, verdict: Verdict) -> int:
        self.clock.now += 100
        return 0


def test_each_second_is_counted_to_what_it_is_called_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path)
    target, clock = TargetModel.from_pretrained(tmp_path), Clock()
    monkeypatch.setattr("decoding.decoder.time", clock)

    def slowed(name: str, seconds: float) -> None:
        call = getattr(target, name)

        def slow(*given: Any, **named: Any) -> Any:
            clock.now += seconds
            return call(*given, **named)

        monkeypatch.setattr(target, name, slow)

    slowed("prefill", 1000)
    slowed("read", 2000)
    slowed("new_cache", 1e6)  # allocated before the clock starts
    found = SpeculativeDecoder(target, SlowDrafter([7, 7], clock)).generate(PROMPT, max_new_tokens=6)
    assert found.ttft_s == 1 + 1000 + 100
    assert len(found.steps) > 1
    for step in found.steps:
        assert (step.draft_s, step.verify_s, step.total_s) == (10 + 100, 2000, 10 + 2000 + 100)


def test_what_is_accepted_behind_an_end_token_is_not_counted(tmp_path: Path) -> None:
    truth = greedy_of(save_model(tmp_path), PROMPT, 8, end=-1)
    target = TargetModel.from_pretrained(tmp_path)
    target.end_token_ids = frozenset({truth[3]})  # prefill gives the first token: the third of the chain
    (step,) = SpeculativeDecoder(target, SlowDrafter(truth[1:7])).generate(PROMPT, max_new_tokens=8).steps
    assert (step.candidates, step.emitted, step.accepted) == (6, 3, 3)
