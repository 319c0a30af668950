"""Verification emits the target's own distribution, by a chi-square test that is shown to be able to fail."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from decoding import CandidateTree, Sampling
from decoding.verify import sampled_path, verify

V = 5
DRAWS = 6000
SAMPLING = Sampling(temperature=1.0)


def logits_after(tokens: tuple[int, ...]) -> Tensor:
    """The 'model' of these tests: fixed logits ``[V]`` for each beginning of a text."""
    seed = sum(7**i * (token + 1) for i, token in enumerate(tokens))
    return 1.2 * torch.randn(V, generator=torch.Generator().manual_seed(seed))


def expected(depth: int) -> dict[tuple[int, ...], float]:
    """Exact probability of each text of ``depth`` tokens."""
    table = {}
    for tokens in itertools.product(range(V), repeat=depth):
        probability = 1.0
        for i, token in enumerate(tokens):
            probability *= float(SAMPLING.probabilities(logits_after(tokens[:i]))[token])
        table[tokens] = probability
    return table


def tree_logits(tree: CandidateTree) -> Tensor:
    rows = []
    for node in range(tree.width):
        path: tuple[int, ...] = ()
        while node > 0:
            path, node = (tree.tokens[node], *path), tree.parents[node]
        rows.append(logits_after(path))
    return torch.stack(rows)


def fixed_siblings(generator: torch.Generator) -> CandidateTree:
    """Deterministic proposals: 1 -> 3, 2, 4 -> 0."""
    return CandidateTree((0, 1, 2, 4, 3, 0), (-1, 0, 0, 0, 1, 3))


def drawn_siblings(generator: torch.Generator) -> CandidateTree:
    """Three siblings drawn from a distribution unlike the target's, each with one child drawn from another."""
    first, second = torch.tensor([0.05, 0.5, 0.3, 0.1, 0.05]), torch.tensor([0.4, 0.1, 0.1, 0.1, 0.3])
    tops = torch.multinomial(first, 3, replacement=True, generator=generator).tolist()
    below = torch.multinomial(second, 3, replacement=True, generator=generator).tolist()
    probabilities = torch.stack([first, second, second, second, second, second, second])
    return CandidateTree((0, *tops, *below), (-1, 0, 0, 0, 1, 2, 3), probabilities)


def drawn_chain(generator: torch.Generator) -> CandidateTree:
    uniform = torch.full((3, V), 1 / V)
    return CandidateTree.chain(0, torch.multinomial(uniform[:2], 1, generator=generator)[:, 0].tolist(), uniform)


def sample(propose: Callable[[torch.Generator], CandidateTree], wrong: bool = False) -> Counter[tuple[int, ...]]:
    """Texts of two tokens, made by verification steps; with ``wrong``, a broken rule that accepts too readily."""
    generator = torch.Generator().manual_seed(1)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(DRAWS):
        tree = propose(generator)
        if wrong and tree.draft_probabilities is not None:
            tree = CandidateTree(tree.tokens, tree.parents, tree.draft_probabilities * 0.7)
        elif wrong:
            tree = CandidateTree(tree.tokens, tree.parents, torch.full((tree.width, V), 0.7))
        path, bonus = sampled_path(tree, tree_logits(tree), SAMPLING, generator)
        emitted = (*(tree.tokens[node] for node in path[1:]), bonus)
        while len(emitted) < 2:
            emitted += (int(torch.multinomial(SAMPLING.probabilities(logits_after(emitted)), 1, generator=generator)),)
        counts[emitted[:2]] += 1
    return counts


def p_value(counts: Counter[tuple[int, ...]]) -> float:
    table = expected(2)
    return float(chisquare([counts[text] for text in table], [DRAWS * p for p in table.values()]).pvalue)


PROPOSALS = [fixed_siblings, drawn_siblings, drawn_chain]


@pytest.mark.parametrize("propose", PROPOSALS)
def test_what_is_emitted_follows_the_target(propose: Callable[[torch.Generator], CandidateTree]) -> None:
    assert p_value(sample(propose)) > 1e-3


@pytest.mark.parametrize("propose", PROPOSALS)
def test_the_test_above_can_fail(propose: Callable[[torch.Generator], CandidateTree]) -> None:
    assert p_value(sample(propose, wrong=True)) < 1e-6


def test_greedy_takes_the_longest_agreeing_path_and_the_targets_next_token() -> None:
    tree = CandidateTree((9, 1, 2, 3, 4), (-1, 0, 0, 2, 3))
    choices = torch.tensor([2, 0, 3, 0, 1])
    verdict = verify(tree, torch.nn.functional.one_hot(choices, 10).float(), Sampling(), None)
    assert (verdict.path, verdict.accepted, verdict.bonus, verdict.emitted) == ((0, 2, 3), (2, 3), 0, (2, 3, 0))


def test_a_proposal_that_the_target_excludes_is_never_accepted() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    tree = CandidateTree.chain(0, [1])
    for seed in range(50):
        path, bonus = sampled_path(tree, logits.repeat(2, 1), SAMPLING, torch.Generator().manual_seed(seed))
        assert path == (0,)
        assert bonus in (0, 2)
