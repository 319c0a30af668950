"""``python -m pipeline rows``: what one more row of a forward pass costs on this machine.

What a tree may cost is decided by that: the options ``num_nodes`` and ``row_cost`` of the methods that draft trees. All
widths are read behind the same context, in an order that changes from round to round, so that a machine whose speed
drifts is as kind to each. Example::

    show(measure(runner.target, context=300, widths=[1, 8, 16]))
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from decoding import CandidateTree, TargetModel
from pipeline.cli.output import show_table
from pipeline.clock import machine_lock, quiet, settle, synchronise
from pipeline.errors import UserError

COLUMNS = ["rows", "ms a pass", "times one row", "row_cost"]
WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
ROUNDS = 11  # odd: the median is one of them


class Cost(NamedTuple):
    """A pass of ``rows`` rows: its time, its ratio to one of one row, and what each further row adds to that ratio."""

    rows: int
    seconds: float
    ratio: float
    row_cost: float


def tree_of(rows: int) -> CandidateTree:
    """Return a tree of two children a node; its tokens are of no account."""
    return CandidateTree((0,) * rows, (-1, *((node - 1) // 2 for node in range(1, rows))))


def measure(target: TargetModel, context: int, widths: Sequence[int], rounds: int = ROUNDS) -> list[Cost]:
    """Time passes of ``widths`` rows, and of one, behind ``context`` tokens; medians over the rounds.

    Raises:
        UserError: the widest tree does not fit the target's context behind so many tokens, or a width is below 1.
    """
    asked = sorted({1, *widths})
    if context < 1 or asked[0] < 1:
        raise UserError(f"rows, context: must be 1 or more, not {min(context, *widths)}")
    if context + asked[-1] > target.max_context:
        raise UserError(
            f"context: {context} and {asked[-1]} rows do not fit the model's context of {target.max_context}"
        )
    cache = target.new_cache(target.capacity_for(context, asked[-1]))
    target.prepare(cache, asked[-1])
    target.prefill(cache, [token % target.vocab_size for token in range(context)])
    length, order = cache.length, list(asked)
    times: dict[int, list[float]] = {rows: [] for rows in asked}
    for number in range(rounds + 1):  # the first one warms up
        random.Random(number).shuffle(order)
        for rows in order:
            tree = tree_of(rows)
            with quiet(target.device):
                started = time.perf_counter()
                target.read(cache, tree)
                synchronise(target.device)
                taken = time.perf_counter() - started
            cache.truncate(length)
            if number:
                times[rows].append(taken)
    medians = {rows: statistics.median(times[rows]) for rows in asked}
    ratios = {rows: seconds / medians[1] for rows, seconds in medians.items()}
    return [
        Cost(rows, medians[rows], ratios[rows], (ratios[rows] - 1) / (rows - 1) if rows > 1 else 0.0) for rows in asked
    ]


def show(costs: Sequence[Cost]) -> None:
    """Print the table."""
    rows = [
        [
            str(each.rows),
            f"{1000 * each.seconds:.2f}",
            f"{each.ratio:.2f}",
            f"{each.row_cost:.3f}" if each.rows > 1 else "-",
        ]
        for each in costs
    ]
    show_table(COLUMNS, rows, numbers=COLUMNS)


def measure_and_show(target: TargetModel, context: int, widths: Sequence[int]) -> None:
    """Measure with the machine to itself, and print."""
    with machine_lock():
        settle()
        costs = measure(target, context, widths or WIDTHS)
    show(costs)
    print(f"engine: {target.engine}")
