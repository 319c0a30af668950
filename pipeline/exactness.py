r"""Does every lossless method emit exactly the baseline's ids? Greedy, untimed, on many prompts; by hand::

    python -m pipeline.exactness --model-dir results/models/smollm2-135m --dtype float32 \
        --requests results/exactness/laptop/smollm2-135m/requests/humaneval.jsonl --methods prompt_lookup lookahead \
        --output results/exactness/laptop/smollm2-135m/float32

The baseline runs once a prompt, then each method on the same prompt, all in one process on one target model. A
``--part draft=FOLDER`` is given to the methods that need it; ``--options '{"lookahead": {"window": 3}}'`` sets theirs;
``--prompts 3`` takes the first three of each file. Nothing is timed, so no machine is locked.

Each method has its journal, so a killed run goes on at its prompt, more prompts or methods cost only what is new, and a
change of one method's code or options begins that one anew.

Writes ``exactness.csv`` (model, dtype, method, task, prompts, equal, reason) and ``divergences.jsonl``: a line for each
output that differs, with the index of the first token that does and the target's top-2 margin there. A method whose
trained parts could not be made has rows of no prompts, with the ``reason``; so have all methods on a task that could
not be asked, as where the model cannot be had. Those of several folders are put together by
``python -m pipeline.exactness --gather FOLDER... --output results``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.arguments import positive
from pipeline.divergence import first_difference, top2_margin
from pipeline.errors import UserError, command, made_by, nearest
from pipeline.exactness_table import gather, write
from pipeline.files import sha256_of
from pipeline.generate import DTYPES, read_requests
from pipeline.machine import available_cores, describe_machine, package_versions
from pipeline.parts import error_of, files_of, part_argument
from pipeline.record import Journal, Record
from pipeline.registry import METHODS, find
from pipeline.sources import ROOT, sources_of

if TYPE_CHECKING:
    from decoding import Generation, SpeculativeDecoder, TargetModel

BASELINE = "autoregressive"


@dataclass(frozen=True)
class Comparison:
    """What is compared: methods with their options on one model in one dtype, and the trained parts there are."""

    model_dir: Path
    dtype: str
    device: str
    options: Mapping[str, Mapping[str, Any]]
    parts: Mapping[str, Path]
    num_threads: int = 0
    device_map: str | None = None
    decode_width: int | None = None

    def parts_of(self, method: str) -> dict[str, Path]:
        """Return the folders of the parts that ``method`` needs.

        Raises:
            UserError: one is not given.
        """
        folders: dict[str, Path] = {}
        for part in METHODS[method].parts_with(self.options.get(method, {})):
            if part not in self.parts:
                raise UserError(f"part: method {method!r} needs --part {part}=FOLDER")
            folders[part] = self.parts[part]
        return folders

    def reason_against(self, method: str) -> str | None:
        """Return why ``method`` cannot be compared, if a part that it needs could not be made."""
        return next(filter(None, map(error_of, self.parts_of(method).values())), None)

    def fingerprint(self, method: str) -> str:
        """Return a hash of all that the ids of ``method`` depend on, but for the prompts."""
        entry = METHODS[method]
        modules = {*entry.modules, *METHODS[BASELINE].modules}
        parts = self.parts_of(method).values()
        files = [*self.model_dir.glob("*.json"), *(file for part in parts for file in files_of(part))]
        known = {
            "definition": [entry.definition, self.dtype, self.device, dict(self.options.get(method, {}))],
            "files": [sha256_of(file) for file in sorted(files)],
            "code": [sha256_of(ROOT / name) for name in sources_of("pipeline.methods", *modules)],
            "machine": describe_machine(),
            "packages": package_versions(),
            "layout": [self.device_map, self.decode_width, self.num_threads or available_cores()],
        }
        return hashlib.sha256(json.dumps(known, default=str, sort_keys=True).encode()).hexdigest()


class Runner:
    """The target model, loaded once, and each method's engine on it.

    Args:
        comparison: what is compared.
    """

    def __init__(self, comparison: Comparison) -> None:
        import torch
        from transformers import AutoTokenizer

        from decoding import Sampling, TargetModel
        from pipeline.cell import choose_device, devices_for
        from pipeline.precision import precision_of
        from pipeline.prefilled import prefill_once

        torch.set_num_threads(comparison.num_threads or available_cores())
        self.comparison, self.sampling = comparison, Sampling()
        self.tokenizer = AutoTokenizer.from_pretrained(
            comparison.model_dir, local_files_only=True, trust_remote_code=False
        )
        self.device, self.precision = choose_device(comparison.device), precision_of(comparison.dtype)
        self.target: TargetModel = TargetModel.from_pretrained(
            comparison.model_dir,
            dtype=self.precision.arithmetic,
            device=self.device,
            weights=self.precision.weights,
            devices=devices_for(self.device, comparison.device_map),
            decode_width=comparison.decode_width or "default",
        )
        prefill_once(self.target)

    def build(self, method: str) -> SpeculativeDecoder | Any:
        """Return what generates by ``method``: the engine with its drafter, or a peer."""
        from pipeline.methods import build_decoder, build_peer

        parts, options = self.comparison.parts_of(method), self.comparison.options.get(method, {})
        if METHODS[method].kind == "drafter":
            return build_decoder(method, options, self.target, parts, self.sampling)
        return build_peer(
            *(method, options, self.comparison.model_dir, parts),
            precision=self.precision,
            device=self.device,
            sampling=self.sampling,
            device_map=self.comparison.device_map,
        )

    def run(self, generates: Any, request: Record) -> list[int]:
        """Return the ids that a method emits for one prompt."""
        from decoding import StopStrings

        def decode(ids: Sequence[int]) -> str:
            return str(self.tokenizer.decode(list(ids)))

        generation: Generation = generates.generate(
            request["prompt_ids"],
            max_new_tokens=request["max_new_tokens"],
            stop=StopStrings(decode, request["until"]),
        )
        return list(generation.output_ids)


def compare(comparison: Comparison, methods: Sequence[str], requests: list[Record], output: Path) -> list[Record]:
    """Run what the journals lack; return one record a method and prompt, in the order of the prompts.

    Those of a method whose parts could not be made, and of a task without prompts, have nothing but the reason.
    """
    from tqdm import tqdm

    unasked = [
        {"method": name, "task": task["task"], "reason": task["error"]}
        for name in methods
        for task in requests
        if "error" in task
    ]
    requests = [request for request in requests if "error" not in request]
    if not requests:
        return unasked
    reasons = {name: reason for name in methods if (reason := comparison.reason_against(name))}
    with ExitStack() as stack:
        journals = {}
        for name in (BASELINE, *(name for name in methods if name not in reasons)):
            journal = Journal(output / "journals" / f"{name}.jsonl", comparison.fingerprint(name))
            journals[name] = stack.enter_context(journal)
        waiting = {name: {r["prompt_id"] for r in journal.missing(requests)} for name, journal in journals.items()}
        if any(waiting.values()):
            runner = Runner(comparison)
            engines = {name: runner.build(name) for name in journals if waiting[name]}
            with tqdm(total=sum(map(len, waiting.values())), desc=comparison.dtype, unit="text") as bar:
                for request in requests:
                    for name in (name for name in journals if request["prompt_id"] in waiting[name]):
                        ids = runner.run(engines[name], request)
                        theirs = journals[BASELINE].records.get(request["prompt_id"], {}).get("output_ids")
                        journals[name].add(record_of(runner, request, ids, theirs))
                        bar.update()
        compared = [
            {"method": name, "task": request["task"], "reason": reasons[name]}
            if name in reasons
            else {"method": name, **journals[name].records[request["prompt_id"]]}
            for name in methods
            for request in requests
        ]
    return compared + unasked


def record_of(runner: Runner, request: Record, ids: list[int], theirs: list[int] | None) -> Record:
    """Return a finished text and where it parts from the baseline's, if it does; ``theirs`` is None for itself."""
    record: Record = {"prompt_id": request["prompt_id"], "task": request["task"], "output_ids": ids, "token": None}
    token = None if theirs is None else first_difference(ids, theirs)
    if theirs is not None and token is not None:
        margin = top2_margin(runner.target, [*request["prompt_ids"], *theirs[:token]])
        record |= {"token": token, "top2_margin": margin, "ours": ids[token:][:1], "theirs": theirs[token:][:1]}
    return record


def numbered(files: Sequence[Path], prompts: int | None) -> list[Record]:
    """Return the first ``prompts`` requests of each file, each with its task and an id that no other has.

    The id is a hash of the prompt and its limits, so that a journal never answers for a prompt that has changed. A file
    that holds a reason in place of requests gives one record with the task and the ``error``.
    """
    found: list[Record] = []
    for file in files:
        requests = read_requests(file)
        if "error" in requests[0]:
            found.append({"task": file.stem, "error": requests[0]["error"]})
            continue
        for request in requests[:prompts]:
            asked = [request["prompt_ids"], request["max_new_tokens"], request["until"]]
            digest = hashlib.sha256(json.dumps([file.stem, request["prompt_id"], asked]).encode()).digest()
            found.append({**request, "prompt_id": int.from_bytes(digest[:6], "big"), "task": file.stem})
    return found


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gather", type=Path, nargs="*", help="folders of comparisons to put together, nothing else")
    parser.add_argument("--model-dir", type=Path, help="model folder")
    parser.add_argument("--dtype", default="float32", help=" | ".join(DTYPES))
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--device-map", choices=("auto",), help="auto: spread the model over all graphics cards")
    parser.add_argument("--decode-width", type=positive, metavar="ROWS", help="rows that a decode forward is padded to")
    parser.add_argument("--num-threads", type=int, default=0, help="0: all cores, or OMP_NUM_THREADS")
    parser.add_argument("--requests", type=Path, nargs="+", default=[], help="of pipeline.prepare: TASK.jsonl")
    parser.add_argument("--prompts", type=int, help="take the first so many of each file; default: all")
    parser.add_argument("--methods", nargs="*", help="default: lossless drafters whose parts are there")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON: method to its options")
    parser.add_argument("--part", type=part_argument, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write in")
    return parser.parse_args()


@command
def main() -> None:
    """Compare, or gather."""
    arguments = parse_arguments()
    nothing = [name for name in ("gather", "methods") if getattr(arguments, name) == []]
    if nothing:
        raise UserError(f"{nothing[0]}: nothing to compare: the profile has no model with a lossless method of ours")
    if arguments.gather:
        gather(arguments.gather, arguments.output)
        return
    requests = numbered(arguments.requests, arguments.prompts)
    is_asked = not requests or any("error" not in request for request in requests)
    if arguments.model_dir is None or (is_asked and not (arguments.model_dir / "config.json").is_file()):
        raise UserError(f"model-dir: {str(arguments.model_dir)!r} is no model folder; {made_by(arguments.model_dir)}")
    if arguments.dtype not in DTYPES:
        raise UserError(f"dtype: unknown {arguments.dtype!r}; {nearest(arguments.dtype, DTYPES)}")
    parts = dict(arguments.part)
    methods = lossless_drafters(parts, arguments.options) if arguments.methods is None else arguments.methods
    for name in methods:
        find(name, METHODS, "method")
    where, given = (arguments.dtype, arguments.device), (arguments.options, parts)
    layout = arguments.device_map, arguments.decode_width
    comparison = Comparison(arguments.model_dir, *where, *given, arguments.num_threads, *layout)
    try:
        records = compare(comparison, methods, requests, arguments.output)
    except ValueError as error:  # an option out of range, a part that is another model's
        raise UserError(str(error)) from error
    write(records, arguments.model_dir.name, arguments.dtype, arguments.output)


def lossless_drafters(parts: Mapping[str, Path], options: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the methods on our engine that claim the baseline's ids and need no other parts than these."""
    claiming = [name for name, method in METHODS.items() if method.lossless and method.kind == "drafter"]
    return [
        name
        for name in claiming
        if name != BASELINE and set(METHODS[name].parts_with(options.get(name, {}))) <= set(parts)
    ]


if __name__ == "__main__":
    main()
