"""Texts read together say what each says alone: on torch's engine, captured by stand-ins, when captures fail."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from decoding import TargetModel
from decoding.pool import PooledCache, prefill_together
from tests.decoding.cuda_standins import Device, stand_in
from tests.decoding.tiny import logits_of, save_model

PROMPTS = [[5, 9, 3, 17], [7], [11, 30, 8, 8, 20, 41, 3], [6, 6]]


@pytest.fixture(params=["plain", "captured", "failing"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device | None:
    if request.param == "plain":
        return None
    device = stand_in(monkeypatch)
    device.problem = "out of memory" if request.param == "failing" else None
    return device


@pytest.mark.parametrize("member", ["llama", "llama-untied-scaled", "qwen3"])
def test_each_text_goes_on_as_if_it_were_alone(tmp_path: Path, member: str, device: Device | None) -> None:
    model = save_model(tmp_path, member)
    target = TargetModel.from_pretrained(tmp_path, engine="eager")
    caches = target.new_caches(len(PROMPTS), 12)
    texts = [list(prompt) for prompt in PROMPTS]
    for cache, text in zip(caches, texts, strict=True):
        target.prefill(cache, text)
    for step, live in enumerate([[0, 1, 2, 3], [2, 0], [1], [3, 2, 1, 0], [2, 1], [0]]):
        tokens = [4 + step + place for place in live]
        output = target.read_each([caches[place] for place in live], tokens)
        for place, token, row in zip(live, tokens, output.logits, strict=True):
            texts[place].append(token)
            torch.testing.assert_close(row, logits_of(model, texts[place]), atol=1e-4, rtol=1e-4)
        assert [cache.length for cache in caches] == list(map(len, texts))
    if device is not None:
        assert device.calls.count("capture") == 1  # it is not tried again once it has failed
        assert device.calls.count("replay") == (0 if device.problem else 6)


@pytest.mark.parametrize("member", ["llama", "llama-untied-scaled", "qwen3"])
def test_prompts_read_together_are_as_if_each_were_read_alone(tmp_path: Path, member: str) -> None:
    model = save_model(tmp_path, member)
    target = TargetModel.from_pretrained(tmp_path, engine="eager")
    caches = target.new_caches(len(PROMPTS) + 1, 12)
    target.prefill(caches[2], PROMPTS[0])
    before = caches[2].buffer.clone()
    empty = [cache for number, cache in enumerate(caches) if number != 2]
    found = prefill_together(empty, PROMPTS)
    assert found is not None
    for prompt, row in zip(PROMPTS, found[0], strict=True):
        torch.testing.assert_close(row, logits_of(model, prompt), atol=1e-4, rtol=1e-4)
    assert [cache.length for cache in empty] == list(map(len, PROMPTS))
    assert torch.equal(caches[2].buffer, before)
    output = target.read_each(empty, [4] * len(PROMPTS))
    for prompt, row in zip(PROMPTS, output.logits, strict=True):
        torch.testing.assert_close(row, logits_of(model, [*prompt, 4]), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="empty caches"):
        prefill_together(caches, [*PROMPTS, [5]])
    assert prefill_together([target.new_cache(12)], [[5]]) is None


def test_a_text_that_is_over_leaves_its_prompt_to_be_copied(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path, engine="eager")
    caches = target.new_caches(2, 8)
    for cache in caches:
        target.prefill(cache, PROMPTS[2])
    kept = caches[0].buffer[:, :, :, :7].clone()
    target.read_each([caches[1]], [4])
    assert torch.equal(caches[0].buffer[:, :, :, :7], kept)


def test_caches_of_different_pools_are_read_one_by_one_and_a_full_one_is_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path, engine="eager")
    caches = [target.new_caches(2, 8)[1], target.new_caches(1, 8)[0], target.new_cache(8)]
    for cache in caches:
        target.prefill(cache, PROMPTS[0])
    for row in target.read_each(caches, [4, 4, 4]).logits:
        torch.testing.assert_close(row, logits_of(model, [*PROMPTS[0], 4]), atol=1e-4, rtol=1e-4)
    for _ in range(3):
        target.read_each(caches[:1], [4])
    with pytest.raises(ValueError, match="9 rows do not fit a cache of capacity 8"):
        target.read_each(caches[:1], [4])


def test_the_memory_goes_with_the_last_cache(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path, engine="eager")
    caches = target.new_caches(2, 8)
    assert isinstance(caches[0], PooledCache)
    pool = weakref.ref(caches[0].pool)
    gc.disable()
    try:
        del caches
        assert pool() is None
    finally:
        gc.enable()
