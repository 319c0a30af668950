"""SuffixDecoding against counting the whole text anew; greedy ids and the sampled distribution of the method."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from baselines.suffix_decoding import Counts, SuffixDecodingDrafter
from decoding import CandidateTree, SpeculativeDecoder, TargetModel, Verdict
from tests.baselines.test_recycling import assert_samples_like_plain_sampling, path_chances
from tests.baselines.test_rest import best_paths, followers_by_search, random_texts
from tests.decoding.tiny import greedy_of, save_model


def told(emitted: list[int]) -> Verdict:
    """A verdict of which nothing but the emitted tokens is looked at: one step for all of them."""
    tree = CandidateTree.chain(0, emitted[:-1])
    return Verdict(tree, tuple(range(tree.width)), emitted[-1], tuple(emitted), torch.empty(tree.width, 0))


@pytest.mark.parametrize("vocabulary", [2, 6])
def test_counts_are_those_that_a_search_finds_however_the_text_grows(vocabulary: int) -> None:
    rng = random.Random(vocabulary)
    for text in random_texts(vocabulary, count=20, vocabulary=vocabulary):
        counts = Counts(max_ngram=3)
        for end in sorted(rng.choices(range(len(text) + 1), k=3)):
            counts.read(text[:end])
        counts.read(text)
        for n in (1, 2, 3):
            for i in range(len(text) - n + 1):
                assert Counter(counts.after(text[i : i + n])) == followers_by_search([text], text[i : i + n])
        assert counts.after(text[-4:] if len(text) > 3 else [99]) == {}


def test_two_texts_are_counted_one_after_the_other_and_not_as_one() -> None:
    counts = Counts(max_ngram=2)
    counts.read([1, 2, 3])
    counts.end_text()
    counts.read([1, 2, 1])
    assert counts.after([1]) == {2: 2}
    assert counts.after([1, 2]) == {3: 1, 1: 1}
    assert counts.after([3]) == {}  # what the second text begins with does not follow the end of the first


@pytest.mark.parametrize("num_nodes", [1, 4, 9])
def test_grows_the_paths_that_enumerating_all_of_them_finds_best(num_nodes: int) -> None:
    drafter = SuffixDecodingDrafter(num_nodes=num_nodes, max_ngram=3)
    for context in random_texts(6, count=10):
        context = [2, *context]
        drafter.begin(context[:3])
        tree = drafter.propose(context)
        assert drafter.node_probabilities is not None
        best = best_paths([context], context, num_nodes)
        assert path_chances(tree, drafter.node_probabilities) == pytest.approx(best)
        assert tree.tokens[0] == context[-1]
        assert tree.width <= drafter.max_width


def test_all_places_are_counted_where_prompt_lookup_copies_the_last() -> None:
    drafter = SuffixDecodingDrafter(num_nodes=2, max_ngram=2)
    prompt = [1, 2, 1, 2, 1, 2, 1, 3, 1]  # 1 is followed by 2 three times, last by 3
    drafter.begin(prompt)
    tree = drafter.propose(prompt)
    assert tree.tokens[:2] == (1, 2)
    assert 3 in SuffixDecodingDrafter(num_nodes=4, max_ngram=2).propose(prompt).tokens


def test_outputs_of_earlier_texts_are_known_with_a_warm_start_alone() -> None:
    for warm_start, expected in ((False, ()), (True, (6, 7))):
        drafter = SuffixDecodingDrafter(num_nodes=2, warm_start=warm_start)
        drafter.begin([1, 2])
        drafter.observe(told([5]))
        drafter.propose([1, 2, 5])
        drafter.observe(told([6, 7]))
        drafter.begin([3, 5])
        assert drafter.propose([3, 5]).tokens[1:] == expected
        drafter.begin([4, 2])
        assert drafter.propose([4, 2]).width == 1  # 5 followed 2 where the prompt ended, and no prompt is kept


@pytest.mark.parametrize(
    "options", [{}, {"num_nodes": 31, "max_ngram": 2}, {"row_cost": 0.1}, {"warm_start": True, "max_ngram": 7}]
)
def test_greedy_ids_are_the_targets_own(tmp_path: Path, options: dict[str, float]) -> None:
    model = save_model(tmp_path)
    decoder = SpeculativeDecoder(TargetModel.from_pretrained(tmp_path), SuffixDecodingDrafter(**options))
    accepted = 0
    for prompt in ([9, 5, 9, 3], [5, 9, 4, 5, 9], [4, 5, 6, *greedy_of(model, [4, 5, 6], 20)]):
        generation = decoder.generate(prompt, max_new_tokens=60)
        assert list(generation.output_ids) == greedy_of(model, prompt, 60)
        accepted += generation.accepted_draft_tokens
    assert accepted > 0


def test_sampled_texts_are_distributed_as_plain_sampling_distributes_them(tmp_path: Path) -> None:
    assert_samples_like_plain_sampling(tmp_path, SuffixDecodingDrafter(num_nodes=6))


@pytest.mark.parametrize("options", [{"num_nodes": 0}, {"max_ngram": 0}, {"row_cost": -1}])
def test_options_out_of_range_are_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SuffixDecodingDrafter(**options)
