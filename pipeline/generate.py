r"""Rule: run one method on one task, timed: a cell. By hand::

    python -m pipeline.generate --model-dir results/models/smollm2-135m --dtype bfloat16 --method prompt_lookup \
        --options '{}' --task humaneval --requests results/requests/laptop/smollm2-135m/humaneval.jsonl --seed 0 \
        --output results/cells/laptop/smollm2-135m/bfloat16/humaneval/prompt_lookup/0

Writes ``records.jsonl`` (a prompt a line), then ``cell.json``. A cell that cannot be run is written too, with
``status`` failed and a reason, and the exit status is 0, so that the other cells go on and the table says it.

The measuring itself runs in a process of its own. If that process is killed, as the kernel does when memory is short,
or crashes, it is started again and goes on at its prompt; twice at the same prompt, the cell has failed and says why.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.arguments import json_object, positive
from pipeline.errors import UserError, command, made_by, nearest
from pipeline.files import atomic_write, folder_lock, json_lines, sha256_of
from pipeline.machine import available_cores, describe_machine, package_versions
from pipeline.parts import checked_parts, error_of, files_of, part_argument
from pipeline.registry import METHODS
from pipeline.sources import ROOT, sources_of

if TYPE_CHECKING:
    from pipeline.cell import CellSpec

DTYPES = ("bfloat16", "float16", "float32", "int8")
JOURNAL = "journal.jsonl"
FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def parse_arguments() -> argparse.Namespace:
    """Read and check the command line.

    Raises:
        UserError: a value is not valid.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.generate", description="Run one cell, timed.")
    parser.add_argument("--model-dir", type=Path, required=True, help="model folder")
    parser.add_argument("--dtype", required=True, help=" | ".join(DTYPES))
    parser.add_argument("--method", required=True, help="a name of pipeline.registry.METHODS")
    parser.add_argument("--options", type=json_object, default={}, help="the method's options, JSON")
    parser.add_argument("--task", required=True, help="the task's name")
    parser.add_argument("--requests", type=Path, required=True, help="what pipeline.prepare wrote")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampling", type=json_object, default={"temperature": 0.0}, help="JSON")
    parser.add_argument("--repeats", type=int, default=1, help="timed trials a prompt, an odd number")
    parser.add_argument("--warmup-prompts", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--device-map", choices=("auto",), help="auto: spread the model over all graphics cards")
    parser.add_argument("--decode-width", type=positive, metavar="ROWS", help="rows that a decode forward is padded to")
    parser.add_argument("--num-threads", type=int, default=0, help="0: all cores, or OMP_NUM_THREADS")
    parser.add_argument(
        "--part",
        type=part_argument,
        action="append",
        default=[],
        dest="parts",
        metavar="NAME=FOLDER",
        help="a trained part that the method needs: draft=FOLDER or heads=FOLDER; may be given more than once",
    )
    parser.add_argument("--output", type=Path, required=True, help="the cell's folder")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.parts = checked_parts(arguments.method, arguments.options, arguments.parts)
    if arguments.dtype not in DTYPES:
        raise UserError(f"dtype: unknown {arguments.dtype!r}; {nearest(arguments.dtype, DTYPES)}")
    if arguments.repeats < 1 or arguments.repeats % 2 == 0:
        raise UserError(f"repeats: must be an odd number of at least 1, not {arguments.repeats}")
    return arguments


def read_requests(path: Path) -> list[dict[str, Any]]:
    """Return the requests of a task.

    Raises:
        UserError: the file is missing, damaged or empty.
    """
    try:
        requests = json_lines(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run python -m pipeline.prepare first") from None
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); run python -m pipeline.prepare again") from None
    if not requests:
        raise UserError(f"{path}: holds no requests")
    return requests


def fingerprint_of(spec: CellSpec) -> str:
    """Return a hash of all that the cell's figures depend on: arguments, prompts, model, code, machine, packages."""
    files = [spec.requests, *sorted(spec.model_dir.glob("*.json"))]
    files += [file for folder in spec.parts.values() for file in files_of(folder)]
    code = sources_of("pipeline.generate", *METHODS["autoregressive"].modules, *METHODS[spec.method].modules)
    parts = {
        "arguments": asdict(spec),
        "threads": spec.num_threads or available_cores(),
        "files": {str(path): sha256_of(path) for path in files},
        "code": {name: sha256_of(ROOT / name) for name in code},
        "method": METHODS[spec.method].definition,
        "machine": describe_machine(),
        "packages": package_versions(),
    }
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


def work(arguments: argparse.Namespace) -> None:
    """Measure the cell in this process and write its files."""
    parent = os.getppid()
    from pipeline.cell import CellSpec, run_cell
    from pipeline.clock import machine_lock
    from pipeline.record import Journal

    values = {name: value for name, value in vars(arguments).items() if name != "worker"}
    spec = CellSpec(**values)
    requests = read_requests(spec.requests)
    reasons = [requests[0].get("error"), *map(error_of, spec.parts.values())]
    if reason := next(filter(None, reasons), None):
        write_failure(spec.output, spec.identity, reason)
        return
    if not (spec.model_dir / "config.json").is_file():
        raise UserError(f"model-dir: {str(spec.model_dir)!r} is no model folder; {made_by(spec.model_dir)}")
    fingerprint = fingerprint_of(spec)
    with folder_lock(spec.output), machine_lock():
        if is_finished(spec.output, fingerprint):
            return  # by a process that was at it before this one, left over from a run that was killed
        try:
            with Journal(spec.output / JOURNAL, fingerprint) as journal:
                records, summary = run_cell(spec, requests, journal, parent)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL_OR_FORBIDDEN:
                # No property of the method: nothing is lost, and the same command goes on from here.
                raise UserError(f"{error.strerror}: {error.filename or spec.output}") from error
            traceback.print_exc()
            write_failure(spec.output, spec.identity, f"{type(error).__name__}: {error}")
            return
        write_cell(spec.output, records, {**summary, "fingerprint": fingerprint})


def write_cell(folder: Path, records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Write a finished cell, its records first: a ``cell.json`` that exists is a cell that is whole."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    atomic_write(folder / "records.jsonl", "".join(f"{line}\n" for line in lines))
    atomic_write(folder / "cell.json", json.dumps(summary, indent=2) + "\n")
    if summary["status"] == "ok":  # what a failed cell finished is there when it is tried again
        (folder / JOURNAL).unlink(missing_ok=True)


def is_finished(folder: Path, fingerprint: str) -> bool:
    """Whether the folder holds this very cell, measured to its end."""
    try:
        found: dict[str, Any] = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / "records.jsonl").exists() and found.get("fingerprint") == fingerprint


def write_failure(folder: Path, identity: dict[str, Any], reason: str) -> None:
    """Write a cell that failed: no records, and one line that says why."""
    one_line = " ".join(reason.split())
    write_cell(folder, [], {"status": "failed", "reason": one_line, **identity})
    print(f"failed: {one_line}", file=sys.stderr)


def supervise(arguments: argparse.Namespace) -> int:
    """Run the worker, again if it is killed while it gets on; return the exit status."""
    journal, finished = arguments.output / JOURNAL, -1
    while True:
        worker = subprocess.run([sys.executable, "-m", "pipeline.generate", *sys.argv[1:], "--worker"], check=False)
        if worker.returncode >= 0:
            return worker.returncode
        if -worker.returncode in (signal.SIGINT, signal.SIGTERM):  # somebody wants it to stop
            return 128 - worker.returncode
        before, finished = finished, _count_lines(journal)
        if finished == before:
            identity = {name: getattr(arguments, name) for name in ("dtype", "method", "task", "seed")}
            identity |= {"model": arguments.model_dir.name, "lossless": METHODS[arguments.method].lossless}
            name = signal.Signals(-worker.returncode).name
            reason = f"killed twice at prompt {max(finished - 1, 0)} by {name}; SIGKILL can mean too little memory"
            write_failure(arguments.output, identity, reason)
            return 0
        print("the measuring process was killed; going on at the same prompt", file=sys.stderr)


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@command
def main() -> None:
    """Supervise, or with ``--worker`` measure."""
    arguments = parse_arguments()
    if arguments.worker:
        work(arguments)
    else:
        sys.exit(supervise(arguments))


if __name__ == "__main__":
    main()
