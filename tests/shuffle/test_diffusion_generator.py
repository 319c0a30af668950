"""Generation: engine and cache against the whole sequence read anew, one text against many, ends, limits, energy."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from decoding import StopStrings
from shuffle.diffusion.config import DiffusionConfig
from shuffle.diffusion.energy import pseudo_log_likelihoods
from shuffle.diffusion.generator import DiffusionGenerator
from shuffle.diffusion.model import DiffusionTransformer
from shuffle.scoring import energy
from tests.decoding.tiny import save_model

EOS, V, CONTEXT, L = 2, 24, 64, 4
RNG = random.Random(5)
PROMPTS = [[RNG.randrange(3, V) for _ in range(n)] for n in (1, 7, 12, 3, 20, 9)]
SLOW = [(0.9, None), (0.3, None), (0.3, 2), (0.9, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, sure of itself now and then, that ends now and then."""
    torch.manual_seed(3)
    config = DiffusionConfig(
        vocab_size=V, hidden_size=32, num_layers=2, eos_token_id=EOS, block_length=L, max_position_embeddings=CONTEXT
    )
    model = DiffusionTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.35) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
        model.backbone.embed_tokens.weight[EOS] *= 1.35
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@torch.no_grad()
def slowly(folder: Path, prompt: list[int], limit: int, threshold: float, steps: int | None) -> tuple[list[int], int]:
    """The text and the passes: block by block, place by place, the whole sequence anew for each pass."""
    model = DiffusionTransformer.from_pretrained(folder).eval()
    text, passes = [], 0
    while len(text) < limit and EOS not in text:
        block, left = [V] * L, steps
        while True:
            first_end = block.index(EOS) if EOS in block else L
            waiting = [i for i in range(L) if block[i] == V and i < first_end and len(text) + i < limit]
            if not waiting:
                break
            ids = torch.tensor([[*prompt, *text, *block]])
            rows = model(ids, prompt_lengths=torch.tensor([len(prompt)])).logits[0, -L:].softmax(-1)
            passes += 1
            by_confidence = sorted(waiting, key=lambda i: -float(rows[i].max()))
            due = by_confidence[: 1 if left is None else -(-len(waiting) // left)]
            sure = [i for i in range(L) if block[i] == V and float(rows[i].max()) >= threshold]
            for i in {*due, *sure}:
                block[i] = int(rows[i].argmax())
            left = None if left is None else max(left - 1, 1)
        text += block
    text = text[:limit]
    return (text[: text.index(EOS) + 1] if EOS in text else text), passes


@pytest.mark.parametrize(("threshold", "steps"), SLOW)
def test_one_text_is_that_of_reading_all_anew(folder: Path, threshold: float, steps: int | None) -> None:
    fast = DiffusionGenerator.from_pretrained(folder, confidence_threshold=threshold, num_refinement_steps=steps)
    ended = 0
    for prompt in PROMPTS:
        generation = fast.generate(prompt, max_new_tokens=18)
        text, passes = slowly(folder, prompt, 18, threshold, steps)
        assert list(generation.output_ids) == text
        assert generation.target_forwards == passes
        assert generation.truncated == (EOS not in text)
        assert generation.prefill_emitted + sum(step.emitted for step in generation.steps) == len(text)
        ended += EOS in text
    assert 0 < ended < len(PROMPTS)  # both ways to end were seen


RULES = [
    {},
    {"confidence_threshold": 0.3},
    {"block_length": 3},
    {"block_length": 2},
    {"num_refinement_steps": 2},
    {"num_refinement_steps": 2, "adaptive_steps": False},
    {"repetition_penalty": 1.5},
    {"remask_threshold": 0.3, "confidence_threshold": 0.4},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("limit", [1, 22])
def test_many_texts_are_those_of_one_at_a_time(folder: Path, rules: dict[str, float], limit: int) -> None:
    generator = DiffusionGenerator.from_pretrained(folder, **rules)
    prompts = [*PROMPTS, [5] * (CONTEXT - limit), [6] * (CONTEXT - limit - 1)]
    alone = [generator.generate(prompt, max_new_tokens=limit).output_ids for prompt in prompts]
    assert generator.generate_batch(prompts, max_new_tokens=limit) == alone
    assert generator.generate_abreast(prompts, max_new_tokens=limit) == alone
    assert all(1 <= len(text) <= limit for text in alone)
    assert all(token < V for text in alone for token in text)


def test_a_cache_is_used_again(folder: Path) -> None:
    generator = DiffusionGenerator.from_pretrained(folder)
    first, _, again = (generator.generate(PROMPTS[i], max_new_tokens=24).output_ids for i in (1, 4, 1))
    assert first == again


def test_stop_strings_end_a_text(folder: Path) -> None:
    generator = DiffusionGenerator.from_pretrained(folder)
    whole = generator.generate(PROMPTS[2], max_new_tokens=16).output_ids
    stop = StopStrings(lambda ids: "".join(f"<{i}>" for i in ids), [f"<{whole[4]}>"])
    cut = generator.generate(PROMPTS[2], max_new_tokens=16, stop=stop)
    assert cut.output_ids == whole[: whole.index(whole[4]) + 1]
    assert not cut.truncated


def test_draws_with_the_generator_that_it_is_given(folder: Path) -> None:
    generator = DiffusionGenerator.from_pretrained(folder, temperature=1.5)

    def draws(seed: int) -> list[tuple[int, ...]]:
        source = torch.Generator().manual_seed(seed)
        return [generator.generate(prompt, max_new_tokens=12, generator=source).output_ids for prompt in PROMPTS]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_the_candidate_of_least_energy_is_kept(folder: Path) -> None:
    options = {"temperature": 2.0}
    many = DiffusionGenerator.from_pretrained(folder, num_candidates=8, **options)
    one = DiffusionGenerator.from_pretrained(folder, **options)
    for prompt in PROMPTS:
        texts = one.generate_abreast([prompt] * 8, max_new_tokens=12, generator=torch.Generator().manual_seed(1))
        scores = pseudo_log_likelihoods(one.model, prompt, texts)
        best = min(range(8), key=lambda i: energy(scores[i]))
        generation = many.generate(prompt, max_new_tokens=12, generator=torch.Generator().manual_seed(1))
        assert generation.output_ids == texts[best]
        assert generation.prefill_emitted == len(texts[best])
        assert generation.target_forwards > 1


def test_a_scorer_decides_what_is_best(folder: Path) -> None:
    def low_ids_first(prompt: list[int], texts: list[tuple[int, ...]]) -> list[torch.Tensor]:
        return [torch.tensor([-float(text[0])]) for text in texts]

    generator = DiffusionGenerator.from_pretrained(folder, temperature=2.0, num_candidates=8, scorer=low_ids_first)
    plain = DiffusionGenerator.from_pretrained(folder, temperature=2.0)
    texts = plain.generate_abreast([PROMPTS[1]] * 8, max_new_tokens=9, generator=torch.Generator().manual_seed(1))
    best = generator.generate(PROMPTS[1], max_new_tokens=9, generator=torch.Generator().manual_seed(1)).output_ids
    assert best[0] == min(text[0] for text in texts)


def test_a_scorer_of_other_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path)  # 48 tokens
    with pytest.raises(ValueError, match="tokens, the target 48: not its twin"):
        DiffusionGenerator.from_pretrained(folder, temperature=1.0, num_candidates=2, scorer=tmp_path)


def test_energy_rounds_make_no_text_worse(folder: Path) -> None:
    model = DiffusionTransformer.from_pretrained(folder).eval()
    texts = [
        DiffusionGenerator.from_pretrained(folder, confidence_threshold=0.1, energy_rounds=rounds).generate_batch(
            PROMPTS, max_new_tokens=13
        )
        for rounds in (0, 3)
    ]
    before, after = (
        [energy(pseudo_log_likelihoods(model, p, [t])[0]) for p, t in zip(PROMPTS, some, strict=True)] for some in texts
    )
    assert all(new <= old + 1e-5 for old, new in zip(before, after, strict=True))
    assert sum(after) < sum(before) - 0.1


def test_refuses_what_cannot_be_generated(folder: Path) -> None:
    generator = DiffusionGenerator.from_pretrained(folder)
    with pytest.raises(ValueError, match="empty"):
        generator.generate([], max_new_tokens=4)
    with pytest.raises(ValueError, match="empty"):
        generator.generate_batch([[5], []], max_new_tokens=4)
    with pytest.raises(ValueError, match="context"):
        generator.generate([5] * CONTEXT, max_new_tokens=1)
    with pytest.raises(ValueError, match="max_new_tokens"):
        generator.generate([5], max_new_tokens=0)


@pytest.mark.parametrize(
    "options",
    [{"block_length": 0}, {"block_length": L + 1}, {"num_candidates": 0}, {"energy_rounds": -1}, {"num_candidates": 2}],
)
def test_refuses_options_out_of_range(folder: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DiffusionGenerator.from_pretrained(folder, **options)


def test_runs_in_bfloat16(folder: Path) -> None:
    generator = DiffusionGenerator.from_pretrained(folder, dtype=torch.bfloat16)
    assert 1 <= generator.generate(PROMPTS[1], max_new_tokens=10).num_new_tokens <= 10
    assert len(generator.generate_batch(PROMPTS, max_new_tokens=10)) == len(PROMPTS)
    assert len(generator.generate_abreast(PROMPTS, max_new_tokens=10)) == len(PROMPTS)
