"""Many prompts at once: tokens/s of a parallel generator on a batch, and of its twin on the same batch.

At batch size 1 a parallel generator wins by reading the weights less often; in a batch the twin reads them for all
texts together, so that the gain is another. Both run in turn, three times; the twin with each forward pass reading the
next token of every text (``pipeline.batching``). Example::

    figures = measure_batch(generator, target, requests, device)     # {"batch_size": 32, "batch_speedup": 1.9, ...}
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from decoding import TargetModel
from decoding.stopping import Ending
from pipeline.batching import Job, answer
from pipeline.clock import quiet
from pipeline.record import Record
from shuffle.passes import ParallelGenerator

BATCH_SIZE = 32
TRIALS = 3


def measure_batch(
    generator: ParallelGenerator, target: TargetModel, requests: Sequence[Record], device: torch.device
) -> dict[str, Any]:
    """Return size, tokens/s of the generator and of the twin, and their ratio; medians of three trials in turn."""
    batch = requests[:BATCH_SIZE]
    prompts = [tuple(request["prompt_ids"]) for request in batch]
    limit = max(request["max_new_tokens"] for request in batch)
    jobs = [Job(prompt, Ending(limit, target.end_token_ids)) for prompt in prompts]

    def ours() -> int:
        return sum(map(len, generator.generate_batch(prompts, max_new_tokens=limit)))

    def twins() -> int:
        return sum(len(found.ids) for found in answer(target, jobs))

    for run in (ours, twins):
        run()
    speeds: dict[str, list[float]] = {"ours": [], "twins": []}
    for _ in range(TRIALS):
        for name, run in (("ours", ours), ("twins", twins)):
            speeds[name].append(_tokens_per_second(run, device))
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    return {
        "batch_size": len(batch),
        "batch_tokens_per_second": medians["ours"],
        "batch_baseline_tokens_per_second": medians["twins"],
        "batch_speedup": medians["ours"] / medians["twins"],
    }


def _tokens_per_second(run: Callable[[], int], device: torch.device) -> float:
    with quiet(device):
        started = time.perf_counter()
        tokens = run()
        return tokens / (time.perf_counter() - started)
