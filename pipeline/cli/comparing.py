"""``python -m pipeline compare``: two methods on the same prompts in turn, how fast each is and whether they agree.

As in a cell: one after the other in one process, the one that goes first changing, the ratio of total times told. A
single prompt's interval is over its repeats, so it says how steady the machine was and nothing about other prompts.

Example::

    compare(runner, [first, second], request, ["Count to ten."], repeats=5)
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from decoding import Generation
from pipeline.cli.choices import Chosen
from pipeline.cli.output import show_table
from pipeline.cli.request import Request
from pipeline.clock import machine_lock, quiet, settle
from pipeline.divergence import first_difference, top2_margin
from pipeline.methods import Generates, unlearned
from pipeline.runner import Runner, counted
from pipeline.statistics import Timed, paired_speedup

COLUMNS = ["method", "tokens", "steps", "tokens/step", "tokens/s", "first token (ms)"]


@dataclass(frozen=True)
class Contender:
    """One of two methods, and its generations ``[prompt][repeat]``."""

    chosen: Chosen
    generates: Generates
    runs: list[list[Generation]]

    def timed(self) -> list[Timed]:
        """Return tokens and seconds: one pair a prompt or, where there is one prompt, one a repeat."""
        if len(self.runs) == 1:
            return [(run.num_new_tokens, run.total_s) for run in self.runs[0]]
        return [(each[-1].num_new_tokens, statistics.median(run.total_s for run in each)) for each in self.runs]

    def row(self) -> list[str]:
        """Return the method's line of the table."""
        runs = [repeats[-1] for repeats in self.runs]
        tokens, (steps, per_step) = sum(run.num_new_tokens for run in runs), counted(self.chosen.method, runs)
        first_ms = 1000 * statistics.median(run.ttft_s for repeats in self.runs for run in repeats)
        speed = f"{statistics.median(tokens / seconds for tokens, seconds in self.timed()):.1f}"
        return [self.chosen.label, str(tokens), str(steps), f"{per_step:.2f}", speed, f"{first_ms:.0f}"]


def compare(runner: Runner, pair: Sequence[Chosen], request: Request, prompts: Sequence[str], repeats: int) -> None:
    """Run both methods on every prompt, ``repeats`` times in turn, and print what came of it."""
    ids = [request.encode(runner, prompt) for prompt in prompts]
    contenders = [
        Contender(each, runner.method(each.method, each.options, each.parts, request.sampling), []) for each in pair
    ]
    with machine_lock():
        settle()
        for number, prompt_ids in enumerate(ids):
            run_in_turn(runner, contenders, request, prompt_ids, repeats, number)
    show_table(COLUMNS, [each.row() for each in contenders], numbers=COLUMNS[1:])
    for line in (*agreement(runner, contenders, request, ids), speedup(contenders, repeats)):
        print(line)


def run_in_turn(
    runner: Runner, contenders: Sequence[Contender], request: Request, ids: Sequence[int], repeats: int, number: int
) -> None:
    """Add the generations of one prompt; a method that learns from prompt to prompt learns from the last one alone."""
    for each in contenders:
        with unlearned(each.generates):
            request.generate(runner, each.generates, ids, limit=2)  # what happens once a shape is not timed
        each.runs.append([])
    for repeat in range(repeats):
        order = contenders if (number + repeat) % 2 == 0 else contenders[::-1]
        for each in order:
            with nullcontext() if repeat == repeats - 1 else unlearned(each.generates), quiet(runner.device):
                each.runs[-1].append(request.generate(runner, each.generates, ids))


def agreement(
    runner: Runner, contenders: Sequence[Contender], request: Request, ids: Sequence[Sequence[int]]
) -> Iterator[str]:
    """Yield whether the two wrote the same ids and, if not, where they part and how sure the target was there."""
    first, second = contenders
    parted = []
    for number, (ours, theirs) in enumerate(zip(first.runs, second.runs, strict=True)):
        token = first_difference(ours[-1].output_ids, theirs[-1].output_ids)
        if token is not None:
            parted.append((number, token, [*ids[number], *ours[-1].output_ids[:token]]))
    if not parted:
        yield "ids: equal" if len(ids) == 1 else f"ids: equal on all {len(ids)} prompts"
        return
    drawn = "" if request.sampling.is_greedy else " (drawn tokens may: a lossless method keeps their distribution)"
    yield f"ids: differ on {len(parted)} of {len(ids)} prompts{drawn}"
    number, token, context = parted[0]
    if request.sampling.is_greedy:
        margin = top2_margin(runner.target, context)
        where = f"prompt {number}, new token {token}"
        yield f"     first at {where}, where the target's two best logits are {margin:.3g} apart"


def speedup(contenders: Sequence[Contender], repeats: int) -> str:
    """Return how many times as fast the second method is, in one line."""
    first, second = contenders
    found = paired_speedup(second.timed(), first.timed())
    over = f"{repeats} repeats" if len(first.runs) == 1 else f"{len(first.runs)} prompts"
    interval = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"speed-up of {second.chosen.label} over {first.chosen.label}: {found.ratio:.2f}{interval}, {over}"
