"""One cell: a method on a task's prompts, in turn with the autoregressive baseline on the same prompts.

For each prompt the method and the baseline run one after the other, the one that goes first changing from prompt to
prompt, so that neither always meets the warmer machine. The pair goes to the journal before the next prompt starts.
``pipeline.generate`` runs this in a process of its own.

Example::

    run_cell(CellSpec(model_dir=Path("results/models/smollm2-135m"), method="prompt_lookup", ...))
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from baselines.autoregressive import AutoregressiveDrafter
from decoding import Generation, Sampling, SpeculativeDecoder, StopStrings, TargetModel
from decoding.stopping import cut_at
from pipeline.cell_summary import summary_of
from pipeline.clock import MemoryMeter, measure_limits, quiet, settle
from pipeline.divergence import top2_margin
from pipeline.machine import available_cores
from pipeline.methods import (
    Generates,
    build_decoder,
    build_generator,
    build_peer,
    keeps_state,
    meets_shapes_anew,
    unlearned,
)
from pipeline.power import Reading, meter_of, summed
from pipeline.precision import precision_of
from pipeline.record import Journal, Record, run_record
from pipeline.registry import METHODS, find
from pipeline.summary import first_divergences

WARM_UP_TOKENS = 16


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
    parts: dict[str, Path]
    device_map: str | None = None
    decode_width: int | None = None

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
    """The method and the baseline, loaded and warm, with what is needed to time them.

    The method is loaded and warmed first and alone, so that ``method_bytes`` is what it needs by itself: its models,
    and the cache that it keeps. What runs on the target too, as a drafter does, shares it with the baseline, and it
    counts as the method's.

    Args:
        spec: the cell.
        requests: the prompts to come; the first ones are for warming up.
        longest: tokens of the cell's longest text, the limit included, whether or not it is to come.
    """

    def __init__(self, spec: CellSpec, requests: Sequence[Record], longest: int) -> None:
        self.spec, self.longest = spec, longest
        self.device = choose_device(spec.device)
        self.devices = devices_for(self.device, spec.device_map)
        self.num_threads = spec.num_threads or available_cores()
        torch.set_num_threads(self.num_threads)
        self.precision = precision_of(spec.dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(spec.model_dir, local_files_only=True, trust_remote_code=False)
        self.meter = MemoryMeter(*self.devices)
        self.power = meter_of(self.devices)
        self.sampling = Sampling(**spec.sampling)
        floor, entry = self.meter.resident(), METHODS[spec.method]
        needs_target = entry.kind == "drafter" or entry.twin_chooses
        if needs_target:
            self.target = self.load_target()
        self.method = self.load_method()
        self.warm_up(self.method, requests)
        self.method_bytes = self.meter.resident() - floor
        if not needs_target:
            self.target = self.load_target()
        self.baseline = SpeculativeDecoder(self.target, AutoregressiveDrafter(), self.sampling)
        self.warm_up(self.baseline, requests)
        # Both or neither, so that neither is the only one that has just read the prompt.
        both = [self.baseline, self.method]
        self.meet_shapes = both if any(map(meets_shapes_anew, both)) else []
        # Last, since what it leaves behind would hide what the models take.
        self.limits = measure_limits(self.device, self.precision.arithmetic)
        settle()

    def load_method(self) -> Generates:
        """Load what is to be timed, on the target where it is there already."""
        spec, entry = self.spec, METHODS[self.spec.method]
        if entry.kind == "drafter":
            return build_decoder(spec.method, spec.options, self.target, spec.parts, self.sampling)
        where: dict[str, Any] = {"precision": self.precision, "device": self.device, "sampling": self.sampling}
        if entry.kind == "generator":
            twin = self.target if entry.twin_chooses else None
            return build_generator(spec.method, spec.options, spec.parts, **where, twin=twin)
        return build_peer(spec.method, spec.options, spec.model_dir, spec.parts, device_map=spec.device_map, **where)

    def load_target(self) -> TargetModel:
        """Load the target model that the baseline, and a drafter, run on."""
        return TargetModel.from_pretrained(
            self.spec.model_dir,
            dtype=self.precision.arithmetic,
            device=self.device,
            weights=self.precision.weights,
            devices=self.devices,
            decode_width=self.spec.decode_width or "default",
        )

    def warm_up(self, generates: Generates, requests: Sequence[Record]) -> None:
        """Run a few prompts a little way, so that nothing is timed that happens once a process.

        The first ones; where none is to run untimed later, the longest in place of the last of them: memory that grows
        with a prompt is there then.
        """
        if isinstance(generates, SpeculativeDecoder):
            generates.reserve(self.longest)
        chosen = list(requests[: self.spec.warmup_prompts])
        longest = max(requests, key=lambda request: len(request["prompt_ids"]))
        if longest not in chosen and not meets_shapes_anew(generates):
            chosen = [*chosen[:-1], longest]
        with unlearned(generates):
            for request in chosen:
                self.run(generates, request, WARM_UP_TOKENS)

    def learn_again(self, requests: Sequence[Record]) -> None:
        """Run prompts that a killed process had finished, untimed, if the method learns from prompt to prompt.

        It then goes on as if it had never been interrupted.
        """
        if keeps_state(self.method):
            for request in requests:
                self.run(self.method, request)

    def run(self, generates: Generates, request: Record, limit: int | None = None) -> Generation:
        """Generate from one prompt, at most ``limit`` tokens; draws depend on the seed and the prompt alone."""
        most = request["max_new_tokens"]
        return generates.generate(
            request["prompt_ids"],
            max_new_tokens=most if limit is None else min(limit, most),
            stop=StopStrings(self.decode, request["until"]),
            generator=torch.Generator().manual_seed(self.spec.seed * 1_000_003 + request["prompt_id"]),
        )

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ``ids``."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def measure(self, request: Record) -> Record:
        """Run the method and the baseline in turn on one prompt, ``repeats`` times; return the prompt's record.

        What runs on torch first runs two tokens untimed: its libraries prepare themselves for each new shape, and
        whichever met the prompt first would pay for both. A method that learns from prompt to prompt learns from the
        last trial alone, so that none begins with what it knows of the very prompt.
        """
        for generates in self.meet_shapes:
            with unlearned(generates):
                self.run(generates, request, 2)
        turn = [("baseline", self.baseline), ("method", self.method)]
        trials: dict[str, list[Generation]] = {"method": [], "baseline": []}
        peak_bytes, drawn = 0, []
        for repeat in range(self.spec.repeats):
            first = (request["prompt_id"] + repeat) % 2
            is_last = repeat == self.spec.repeats - 1
            for name, generates in (turn[first], turn[1 - first]):
                with nullcontext() if is_last else unlearned(generates):
                    generation, bytes_above, reading = self.timed(generates, request)
                trials[name].append(generation)
                if name == "method":
                    peak_bytes = max(peak_bytes, bytes_above)
                    drawn.append(reading)
        text = self.decode(trials["method"][0].output_ids, skip_special_tokens=True)
        return {
            "prompt_id": request["prompt_id"],
            "doc_id": request["doc_id"],
            "text": cut_at(text, request["until"]),
            "method": run_record(trials["method"]),
            "baseline": run_record(trials["baseline"]),
            "peak_memory_bytes": self.method_bytes + peak_bytes,
            "power": summed(drawn),
        }

    def timed(self, generates: Generates, request: Record) -> tuple[Generation, int, Reading]:
        """Return one timed run, how far its peak memory was above what was in use before, and what it drew."""
        resident = self.meter.resident()
        with self.power.reading() as reading, quiet(self.device):
            self.meter.reset_peak()
            generation = self.run(generates, request)
        return generation, self.meter.peak() - resident, reading

    def margins(self, records: Sequence[Record], requests: Sequence[Record]) -> list[dict[str, Any]]:
        """Return where ids differ from the baseline's, with the target's top-2 logit margin there."""
        prompts = {request["prompt_id"]: request["prompt_ids"] for request in requests}
        baselines = {record["prompt_id"]: record["baseline"]["output_ids"] for record in records}
        found = []
        for divergence in first_divergences(records):
            prompt_id, token = divergence["prompt_id"], divergence["token"]
            context = prompts[prompt_id] + baselines[prompt_id][:token]
            found.append({**divergence, "top2_margin": top2_margin(self.target, context)})
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


def devices_for(device: torch.device, device_map: str | None) -> list[torch.device]:
    """Return the devices of a model: all visible cards where it is to be spread (``device_map`` auto), else the one.

    Raises:
        ValueError: it is to be spread over what is no card.
    """
    if device_map is None:
        return [device]
    if device.type != "cuda":
        raise ValueError(f"device_map {device_map!r} spreads a model over graphics cards; this one runs on {device}")
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def run_cell(
    spec: CellSpec, requests: list[Record], journal: Journal, parent: int
) -> tuple[list[Record], dict[str, Any]]:
    """Time every request that the journal lacks; return all records and the cell's summary.

    Raises:
        KeyboardInterrupt: the process ``parent``, which started this one, is gone.
    """
    missing = journal.missing(requests)
    longest = max(len(request["prompt_ids"]) + request["max_new_tokens"] for request in requests)
    bench = Bench(spec, missing or requests, longest)
    if missing:
        bench.learn_again([request for request in requests if request not in missing])
    with tqdm(requests, desc=f"{spec.method} on {spec.task}", unit="prompt", mininterval=1.0) as bar:
        bar.update(journal.num_resumed)
        for request in missing:
            if os.getppid() != parent:  # its command was killed: leave the machine to the next one
                raise KeyboardInterrupt
            journal.add(bench.measure(request))
            bar.update()
    records = [journal.records[request["prompt_id"]] for request in requests]
    return records, summary_of(bench, records, requests) | {"resumed_prompts": journal.num_resumed}
