"""Candidates and the twin's choice among them, against all choices of all slots and each text read alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from decoding import TargetModel
from shuffle.backbone import BackboneConfig, ParallelModel
from shuffle.scoring import causal_scorer, engine_scorer, tree_of
from shuffle.shufflelm.generator import ShuffleGenerator
from shuffle.shufflelm.model import ShuffleLM
from shuffle.shufflelm.reranked import RerankedGenerator, as_judged, likeliest
from tests.shuffle.test_shufflelm_generator import make

V, K, EOS = 9, 3, 2
SMALL: dict[str, Any] = {"vocab_size": V, "max_parallel_tokens": K, "eos_token_id": EOS}
CTC = {"matching": "ctc", "position_head": "none"}
KINDS = [
    {},
    {"prompt_attention": "causal", "num_mixer_layers": 0},
    {"source_copy": True, "num_mixer_layers": 0, "slots_per_prompt_token": 1.0},
    CTC,
    CTC | {"num_mixer_layers": 0, "slots_per_prompt_token": 1.5, "source_copy": True},
]
PROMPTS = [[5, 6, 7, 8, 3], [4], [3, 8], [7, 7, 4, 5, 6, 3, 1, 8]]


def unsure(keep_bias: float, **own: Any) -> ShuffleLM:
    """A random model that might as well say something else."""
    model = make(keep_bias, **(SMALL | own))
    with torch.no_grad():
        model.backbone.embed_tokens.weight.mul_(0.4)
    return model


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[TargetModel, LlamaForCausalLM]:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("twin")
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}
    model = LlamaForCausalLM(BackboneConfig(vocab_size=V, eos_token_id=EOS, initializer_range=0.4, **shape).llama())
    model.eval().save_pretrained(folder)
    return TargetModel.from_pretrained(folder), model


@torch.no_grad()
def mean_log_prob(model: LlamaForCausalLM, context: Sequence[int], text: Sequence[int]) -> float:
    total = 0.0
    for i, token in enumerate(text):
        total += float(model(torch.tensor([[*context, *text[:i]]])).logits[0, -1].log_softmax(-1)[token])
    return total / len(text)


@torch.no_grad()
def block_of(model: ShuffleLM, twin: LlamaForCausalLM, context: list[int], count: int) -> tuple[list[int], int, bool]:
    """What the twin likes best of one pass, how many slots that had, and whether it is the slots' own text."""
    output = model(torch.tensor([context]))
    slots = model.config.num_slots(len(context))
    keep = output.keep_logits[0, :slots].sigmoid()
    said = output.logits[0, :slots].softmax(-1)
    scores = None if output.shuffle_scores is None else output.shuffle_scores[0]

    def text_of(choice: Sequence[int | None]) -> tuple[int, ...]:
        kept = [k for k, token in enumerate(choice) if token is not None]
        if scores is not None:
            soft = (scores / model.config.shuffle_temperature).softmax(-1) @ torch.arange(scores.shape[1]).float()
            kept.sort(key=lambda k: float(soft[k]))
        text = [choice[k] for k in kept]
        if model.config.matching == "ctc":
            text = [token for token, _ in itertools.groupby(choice) if token is not None]
        return tuple(sorted((token for token in text if token is not None), key=lambda token: token == EOS))

    def chance(choice: Sequence[int | None]) -> float:
        each = [1 - keep[k] if token is None else keep[k] * said[k, token] for k, token in enumerate(choice)]
        return math.prod(map(float, each))

    own = [int(said[k].argmax()) if keep[k] >= 0.5 else None for k in range(slots)]
    if own == [None] * slots:
        own[int(keep.argmax())] = int(said[keep.argmax()].argmax())
    choices = sorted(itertools.product([None, *range(V)], repeat=slots), key=chance, reverse=True)[:count]

    def asked(text: tuple[int, ...]) -> tuple[int, ...]:
        body = tuple(token for token in text if token != EOS)
        return body if len(body) == slots else (*body, EOS)

    texts: list[tuple[int, ...]] = []
    for text in map(text_of, [own, *choices]):
        if text and asked(text) not in map(asked, texts):
            texts.append(text)
    best = max(texts[:count], key=lambda text: mean_log_prob(twin, context, asked(text)))
    return list(best), slots, best == texts[0]


def slowly(
    model: ShuffleLM, twin: LlamaForCausalLM, prompt: list[int], limit: int, count: int
) -> tuple[list[int], int, int]:
    """Return the text, its blocks, and in how many of them the twin chose another one than the slots' own."""
    text: list[int] = []
    blocks = changed = 0
    while len(text) < limit and EOS not in text:
        block, slots, is_own = block_of(model, twin, prompt + text, count)
        text += block
        blocks += 1
        changed += not is_own
        if len(block) < slots:
            break
    return (text[: text.index(EOS) + 1] if EOS in text else text)[:limit], blocks, changed


@pytest.mark.parametrize("own", KINDS)
@pytest.mark.parametrize("count", [2, 6])
def test_the_twin_chooses_among_the_likeliest_texts(
    twin: tuple[TargetModel, LlamaForCausalLM], own: dict[str, Any], count: int
) -> None:
    changed = 0
    for keep_bias in (0.0, 3.0):
        model = unsure(keep_bias, **own)
        generator = RerankedGenerator(model, twin=twin[0], num_candidates=count)
        for prompt in PROMPTS:
            wanted, blocks, others = slowly(model, twin[1], prompt, 7, count)
            found = generator.generate(prompt, max_new_tokens=7)
            assert list(found.output_ids) == wanted
            assert found.target_forwards == 2 * blocks  # the slots' and the twin's
            assert found.prefill_forwards == 2  # no token is known before the twin has chosen
            changed += others
        texts = generator.generate_batch(PROMPTS, max_new_tokens=7)
        assert texts == [generator.generate(prompt, max_new_tokens=7).output_ids for prompt in PROMPTS]
    assert changed


CARD = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no card here"))


@pytest.mark.parametrize("device", ["cpu", CARD])
@pytest.mark.parametrize("own", KINDS)
def test_without_the_compiled_engine_it_writes_the_same(
    twin: tuple[TargetModel, LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch, own: dict[str, Any], device: str
) -> None:
    model = unsure(1.0, **own)
    here = RerankedGenerator(model, twin=twin[0])
    texts = [here.generate(prompt, max_new_tokens=7).output_ids for prompt in PROMPTS]
    engine = ParallelModel.engine
    monkeypatch.setattr(ParallelModel, "engine", lambda self, dtype, device: engine(self, dtype, device, "eager"))
    eager = TargetModel.from_pretrained(twin[0].folder or "", engine="eager", device=device)
    there = RerankedGenerator(model, twin=eager, device=device)
    assert there.target.native is None
    assert [there.generate(prompt, max_new_tokens=7).output_ids for prompt in PROMPTS] == texts
    assert there.generate_batch(PROMPTS, max_new_tokens=7) == texts


def test_one_candidate_is_the_generators_own_text(twin: tuple[TargetModel, LlamaForCausalLM]) -> None:
    for own in KINDS:
        model = unsure(0.5, **own)
        alone = RerankedGenerator(model, twin=twin[0], num_candidates=1, keep_threshold=0.4)
        wanted = ShuffleGenerator(model, keep_threshold=0.4).generate_batch(PROMPTS, max_new_tokens=7)
        assert alone.generate_batch(PROMPTS, max_new_tokens=7) == wanted


def test_runs_in_bfloat16(twin: tuple[TargetModel, LlamaForCausalLM]) -> None:
    target = TargetModel.from_pretrained(twin[0].folder or "", dtype=torch.bfloat16)
    generator = RerankedGenerator(unsure(1.0), twin=target, dtype=torch.bfloat16)
    assert all(1 <= len(text) <= 7 for text in generator.generate_batch(PROMPTS, max_new_tokens=7))


@pytest.mark.parametrize(("slots", "options"), [(1, 2), (3, 4), (4, 5)])
def test_the_likeliest_choices_are_those_of_all_choices(slots: int, options: int) -> None:
    torch.manual_seed(slots)
    for count in (1, 2, 7, 40):
        log_probs = torch.randn(slots, options).log_softmax(-1)
        total = {
            choice: sum(float(log_probs[slot, option]) for slot, option in enumerate(choice))
            for choice in itertools.product(range(options), repeat=slots)
        }
        wanted = sorted(total, key=total.__getitem__, reverse=True)[:count]
        assert list(map(tuple, likeliest(log_probs, count))) == wanted


@pytest.mark.parametrize(("engine", "decode_width"), [("auto", None), ("eager", None), ("eager", 16)])
def test_the_engine_scores_many_texts_as_each_alone(
    twin: tuple[TargetModel, LlamaForCausalLM], engine: str, decode_width: int | None
) -> None:
    target = TargetModel.from_pretrained(twin[0].folder or "", engine=engine, decode_width=decode_width)
    texts = [[5, 6, 7, EOS], [5, 6, 8], [5], [4, 6, 7, EOS], [5, 6, 7, EOS]]
    score = engine_scorer(target)
    for prompt in PROMPTS:
        for found, wanted in zip(score(prompt, texts), causal_scorer(twin[1])(prompt, texts), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_texts_share_the_rows_of_their_beginnings() -> None:
    tree, paths = tree_of([7, 8], [[5, 6, 4], [5, 6, 3], [5], [4, 4]])
    assert tree.tokens == (7, 8, 5, 6, 4)
    assert tree.parents == (-1, 0, 1, 2, 1)
    assert paths == [[1, 2, 3], [1, 2, 3], [1], [1, 4]]


def test_a_text_that_stops_is_judged_with_its_end() -> None:
    for block, wanted in [
        ([5, 6], (5, 6, 2)),  # a slot was dropped: it is whole
        ([5, 6, 7], (5, 6, 7)),  # goes on
        ([5, 6, 2], (5, 6, 2)),
        ([5, 3, 2], (5, 3)),  # what it says itself, once
        ([2], (2,)),
    ]:
        assert as_judged(block, {2, 3}, [2], most=3) == wanted
    assert as_judged([5], set(), [], most=3) == (5,)


def test_refuses_another_models_tokens_and_no_candidates(
    twin: tuple[TargetModel, LlamaForCausalLM], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="has 48 tokens, the target 9: not its twin"):
        RerankedGenerator(make(), twin=twin[0])
    unsure(0.0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_candidates must be 1"):
        RerankedGenerator.from_pretrained(tmp_path, twin=twin[0], num_candidates=0)
    with pytest.raises(ValueError, match="the twin reads 64 tokens, the generator 80"):
        RerankedGenerator(unsure(0.0, max_position_embeddings=80), twin=twin[0])
    with pytest.raises(NotImplementedError, match="one text at a time"):
        RerankedGenerator(unsure(0.0), twin=twin[0]).generate_abreast(PROMPTS, max_new_tokens=7)


def test_goes_to_the_end_of_the_context_and_no_further(twin: tuple[TargetModel, LlamaForCausalLM]) -> None:
    generator = RerankedGenerator(unsure(9.0, eos_token_id=None), twin=twin[0])
    found = generator.generate([5] * (64 - K), max_new_tokens=K)
    assert (found.num_new_tokens, found.truncated) == (K, True)
    with pytest.raises(ValueError, match="exceed the context of 64"):
        generator.generate([5] * (64 - K), max_new_tokens=K + 1)
