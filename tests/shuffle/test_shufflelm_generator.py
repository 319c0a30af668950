"""Generating one by one and in batches against a slow reference; ordering by hand; ends, limits, samples."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from decoding.stopping import StopStrings
from shuffle.examples import Example, collate_pairs
from shuffle.shufflelm.config import ShuffleConfig
from shuffle.shufflelm.generator import ShuffleGenerator
from shuffle.shufflelm.model import ShuffleLM
from shuffle.shufflelm.ordering import Ordering, choose_tokens

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13], [14, 15, 16, 17, 18, 19, 20, 21]]


def make(keep_bias: float = 0.0, **own: Any) -> ShuffleLM:
    """Build a random model whose choices are certain; the larger ``keep_bias``, the longer its texts."""
    shape = {"vocab_size": 48, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "eos_token_id": 2}
    slots = {"max_parallel_tokens": 6, "rotary_dim": 8, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = ShuffleLM(ShuffleConfig(**(shape | slots | own))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
        model.keep_head.bias.fill_(keep_bias)
    return model


@torch.no_grad()
def reference(model: ShuffleLM, prompt: list[int], limit: int, strategy: str, threshold: float = 0.5) -> list[int]:
    """Block by block with the whole model on one unpadded prompt, each rule in its own words."""
    text: list[int] = []
    most, ratio = model.config.max_parallel_tokens, model.config.slots_per_prompt_token
    while len(text) < limit:
        slots = most if ratio is None else min(most, math.ceil(ratio * len(prompt + text)))
        if len(prompt + text) + slots > model.config.max_position_embeddings:
            break
        output = model(torch.tensor([prompt + text]))
        probabilities = output.keep_logits[0].sigmoid()
        kept = [k for k in range(slots) if probabilities[k] >= threshold] or [int(probabilities.argmax())]
        scores = None if output.shuffle_scores is None else output.shuffle_scores[0]
        if strategy == "rotary":
            soft = [(scores[k] / model.config.shuffle_temperature).softmax(-1) for k in range(slots)]
            kept.sort(key=lambda k: sum(j * float(soft[k][j]) for j in range(slots)))
        elif strategy == "assignment":
            kept = max(
                (list(order) for order in itertools.permutations(kept)),
                key=lambda order: sum(float(scores[k, j]) for j, k in enumerate(order)),
            )
        said = [int(output.logits[0, k].argmax()) for k in kept]
        if model.config.matching == "ctc":
            spoken = [int(output.logits[0, k].argmax()) if k in kept else None for k in range(slots)]
            said = [token for token, _ in itertools.groupby(spoken) if token is not None]
        text += [token for token in said if token != 2]
        if 2 in said:
            return [*text, 2][:limit]
        if len(said) < slots:
            break
    return text[:limit]


PLACED = [
    {},
    {"prompt_attention": "causal", "num_mixer_layers": 0},
    {"source_copy": True, "num_mixer_layers": 2},
    {"tie_word_embeddings": False, "prompt_attention": "causal", "source_copy": True},
    {"num_mixer_layers": 0, "slots_per_prompt_token": 2.0, "source_copy": True},
]
IN_ORDER = {"matching": "ctc", "position_head": "none"}
UPSAMPLED = IN_ORDER | {"num_mixer_layers": 0, "slots_per_prompt_token": 1.5}
CTC = [IN_ORDER, UPSAMPLED, UPSAMPLED | {"source_copy": True}, UPSAMPLED | {"prompt_attention": "causal"}]


@pytest.mark.parametrize(
    ("strategy", "own"), [*itertools.product(["rotary", "assignment", "none"], PLACED), *(("none", own) for own in CTC)]
)
@pytest.mark.parametrize("keep_bias", [0.0, 6.0])
def test_one_by_one_in_batches_and_slowly_are_the_same(
    tmp_path: Path, strategy: str, own: dict[str, Any], keep_bias: float
) -> None:
    model = make(keep_bias, **own)
    model.save_pretrained(tmp_path)
    generator = ShuffleGenerator.from_pretrained(tmp_path, shuffle_strategy=strategy)
    wanted = [tuple(reference(model, prompt, 20, strategy)) for prompt in PROMPTS]
    assert generator.generate_batch(PROMPTS, max_new_tokens=20) == wanted
    assert generator.generate_abreast(PROMPTS, max_new_tokens=20) == wanted
    assert [generator.generate(prompt, max_new_tokens=20).output_ids for prompt in PROMPTS] == wanted
    if keep_bias:
        assert max(map(len, wanted)) > 6  # some text is longer than a block


def test_tells_its_passes_and_what_cut_it() -> None:
    generator = ShuffleGenerator(make(keep_bias=9.0, eos_token_id=None))
    found = generator.generate(PROMPTS[0], max_new_tokens=15)
    assert (found.num_new_tokens, found.truncated, found.target_forwards) == (15, True, 3)
    assert (found.prefill_emitted, [step.emitted for step in found.steps]) == (6, [6, 3])
    whole = ShuffleGenerator(make(keep_bias=-9.0)).generate(PROMPTS[0], max_new_tokens=15)
    assert (whole.num_new_tokens, whole.truncated, whole.target_forwards) == (1, False, 1)


def test_never_leaves_the_context() -> None:
    generator = ShuffleGenerator(make(keep_bias=9.0, eos_token_id=None, max_position_embeddings=30))
    for length in (1, 10, 24):
        prompt = list(range(3, 3 + length))
        room = 30 - length
        found = generator.generate(prompt, max_new_tokens=room)
        assert found.truncated
        assert found.num_new_tokens == room // 6 * 6  # whole blocks alone: the slots need their positions
        assert generator.generate_batch([prompt], max_new_tokens=room) == [found.output_ids]
        assert generator.generate_abreast([prompt], max_new_tokens=room) == [found.output_ids]
    for length, limit in [(25, 1), (10, 21)]:
        with pytest.raises(ValueError, match="exceed the context of 30"):
            generator.generate([3] * length, max_new_tokens=limit)
        with pytest.raises(ValueError, match="exceed the context of 30"):
            generator.generate_batch([[3], [3] * length], max_new_tokens=limit)


def test_stops_at_a_string() -> None:
    generator = ShuffleGenerator(make(keep_bias=9.0, eos_token_id=None))
    free = generator.generate(PROMPTS[0], max_new_tokens=15).output_ids
    stop = StopStrings(lambda ids: "".join(f"<{i}>" for i in ids), [f"<{free[8]}>"])
    found = generator.generate(PROMPTS[0], max_new_tokens=15, stop=stop)
    assert found.output_ids == free[: free.index(free[8]) + 1]
    assert not found.truncated


def test_refuses_an_empty_prompt_and_no_limit() -> None:
    generator = ShuffleGenerator(make())
    for prompt, limit, message in [([], 4, "empty"), ([3], 0, "max_new_tokens must be 1")]:
        with pytest.raises(ValueError, match=message):
            generator.generate(prompt, max_new_tokens=limit)
        with pytest.raises(ValueError, match=message):
            generator.generate_batch([prompt], max_new_tokens=limit)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle_strategy": "sorted"}, "shuffle_strategy='sorted' is unknown; known: rotary, assignment, none"),
        ({"keep_threshold": 1.0}, "keep_threshold=1.0 must be between"),
        ({"temperature": -1.0}, "temperature=-1.0 must be 0 or more"),
    ],
)
def test_refuses_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShuffleGenerator(make(), **options).generate([3], max_new_tokens=2)


def test_orders_only_by_what_the_model_has() -> None:
    model = make(position_head="none")
    assert model.ordering().strategy == "none"
    with pytest.raises(ValueError, match="needs position_head='rotary'"):
        model.ordering("assignment")
    with pytest.raises(ValueError, match="max_parallel_tokens=7 is more than the model's 6"):
        model.ordering(most=7)


def test_the_threshold_says_what_is_kept() -> None:
    keep = torch.tensor([2.0, -1.0, 0.5, -3.0, 1.0])
    assert Ordering(keep_threshold=0.5).kept(keep) == [0, 2, 4]
    assert Ordering(keep_threshold=1 / (1 + math.exp(1.5))).kept(keep) == [0, 1, 2, 4]
    assert Ordering().kept(keep - 9) == [0]


def test_the_most_of_a_pass_are_the_first_tokens_of_its_text_and_the_next_goes_on_behind_them() -> None:
    model, prompt = make(), torch.tensor([[5, 9, 7]])
    whole = model.generate(prompt, max_new_tokens=6)[0, 3:].tolist()
    assert len(whole) > 2
    for most in range(1, len(whole)):
        first = model.generate(prompt, max_parallel_tokens=most)[0, 3:].tolist()
        assert first == whole[:most]
        further = model.generate(prompt, max_parallel_tokens=most, max_new_tokens=most + 1)[0, 3:].tolist()
        again = model.generate(torch.tensor([[5, 9, 7, *first]]), max_parallel_tokens=most, max_new_tokens=1)
        assert further == again[0, 3:].tolist()


def test_texts_are_padded_with_an_end_token_where_there_is_no_id_for_it() -> None:
    assert ShuffleConfig(vocab_size=20, eos_token_id=[7, 8]).padding_id == 7
    assert ShuffleConfig(vocab_size=20, eos_token_id=7, pad_token_id=0).padding_id == 0
    llama = LlamaConfig(vocab_size=20, pad_token_id=4, hidden_size=32, num_attention_heads=2, intermediate_size=32)
    assert ShuffleConfig.like(llama).padding_id == 4


def test_assignment_gives_each_place_to_one_where_sorting_cannot() -> None:
    scores = torch.tensor([[0.0, 1.0, 0.2], [0.0, 0.9, 0.8], [0.5, 0.6, 0.0]])
    assert Ordering("assignment").of(scores, torch.ones(3)) == [2, 0, 1]


def test_draws_tokens_by_their_probabilities_and_the_seed() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(4000, 3)
    drawn = choose_tokens(logits, 0.5, torch.Generator().manual_seed(1))
    shares = drawn.bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.0, 2.0, 4.0]).softmax(0), atol=0.03, rtol=0)
    generator = ShuffleGenerator(make(keep_bias=9.0, eos_token_id=None), temperature=5.0)
    texts = [
        generator.generate(PROMPTS[0], max_new_tokens=12, generator=torch.Generator().manual_seed(seed)).output_ids
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("own", [{}, {"source_copy": True}])
def test_runs_in_bfloat16(own: dict[str, Any]) -> None:
    generator = ShuffleGenerator(make(**own), dtype=torch.bfloat16)
    assert 1 <= generator.generate(PROMPTS[0], max_new_tokens=12).num_new_tokens <= 12
    assert len(generator.generate_batch(PROMPTS, max_new_tokens=12)) == 4
    assert len(generator.generate_abreast(PROMPTS, max_new_tokens=12)) == 4


def test_generates_as_users_of_transformers_expect() -> None:
    model = make(keep_bias=1.0, pad_token_id=0)
    batch = collate_pairs([Example(tuple(prompt), ()) for prompt in PROMPTS])
    batch.pop("labels")
    found = model.generate(**batch, max_parallel_tokens=5, shuffle_strategy="assignment")
    assert torch.equal(found[:, :8], batch["input_ids"])
    texts = found[:, 8:].tolist()
    assert 1 <= len(texts[0]) <= 5
    alone = [
        model.generate(torch.tensor([prompt]), max_parallel_tokens=5, shuffle_strategy="assignment")
        for prompt in PROMPTS
    ]
    for prompt, text, ids in zip(PROMPTS, texts, alone, strict=True):
        wanted = ids[0, len(prompt) :].tolist()
        assert text == wanted + [0] * (len(text) - len(wanted))
    drawn = model.generate(**batch, max_parallel_tokens=5, shuffle_strategy="rotary", temperature=0.7)
    assert drawn.shape[0] == 4


def test_a_text_goes_on_behind_slots_that_are_all_kept_though_a_pass_might_have_more() -> None:
    model = make(keep_bias=9.0, slots_per_prompt_token=1.0, num_mixer_layers=0)  # four slots for four tokens
    prompt = torch.tensor([[5, 6, 7, 8]])
    lengths = [model.generate(prompt, max_new_tokens=20, max_parallel_tokens=most).shape[1] for most in (None, 5, 6)]
    assert lengths[0] > len(prompt[0]) + 4
    assert lengths == [lengths[0]] * 3


def test_the_last_passes_need_the_room_of_their_own_slots() -> None:
    model = make(keep_bias=9.0, slots_per_prompt_token=0.25, num_mixer_layers=0, max_position_embeddings=20)
    whole = model.generate(torch.tensor([list(range(5, 17))]), max_new_tokens=6)
    assert whole.shape[1] > 12 + 3  # three slots, then four: sixteen and six would not fit, fifteen and four do
