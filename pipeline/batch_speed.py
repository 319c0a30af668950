"""Many prompts at once: tokens/s of a parallel generator on a batch, and of its twin on the same batch.

At batch size 1 a parallel generator wins by reading the weights less often; in a batch the twin reads them for all
texts together, so that the gain is another. Both run in turn, seven times, each first in every other trial: the twin
with each forward pass reading the next token of every text (``pipeline.batching``), into caches that are there before
the clock starts; the generator abreast or text by text, whichever is the faster before (on the compiled engine either
may be). A twin that is spread over devices would go through the batch text by text, and whatever is held against it
would look up to 32 times too fast: there nothing is measured. Example::

    figures = measure_batch(generator, target, requests, device)     # {"batch_size": 32, "batch_speedup": 1.9, ...}
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from decoding import TargetModel
from decoding.sampling import GREEDY, Sampling
from decoding.stopping import Ending
from pipeline.batching import Draw, Job, answer, places_for
from pipeline.clock import quiet
from pipeline.record import Record
from pipeline.statistics import Timed, paired_speedup
from shuffle.passes import BatchWay, ParallelGenerator, ways_through

BATCH_SIZE = 32
TRIALS = 7
CHOOSING_TRIALS = 3


def measure_batch(
    generator: ParallelGenerator,
    target: TargetModel,
    requests: Sequence[Record],
    device: torch.device,
    sampling: Sampling = GREEDY,
) -> dict[str, Any]:
    """Return the batch's size, tokens/s of the generator and of the twin over all trials, their ratio and its interval.

    Returns:
        Nothing where the target does not read the texts together, or would draw its tokens otherwise than asked for.
    """
    if not target.reads_together or sampling.top_k:
        return {}
    draw = Draw(sampling.temperature, sampling.top_p)
    batch = requests[:BATCH_SIZE]
    prompts = [tuple(request["prompt_ids"]) for request in batch]
    limit = max(request["max_new_tokens"] for request in batch)
    jobs = [Job(prompt, Ending(limit, target.end_token_ids)) for prompt in prompts]
    places = places_for(target, jobs)

    def through(way: BatchWay) -> int:
        return sum(map(len, way(prompts, max_new_tokens=limit)))

    ours = fastest([partial(through, way) for way in ways_through(generator)], device)

    def twins() -> int:
        return sum(len(found.ids) for found in answer(target, jobs, draw, places=places))

    method, baseline = in_turn(ours, twins, device)
    found = paired_speedup(method, baseline)
    return {
        "batch_size": len(batch),
        "batch_tokens_per_second": total_speed(method),
        "batch_baseline_tokens_per_second": total_speed(baseline),
        "batch_speedup": found.ratio,
        "batch_speedup_low": found.low,
        "batch_speedup_high": found.high,
    }


def total_speed(trials: Sequence[Timed]) -> float:
    """Return tokens/s over all trials together."""
    return sum(tokens for tokens, _ in trials) / sum(seconds for _, seconds in trials)


def fastest(runs: Sequence[Callable[[], int]], device: torch.device) -> Callable[[], int]:
    """Return the run that takes least time: the best of three trials in turn, after one that does not count."""
    if len(runs) == 1:
        return runs[0]
    seconds = [[_timed(run, device)[1] for run in runs] for _ in range(1 + CHOOSING_TRIALS)]
    best = [min(trials) for trials in zip(*seconds[1:], strict=True)]
    return runs[best.index(min(best))]


def _timed(run: Callable[[], int], device: torch.device) -> Timed:
    with quiet(device):
        started = time.perf_counter()
        tokens = run()
        return tokens, time.perf_counter() - started


def in_turn(
    first: Callable[[], int], second: Callable[[], int], device: torch.device
) -> tuple[list[Timed], list[Timed]]:
    """Return tokens and seconds of two runs in each trial; which goes first changes from trial to trial.

    Each runs once before, untimed.
    """
    runs = (first, second)
    for run in runs:
        run()
    found: tuple[list[Timed], list[Timed]] = ([], [])
    for trial in range(TRIALS):
        for which in (0, 1) if trial % 2 == 0 else (1, 0):
            found[which].append(_timed(runs[which], device))
    return found
