"""Speculative decoding: the target's own ids and its own distribution, whatever the draft; and what was counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from baselines.autoregressive import AutoregressiveDrafter
from baselines.speculative import SpeculativeDrafter
from baselines.transformers_generate import load_model
from decoding import CandidateTree, Sampling, SpeculativeDecoder, TargetModel, Verdict
from decoding.sampling import GREEDY
from tests.decoding.tiny import greedy_of, logits_of, save_model

PROMPTS = [[5, 9, 3, 5, 9], [7], list(range(3, 30)) * 2]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_draft_tokens": 1},
    {"num_draft_tokens": 3, "adaptive": True, "max_draft_tokens": 6},
    {"confidence_threshold": 0.3},
    {"adaptive": True, "confidence_threshold": 0.5},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A target; a draft that knows nothing of it; one that is it, a little blurred; one with a shortlist."""
    root = tmp_path_factory.mktemp("models")
    names = ["target", "random", "near", "short"]
    models = {name: save_model(root / name) for name in names}
    save_model(root / "random", "qwen2", seed=7)
    with torch.no_grad():
        for parameter in models["near"].parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    models["near"].save_pretrained(root / "near")
    (root / "short" / "shortlist.json").write_text(json.dumps(list(range(3, 48, 3))))
    return {name: root / name for name in names}


def build(
    folders: dict[str, Path], draft: str, sampling: Sampling = GREEDY, **options: Any
) -> tuple[SpeculativeDecoder, SpeculativeDrafter]:
    target = TargetModel.from_pretrained(folders["target"])
    drafter = SpeculativeDrafter.from_target(target, parts={"draft": folders[draft]}, sampling=sampling, **options)
    return SpeculativeDecoder(target, drafter, sampling), drafter


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("draft", ["target", "random", "near", "short"])
def test_greedy_ids_are_the_targets_own(folders: dict[str, Path], draft: str, options: dict[str, Any]) -> None:
    decoder, _ = build(folders, draft, **options)
    plain = SpeculativeDecoder(decoder.target, AutoregressiveDrafter())
    for prompt in PROMPTS:
        generation = decoder.generate(prompt, max_new_tokens=40)
        assert generation.output_ids == plain.generate(prompt, max_new_tokens=40).output_ids
        assert generation.candidate_tokens >= generation.accepted_draft_tokens


def without_end(decoder: SpeculativeDecoder, drafter: SpeculativeDrafter) -> None:
    decoder.target.end_token_ids = drafter.end_token_ids = frozenset()


@pytest.mark.parametrize("length", [1, 4])
def test_the_target_as_its_own_draft_is_always_right(folders: dict[str, Path], length: int) -> None:
    decoder, drafter = build(folders, "target", num_draft_tokens=length)
    without_end(decoder, drafter)
    generation = decoder.generate(PROMPTS[0], max_new_tokens=1 + 8 * (length + 1))
    assert generation.tokens_per_step == length + 1
    assert generation.accepted_draft_tokens == generation.candidate_tokens == 8 * length
    # The token that the draft has not read when all were accepted costs no forward pass of its own.
    assert [step.draft_forwards for step in generation.steps] == [length] * 8
    assert generation.prefill_draft_forwards == 0  # a short prompt is read with the first draft
    assert decoder.generate(PROMPTS[2], max_new_tokens=2).prefill_draft_forwards == 1


def test_adaptive_drafts_grow_by_two_and_shrink_by_one_within_their_bounds(folders: dict[str, Path]) -> None:
    decoder, drafter = build(folders, "target", num_draft_tokens=2, adaptive=True, max_draft_tokens=7)
    without_end(decoder, drafter)
    for _ in range(2):  # each text starts anew
        generation = decoder.generate(PROMPTS[0], max_new_tokens=60)
        assert [step.candidates for step in generation.steps][:5] == [2, 4, 6, 7, 7]
    drafter.begin(PROMPTS[0])
    for width in (2, 1, 1):
        tree = drafter.propose([*PROMPTS[0], 11])
        assert tree.width == width + 1
        drafter.observe(Verdict(tree, (0,), 3, (3,), torch.zeros(0)))
    assert drafter.max_width == 8


def test_a_draft_ends_behind_the_first_token_that_it_is_not_sure_of(folders: dict[str, Path]) -> None:
    model, lengths = load_model(folders["near"], torch.float32, "cpu"), set()
    for threshold in (0.05, 0.1, 0.15, 0.2, 0.3):
        _, drafter = build(folders, "near", num_draft_tokens=8, confidence_threshold=threshold)
        for prompt in PROMPTS:
            drafter.begin(prompt)
            text, expected = [*prompt, 11], []
            while len(expected) < 8:
                probabilities = logits_of(model, text + expected).softmax(-1)
                expected.append(int(probabilities.argmax()))
                if probabilities.max() < threshold or expected[-1] == 2:
                    break
            assert list(drafter.propose(text).tokens[1:]) == expected
            lengths.add(len(expected))
    assert len(lengths) > 2  # or the test tests nothing


def test_nothing_is_drafted_behind_an_end_token(folders: dict[str, Path]) -> None:
    model = load_model(folders["target"], torch.float32, "cpu")
    _, drafter = build(folders, "target", num_draft_tokens=6)
    truth = greedy_of(model, [*PROMPTS[0], 11], 6)
    drafter.end_token_ids = frozenset([truth[2]])
    drafter.begin(PROMPTS[0])
    assert list(drafter.propose([*PROMPTS[0], 11]).tokens[1:]) == truth[: truth.index(truth[2]) + 1]


@pytest.mark.parametrize(
    ("draft", "options"),
    [
        ("near", {"num_draft_tokens": 2}),
        ("near", {"num_draft_tokens": 3, "confidence_threshold": 0.3}),
        ("near", {"num_draft_tokens": 1, "adaptive": True, "max_draft_tokens": 3, "confidence_threshold": 0.3}),
        ("random", {"num_draft_tokens": 2}),
        ("short", {"num_draft_tokens": 3, "confidence_threshold": 0.3}),
    ],
)
def test_sampled_texts_follow_the_targets_distribution(
    folders: dict[str, Path], draft: str, options: dict[str, Any]
) -> None:
    """Three new tokens, against the exact probability of each text: products of the target's own distributions."""
    sampling = Sampling(temperature=1.5, top_k=3)
    decoder, drafter = build(folders, draft, sampling, **options)
    without_end(decoder, drafter)
    model = load_model(folders["target"], torch.float32, "cpu")
    exact: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer = {}
        for text, chance in exact.items():
            following = sampling.probabilities(logits_of(model, [*PROMPTS[0], *text]))
            longer |= {(*text, t): chance * float(following[t]) for t in following.nonzero()[:, 0].tolist()}
        exact = longer
    generator, seen, accepted, candidates = torch.Generator().manual_seed(1), Counter[tuple[int, ...]](), 0, 0
    number = 600
    for _ in range(number):
        generation = decoder.generate(PROMPTS[0], max_new_tokens=3, generator=generator)
        seen[generation.output_ids] += 1
        accepted += generation.accepted_draft_tokens
        candidates += generation.candidate_tokens
    assert set(seen) <= set(exact)
    common = [text for text in exact if exact[text] * number >= 8]
    observed = [*(seen[text] for text in common), number - sum(seen[text] for text in common)]
    expected = [*(exact[text] * number for text in common), number * (1 - sum(exact[text] for text in common))]
    assert len(common) >= 8
    assert 0 < accepted < candidates  # both outcomes happen
    assert chisquare(observed, expected).pvalue > 1e-3


def test_sampled_drafts_are_drawn_from_the_rows_that_they_are_compared_with(folders: dict[str, Path]) -> None:
    sampling = Sampling(temperature=1.0, top_k=4)
    _, drafter = build(folders, "short", sampling, num_draft_tokens=2)
    drafter.begin(PROMPTS[0])
    counts: Counter[int] = Counter()
    for _ in range(300):
        tree = drafter.propose([*PROMPTS[0], 11])
        assert tree.draft_probabilities is not None
        assert tree.draft_probabilities.shape == (3, 48)
        assert all(tree.draft_probabilities[i, tree.tokens[i + 1]] > 0 for i in range(2))
        counts[tree.tokens[1]] += 1
    row = tree.draft_probabilities[0]
    assert set(row.nonzero()[:, 0].tolist()) <= set(range(3, 48, 3))
    tokens = row.nonzero()[:, 0].tolist()
    assert chisquare([counts[t] for t in tokens], [300 * float(row[t]) for t in tokens]).pvalue > 1e-3


def test_draws_come_from_the_generator_that_is_given_and_differ_from_text_to_text(folders: dict[str, Path]) -> None:
    _, drafter = build(folders, "near", Sampling(temperature=3.0), num_draft_tokens=8)

    def drafts(generator: torch.Generator | None) -> tuple[int, ...]:
        drafter.draw_from(generator)
        drafter.begin(PROMPTS[0])
        return drafter.propose([*PROMPTS[0], 11]).tokens

    assert drafts(torch.Generator().manual_seed(4)) == drafts(torch.Generator().manual_seed(4))
    assert drafts(torch.Generator().manual_seed(4)) != drafts(torch.Generator().manual_seed(5))
    assert drafts(None) != drafts(None)  # the same draws for the same prompt would not be exact


def test_a_draft_with_a_shorter_context_stops_drafting_where_it_ends(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(folders["near"], torch.float32, "cpu")
    model.config.max_position_embeddings = 40
    model.save_pretrained(tmp_path)
    decoder, drafter = build(folders | {"near": tmp_path}, "near")
    plain = SpeculativeDecoder(decoder.target, AutoregressiveDrafter())
    for prompt in ([5, 9, 3] * 10, [5, 9, 3] * 20):
        without_end(decoder, drafter)
        generation = decoder.generate(prompt, max_new_tokens=30)
        assert generation.output_ids == plain.generate(prompt, max_new_tokens=30).output_ids
        assert generation.steps[-1].candidates == generation.steps[-1].draft_forwards == 0


def test_the_context_can_be_filled_to_its_last_token(folders: dict[str, Path]) -> None:
    decoder, drafter = build(folders, "near", num_draft_tokens=8)
    without_end(decoder, drafter)
    plain = SpeculativeDecoder(decoder.target, AutoregressiveDrafter())
    texts = [decodes.generate([3] * 480, max_new_tokens=32).output_ids for decodes in (decoder, plain)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draft_tokens": 0}, "num_draft_tokens must be 1 or more, not 0"),
        ({"adaptive": True, "num_draft_tokens": 5, "max_draft_tokens": 4}, "max_draft_tokens must be at least"),
        ({"confidence_threshold": 1.5}, "confidence_threshold must be between 0 and 1, not 1.5"),
    ],
)
def test_options_out_of_range_are_refused(folders: dict[str, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(folders, "near", **options)


def test_a_greedy_tree_has_no_probabilities(folders: dict[str, Path]) -> None:
    _, drafter = build(folders, "near")
    drafter.begin(PROMPTS[0])
    tree = drafter.propose([*PROMPTS[0], 11])
    assert isinstance(tree, CandidateTree)
    assert tree.draft_probabilities is None
    assert tree.is_chain
    assert tree.width == 6
