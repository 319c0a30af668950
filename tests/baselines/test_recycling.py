"""Token recycling against a naive reference; greedy ids and the sampled distribution of the whole method."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2_contingency

from baselines.autoregressive import AutoregressiveDrafter
from baselines.chances import PROBABILITY_STEPS, Chances, probability_step
from baselines.recycling import Kind, RecyclingDrafter, followers_in, prior_of, successors_of
from decoding import CandidateTree, Drafter, Sampling, SpeculativeDecoder, TargetModel, Verdict
from decoding.ranking import most_likely
from decoding.rows import pays
from decoding.verify import verify
from tests.decoding.tiny import greedy_of, save_model

VOCABULARY = 12


def read(tree: CandidateTree, seed: int) -> Verdict:
    """What a target that is nothing but noise makes of a tree."""
    logits = torch.randn(tree.width, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2
    return verify(tree, logits, Sampling(), None)


class NaiveRecycling:
    """The method with nothing kept up to date: all readings in order, searched anew each time."""

    def __init__(self, prompt: list[int], top_k: int, key_length: int) -> None:
        self.prompt, self.top_k, self.key_length = prompt, top_k, key_length
        self.readings: list[tuple[list[int], torch.Tensor]] = []
        self.guesses: list[tuple[Kind, bool]] = []

    def successors(self, text: list[int]) -> list[tuple[int, Kind]]:
        """Tokens after ``text`` and their kinds: for each end, the longest first, its latest reading or the prompt."""
        found: dict[int, Kind] = {}
        longer = 0
        for length in range(min(self.key_length, len(text)), 0, -1):
            end = text[-length:]
            readings = [logits for before, logits in self.readings if before[-length:] == end]
            places = [i for i in range(length, len(self.prompt)) if self.prompt[i - length : i] == end]
            if readings:
                top = readings[-1].softmax(-1).sort(descending=True)
                pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))[: self.top_k]
                for token, probability in pairs:
                    found.setdefault(token, (length, probability_step(probability), longer))
                longer = 2
            elif places:
                latest = list(dict.fromkeys(self.prompt[i] for i in reversed(places)))[:4]
                for rank, token in enumerate(latest):
                    found.setdefault(token, (length, -1 - rank, longer))
                longer = 1
        return list(found.items())

    def chance(self, kind: Kind) -> float:
        """The share of guesses of this kind that were right, with 8 more as the prior has it."""
        outcomes = [right for other, right in self.guesses if other == kind]
        return (sum(outcomes) + 8 * prior_of(kind)) / (len(outcomes) + 8)

    def best(self, context: list[int], num_nodes: int, depth: int) -> list[float]:
        """Chances of the best paths among all of up to ``depth`` tokens."""
        paths, found = [(list(context), 1.0)], []
        for _ in range(depth):
            paths = [
                ([*text, token], chance * self.chance(kind))
                for text, chance in paths
                for token, kind in self.successors(text)
            ]
            found += [chance for _, chance in paths]
        return sorted(found, reverse=True)[:num_nodes]

    def observe(self, context: list[int], verdict: Verdict) -> None:
        """Remember what was read: the accepted path last."""
        tree = verdict.tree
        texts = [list(context)]
        for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
            texts.append([*texts[parent], token])
        for node, following in zip(verdict.path, verdict.emitted, strict=True):
            self.guesses += [(kind, token == following) for token, kind in self.successors(texts[node])]
        off = [node for node in range(tree.width) if node not in verdict.path]
        self.readings += [(texts[node], verdict.logits[node]) for node in [*off, *verdict.path]]


def path_chances(tree: CandidateTree, probabilities: Sequence[float]) -> list[float]:
    """The product of chances along the path to each draft token."""
    products = [1.0]
    for node in range(1, tree.width):
        products.append(products[tree.parents[node]] * probabilities[node])
    return products[1:]


@pytest.mark.parametrize("key_length", [1, 2])
def test_grows_the_paths_that_enumerating_all_of_them_finds_best(key_length: int) -> None:
    prompt = [1, 2, 3, 1, 2, 4, 1, 5]
    drafter = RecyclingDrafter(num_nodes=6, top_k=3, key_length=key_length)
    drafter.begin(prompt)
    naive = NaiveRecycling(prompt, 3, key_length)
    context, tree = list(prompt), CandidateTree((prompt[-1],), (-1,))
    for seed in range(12):
        verdict = read(tree, seed)
        naive.observe(context, verdict)
        drafter.observe(verdict)
        context += verdict.emitted
        tree = drafter.propose(context)
        assert drafter.node_probabilities is not None
        assert path_chances(tree, drafter.node_probabilities) == pytest.approx(naive.best(context, 6, depth=6))
        assert tree.tokens[0] == context[-1]
        assert tree.width <= drafter.max_width
        edges = list(zip(tree.parents, tree.tokens, strict=True))
        assert len(set(edges)) == len(edges)


@pytest.mark.parametrize("vocabulary", [5, 48, 640, 1000])
def test_top_successors_are_those_of_a_plain_top_k(vocabulary: int) -> None:
    logits = 3 * torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(0))
    plain = logits.topk(min(8, vocabulary), dim=-1).indices.tolist()
    successors = successors_of(most_likely(logits, 8))
    assert [[token for token, _ in row] for row in successors] == plain
    for row, chances in zip(successors, logits.softmax(-1), strict=True):
        for token, step in row:
            assert step >= probability_step(float(chances[token]))  # the sum leaves something out, so never lower


def test_a_peaked_reading_is_of_the_highest_step() -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 77] = 30.0
    assert successors_of(most_likely(logits, 2))[0][0] == (77, len(PROBABILITY_STEPS))


def test_the_followers_of_a_prompt_are_kept_once_and_the_latest_last() -> None:
    assert followers_in([1, 2, 1, 3, 1, 2], 2) == {
        (1,): [3, 2], (2,): [1], (3,): [1], (1, 2): [1], (2, 1): [3], (1, 3): [1], (3, 1): [2]
    }  # fmt: skip


def test_chances_start_from_the_prior_and_follow_what_happens() -> None:
    chances = Chances(weight=4.0)
    assert chances.of("kind", 0.25) == 0.25
    chances.count("kind", accepted=True)
    assert chances.of("kind", 0.25) == pytest.approx((1 + 1) / (1 + 4))
    for _ in range(1000):
        chances.count("kind", accepted=False)
    assert chances.of("kind", 0.25) < 0.01
    assert chances.of("other", 0.25) == 0.25
    chances.clear()
    assert chances.of("kind", 0.25) == 0.25


def test_a_new_text_knows_nothing_of_the_last_unless_started_warm() -> None:
    for warm_start in (False, True):
        drafter = RecyclingDrafter(warm_start=warm_start)
        drafter.begin([7])
        assert drafter.propose([7]).width == 1
        drafter.observe(read(CandidateTree((7,), (-1,)), seed=0))
        drafter.begin([7])
        assert (drafter.propose([7]).width > 1) == warm_start


@pytest.mark.parametrize("options", [{"num_nodes": 0}, {"top_k": 0}, {"key_length": 3}])
def test_options_out_of_range_are_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RecyclingDrafter(**options)


@pytest.mark.parametrize("options", [{}, {"key_length": 1, "num_nodes": 31, "warm_start": True}])
def test_greedy_ids_are_the_targets_own(tmp_path: Path, options: dict[str, int]) -> None:
    model = save_model(tmp_path)
    decoder = SpeculativeDecoder(TargetModel.from_pretrained(tmp_path), RecyclingDrafter(**options))
    for prompt in ([5, 9, 3, 5, 9], list(range(3, 30))):
        generation = decoder.generate(prompt, max_new_tokens=60)
        assert list(generation.output_ids) == greedy_of(model, prompt, 60)
        assert generation.accepted_draft_tokens > 0


def assert_samples_like_plain_sampling(folder: Path, drafter: Drafter, num_texts: int = 400) -> None:
    """Compare the texts that a drafter's method samples with those of plain sampling."""
    model = save_model(folder)
    target = TargetModel.from_pretrained(folder)
    prompt = [4, 5, 6, *greedy_of(model, [4, 5, 6], 20)]  # the model's own loop, so that guesses are often right
    counts, accepted = [], 0
    for each in (AutoregressiveDrafter(), drafter):
        decoder = SpeculativeDecoder(target, each, Sampling(temperature=1.0, top_k=3))
        generator = torch.Generator().manual_seed(3)
        texts: Counter[tuple[int, ...]] = Counter()
        for _ in range(num_texts):
            generation = decoder.generate(prompt, max_new_tokens=3, generator=generator)
            texts[generation.output_ids] += 1
            accepted += generation.accepted_draft_tokens
        counts.append(texts)
    common = sorted(text for text in counts[0] | counts[1] if counts[0][text] + counts[1][text] >= 20)
    table = [[texts[text] for text in common] + [num_texts - sum(texts[text] for text in common)] for texts in counts]
    table = [list(row) for row in zip(*[c for c in zip(*table, strict=True) if sum(c)], strict=True)]
    assert accepted > num_texts / 10
    assert len(common) > 3
    assert chi2_contingency(table).pvalue > 1e-3


def test_sampled_texts_are_distributed_as_plain_sampling_distributes_them(tmp_path: Path) -> None:
    assert_samples_like_plain_sampling(tmp_path, RecyclingDrafter(num_nodes=6))


@pytest.mark.parametrize("row_cost", [0.0, 0.02, 0.05, 0.2])
def test_growing_while_it_pays_gives_the_most_tokens_for_the_time(row_cost: float) -> None:
    rng = random.Random(3)
    for _ in range(50):
        falling = sorted((rng.random() ** 3 for _ in range(15)), reverse=True)
        expected, nodes = 1.0, 0
        while nodes < len(falling) and pays(falling[nodes], expected, nodes, row_cost):
            expected, nodes = expected + falling[nodes], nodes + 1
        rates = [(1 + sum(falling[:n])) / (1 + n * row_cost) for n in range(16)]
        assert expected / (1 + nodes * row_cost) == pytest.approx(max(rates))


def test_a_costly_row_makes_the_tree_smaller_and_none_is_refused() -> None:
    prompt = [1, 2, 3, 1, 2, 4, 1, 5, 1]
    widths = []
    for row_cost in (0.0, 0.15, 5.0):
        drafter = RecyclingDrafter(num_nodes=15, row_cost=row_cost)
        drafter.begin(prompt)
        widths.append(drafter.propose(prompt).width)
    assert widths[0] > widths[1] > widths[2] == 1
    with pytest.raises(ValueError, match="row_cost must be 0 or more, not -1"):
        RecyclingDrafter(row_cost=-1)
