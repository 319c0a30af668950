"""What a row more costs a forward pass: where rows are not free, a candidate must be worth its own.

Example::

    while candidates and pays(chance, expected, nodes, row_cost=0.05): ...
"""

from __future__ import annotations


def pays(chance: float, expected: float, nodes: int, row_cost: float) -> bool:
    """Whether reading one more candidate makes a step's tokens per second more (Sequoia: Chen et al. 2024).

    A step of n draft tokens takes 1 + n c times that of none and emits E tokens on average, the bonus included; one
    more with chance p pays if (E + p) / (1 + (n + 1) c) > E / (1 + n c).

    Args:
        chance: p, of the candidate and all before it being accepted.
        expected: E.
        nodes: n.
        row_cost: c, what one more row of a forward pass costs, as a share of a pass of one row; 0 where it is free.
    """
    return chance * (1.0 + nodes * row_cost) > expected * row_cost
