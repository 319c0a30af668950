"""The tree that is grown of a mixer's guesses: the nodes of greatest chance, against enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch

from shuffle.fasterdecodemixer.drafter import grow
from shuffle.fasterdecodemixer.guesses import Guesses


def random_guesses(seed: int) -> Guesses:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randperm(40, generator=generator)[:4].tolist() for _ in range(3)]
    chances = torch.rand(3, 4, generator=generator).softmax(-1).sort(descending=True).values
    links = torch.rand(2, 4, 4, generator=generator).mul(3).softmax(-1) * 0.9
    return Guesses(tokens, chances.tolist(), links.tolist(), [0.9, 0.5, 0.9])


@pytest.mark.parametrize("seed", range(5))
def test_a_tree_holds_the_nodes_of_greatest_chance(seed: int) -> None:
    guesses = random_guesses(seed)
    chances = {}
    for depth in (1, 2, 3):
        for path in itertools.product(range(4), repeat=depth):
            chances[path] = guesses.chances[0][path[0]]
            for j in range(1, depth):
                chances[path] *= guesses.links[j - 1][path[j - 1]][path[j]]
    best = sorted(chances, key=lambda path: -chances[path])[:11]  # a parent's chance is never below its child's
    grown = grow(guesses, 11)
    paths: list[tuple[int, ...]] = [()]
    for i, (parent, candidate) in enumerate(zip(grown.parents, grown.candidates, strict=True)):
        paths.append((*paths[parent], candidate))
        assert grown.positions[i] == len(paths[parent])
        before = chances.get(paths[parent], 1.0)
        assert grown.chances[i] == pytest.approx(chances[paths[-1]] / before)
    assert set(paths[1:]) == set(best)


def test_a_chain_takes_the_likeliest_child_each_time() -> None:
    guesses = random_guesses(1)
    grown = grow(guesses, 10, max_children=1)
    chain = [0]
    for links in guesses.links:
        chain.append(links[chain[-1]].index(max(links[chain[-1]])))
    assert (grown.parents, grown.candidates) == ([0, 1, 2], chain)


def test_only_nodes_that_pay_are_taken() -> None:
    guesses, row_cost = random_guesses(2), 0.08
    everything, paying = grow(guesses, 60), grow(guesses, 60, row_cost=row_cost)
    count, products = len(paying.parents), [1.0]
    for parent, chance in zip(everything.parents, everything.chances, strict=True):
        products.append(products[parent] * chance)
    speeds = [sum(products[: n + 1]) / (1 + n * row_cost) for n in range(len(products))]
    assert 0 < count < len(everything.parents)
    assert count == speeds.index(max(speeds))
