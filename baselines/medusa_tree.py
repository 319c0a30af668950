"""Trees of choices: which guess of which head goes where in the candidate tree of Medusa.

A node is the path of choice ranks that leads to it, Medusa's notation (Cai et al. 2024, section 2.1.2): ``(0, 2)`` is
the third choice of the second head after the first choice of the first. Heads guess independently of each other, so a
node's chance of being right is estimated as the product along its path,

    chance(i_1, ..., i_n) = prod_k a_k(i_k),

where ``a_k(i)`` is how often the i-th choice of head k is right (fitted tree, section 2.3.3 of the paper: one shape for
all steps), or the probability that the head itself gives that choice just now (dynamic tree). Either way the best tree
of n nodes is grown greedily: add the node of greatest chance whose parent is there already.

Example::

    fit_paths([[0.6, 0.2], [0.4, 0.1]], num_nodes=3)       # [(0,), (0, 0), (1,)]
    shape = shape_of([(0,), (0, 0), (1,)])                 # parents (-1, 0, 1, 0)
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from decoding.rows import pays

Path = tuple[int, ...]


class Shape(NamedTuple):
    """A tree without its tokens, the root left out of ``heads`` and ``ranks``.

    Attributes:
        parents: ``[W]``, index of each node's parent, -1 for the root.
        heads: ``[W - 1]``, the head that guesses each node: its depth, less 1.
        ranks: ``[W - 1]``, which of the head's choices it is.
    """

    parents: tuple[int, ...]
    heads: tuple[int, ...]
    ranks: tuple[int, ...]


def grow(chances: Sequence[Sequence[float]], num_nodes: int, row_cost: float = 0.0) -> Shape:
    """Grow the tree of ``num_nodes`` nodes (the root not counted) whose chances sum to the most.

    Args:
        chances: ``chances[k][i]`` is the chance of choice i of head k; each row falls.
        num_nodes: fewer are returned only if there are no more choices, or no more that pay.
        row_cost: what one more node costs, see :func:`decoding.rows.pays`.
    """
    parents, products = [-1], [1.0]
    heads: list[int] = []
    ranks: list[int] = []
    # A node's rivals enter when it is taken: its next sibling and its first child. No other can be greater.
    frontier = [(-chances[0][0], 0, 0, 0)]
    expected = 1.0
    while frontier and len(heads) < num_nodes:
        negative, parent, head, rank = heapq.heappop(frontier)
        if not pays(-negative, expected, len(heads), row_cost):
            break
        expected -= negative
        parents.append(parent)
        heads.append(head)
        ranks.append(rank)
        products.append(-negative)
        row = chances[head]
        if rank + 1 < len(row):
            heapq.heappush(frontier, (-products[parent] * row[rank + 1], parent, head, rank + 1))
        if head + 1 < len(chances):
            heapq.heappush(frontier, (negative * chances[head + 1][0], len(parents) - 1, head + 1, 0))
    return Shape(tuple(parents), tuple(heads), tuple(ranks))


def fit_paths(accuracies: Sequence[Sequence[float]], num_nodes: int) -> list[Path]:
    """Return the fitted tree's nodes in the order in which they are added: its first n are the tree of n nodes.

    Args:
        accuracies: how often choice i of head k was right; measured, so a row need not fall.
        num_nodes: nodes of the tree, the root not counted.
    """
    orders = [sorted(range(len(row)), key=lambda rank, row=row: -row[rank]) for row in accuracies]  # type: ignore[misc]
    shape = grow([[row[rank] for rank in order] for row, order in zip(accuracies, orders, strict=True)], num_nodes)
    paths: list[Path] = [()]
    for parent, head, rank in zip(shape.parents[1:], shape.heads, shape.ranks, strict=True):
        paths.append((*paths[parent], orders[head][rank]))
    return paths[1:]


def shape_of(paths: Sequence[Sequence[int]]) -> Shape:
    """Return the shape of a tree given as paths, in any order; shorter paths come first in it.

    Raises:
        ValueError: a path is empty, negative, there twice, or its parent is missing.
    """
    ordered = sorted(map(tuple, paths), key=len)  # stable: siblings are tried in the order in which they are given
    nodes: dict[Path, int] = {(): 0}
    parents = [-1]
    for path in ordered:
        if not path or min(path) < 0 or path in nodes:
            raise ValueError(f"tree: {list(path)} is empty, negative or there twice")
        if path[:-1] not in nodes:
            raise ValueError(f"tree: {list(path)} is there, but its parent {list(path[:-1])} is not")
        parents.append(nodes[path[:-1]])
        nodes[path] = len(nodes)
    return Shape(tuple(parents), tuple(len(path) - 1 for path in ordered), tuple(path[-1] for path in ordered))
