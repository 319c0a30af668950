"""Growing a candidate tree best first: always the node whose whole path is most likely to be accepted.

With P the chance of a node given its parent, that maximises the expected number of accepted tokens, the sum over nodes
of the product of P along the node's path. Example::

    tree, chances = grow(context[-1], state, expand, num_nodes=15)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import TypeVar

from decoding import CandidateTree
from decoding.rows import pays

State = TypeVar("State")


def grow(
    root: int,
    state: State,
    expand: Callable[[State], Iterable[tuple[int, float, State]]],
    num_nodes: int,
    row_cost: float = 0.0,
) -> tuple[CandidateTree, list[float]]:
    """Return the tree of the ``num_nodes`` likeliest nodes, and each node's chance given its parent; the root's is 1.

    Args:
        root: the tree's first token.
        state: the root's, whatever tells what may follow a node.
        expand: gives the tokens that may follow a node of a state, each with its chance and a state of its own; asked
            once of each node that has been taken, and not of the last.
        num_nodes: most nodes beside the root; fewer where ``expand`` gives no more, or no more that pay.
        row_cost: see :func:`decoding.rows.pays`.
    """
    tokens: list[int] = []
    parents: list[int] = []
    chances: list[float] = []
    # (-chance of the whole path, when pushed, token, parent, chance given the parent, state)
    frontier = [(-1.0, 0, root, -1, 1.0, state)]
    pushed, expected = 0, 0.0
    while frontier:
        negative, _, token, parent, chance, state = heapq.heappop(frontier)
        node = len(tokens)
        if node and not pays(-negative, expected, node - 1, row_cost):
            break
        expected -= negative
        tokens.append(token)
        parents.append(parent)
        chances.append(chance)
        if node == num_nodes:
            break
        for following, each, its_state in expand(state):
            pushed += 1
            heapq.heappush(frontier, (negative * each, pushed, following, node, each, its_state))
    return CandidateTree(tuple(tokens), tuple(parents)), chances
