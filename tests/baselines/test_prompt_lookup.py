"""Prompt lookup against a scan of the whole context; greedy ids and the sampled distribution of the whole method."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from baselines.autoregressive import AutoregressiveDrafter
from baselines.prompt_lookup import PromptLookupDrafter
from decoding import Sampling, SpeculativeDecoder, TargetModel
from tests.decoding.tiny import greedy_of, save_model


def scan(context: list[int], max_ngram: int, min_ngram: int, num_draft_tokens: int) -> list[int]:
    """What followed the longest last n-gram's most recent earlier occurrence, found by trying every place.

    It is copied a token at a time to the end of the text, and so goes on over what has been copied.
    """
    for n in range(min(max_ngram, len(context)), min_ngram - 1, -1):
        for end in range(len(context) - 1, n - 1, -1):
            if context[end - n : end] == context[-n:]:
                text = list(context)
                for place in range(end, end + num_draft_tokens):
                    text.append(text[place])
                return text[len(context) :]
    return []


@given(
    context=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    split=st.integers(1, 30),
    ngrams=st.sampled_from([(1, 1), (3, 1), (3, 2), (4, 4)]),
    length=st.integers(1, 6),
)
def test_proposes_what_a_scan_of_the_context_finds(
    context: list[int], split: int, ngrams: tuple[int, int], length: int
) -> None:
    drafter = PromptLookupDrafter(*ngrams, length)
    drafter.begin(context[:split])
    for end in range(min(split, len(context)), len(context) + 1):
        tree = drafter.propose(context[:end])
        assert list(tree.tokens) == [context[end - 1], *scan(context[:end], *ngrams, length)]
        assert tree.width <= drafter.max_width


def test_a_loop_is_drafted_as_far_as_a_draft_may_go() -> None:
    tree = PromptLookupDrafter(num_draft_tokens=7).propose([9, 1, 2, 3, 1, 2, 3])
    assert tree.tokens == (3, 1, 2, 3, 1, 2, 3, 1)
    assert PromptLookupDrafter(num_draft_tokens=3).propose([8, 8]).tokens == (8, 8, 8, 8)


def test_a_new_text_knows_nothing_of_the_last() -> None:
    drafter = PromptLookupDrafter()
    drafter.begin([1, 2, 3, 1])
    assert drafter.propose([1, 2, 3, 1]).width > 1
    drafter.begin([1])
    assert drafter.propose([1]).width == 1


@pytest.mark.parametrize("options", [{"min_ngram": 0}, {"min_ngram": 4}, {"num_draft_tokens": 0}])
def test_options_out_of_range_are_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PromptLookupDrafter(**options)


@pytest.mark.parametrize("prompt", [[5, 9, 3, 5, 9], list(range(3, 30)) * 2])
def test_greedy_ids_are_the_targets_own(tmp_path: Path, prompt: list[int]) -> None:
    model = save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path)
    generation = SpeculativeDecoder(target, PromptLookupDrafter()).generate(prompt, max_new_tokens=60)
    assert list(generation.output_ids) == greedy_of(model, prompt, 60)
    assert generation.accepted_draft_tokens > 0  # a random model soon repeats itself, so the test tests something


def test_sampled_texts_are_distributed_as_plain_sampling_distributes_them(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path)
    sampling = Sampling(temperature=1.0, top_k=3)
    prompt = [4, 5, 6, *greedy_of(model, [4, 5, 6], 20)]  # the model's own loop, so that look-ups are often right
    counts, accepted = [], 0
    for drafter in (AutoregressiveDrafter(), PromptLookupDrafter(max_ngram=2, num_draft_tokens=3)):
        decoder = SpeculativeDecoder(target, drafter, sampling)
        generator = torch.Generator().manual_seed(3)
        texts: Counter[tuple[int, ...]] = Counter()
        for _ in range(1500):
            generation = decoder.generate(prompt, max_new_tokens=3, generator=generator)
            texts[generation.output_ids] += 1
            accepted += generation.accepted_draft_tokens
        counts.append(texts)
    common = [text for text in counts[0] + counts[1] if counts[0][text] + counts[1][text] >= 20]
    rows = [[texts[text] for text in common] for texts in counts]
    rows = [[*row, sum(texts.values()) - sum(row)] for row, texts in zip(rows, counts, strict=True)]
    columns = [column for column in zip(*rows, strict=True) if sum(column)]
    assert len(columns) > 5
    assert accepted > 0
    assert chi2_contingency(list(zip(*columns, strict=True))).pvalue > 1e-3
