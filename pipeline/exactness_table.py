"""What ``pipeline.exactness`` found, as a table and a list of divergences, of one comparison or of several together.

Example::

    write(records, "smollm2-135m", "float32", Path("results/exactness/lossless/smollm2-135m/float32"))
    gather([Path("results/exactness/lossless/smollm2-135m/float32")], Path("results"))
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.errors import UserError
from pipeline.files import atomic_write
from pipeline.record import Record

TABLE, DIVERGENCES = "exactness.csv", "divergences.jsonl"


def table_of(records: Sequence[Record], model: str, dtype: str) -> pd.DataFrame:
    """Return a row a method and task: how many prompts, on how many the ids are equal, why if none was compared."""
    rows = pd.DataFrame(
        {
            "model": model,
            "dtype": dtype,
            "method": [record["method"] for record in records],
            "task": [record["task"] for record in records],
            "prompts": ["reason" not in record for record in records],
            "equal": ["reason" not in record and record["token"] is None for record in records],
            "reason": [record.get("reason", "") for record in records],
        }
    )
    counted = rows.groupby(["model", "dtype", "method", "task", "reason"], sort=True)[["prompts", "equal"]].sum()
    return counted.reset_index()[["model", "dtype", "method", "task", "prompts", "equal", "reason"]]


def write(records: Sequence[Record], model: str, dtype: str, output: Path) -> None:
    """Write the table and the divergences."""
    apart = [{"model": model, "dtype": dtype, **record} for record in records if record.get("token") is not None]
    for record in apart:
        del record["output_ids"]
    write_both(table_of(records, model, dtype), "".join(f"{json.dumps(record)}\n" for record in apart), output)


def write_both(table: pd.DataFrame, divergences: str, output: Path) -> None:
    """Write the divergences, then the table, and say its sums: where there is a table, both are whole."""
    atomic_write(output / DIVERGENCES, divergences)
    atomic_write(output / TABLE, table.to_csv(index=False, lineterminator="\n"))
    for (model, dtype), rows in table.groupby(["model", "dtype"]):
        equal, texts = rows["equal"].sum(), rows["prompts"].sum()
        print(f"exactness: {model} in {dtype}: {equal} of {texts} texts are the baseline's", file=sys.stderr)
        failed = rows[rows["prompts"] == 0].drop_duplicates("method")
        for method, reason in zip(failed["method"], failed["reason"], strict=True):
            print(f"exactness: {model} in {dtype}: {method} was not compared: {reason}", file=sys.stderr)


def gather(folders: Sequence[Path], output: Path) -> None:
    """Put the tables and the divergences of several comparisons together."""
    for folder in folders:
        if not (folder / TABLE).is_file():
            raise UserError(f"gather: {folder} holds no {TABLE}")
    table = pd.concat([pd.read_csv(folder / TABLE) for folder in folders], ignore_index=True)
    write_both(table, "".join((folder / DIVERGENCES).read_text(encoding="utf-8") for folder in folders), output)
