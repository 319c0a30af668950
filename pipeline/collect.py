r"""Gather every cell into one tidy table, ``results/benchmark.csv``, and say what the run ran on.

A cell becomes one row, however it ended: a cell that failed, or that has no score, is a row with a ``status`` and a
``reason``, so that nothing is missing without being seen. The table is checked against ``pipeline.schemas.benchmark``.

Example::

    python -m pipeline.collect --cells results/cells/laptop/smollm2-135m/bfloat16/humaneval/autoregressive/0 ... \
        --profile laptop --output results/benchmark.csv --provenance results/provenance.json
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UserError, command
from pipeline.files import atomic_write, sha256_of_all
from pipeline.machine import describe_machine, git_state, package_versions
from pipeline.schemas import benchmark
from pipeline.schemas.columns import COLUMNS

IDENTITY = ("model", "dtype", "task", "method", "seed")  # the last folders of a cell
RAN_WITH = ("commit", "versions", "hardware", "num_threads", "engine")  # what each cell.json says of its own run
ORDER = ("task", "model", "dtype", "method", "seed")  # of the table
BROKEN = (OSError, ValueError)  # what reading a missing or damaged JSON file raises


def collect(
    cells: list[Path], profile: str, tasks: Path, models: Path, examples: dict[str, int] | None = None
) -> pd.DataFrame:
    """Return the checked table of ``cells``, one row each, sorted by task, model, dtype, method, seed.

    ``examples``: what :func:`examples_by_weights` returns.
    """
    rows = [row_of(cell, profile, tasks, models, examples or {}) for cell in cells]
    return benchmark.frame(sorted(rows, key=lambda row: [row[name] for name in ORDER]))


def row_of(cell: Path, profile: str, tasks: Path, models: Path, examples: dict[str, int]) -> dict[str, Any]:
    """Return the row of one cell's folder: its figures if it ended well, its reason if it did not."""
    run = read_cell(cell)
    score = read_score(cell) if run["status"] == "ok" else run
    row = {name: run.get(name) for name in COLUMNS} | {
        "profile": profile,
        "metric": score.get("metric"),
        "status": score["status"],
        "reason": " ".join(str(score.get("reason", "")).split()),
        "options": as_text(run.get("options")),
        "parts": as_text(run.get("parts")),
        "sampling": as_text(run.get("sampling")),
        **sources(tasks / str(run["task"]), models / str(run["model"])),
    }
    trained = list((run.get("parts") or {}).values()) or [row["weights_sha256"]]  # what generates, or drafts
    row["train_examples"] = examples.get(trained[0]) if len(trained) == 1 else None
    if score["status"] == "ok":
        row |= {name: score.get(name) for name in ("quality", "quality_stderr")}
        row |= {name: score["metrics"].get(name) for name in benchmark.METRICS}
        row["signature"] = "; ".join(f"{name}: {value}" for name, value in sorted(score["signatures"].items()))
    if score["status"] == "failed":
        # A time without a known quality says nothing: it must not stand beside the others.
        row |= dict.fromkeys(benchmark.FIGURES)
    return row


def read_cell(cell: Path) -> dict[str, Any]:
    """Return ``cell.json``; where it is missing or damaged, a failure that is named after the folder."""
    try:
        run: dict[str, Any] = json.loads((cell / "cell.json").read_text(encoding="utf-8"))
        return run | {"seed": int(run["seed"]), "task": run["task"], "status": run["status"]}
    except (*BROKEN, KeyError, TypeError) as error:
        identity: dict[str, Any] = dict(zip(IDENTITY, cell.parts[-len(IDENTITY) :], strict=False))
        if len(cell.parts) < len(IDENTITY) or not identity["seed"].isdigit():
            raise UserError(
                f"cells: {str(cell)!r} is not a cell's folder (…/<model>/<dtype>/<task>/<method>/<seed>)"
            ) from error
        identity["seed"] = int(identity["seed"])
        return identity | {"status": "failed", "reason": f"cell.json is {missing_or_damaged(error)}"}


def read_score(cell: Path) -> dict[str, Any]:
    """Return ``score.json``; where it is missing or damaged, a failure."""
    try:
        score: dict[str, Any] = json.loads((cell / "score.json").read_text(encoding="utf-8"))
        return {"metrics": {}, "signatures": {}, **score, "status": score["status"]}
    except (*BROKEN, KeyError, TypeError) as error:
        return {"status": "failed", "reason": f"score.json is {missing_or_damaged(error)}"}


def missing_or_damaged(error: Exception) -> str:
    """Return what is wrong with a file that could not be read."""
    return "missing" if isinstance(error, FileNotFoundError) else f"damaged: {error}"


def examples_by_weights(records: list[Path]) -> dict[str, int]:
    """Return, by the hash of their weights, on how many examples models were trained, repeats counted.

    Args:
        records: what ``pipeline.train`` wrote beside each model; others, as those of a draft model, are left out.
    """
    found = {}
    for path in records:
        record = read_record(path)
        if {"steps", "batch_size"} <= record.keys():
            found[sha256_of_all(path.parent.glob("*.safetensors"))] = record["steps"] * record["batch_size"]
    return found


def sources(task: Path, model: Path) -> dict[str, str]:
    """Return where the documents and the weights came from and what they hash to; empty where that is not known."""
    data, weights = read_record(task / "source.json"), read_record(model / "source.json")
    return {
        "data_source": with_revision(data.get("source", ""), data.get("revision", "")),
        "data_sha256": data.get("sha256", ""),
        "model_source": weights.get("source", ""),
        "weights_sha256": weights.get("weights_sha256", ""),
    }


def with_revision(source: str, revision: str) -> str:
    """Return where documents came from with what tells one release of them from another: a version, commit or seed.

    A file's is the hash of what was read; the table has that of its documents.
    """
    is_released = source.startswith(("python ", "package:", "hub:")) and revision not in source
    return f"{source} ({revision})" if is_released else source


def read_record(path: Path) -> dict[str, Any]:
    """Return what is written of a task or a model; empty if it is not there, as when a fetch failed."""
    if not path.is_file():
        return {}
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except BROKEN as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return record


def as_text(settings: dict[str, Any] | None) -> str | None:
    """Return options as JSON text that is equal when they are."""
    return None if settings is None else json.dumps(settings, sort_keys=True)


def provenance(cells: list[Path], table: pd.DataFrame, profile: str, tasks: Path, models: Path) -> dict[str, Any]:
    """Return what a reader needs to trust, or repeat, the runs that made ``table``.

    A cell that was finished earlier is not run again, so each says itself what it ran with; what collects them now may
    be newer.
    """
    runs = [read_cell(cell) for cell in cells]
    return {
        "profile": profile,
        "time_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cells": dict(sorted(Counter(table["status"]).items())),
        "cells_ran_with": {name: distinct(runs, name) for name in RAN_WITH},
        "collected_with": {
            "commit": git_state(Path(__file__).parent),
            "machine": describe_machine(),
            "versions": package_versions(),
        },
        "models": {name: read_record(models / name / "source.json") for name in sorted(table["model"].unique())},
        "data": {name: read_record(tasks / name / "source.json") for name in sorted(table["task"].unique())},
    }


def distinct(runs: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the different values of ``name``, the most frequent first, each with the number of cells that have it.

    A cell that failed before it knew has none, and is not counted.
    """
    counts = Counter(json.dumps(run[name], sort_keys=True) for run in runs if run.get(name) is not None)
    return [{name: json.loads(value), "cells": count} for value, count in counts.most_common()]


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, fromfile_prefix_chars="@"
    )
    parser.add_argument("--cells", type=Path, nargs="+", required=True, help="the cells' folders, or @FILE, one a line")
    parser.add_argument("--profile", required=True, help="name of the configuration")
    parser.add_argument(
        "--tasks-dir", type=Path, default=Path("results/tasks"), help="where the tasks' source.json are"
    )
    parser.add_argument(
        "--models-dir", type=Path, default=Path("results/models"), help="where the models' source.json are"
    )
    parser.add_argument(
        "--trained", type=Path, nargs="*", default=[], help="records of what was trained, beside its weights"
    )
    parser.add_argument("--output", type=Path, required=True, help="the table to write")
    parser.add_argument("--provenance", type=Path, required=True, help="the provenance to write")
    arguments = parser.parse_args()
    places = (arguments.profile, arguments.tasks_dir, arguments.models_dir)
    table = collect(arguments.cells, *places, examples_by_weights(arguments.trained))
    # The provenance first: a table that exists is a table whose origin is known.
    atomic_write(arguments.provenance, json.dumps(provenance(arguments.cells, table, *places), indent=2) + "\n")
    benchmark.write(table, arguments.output)


if __name__ == "__main__":
    main()
