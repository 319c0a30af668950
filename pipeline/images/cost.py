r"""Rule: what reading an image costs at growing resolution, for windows of different size. By hand::

    python -m pipeline.images.cost --tokens results/images/laptop/photographs --sides 256 512 --windows 1 2 4 \
        --backbone '{"hidden_size": 256, "num_layers": 4}' --repeats 3 --output results/images/laptop/cost.json

A photograph's tokens are read by the transformer alone, with weights that are not trained (``prefill.py``). For each
side every window has a process of its own, so that its peak of memory is its own; the processes are all there at
once, and read the image in turn, one at a time: first uncounted, then ``--repeats`` rounds. Ratios are over window 1 in
the same rounds, their interval over rounds (``pipeline.statistics``).

The formula that they are held against (Ma et al. 2025): n / s^2 rows, and 1 / s^4 of the operations of attention.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pipeline.arguments import json_object
from pipeline.errors import UserError, command
from pipeline.files import atomic_write
from pipeline.images.patches import check_side
from pipeline.images.prefill import prefill, prepare
from pipeline.images.records import BASELINE, TOKENIZER_RECORD, TOKENS, read_arrays, read_record
from pipeline.machine import processor_name
from pipeline.statistics import RUN_TO_RUN, once_each, paired_speedup


def measure_side(
    ids: np.ndarray, shape: dict[str, Any], windows: list[int], repeats: int, num_threads: int
) -> list[dict[str, Any]]:
    """Return a row of figures for each window, for one image."""
    with ExitStack() as stack:
        workers = {
            window: stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn"))) for window in windows
        }
        counted = {
            window: worker.submit(prepare, shape | {"window": window}, ids, num_threads).result()
            for window, worker in workers.items()
        }
        trials: dict[int, list[dict[str, float]]] = {window: [] for window in windows}
        for _ in range(repeats):
            for window, worker in workers.items():
                trials[window].append(worker.submit(prefill).result())
    return [row_of(window, ids.size, counted, trials) for window in windows]


def row_of(
    window: int, tokens: int, counted: dict[int, dict[str, Any]], trials: dict[int, list[dict[str, float]]]
) -> dict[str, Any]:
    """Return the figures of one window, those of window 1 beside them as ratios, and what the formula says."""
    seconds, base = ([trial["seconds"] for trial in trials[one]] for one in (window, BASELINE))
    peak, base_peak = (max(trial["peak_memory_bytes"] for trial in trials[one]) for one in (window, BASELINE))
    # A ratio of seconds, below 1 where it is faster: window 1's speed by this one's.
    ratio = paired_speedup(once_each(base), once_each(seconds), 0.0 if window == BASELINE else RUN_TO_RUN)
    return {
        "window": window,
        "tokens": tokens,
        **counted[window],
        "predicted_rows": tokens // window**2,
        "predicted_attention_flops": counted[BASELINE]["attention_flops"] // window**4,
        "prefill_s": median(seconds),
        "prefill_ratio": ratio.ratio,
        "prefill_ratio_low": ratio.low,
        "prefill_ratio_high": ratio.high,
        "peak_memory_bytes": int(peak),
        "memory_ratio": peak / base_peak,
        "repeats": len(seconds),
    }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure every side and return the figures, and what they were measured on."""
    from pipeline.clock import machine_lock
    from pipeline.machine import available_cores

    arrays = read_arrays(given.tokens / TOKENS, "tokenise")
    record = read_record(given.tokens / TOKENIZER_RECORD, "tokenise")
    for side in given.sides:
        for window in given.windows:
            check_side(side, record["patch_size"], window)
        if f"ids_{side}" not in arrays:
            raise UserError(f"sides: {given.tokens} has no tokens of side {side}")
    shape = {**given.backbone, "vocab_size": record["codebook_size"], "shuffle_blocks": given.shuffle_blocks}
    threads = given.num_threads or available_cores()
    rows, load = [], os.getloadavg()[0]
    with machine_lock():
        for side in given.sides:
            found = measure_side(arrays[f"ids_{side}"], shape, given.windows, given.repeats, threads)
            rows += [{"side": side, "patch_size": record["patch_size"], **row} for row in found]
    return {
        "hardware": processor_name(),
        "num_threads": threads,
        "load_before": load,
        "backbone": given.backbone,
        "rows": rows,
    }


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True, help="the folder of the photographs' tokens")
    parser.add_argument("--sides", type=int, nargs="+", required=True, help="in pixels")
    parser.add_argument("--windows", type=int, nargs="+", required=True, help="tokens along a side; 1 among them")
    parser.add_argument("--backbone", type=json_object, default={}, help="shape of the backbone, JSON")
    parser.add_argument("--shuffle-blocks", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=0, help="0: all cores, or OMP_NUM_THREADS")
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    given = parser.parse_args()
    if BASELINE not in given.windows:
        raise UserError(f"windows: {BASELINE}, which ratios are over, is not among {given.windows}")
    if given.repeats < 1:
        raise UserError(f"repeats must be 1 or more, not {given.repeats}")
    atomic_write(given.output, json.dumps(measure(given), indent=2) + "\n")


if __name__ == "__main__":
    main()
