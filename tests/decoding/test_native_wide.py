"""The compiled engine on prompts: many rows at once, heads as wide as real ones, more keys than are held together."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from decoding import CandidateTree
from tests.decoding.test_native import KINDS, level, load, random_tree  # noqa: F401 (level: a fixture)
from tests.decoding.tiny import SHAPE, logits_of

GENERATOR = random.Random(11)
PROMPT = [GENERATOR.randrange(3, 48) for _ in range(150)]
HEAD_DIMS = [24, 64]  # not a whole number of vectors, and SmolLM2's


def save(folder: Path, head_dim: int) -> LlamaForCausalLM:
    """Save a model with three queries to a key and an odd number of panels in every product."""
    shape = SHAPE | {"hidden_size": 3 * head_dim, "intermediate_size": 80, "head_dim": head_dim}
    torch.manual_seed(head_dim)
    model = LlamaForCausalLM(LlamaConfig(**shape | {"num_attention_heads": 3, "num_key_value_heads": 1})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_long_prompt_gives_what_transformers_gives(tmp_path: Path, head_dim: int) -> None:
    model = save(tmp_path, head_dim)
    target = load(tmp_path)
    for length in (12, 13, 17, 24, 31, 64, 65, 150):
        logits = target.prefill(target.new_cache(256), PROMPT[:length]).logits[0]
        torch.testing.assert_close(logits, logits_of(model, PROMPT[:length]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_long_prompt_has_the_bits_of_reading_one_token_after_the_other(
    tmp_path: Path, head_dim: int, kind: str
) -> None:
    save(tmp_path, head_dim)
    target = load(tmp_path, kind)
    one_by_one = target.new_cache(256)
    last = target.prefill(one_by_one, PROMPT[:1])
    for length in range(2, len(PROMPT) + 1):
        last = target.read(one_by_one, CandidateTree((PROMPT[length - 1],), (-1,)))
        one_by_one.keep([0])
        if length not in (17, 25, 64, 80, 129, 150):
            continue
        at_once = target.new_cache(256)
        assert torch.equal(target.prefill(at_once, PROMPT[:length]).logits, last.logits)
        assert torch.equal(at_once.buffer[:, :, :, :length], one_by_one.buffer[:, :, :, :length])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_threads_that_share_a_key_head_change_no_bit(tmp_path: Path, head_dim: int, kind: str) -> None:
    """Up to 16 rows all threads work on each head, by keys and then by columns; beyond, each on rows of its own."""
    save(tmp_path, head_dim)
    target = load(tmp_path, kind)
    threads = torch.get_num_threads()

    def logits(num_threads: int, width: int) -> Tensor:
        torch.set_num_threads(num_threads)
        cache = target.new_cache(256)
        target.prefill(cache, PROMPT)
        return target.read(cache, random_tree(width, seed=width)).logits

    try:
        for width in (1, 2, 5, 16, 17, 40):
            alone = logits(1, width)
            assert all(torch.equal(alone, logits(n, width)) for n in (2, 3, 5))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_of_each_of_several_long_texts_has_the_bits_of_each_text_alone(tmp_path: Path, kind: str) -> None:
    save(tmp_path, 64)
    target = load(tmp_path, kind)
    caches = [target.new_cache(256) for _ in range(19)]
    alone = []
    for number, cache in enumerate(caches):
        target.prefill(cache, PROMPT[: 60 + 4 * number])
        alone.append(target.read(cache, CandidateTree((number + 3,), (-1,))).logits[0])
    assert torch.equal(target.read_each(caches, range(3, 22)).logits, torch.stack(alone))


@pytest.mark.usefixtures("level")
def test_narrower_vectors_read_a_long_prompt_too(tmp_path: Path) -> None:
    for head_dim in HEAD_DIMS:
        test_a_long_prompt_gives_what_transformers_gives(tmp_path / str(head_dim), head_dim)
        for kind in KINDS:
            folder = tmp_path / f"{head_dim}-{kind}"
            test_a_long_prompt_has_the_bits_of_reading_one_token_after_the_other(folder, head_dim, kind)
