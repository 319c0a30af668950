"""What a finished cell says of itself: its figures, and what it ran on and with; the content of ``cell.json``.

Example::

    summary = summary_of(bench, records, requests)
    summary["speedup"], summary["engine"], summary["commit"]
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from decoding import SpeculativeDecoder, TargetModel
from pipeline.batch_speed import measure_batch
from pipeline.clock import measure_limits
from pipeline.files import sha256_of, sha256_of_all
from pipeline.machine import git_state, package_versions, processor_cache_bytes, processor_name
from pipeline.methods import Generates
from pipeline.power import figures as power_figures
from pipeline.record import Record
from pipeline.registry import METHODS
from pipeline.statistics import RUN_TO_RUN, RUN_TO_RUN_OF_PEERS
from pipeline.summary import summarise
from shuffle.passes import weight_bytes_of

if TYPE_CHECKING:
    from pipeline.cell import Bench, CellSpec


# Parts that a method reads once a step; a draft model counts its own forward passes.
EACH_STEP = {"heads", "mixer"}


def hardware_name(device: torch.device) -> str:
    """Return the GPU's or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def cache_bytes_of(device: torch.device) -> int | None:
    """Return the bytes of the GPU's or the processor's last cache, if it tells."""
    if device.type != "cuda":
        return processor_cache_bytes()
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", None)


def part_bytes_of(method: Generates) -> int:
    """Return the bytes of weights that one forward pass of the method's draft model, or of its heads, reads."""
    drafter = method.drafter if isinstance(method, SpeculativeDecoder) else method
    return int(getattr(drafter, "part_bytes", 0))


def summary_of(bench: Bench, records: list[Record], requests: list[Record]) -> dict[str, Any]:
    """Return what goes into ``cell.json``."""
    spec, kind = bench.spec, METHODS[bench.spec.method].kind
    # A generator's forward passes are its own model's, or of a twin as large that chooses; all others' the target's.
    model = bench.method.target if kind == "generator" else bench.target  # type: ignore[attr-defined]
    ours, part_bytes = kind == "drafter", part_bytes_of(bench.method)
    widest = bench.method.drafter.max_width if isinstance(bench.method, SpeculativeDecoder) else 1
    weight_bytes = weight_bytes_of(bench.method) if kind == "generator" else model.weights.weight_bytes  # type: ignore[arg-type]
    cache_bytes_per_token = model.new_cache(1).bytes_per_token
    return {
        "status": "ok",
        "reason": "",
        **spec.identity,
        "device": bench.device.type,
        "hardware": hardware_name(bench.device),
        "num_threads": bench.num_threads,
        **({"cards": len(bench.devices)} if bench.device.type == "cuda" else {}),
        **drawn(records, spec.repeats),
        **figures_of(bench, records, requests, model, weight_bytes, part_bytes),
        "peak_memory_bytes": max(record["peak_memory_bytes"] for record in records),
        "weight_bytes": weight_bytes,
        "part_bytes": part_bytes,
        "requests_sha256": sha256_of(spec.requests),
        "parts": {name: sha256_of_all(folder.glob("*.safetensors")) for name, folder in spec.parts.items()},
        "engine": "transformers" if kind == "peer" else model.engine,
        "cache_bytes": cache_bytes_per_token * bench.target.capacity_for(bench.longest, widest) if ours else None,
        "decode_width": bench.target.decode_width if ours else None,
        # Where a generator goes another way than its twin is no rounding.
        "divergences": bench.margins(records, requests) if bench.sampling.is_greedy and kind != "generator" else [],
        **how_measured(spec),
    }


def drawn(records: list[Record], repeats: int) -> dict[str, float]:
    """Return power, clock and energy a token of the method's timed runs, where the card told of every one."""
    num_tokens = repeats * sum(record["method"]["num_new_tokens"] for record in records)
    return power_figures([record.get("power", {}) for record in records], num_tokens)


def figures_of(
    bench: Bench, records: list[Record], requests: list[Record], model: TargetModel, weight_bytes: int, part_bytes: int
) -> dict[str, Any]:
    """Return the figures of the records, and of a batch where the method is a parallel generator."""
    kind = METHODS[bench.spec.method].kind
    figures = summarise(
        records,
        weight_bytes=weight_bytes,
        parameter_bytes=model.parameter_bytes,
        cache_bytes_per_token=model.new_cache(1).bytes_per_token,
        limits=bench.limits.or_better(measure_limits(bench.device, bench.precision.arithmetic)),
        part_bytes=part_bytes,
        processor_cache_bytes=cache_bytes_of(bench.device),
        is_parallel=kind == "generator",
        parts_each_step=not EACH_STEP.isdisjoint(bench.spec.parts),
        run_to_run=RUN_TO_RUN_OF_PEERS if kind == "peer" else RUN_TO_RUN,
    )
    if not bench.sampling.is_greedy:
        figures["lossless_match"] = None  # sampled texts differ by chance: their distribution is what tests hold equal
    if kind != "drafter":
        figures["verify_s"] = None
    if kind == "peer" and not bench.spec.parts:
        figures["draft_s"] = None  # transformers does not tell when it looks up
    if kind == "generator":
        generator: Any = bench.method
        figures |= measure_batch(generator, bench.target, requests, bench.device, bench.sampling)
    return figures


def how_measured(spec: CellSpec) -> dict[str, Any]:
    """Return with what, and when, a cell was measured."""
    return {
        "repeats": spec.repeats,
        "warmup_prompts": spec.warmup_prompts,
        "timestamp_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git_state(Path(__file__).parent),
        "versions": package_versions(),
    }
