"""Refusing what is below the least that an option may be, in the words that drafters and generators share.

Example::

    at_least(1, num_nodes=num_nodes, max_ngram=max_ngram)
    at_least(0, row_cost=row_cost)
"""

from __future__ import annotations


def at_least(least: int, **options: float) -> None:
    """Refuse options below the least value that they may have; NaN, which a YAML file can say, is one too.

    Args:
        least: the least value that is taken.
        options: by the name that a user gives them.

    Raises:
        ValueError: one is less; its name and value are said.
    """
    for name, value in options.items():
        if not value >= least:
            raise ValueError(f"{name} must be {least} or more, not {value}")
