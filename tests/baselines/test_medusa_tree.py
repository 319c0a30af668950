"""Trees of choices: grown best-first, against brute force over all trees of a small case."""

from __future__ import annotations

import itertools
import random

import pytest

from baselines.medusa_tree import fit_paths, grow, shape_of


def paths_of(shape) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [()]
    for parent, head, rank in zip(shape.parents[1:], shape.heads, shape.ranks, strict=True):
        assert len(paths[parent]) == head
        paths.append((*paths[parent], rank))
    return paths[1:]


def chance(path: tuple[int, ...], chances: list[list[float]]) -> float:
    product = 1.0
    for head, rank in enumerate(path):
        product *= chances[head][rank]
    return product


def best_total(chances: list[list[float]], num_nodes: int) -> float:
    """The greatest sum of chances over every set of nodes that holds each node's parent."""
    ranks = range(len(chances[0]))
    every = [path for depth in range(len(chances)) for path in itertools.product(ranks, repeat=depth + 1)]
    totals = []
    for chosen in itertools.combinations(every, num_nodes):
        if all(len(path) == 1 or path[:-1] in chosen for path in chosen):
            totals.append(sum(chance(path, chances) for path in chosen))
    return max(totals)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_nodes", [1, 3, 5])
def test_no_other_tree_of_as_many_nodes_has_a_greater_chance(seed: int, num_nodes: int) -> None:
    rng = random.Random(seed)
    rows = [[rng.random() / 2 for _ in range(3)] for _ in range(2)]  # as measured: they need not fall
    paths = fit_paths(rows, num_nodes)
    assert len(paths) == len(set(paths)) == num_nodes
    assert sum(chance(path, rows) for path in paths) == pytest.approx(best_total(rows, num_nodes))
    falling = [sorted(row, reverse=True) for row in rows]
    grown = paths_of(grow(falling, num_nodes))
    assert sum(chance(path, falling) for path in grown) == pytest.approx(best_total(falling, num_nodes))


@pytest.mark.parametrize("seed", range(5))
def test_nodes_come_in_order_of_falling_chance_so_that_a_beginning_is_the_smaller_tree(seed: int) -> None:
    rng = random.Random(seed)
    rows = [sorted((rng.random() for _ in range(6)), reverse=True) for _ in range(4)]
    paths = paths_of(grow(rows, 20))
    chances = [chance(path, rows) for path in paths]
    assert chances == sorted(chances, reverse=True)
    for n in (1, 7, 15):
        assert paths_of(grow(rows, n)) == fit_paths(rows, n) == paths[:n]


def test_there_are_no_more_nodes_than_choices() -> None:
    assert paths_of(grow([[0.9, 0.1]], 10)) == [(0,), (1,)]
    assert len(paths_of(grow([[0.5, 0.1], [0.5, 0.2]], 100))) == 2 + 4


def test_a_shape_keeps_the_paths_and_the_order_of_siblings() -> None:
    shape = shape_of([[1], [0, 2], [0], [0, 1], [0, 1, 0]])
    assert shape.parents == (-1, 0, 0, 2, 2, 4)
    assert paths_of(shape) == [(1,), (0,), (0, 2), (0, 1), (0, 1, 0)]


@pytest.mark.parametrize(
    ("paths", "message"),
    [([[0], [1, 0]], "its parent"), ([[0], [0]], "there twice"), ([[-1]], "negative"), ([[]], "empty")],
)
def test_what_is_no_tree_is_refused(paths: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shape_of(paths)
