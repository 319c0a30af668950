"""A prompt that is prefilled again is the same prompt: the same outputs, and the same text after it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decoding import CandidateTree, TargetModel
from pipeline.prefilled import prefill_once
from tests.decoding.tiny import save_model


def test_the_second_time_gives_what_the_first_gave_and_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path)
    target, reads = TargetModel.from_pretrained(tmp_path), []
    read = target.prefill
    monkeypatch.setattr(target, "prefill", lambda cache, prompt: reads.append(tuple(prompt)) or read(cache, prompt))
    prefill_once(target)
    found = []
    for prompt in ([5, 6, 7], [5, 6, 7], [5, 6, 8], [5, 6, 7]):
        cache = target.new_cache(256)
        first = target.prefill(cache, prompt)
        assert cache.length == 3
        found.append((first.logits, target.read(cache, CandidateTree((9, 4), (-1, 0))).logits))
    assert reads == [(5, 6, 7), (5, 6, 8), (5, 6, 7)]
    for again in (found[1], found[3]):
        assert all(torch.equal(one, other) for one, other in zip(found[0], again, strict=True))
    assert not torch.equal(found[0][0], found[2][0])
