"""Lookahead decoding against Jacobi iteration written naively, each token by a full forward pass of the model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from scipy.stats import chi2_contingency
from transformers import PreTrainedModel

from baselines.autoregressive import AutoregressiveDrafter
from baselines.lookahead import LookaheadDrafter, window_rows
from decoding import CandidateTree, Drafter, Sampling, SpeculativeDecoder, TargetModel, Verdict
from tests.decoding.tiny import greedy_of, logits_of, save_model

PROMPTS = [[5, 9, 3], [7], list(range(3, 40))]
SETTINGS = [(1, 2, 1), (3, 2, 2), (1, 4, 3), (2, 3, 3), (2, 4, 2), (4, 3, 4), (3, 5, 5), (2, 7, 1)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def target(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> TargetModel:
    folder = tmp_path_factory.mktemp("target")
    model.save_pretrained(folder)
    return TargetModel.from_pretrained(folder)


class Watched:
    """Passes everything on to a drafter and remembers it."""

    def __init__(self, drafter: LookaheadDrafter) -> None:
        self.drafter, self.max_width = drafter, drafter.max_width
        self.contexts: list[list[int]] = []
        self.trees: list[CandidateTree] = []

    def begin(self, prompt_ids: Sequence[int]) -> None:
        self.drafter.begin(prompt_ids)

    def propose(self, context: Sequence[int]) -> CandidateTree:
        self.contexts.append(list(context))
        self.trees.append(self.drafter.propose(context))
        return self.trees[-1]

    def observe(self, verdict: Verdict) -> int:
        return self.drafter.observe(verdict)


def naive_pool(
    model: PreTrainedModel, contexts: list[list[int]], first_guesses: list[int], window: int, ngram: int, guesses: int
) -> dict[int, list[tuple[int, ...]]]:
    """Jacobi iteration at each of the given contexts, as the paper's figure has it: no tree, no mask and no cache.

    ``rows[0]`` is what stands at the positions behind the last token; ``rows[i][j]`` was predicted i iterations ago.
    """
    pool: dict[int, list[tuple[int, ...]]] = {}
    rows = [list(first_guesses)]
    for context in contexts:
        number = len(rows[-1]) if len(rows) > 1 else len(rows[0]) + 1
        new = []
        for j in range(number):
            column = [row[j] for row in rows[1:]]
            new.append(int(logits_of(model, [*context, *rows[0][:j], *column]).argmax()))
        if len(rows) < ngram - 1:  # filling: the text has moved past the first column
            rows = [rows[0][1:], *(row[1:] for row in rows[1:]), new[1:]]
            continue
        for j in range(number):
            first = context[-1] if j == 0 else rows[0][j - 1]
            phrase = (*(row[j] for row in rows[1:]), new[j])
            known = pool.setdefault(first, [])
            known[:] = [phrase, *(other for other in known if other != phrase)][:guesses]
        rows = [*rows[1:], new]
        rows[0] = rows[0][1:]  # its first stands where the next last token comes
    return pool


@pytest.mark.parametrize(("window", "ngram", "guesses"), SETTINGS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_pool_is_that_of_naive_jacobi_iteration(
    model: PreTrainedModel, target: TargetModel, prompt: list[int], window: int, ngram: int, guesses: int
) -> None:
    watched = Watched(LookaheadDrafter(window, ngram, guesses, pool_from_prompt=False, max_nodes=0, seed=5))
    SpeculativeDecoder(target, watched).generate(prompt, max_new_tokens=30)
    first = random.Random(5).choices(prompt, k=window + ngram - 3)
    expected = naive_pool(model, watched.contexts, first, window, ngram, guesses)
    pool = watched.drafter.pool
    assert {key: pool.look_up(key) for key in range(target.vocab_size) if pool.look_up(key)} == expected
    assert len(pool) > 0


@pytest.mark.parametrize(("window", "ngram", "guesses"), SETTINGS)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("options", [{}, {"max_nodes": 0}, {"pool_from_prompt": False}])
def test_greedy_ids_are_the_targets_own(
    model: PreTrainedModel,
    target: TargetModel,
    prompt: list[int],
    window: int,
    ngram: int,
    guesses: int,
    options: dict[str, int],
) -> None:
    watched = Watched(LookaheadDrafter(window, ngram, guesses, **options))
    generation = SpeculativeDecoder(target, watched).generate(prompt, max_new_tokens=40)
    assert list(generation.output_ids) == greedy_of(model, prompt, 40)
    assert max(tree.width for tree in watched.trees) <= watched.max_width


@pytest.mark.parametrize("pool_from_prompt", [True, False])
def test_a_text_that_repeats_itself_takes_fewer_steps_than_tokens(
    model: PreTrainedModel, target: TargetModel, pool_from_prompt: bool
) -> None:
    prompt = [4, 5, 6, *greedy_of(model, [4, 5, 6], 60, end=-1)]  # a random model soon runs in circles
    drafter = LookaheadDrafter(pool_from_prompt=pool_from_prompt)
    generation = SpeculativeDecoder(target, drafter).generate(prompt, max_new_tokens=60)
    assert generation.tokens_per_step > 1.5
    assert generation.draft_forwards == 0


def test_the_first_tree_is_a_chain_of_guesses_and_the_window_grows_level_by_level() -> None:
    drafter = LookaheadDrafter(window=2, ngram=4, guesses=1, pool_from_prompt=False, max_nodes=0)
    drafter.begin([10, 11, 12])
    first = drafter.propose([10, 11, 12])
    assert first.is_chain
    assert first.width == 4  # the root and W + N - 3 guesses
    assert set(first.tokens) <= {10, 11, 12}
    drafter.observe(Verdict(first, (0,), 20, (20, 21, 22, 23), torch.zeros(4, 30)))
    second = drafter.propose([10, 11, 12, 20])  # 20 takes the place of the first guess, 21 to 23 stand below
    assert second.tokens == (20, *first.tokens[2:4], 21, 22, 23)
    assert second.parents == (-1, 0, 1, 0, 1, 2)
    drafter.observe(Verdict(second, (0,), 21, (21, 0, 0, 24, 25, 26), torch.zeros(6, 30)))
    third = drafter.propose([10, 11, 12, 20, 21])
    assert third.tokens == (21, first.tokens[3], 22, 25, 23, 26)
    assert third.parents == (-1, 0, 0, 2, 1, 4)
    drafter.observe(Verdict(third, (0,), 22, (22, 0, 0, 27, 0, 28), torch.zeros(6, 30)))
    assert drafter.pool.look_up(21) == [(22, 25, 27)]
    assert drafter.pool.look_up(first.tokens[3]) == [(23, 26, 28)]
    fourth = drafter.propose([10, 11, 12, 20, 21, 22])
    assert fourth.tokens == (22, 23, 25, 27, 26, 28)
    assert fourth.parents == (-1, 0, 0, 2, 1, 4)


def test_ngrams_of_the_pool_hang_under_the_root_the_newest_first_and_share_nodes_with_the_window() -> None:
    drafter = LookaheadDrafter(window=1, ngram=3, guesses=3, pool_from_prompt=True, max_nodes=6)
    drafter.begin([1, 2, 3, 1, 2, 4, 1, 5, 6, 1])
    tree = drafter.propose([1, 2, 3, 1, 2, 4, 1, 5, 6, 1])
    paths = {_path(tree, node) for node in range(tree.width)}
    assert {(5,), (5, 6), (2,), (2, 4)} <= paths
    assert (2, 3) not in paths or tree.width < 6  # the oldest is the one that does not fit
    assert tree.width <= 6


def _path(tree: CandidateTree, node: int) -> tuple[int, ...]:
    return () if node == 0 else (*_path(tree, tree.parents[node]), tree.tokens[node])


def test_every_text_starts_with_the_same_guesses_and_an_empty_pool(target: TargetModel) -> None:
    decoder = SpeculativeDecoder(target, LookaheadDrafter())
    generations = [decoder.generate(PROMPTS[i], max_new_tokens=30) for i in (0, 2, 0)]
    emitted = [[step.emitted for step in generation.steps] for generation in generations]
    assert emitted[0] == emitted[2] != emitted[1]
    assert [s.candidates for s in generations[0].steps] == [s.candidates for s in generations[2].steps]


@pytest.mark.parametrize("window", [1, 2, 3, 7])
@pytest.mark.parametrize("ngram", [2, 3, 5, 9])
def test_the_widest_window_is_known_beforehand(window: int, ngram: int) -> None:
    drafter = LookaheadDrafter(window, ngram, 1, pool_from_prompt=False, max_nodes=0)
    drafter.begin(range(100, 200))
    widths, token = [], 1000
    for _ in range(2 * ngram):
        tree = drafter.propose([token])
        widths.append(tree.width)
        choices = tuple(range(token + 1, token + 1 + tree.width))  # never the same twice, so that nothing is shared
        drafter.observe(Verdict(tree, (0,), choices[0], choices, torch.zeros(tree.width, 2)))
        token += 10000
    assert max(widths) == window_rows(window, ngram)
    assert widths[-1] == window * (ngram - 1)


@pytest.mark.parametrize("options", [{"window": 0}, {"ngram": 1}, {"guesses": 0}, {"max_nodes": 5}])
def test_options_out_of_range_are_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LookaheadDrafter(**options)


def sampled_texts(target: TargetModel, drafter: Drafter, prompt: list[int]) -> tuple[Counter[tuple[int, ...]], int]:
    """Many sampled texts of a few tokens, and how many draft tokens were accepted in them."""
    decoder = SpeculativeDecoder(target, drafter, Sampling(temperature=1.0, top_k=3))
    generator = torch.Generator().manual_seed(3)
    generations = [decoder.generate(prompt, max_new_tokens=3, generator=generator) for _ in range(600)]
    return Counter(g.output_ids for g in generations), sum(g.accepted_draft_tokens for g in generations)


def same_distribution(first: Counter[tuple[int, ...]], second: Counter[tuple[int, ...]]) -> float:
    """P-value of a test that both samples come from one distribution; rare texts are taken together."""
    common = [text for text in first + second if first[text] + second[text] >= 12]
    rows = [[texts[text] for text in common] for texts in (first, second)]
    rows = [[*row, sum(texts.values()) - sum(row)] for row, texts in zip(rows, (first, second), strict=True)]
    columns = [column for column in zip(*rows, strict=True) if sum(column)]
    assert len(columns) > 5
    return float(chi2_contingency(list(zip(*columns, strict=True))).pvalue)


def test_sampled_texts_are_distributed_as_plain_sampling_distributes_them(
    model: PreTrainedModel, target: TargetModel
) -> None:
    prompt = [4, 5, 6, *greedy_of(model, [4, 5, 6], 20)]
    plain, _ = sampled_texts(target, AutoregressiveDrafter(), prompt)
    texts, accepted = sampled_texts(target, LookaheadDrafter(window=2, ngram=3, guesses=3), prompt)
    assert accepted > 100
    assert same_distribution(plain, texts) > 1e-3
