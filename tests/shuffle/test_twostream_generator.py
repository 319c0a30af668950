"""Generation a group at a time: cached against the whole text anew for each group, one text against a batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from decoding import StopStrings
from shuffle.twostream.config import TwoStreamConfig
from shuffle.twostream.generator import TwoStreamGenerator
from shuffle.twostream.model import LlamaTwoStreamForCausalLM

RNG = random.Random(5)
PROMPTS = [[RNG.randrange(3, 48) for _ in range(length)] for length in (1, 7, 19, 4, 12)]
SHAPE = {"vocab_size": 48, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
END = 13  # a token that the random model generates in some texts and not in others
LIMIT = 21


def make_model(seed: int = 0, **own: object) -> LlamaTwoStreamForCausalLM:
    torch.manual_seed(seed)
    model = LlamaTwoStreamForCausalLM(
        TwoStreamConfig(**{**SHAPE, "max_position_embeddings": 64, "eos_token_id": END, **own})
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


@torch.no_grad()
def reference(model: LlamaTwoStreamForCausalLM, prompt: Sequence[int], plan: list[list[int]]) -> list[int]:
    """Every group predicted by a forward pass over the whole text, no cache, tokens not yet settled padded out."""
    limit, length = sum(map(len, plan)), len(prompt)
    ids = [*prompt, *[0] * limit]
    groups = [*(range(length) if model.config.prompt_groups == "causal" else [0] * length), *[0] * limit]
    for step, places in enumerate(plan):
        for place in places:
            groups[length + place] = length + step
    for places in plan:
        logits = model(torch.tensor([ids]), group_ids=torch.tensor([groups])).logits[0]
        for place in places:
            ids[length + place] = int(logits[length + place].argmax())
    output = ids[length:]
    return output[: output.index(END) + 1] if END in output else output


def left_to_right(limit: int, size: int) -> list[list[int]]:
    return [list(range(start, min(start + size, limit))) for start in range(0, limit, size)]


@pytest.mark.parametrize("prompt_groups", ["single", "causal"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_cached_generation_is_uncached_generation(size: int, prompt_groups: str) -> None:
    model = make_model(prompt_groups=prompt_groups)
    generator = TwoStreamGenerator(model, group_size=size)
    expected = [reference(model, prompt, left_to_right(LIMIT, size)) for prompt in PROMPTS]
    alone = [generator.generate(prompt, max_new_tokens=LIMIT) for prompt in PROMPTS]
    assert [list(generation.output_ids) for generation in alone] == expected
    assert [list(ids) for ids in generator.generate_batch(PROMPTS, max_new_tokens=LIMIT)] == expected
    assert [list(ids) for ids in generator.generate_abreast(PROMPTS, max_new_tokens=LIMIT)] == expected
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS)
    assert {END in ids for ids in expected} == {True, False}
    for generation, ids in zip(alone, expected, strict=True):
        assert generation.target_forwards == -(-len(ids) // size)
        assert generation.truncated == (END not in ids)
        assert generation.prefill_emitted + sum(step.emitted for step in generation.steps) == len(ids)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_text_that_has_ended_is_not_read_any_more(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = TwoStreamGenerator(make_model(prompt_groups="causal"), group_size=size)
    read: list[int] = []
    real = generator._read_batch

    def counting(*arguments: Any) -> torch.Tensor:
        read.append(len(arguments[2]))
        return real(*arguments)

    monkeypatch.setattr(generator, "_read_batch", counting)
    texts = generator.generate_abreast(PROMPTS, max_new_tokens=LIMIT)
    passes = [-(-len(text) // size) for text in texts]
    assert read == [sum(each > done for each in passes) for done in range(max(passes))]
    assert read[-1] < read[0] == len(PROMPTS)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_random_order_within_blocks(seed: int) -> None:
    model = make_model(block_groups=3)
    model.set_grouping(2, "random")
    generator = TwoStreamGenerator(model, seed=seed)
    plan = generator._plan(LIMIT)
    assert sorted(place for places in plan for place in places) == list(range(LIMIT))
    assert plan != left_to_right(LIMIT, 2)
    assert all(place // 6 == step // 3 for step, places in enumerate(plan) for place in places)
    expected = [reference(model, prompt, plan) for prompt in PROMPTS]
    assert [list(generator.generate(prompt, max_new_tokens=LIMIT).output_ids) for prompt in PROMPTS] == expected
    assert [list(ids) for ids in generator.generate_batch(PROMPTS, max_new_tokens=LIMIT)] == expected
    assert [list(ids) for ids in generator.generate_abreast(PROMPTS, max_new_tokens=LIMIT)] == expected


def test_the_time_to_first_token_waits_for_the_first_token() -> None:
    model = make_model(block_groups=4, eos_token_id=None)
    generator = TwoStreamGenerator(model, group_size=1, order="random", seed=1)
    first = next(step for step, places in enumerate(generator._plan(8)) if 0 in places) + 1
    assert first > 1
    generation = generator.generate(PROMPTS[1], max_new_tokens=8)
    assert (generation.prefill_forwards, generation.prefill_emitted, len(generation.steps)) == (first, first, 8 - first)


def test_loaded_from_a_folder_with_the_models_own_grouping(tmp_path: Path) -> None:
    model = make_model()
    model.set_grouping(3)
    model.save_pretrained(tmp_path)
    generator = TwoStreamGenerator.from_pretrained(tmp_path)
    assert (generator.group_size, generator.order) == (3, "left_to_right")
    expected = reference(model, PROMPTS[2], left_to_right(LIMIT, 3))
    assert list(generator.generate(PROMPTS[2], max_new_tokens=LIMIT).output_ids) == expected
    narrow = TwoStreamGenerator.from_pretrained(tmp_path, dtype=torch.bfloat16, group_size=2)
    assert narrow.generate(PROMPTS[0], max_new_tokens=4).num_new_tokens <= 4
    assert len(narrow.generate_batch(PROMPTS, max_new_tokens=4)) == len(PROMPTS)
    assert len(narrow.generate_abreast(PROMPTS, max_new_tokens=4)) == len(PROMPTS)


def test_the_engines_agree() -> None:
    model = make_model()
    plain = TwoStreamGenerator(model, group_size=2)
    plain.__dict__["target"] = model.engine(torch.float32, "cpu", "eager")
    for prompt in PROMPTS:
        expected = reference(model, prompt, left_to_right(LIMIT, 2))
        assert list(plain.generate(prompt, max_new_tokens=LIMIT).output_ids) == expected


def test_stops_at_a_stop_string() -> None:
    generator = TwoStreamGenerator(make_model(eos_token_id=None), group_size=2)
    whole = generator.generate(PROMPTS[1], max_new_tokens=LIMIT).output_ids
    stop = StopStrings(lambda ids: "".join(chr(200 + i) for i in ids), [chr(200 + whole[4])])
    generation = generator.generate(PROMPTS[1], max_new_tokens=LIMIT, stop=stop)
    assert generation.output_ids == whole[: whole.index(whole[4]) + 1]
    assert not generation.truncated


def test_the_limit_may_end_within_a_group_and_at_the_last_position() -> None:
    generator = TwoStreamGenerator(make_model(eos_token_id=None), group_size=4)
    for prompt, limit in (([5], 1), ([5], 63), ([5] * 63, 1), ([5] * 54, 10)):
        assert generator.generate(prompt, max_new_tokens=limit).num_new_tokens == limit
        assert len(generator.generate_batch([prompt, [6]], max_new_tokens=limit)[0]) == limit
        assert len(generator.generate_abreast([prompt, [6]], max_new_tokens=limit)[0]) == limit


@pytest.mark.parametrize(
    ("prompt", "limit", "problem"), [([], 4, "empty"), ([5], 0, "max_new_tokens"), ([5] * 60, 5, "exceed")]
)
def test_refuses_what_it_cannot_generate(prompt: list[int], limit: int, problem: str) -> None:
    generator = TwoStreamGenerator(make_model())
    with pytest.raises(ValueError, match=problem):
        generator.generate(prompt, max_new_tokens=limit)
    with pytest.raises(ValueError, match=problem):
        generator.generate_batch([[5], prompt], max_new_tokens=limit)


def test_sampling_draws_each_place_from_its_distribution() -> None:
    model = make_model(eos_token_id=None)
    generator = TwoStreamGenerator(model, group_size=2, temperature=0.7)
    prompt = PROMPTS[1]
    ids, groups = torch.tensor([[*prompt, 0, 0]]), torch.tensor([[0] * len(prompt) + [1, 1]])
    with torch.no_grad():
        expected = torch.softmax(model(ids, group_ids=groups).logits[0, -2:].double() / 0.7, -1)
    rng = torch.Generator().manual_seed(0)
    draws = torch.tensor(generator.generate_abreast([prompt] * 4000, max_new_tokens=2, generator=rng))
    for place in range(2):
        share = torch.bincount(draws[:, place], minlength=48) / 4000
        assert (share - expected[place]).abs().max() < 0.04
    texts = [
        generator.generate(prompt, max_new_tokens=9, generator=torch.Generator().manual_seed(seed)).output_ids
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_no_prompts_no_texts() -> None:
    generator = TwoStreamGenerator(make_model())
    assert generator.generate_batch([], max_new_tokens=3) == generator.generate_abreast([], max_new_tokens=3) == []


def test_a_model_of_another_attention_back_end_is_read_in_batches_as_alone() -> None:
    model = make_model()
    model.set_attn_implementation("eager")
    generator = TwoStreamGenerator(model, group_size=2)
    alone = [generator.generate(prompt, max_new_tokens=9).output_ids for prompt in PROMPTS]
    assert generator.generate_abreast(PROMPTS, max_new_tokens=9) == alone
