"""The cache's book-keeping: what is taken back is forgotten, and what comes after is as if it had never been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decoding import CandidateTree, TargetModel
from tests.decoding.tiny import logits_of, save_model

PROMPT = [5, 9, 3, 17, 40, 9, 3]


def test_a_truncated_cache_reads_on_as_if_the_rest_had_never_been(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path)
    cache = target.new_cache(64)
    target.prefill(cache, PROMPT)
    target.read(cache, CandidateTree.chain(20, [21, 22]))
    cache.keep([0, 1, 2])
    cache.truncate(len(PROMPT) + 1)
    assert cache.length == len(PROMPT) + 1
    logits = target.read(cache, CandidateTree.chain(30, [])).logits
    torch.testing.assert_close(logits[0], logits_of(model, [*PROMPT, 20, 30]), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("length", [-1, 8])
def test_a_cache_cannot_be_truncated_to_what_it_never_held(tmp_path: Path, length: int) -> None:
    save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path)
    cache = target.new_cache(64)
    target.prefill(cache, PROMPT)
    with pytest.raises(ValueError, match=f"length 7 cannot be truncated to {length}"):
        cache.truncate(length)


def test_a_model_remembers_its_folder(tmp_path: Path) -> None:
    save_model(tmp_path)
    assert TargetModel.from_pretrained(str(tmp_path)).folder == tmp_path
