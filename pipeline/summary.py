"""From the records of a cell to its figures: what goes into ``cell.json`` and, with the score, into the table.

Times are medians over prompts, counters are sums, and the speed-up is of sums (``pipeline.statistics``).

Bytes and operations are what the method had to do, from shapes: a forward pass reads every weight once and the keys
and values of the live prefix; each row of it multiplies by every weight. A draft model's forward passes, and the
heads', read their own weights, which count among the bytes: else a method would seem far from the memory's limit only
because it reads something beside the target. Their cache and their operations are left out, and padding rows, which
are the engine's affair.

Example::

    figures = summarise(records, weight_bytes=2 * 135_000_000, parameter_bytes=2, cache_bytes_per_token=23_040, ...)
    figures["speedup"], figures["tokens_per_step"], figures["mbu"]
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from typing import Any

from pipeline.clock import Limits
from pipeline.divergence import first_difference
from pipeline.record import Record
from pipeline.statistics import RUN_TO_RUN, Speedup, Timed, paired_speedup

SUMS = (
    "num_new_tokens",
    "truncated",
    "accepted_draft_tokens",
    "candidate_tokens",
    "target_forwards",
    "draft_forwards",
)


def tokens_per_second(run: Record) -> float:
    """Return the end-to-end speed of one run: new tokens by the seconds from prompt to last token."""
    return float(run["num_new_tokens"] / run["total_s"])


def timed(run: Record) -> Timed:
    """Return the tokens of one run, and its seconds."""
    return run["num_new_tokens"], run["total_s"]


def summarise(
    records: Sequence[Record],
    *,
    weight_bytes: int,
    parameter_bytes: float,
    cache_bytes_per_token: int,
    limits: Limits,
    part_bytes: int = 0,
    processor_cache_bytes: int | None = None,
    is_parallel: bool = False,
    parts_each_step: bool = True,
    run_to_run: float = RUN_TO_RUN,
) -> dict[str, Any]:
    """Return the figures of one cell from its records, in the columns' names and units.

    Args:
        records: one a prompt, of the method and of the baseline.
        weight_bytes: bytes of weights that one forward pass of the target reads.
        parameter_bytes: bytes of one parameter.
        cache_bytes_per_token: bytes of keys and values that one token leaves.
        limits: the machine's measured limits.
        part_bytes: bytes of weights that one forward pass of the draft model, or of the heads, reads.
        processor_cache_bytes: size of the device's last cache, if known. Weights that fit into it are not read from
            memory again, so that there is no share of its speed to tell.
        is_parallel: the method is a model that generates in parallel. No pass of it only reads the prompt, so that its
            tokens per step are those of all passes; its operations, which depend on the width of its blocks, are not
            counted.
        parts_each_step: the parts are heads, read once a step; False for a draft model, which counts its passes.
        run_to_run: see :func:`pipeline.statistics.paired_speedup`.
    """
    runs = [record["method"] for record in records]
    baselines = [record["baseline"] for record in records]
    speeds, baseline_speeds = [*map(tokens_per_second, runs)], [*map(tokens_per_second, baselines)]
    # A parallel generator's last passes may settle nothing that is text.
    decoded = [run for run in runs if sum(run["tokens_by_step"])]
    # What prefill emitted is no part of decode: one token, or more where a method drafts before it.
    tokens = [sum(run["tokens_by_step"]) for run in decoded]
    decode_s = sum(run["decode_s"] for run in decoded)
    sizes = weight_bytes, cache_bytes_per_token, part_bytes, parts_each_step
    traffic = sum(bytes_read(run, *sizes) for run in decoded)
    in_cache = processor_cache_bytes is not None and weight_bytes + part_bytes <= processor_cache_bytes
    work = None if is_parallel else sum(operations(run, round(weight_bytes / parameter_bytes)) for run in decoded)
    steps = sum(run["target_forwards"] if is_parallel else len(run["tokens_by_step"]) for run in runs)
    return {
        "num_prompts": len(records),
        **{name: sum(run[name] for run in runs) for name in SUMS},
        "decode_steps": sum(len(run["tokens_by_step"]) for run in runs),
        "tokens_per_second": statistics.median(speeds),
        "baseline_tokens_per_second": statistics.median(baseline_speeds),
        "decode_tokens_per_second": _median([n / run["decode_s"] for n, run in zip(tokens, decoded, strict=True)]),
        "ttft_s": statistics.median(run["ttft_s"] for run in runs),
        "tpot_s": _median([run["decode_s"] / n for n, run in zip(tokens, decoded, strict=True)]),
        **speedups(records, run_to_run),
        "tokens_per_step": _ratio(sum(run["num_new_tokens"] for run in runs) if is_parallel else sum(tokens), steps),
        "bytes_read": traffic,
        "flops": work,
        "mbu": None if in_cache else _ratio(traffic, decode_s * limits.bandwidth_bytes_per_s),
        "mfu": None if work is None else _ratio(work, decode_s * limits.flops_per_s),
        "bandwidth_bytes_per_s": limits.bandwidth_bytes_per_s,
        "flops_per_s": limits.flops_per_s,
        "thread_scaling": limits.thread_scaling,
        "decode_s": sum(run["decode_s"] for run in runs),
        "draft_s": sum(run["draft_s"] for run in runs),
        "verify_s": sum(run["verify_s"] for run in runs),
        "lossless_match": 1 - len(first_divergences(records)) / len(records),
        "output_sha256": hashlib.sha256(json.dumps([run["output_ids"] for run in runs]).encode()).hexdigest(),
    }


def speedups(records: Sequence[Record], run_to_run: float) -> dict[str, float | None]:
    """Return the speed-up with its interval, and what it is without the texts that the token limit cut off.

    A small model's text that goes on to the limit often runs in circles. It has many tokens, so a ratio of totals is in
    great part its own, and whatever copies is fast there.
    """

    def over(some: Sequence[Record]) -> Speedup:
        method, baseline = ([timed(record[run]) for record in some] for run in ("method", "baseline"))
        return paired_speedup(method, baseline, run_to_run)

    found = {"speedup": over(records)}
    ended = [record for record in records if not (record["method"]["truncated"] or record["baseline"]["truncated"])]
    if any(record["method"]["num_new_tokens"] for record in ended):
        found["speedup_ended"] = over(ended)
    return {
        "truncated_tokens": sum(run["num_new_tokens"] for run in (r["method"] for r in records) if run["truncated"]),
        **{
            f"{name}{end}": each
            for name, ends in found.items()
            for end, each in zip(("", "_low", "_high"), ends, strict=True)
        },
    }


def bytes_read(
    run: Record, weight_bytes: int, cache_bytes_per_token: int, part_bytes: int = 0, parts_each_step: bool = True
) -> int:
    """Return the bytes that the decode steps of one run had to read.

    Once a step the target's weights and its live keys and values, and heads; a draft model's weights once for each of
    its forward passes, of which a step may have none.
    """
    length = run["prompt_length"] + run["num_new_tokens"] - sum(run["tokens_by_step"])
    total = part_bytes * (len(run["tokens_by_step"]) if parts_each_step else run["decode_draft_forwards"])
    for emitted in run["tokens_by_step"]:
        total += weight_bytes + length * cache_bytes_per_token
        length += emitted
    return total


def operations(run: Record, num_parameters: int) -> int:
    """Return the multiplications and additions of the decode steps: two a parameter and row (attention left out)."""
    rows = len(run["candidates_by_step"]) + sum(run["candidates_by_step"])
    return 2 * num_parameters * rows


def first_divergences(records: Sequence[Record]) -> list[dict[str, int]]:
    """Return, for each prompt whose ids differ from the baseline's, the index of the first token that does."""
    found = [
        (record["prompt_id"], first_difference(record["method"]["output_ids"], record["baseline"]["output_ids"]))
        for record in records
    ]
    return [{"prompt_id": prompt_id, "token": token} for prompt_id, token in found if token is not None]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None
