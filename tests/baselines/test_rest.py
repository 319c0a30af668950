"""REST and its datastore against searching all texts anew; greedy ids and the sampled distribution of the method."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from baselines.datastore import END, FILE, MOST_COUNTED, Datastore, suffix_array
from baselines.interpolated import LEAST, SHORTER_RUN, chances_after
from baselines.rest import RestDrafter
from decoding import Sampling, SpeculativeDecoder, TargetModel
from tests.baselines.test_recycling import assert_samples_like_plain_sampling, path_chances
from tests.decoding.tiny import greedy_of, save_model

TEXTS = [[5, 6, 7, 8, 5, 6, 9], [6, 7, 7, 7, 7], [5, 6], [9], [0, 0, 0, 65535, 40_000, 0, 0]]


def followers_by_search(texts: list[list[int]], run: list[int]) -> Counter[int]:
    """What follows a run of tokens, each place of each text looked at."""
    length = len(run)
    return Counter(text[i + length] for text in texts for i in range(len(text) - length) if text[i : i + length] == run)


def chances_by_search(texts: list[list[int]], end: list[int]) -> dict[int, float]:
    """The docstring's formula, from the longest run down, each count by a search."""
    if not end:
        return {}
    counts, shorter = followers_by_search(texts, end), chances_by_search(texts, end[1:])
    n = sum(counts.values())
    return {
        token: (counts[token] + SHORTER_RUN * shorter.get(token, 0.0)) / (n + SHORTER_RUN)
        for token in {*counts, *shorter}
    } if n else shorter  # fmt: skip


def random_texts(seed: int, count: int = 30, vocabulary: int = 6) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(vocabulary) for _ in range(rng.randint(0, 20))] for _ in range(count)]


def best_paths(texts: list[list[int]], context: list[int], count: int) -> list[float]:
    """The greatest products of chances along a path behind a context, every path tried; runs of three tokens."""
    paths, found = [([*context], 1.0)], []
    for _ in range(count):
        paths = [
            ([*text, token], chance * each)
            for text, chance in paths
            for token, each in chances_by_search(texts, text[-3:]).items()
            if each >= LEAST and chance * each > 0.0005
        ]
        found += [chance for _, chance in paths]
    return sorted(found, reverse=True)[:count]


@pytest.mark.parametrize("depth", [1, 2, 3, 32])
def test_places_are_sorted_by_the_tokens_that_stand_there(depth: int) -> None:
    texts = random_texts(0)
    tokens = [token for text in texts for token in (*text, END)]
    order = suffix_array(np.array(tokens, dtype=np.int32), depth).tolist()
    assert sorted(order) == list(range(len(tokens)))
    there = [tokens[place : place + depth] for place in order]
    assert there == sorted(there)


@pytest.mark.parametrize("texts", [TEXTS, random_texts(1), random_texts(2, vocabulary=2)], ids=["made", "some", "few"])
def test_followers_are_those_that_a_search_finds_and_none_is_of_the_next_text(texts: list[list[int]]) -> None:
    store = Datastore.of(texts)
    runs = {tuple(text[i : i + n]) for text in texts for i in range(len(text)) for n in range(1, 8)}
    for run in [*runs, (3, 1, 4), (70_000,)]:
        if run:
            expected = followers_by_search(texts, list(run))
            assert store.followers(run) == (sum(expected.values()), dict(expected))


def test_of_very_many_places_evenly_spaced_ones_are_counted() -> None:
    store = Datastore.of([[1, 2]] * 3000 + [[1, 3]] * 1000)
    total, counts = store.followers([1])
    assert MOST_COUNTED <= total < 2 * MOST_COUNTED
    assert counts[2] / total == pytest.approx(0.75, abs=0.01)


def test_a_datastore_is_read_as_it_was_written(tmp_path: Path) -> None:
    Datastore.of(TEXTS).save(tmp_path)
    assert Datastore.load(tmp_path).followers([5, 6]) == (2, {7: 1, 9: 1})
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-9])
    with pytest.raises(ValueError, match="no whole datastore"):
        Datastore.load(tmp_path)
    with pytest.raises(ValueError, match="no whole datastore"):
        Datastore.load(tmp_path / "nowhere")


def test_places_beyond_the_tokens_are_refused() -> None:
    for order in ([0, 1, 3], [0, -1, 1], [0, 1]):
        with pytest.raises(ValueError, match="places are not those of 3 tokens"):
            Datastore(np.zeros(3, dtype=np.int32), np.array(order, dtype=np.int32))


def test_an_empty_datastore_proposes_nothing() -> None:
    assert RestDrafter(Datastore.of([])).propose([4, 5]).width == 1


def test_the_longest_run_counts_most_and_the_shorter_ones_fill_up() -> None:
    texts = random_texts(3)
    store = Datastore.of(texts)
    longest = set()
    for text in random_texts(4):
        end = text[-4:]
        assert chances_after(end, lambda run: store.followers(run)[1]) == pytest.approx(chances_by_search(texts, end))
        longest.add(max((n for n in range(1, len(end) + 1) if followers_by_search(texts, end[-n:])), default=0))
    assert longest >= {1, 2, 3}  # found to different lengths, or the test says little


@pytest.mark.parametrize("num_nodes", [1, 4, 9])
def test_grows_the_paths_that_enumerating_all_of_them_finds_best(num_nodes: int) -> None:
    texts = random_texts(5)
    drafter = RestDrafter(Datastore.of(texts), num_nodes=num_nodes, max_ngram=3)
    for context in random_texts(6, count=10):
        context = [2, *context]
        tree = drafter.propose(context)
        assert drafter.node_probabilities is not None
        best = best_paths(texts, context, num_nodes)
        assert path_chances(tree, drafter.node_probabilities) == pytest.approx(best)
        assert tree.tokens[0] == context[-1]
        assert tree.width <= drafter.max_width


def stored(folder: Path) -> tuple[Datastore, list[int]]:
    """Save a model; return a datastore of what it writes, and a prompt that it was not asked."""
    model = save_model(folder)
    prompts = [[5, 9, start] for start in range(3, 40)]
    return Datastore.of([[*prompt, *greedy_of(model, prompt, 30)] for prompt in prompts]), [9, 5, 9, 3]


@pytest.mark.parametrize("options", [{}, {"num_nodes": 31, "max_ngram": 2}, {"row_cost": 0.1}])
def test_greedy_ids_are_the_targets_own(tmp_path: Path, options: dict[str, float]) -> None:
    store, prompt = stored(tmp_path)
    decoder = SpeculativeDecoder(TargetModel.from_pretrained(tmp_path), RestDrafter(store, **options))
    generation = decoder.generate(prompt, max_new_tokens=60)
    assert list(generation.output_ids) == greedy_of(save_model(tmp_path), prompt, 60)
    assert generation.accepted_draft_tokens > 0


def test_sampled_texts_are_distributed_as_plain_sampling_distributes_them(tmp_path: Path) -> None:
    store, _ = stored(tmp_path)
    assert_samples_like_plain_sampling(tmp_path, RestDrafter(store, num_nodes=6))


def test_is_loaded_from_its_part_and_tokens_that_the_target_does_not_have_are_refused(tmp_path: Path) -> None:
    store, prompt = stored(tmp_path)
    target, folder = TargetModel.from_pretrained(tmp_path), tmp_path / "datastore"
    folder.mkdir()
    store.save(folder)
    loaded = RestDrafter.from_target(target, parts={"datastore": folder}, sampling=Sampling(), num_nodes=4)
    assert loaded.propose(prompt) == RestDrafter(store, num_nodes=4).propose(prompt)
    assert not hasattr(loaded, "part_bytes")  # those are read whole for each draft, which a datastore is not
    Datastore.of([[5, 48]]).save(folder)
    with pytest.raises(ValueError, match="its token 48 is none of the target's"):
        RestDrafter.from_target(target, parts={"datastore": folder}, sampling=Sampling())
    with pytest.raises(ValueError, match="needs a part 'datastore'"):
        RestDrafter.from_target(target, parts={}, sampling=Sampling())


@pytest.mark.parametrize("options", [{"num_nodes": 0}, {"max_ngram": 0}, {"max_ngram": 32}, {"row_cost": -1}])
def test_options_out_of_range_are_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RestDrafter(Datastore.of(TEXTS), **options)
