"""One cell: a method on a task's prompts, in turn with the autoregressive baseline on the same prompts.

For each prompt the method and the baseline run one after the other, the one that goes first changing from prompt to
prompt, so that neither always meets the warmer machine. The pair goes to the journal before the next prompt starts.
``pipeline.generate`` runs this in a process of its own.

Example::

    run_cell(CellSpec(model_dir=Path("results/models/smollm2-135m"), method="prompt_lookup", ...))
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from baselines.autoregressive import AutoregressiveDrafter
from decoding import Generation, Sampling, SpeculativeDecoder, StopStrings, TargetModel
from decoding.stopping import cut_at
from pipeline.clock import MemoryMeter, measure_limits, quiet, settle
from pipeline.machine import describe_machine, package_versions
from pipeline.record import Journal, Record, run_record
from pipeline.registry import METHODS, find, import_target
from pipeline.summary import first_divergences, summarise

WARM_UP_TOKENS = 16


class Generates(Protocol):
    """What is timed: the engine with a drafter, or a peer."""

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: StopStrings,
        generator: torch.Generator | None,
    ) -> Generation:
        """Generate from one prompt."""


@dataclass(frozen=True)
class CellSpec:
    """Everything that a cell's figures depend on, beside the code."""

    model_dir: Path
    dtype: str
    method: str
    options: dict[str, Any]
    task: str
    requests: Path
    seed: int
    sampling: dict[str, Any]
    repeats: int
    warmup_prompts: int
    device: str
    num_threads: int
    output: Path

    @property
    def identity(self) -> dict[str, Any]:
        """What the cell is, as every row tells it."""
        return {
            "model": self.model_dir.name,
            "dtype": self.dtype,
            "method": self.method,
            "lossless": find(self.method, METHODS, "method").lossless,
            "task": self.task,
            "seed": self.seed,
            "options": self.options,
            "sampling": self.sampling,
        }


class Bench:
    """The method and the baseline, loaded, with what is needed to time them.

    Attributes:
        method_bytes: memory that the method's own models took to load; the shared target counts for a drafter.
    """

    def __init__(self, spec: CellSpec) -> None:
        self.spec = spec
        self.device = choose_device(spec.device)
        self.num_threads = spec.num_threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(self.num_threads)
        dtype = getattr(torch, spec.dtype)
        self.limits = measure_limits(self.device, dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(spec.model_dir, local_files_only=True, trust_remote_code=False)
        self.meter = MemoryMeter(self.device)
        sampling = Sampling(**spec.sampling)
        target_class, kind = import_target(METHODS[spec.method].target), METHODS[spec.method].kind
        before = self.meter.resident()
        if kind == "peer":
            self.method: Generates = target_class.from_pretrained(
                spec.model_dir, dtype=dtype, device=self.device, sampling=sampling, **spec.options
            )
            self.method_bytes = self.meter.resident() - before
        self.target = TargetModel.from_pretrained(spec.model_dir, dtype=dtype, device=self.device)
        if kind == "drafter":
            self.method = SpeculativeDecoder(self.target, target_class(**spec.options), sampling)
            self.method_bytes = self.meter.resident() - before
        self.baseline = SpeculativeDecoder(self.target, AutoregressiveDrafter(), sampling)
        self.peak_bytes = 0

    def warm_up(self, requests: Sequence[Record]) -> None:
        """Run both on the first prompts, so that no timed call is the first of its kind."""
        for request in requests[: self.spec.warmup_prompts]:
            short = request | {"max_new_tokens": min(WARM_UP_TOKENS, request["max_new_tokens"])}
            self.time(self.baseline, short)
            self.time(self.method, short)
        self.peak_bytes = 0
        settle()

    def time(self, generates: Generates, request: Record) -> Generation:
        """Run one prompt with nothing in its way; draws depend on the seed and the prompt alone."""
        generator = torch.Generator().manual_seed(self.spec.seed * 1_000_003 + request["prompt_id"])
        stop = StopStrings(self.decode, request["until"])
        before = self.meter.resident()
        with quiet(self.device):
            self.meter.reset_peak()
            generation = generates.generate(
                request["prompt_ids"], max_new_tokens=request["max_new_tokens"], stop=stop, generator=generator
            )
        if generates is self.method:
            self.peak_bytes = max(self.peak_bytes, self.meter.peak() - before)
        return generation

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ``ids``."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def measure(self, request: Record) -> Record:
        """Run the method and the baseline in turn on one prompt, ``repeats`` times; return the prompt's record."""
        trials: dict[str, list[Generation]] = {"method": [], "baseline": []}
        for repeat in range(self.spec.repeats):
            turn = [("baseline", self.baseline), ("method", self.method)]
            if (request["prompt_id"] + repeat) % 2:
                turn.reverse()
            for name, generates in turn:
                trials[name].append(self.time(generates, request))
        text = self.decode(trials["method"][0].output_ids, skip_special_tokens=True)
        return {
            "prompt_id": request["prompt_id"],
            "doc_id": request["doc_id"],
            "text": cut_at(text, request["until"]),
            "method": run_record(trials["method"]),
            "baseline": run_record(trials["baseline"]),
            "peak_bytes": self.peak_bytes,
        }

    def margins(self, records: Sequence[Record], requests: Sequence[Record]) -> list[dict[str, Any]]:
        """Return where ids differ from the baseline's, with the target's top-2 logit margin there."""
        prompts = {request["prompt_id"]: request["prompt_ids"] for request in requests}
        baselines = {record["prompt_id"]: record["baseline"]["output_ids"] for record in records}
        found = []
        for divergence in first_divergences(records):
            prompt_id, token = divergence["prompt_id"], divergence["token"]
            context = prompts[prompt_id] + baselines[prompt_id][:token]
            logits = self.target.prefill(self.target.new_cache(len(context)), context).logits[0]
            first, second = logits.float().topk(2).values.tolist()
            found.append({**divergence, "top2_margin": first - second})
        return found


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is a GPU if there is one.

    Raises:
        ValueError: CUDA was asked for and is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' was asked for, but torch finds no GPU; did you mean 'cpu'?")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def hardware_name(device: torch.device) -> str:
    """Return the GPU's or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(describe_machine()["cpu"])


def run_cell(spec: CellSpec, requests: list[Record], journal: Journal) -> tuple[list[Record], dict[str, Any]]:
    """Time every request that the journal lacks; return all records and the cell's summary."""
    bench = Bench(spec)
    missing = journal.missing(requests)
    bench.warm_up(missing)
    parent = os.getppid()
    with tqdm(requests, desc=f"{spec.method} on {spec.task}", unit="prompt", mininterval=1.0) as bar:
        bar.update(journal.num_resumed)
        for request in missing:
            if os.getppid() != parent:  # the command that started this was killed: leave the machine to the next one
                raise KeyboardInterrupt
            journal.add(bench.measure(request))
            bar.update()
    records = [journal.records[request["prompt_id"]] for request in requests]
    return records, summary_of(bench, records, requests) | {"resumed_prompts": journal.num_resumed}


def summary_of(bench: Bench, records: list[Record], requests: list[Record]) -> dict[str, Any]:
    """Return what goes into ``cell.json``."""
    spec, weights = bench.spec, bench.target.weights
    longest = max(len(request["prompt_ids"]) + request["max_new_tokens"] for request in requests)
    cache = bench.target.new_cache(bench.target.capacity_for(longest, tree_width=1))
    figures = summarise(
        records,
        weight_bytes=weights.weight_bytes,
        parameter_bytes=weights.embedding.element_size(),
        cache_bytes_per_token=cache.bytes_per_token,
        limits=bench.limits,
    )
    return {
        "status": "ok",
        "reason": "",
        **spec.identity,
        "device": bench.device.type,
        "hardware": hardware_name(bench.device),
        "num_threads": bench.num_threads,
        **figures,
        "peak_memory_bytes": bench.method_bytes + max(record["peak_bytes"] for record in records),
        "weight_bytes": weights.weight_bytes,
        "cache_bytes": cache.buffer.nbytes,
        "decode_width": bench.target.decode_width,
        "divergences": bench.margins(records, requests),
        "repeats": spec.repeats,
        "warmup_prompts": spec.warmup_prompts,
        "timestamp_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": package_versions(),
    }
