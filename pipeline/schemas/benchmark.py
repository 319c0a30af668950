"""The columns of ``results/benchmark.csv``: their units, their meaning, and what must be true of them.

One row is one cell (model, dtype, method, task, seed). ``status`` says how it ended: a row that is ``ok`` has all its
figures, a ``skipped`` one has timings but no quality, a ``failed`` one has a reason and no figures at all, so that a
stale number can never stand beside a failure.

The column-by-column document is printed from here, so it cannot disagree with what is checked::

    python -m pipeline.schemas.benchmark > docs/columns.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from pipeline.errors import UserError
from pipeline.schemas.columns import COLUMNS
from pipeline.schemas.columns import METRICS as METRICS
from pipeline.schemas.columns import PERCENT_METRICS as PERCENT_METRICS
from pipeline.schemas.common import (
    check_names,
    column_complaint,
    columns_as_markdown,
    filled,
    read_csv,
    text_columns,
    write_csv,
)

KEY = ["profile", "hardware", "device", "dtype", "model", "method", "task", "seed"]
QUALITY = ["quality", "quality_stderr", *METRICS]

TEXT = text_columns(COLUMNS)
FIGURES = [name for name in COLUMNS if name not in (*TEXT, "lossless", "seed")]


def _not_above(low: str, high: str) -> pa.Check:
    def numbers(column: pd.Series) -> pd.Series:
        return pd.to_numeric(column, errors="coerce")  # what is no number is complained of elsewhere

    return pa.Check(
        lambda rows: ~(numbers(rows[low]) > numbers(rows[high])).fillna(False).astype(bool),
        error=f"{low} is above {high}",
        ignore_na=False,
    )


ROW_CHECKS = [
    _not_above("speedup_low", "speedup"),
    _not_above("speedup", "speedup_high"),
    _not_above("speedup_ended_low", "speedup_ended"),
    _not_above("speedup_ended", "speedup_ended_high"),
    _not_above("batch_speedup_low", "batch_speedup"),
    _not_above("batch_speedup", "batch_speedup_high"),
    _not_above("truncated", "num_prompts"),
    _not_above("truncated_tokens", "num_new_tokens"),
    _not_above("accepted_draft_tokens", "candidate_tokens"),
    pa.Check(lambda rows: (rows["status"] == "ok") | (rows["reason"] != ""), error="not ok, and no reason is given"),
    pa.Check(lambda rows: (rows["status"] != "ok") | (rows["reason"] == ""), error="ok, and yet a reason is given"),
    pa.Check(
        lambda rows: (rows["status"] != "ok") | rows[["quality", "tokens_per_second", "speedup"]].notna().all(axis=1),
        error="ok, and yet without quality, tokens_per_second or speedup",
    ),
    pa.Check(
        lambda rows: (rows["status"] != "failed") | rows[FIGURES].isna().all(axis=1), error="failed, with figures"
    ),
    pa.Check(lambda rows: (rows["status"] == "ok") | rows[QUALITY].isna().all(axis=1), error="not ok, with a quality"),
]

SCHEMA = pa.DataFrameSchema(COLUMNS, checks=ROW_CHECKS, unique=KEY, strict=True, ordered=True, coerce=True)


def validate(table: pd.DataFrame, name: str = "benchmark.csv") -> pd.DataFrame:
    """Return ``table`` in the schema's types; raise ``UserError`` naming the first wrong row, column and value."""
    check_names(table, COLUMNS, name)
    try:
        return SCHEMA.validate(table, lazy=True)
    except SchemaErrors as error:
        wrong = error.failure_cases.iloc[0]
        raise UserError(f"{name}: {_place(table, wrong)}{_complaint(wrong)}") from error


def _place(table: pd.DataFrame, wrong: pd.Series) -> str:
    """Say in which row one of pandera's failure cases lies, where it knows."""
    if pd.isna(wrong["index"]):
        return ""
    cell = ", ".join(str(table.loc[wrong["index"], part]) for part in ("model", "task", "method"))
    return f"row {wrong['index']} ({cell}): "


def _complaint(wrong: pd.Series) -> str:
    """Say in words what one of pandera's failure cases found."""
    if wrong["check"] == "multiple_fields_uniqueness":
        return "there is another row of the same cell"
    if wrong["schema_context"] != "Column":
        return str(wrong["check"])
    return column_complaint(wrong, COLUMNS)


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the table of ``rows``, checked; text that a row leaves out is ``""``, a figure is missing."""
    return validate(filled(rows, COLUMNS))


def read(path: Path) -> pd.DataFrame:
    """Read and check a benchmark table. Empty text is ``""``, an empty figure is missing."""
    table = read_csv(path, [*TEXT, "lossless"], FIGURES, "pipeline.collect")
    if "lossless" in table:
        table["lossless"] = table["lossless"].map(lambda word: {"true": True, "false": False, "": None}.get(word, word))
    return validate(table, path.name)


def write(table: pd.DataFrame, path: Path) -> None:
    """Check ``table`` and write it to ``path``, whole or not at all; floats with six significant digits."""
    table = validate(table, path.name)
    table["lossless"] = table["lossless"].map({True: "true", False: "false"})
    write_csv(table, path)


def as_markdown() -> str:
    """Return the column-by-column document."""
    title = "# The columns of results/benchmark.csv\n\nMade by `python -m pipeline.schemas.benchmark`; do not edit."
    note = (
        "One row is one cell: a model in a dtype, a method, a task and a seed. A figure that does not apply is empty. "
        "A row that is not `ok` has a `reason`; a `failed` row has no figures, a `skipped` row has no quality."
    )
    warm = (
        "A method with a warm start (`ouroboros_warm_start`, or any with the option `warm_start`) learns from prompt "
        "to prompt, so its speed depends on the prompts' order, which is the task's, and on how many there are. What "
        "runs untimed, and all trials of a prompt but the last, teach it nothing: no trial begins with knowledge of "
        "its own prompt."
    )
    lines = [title, "", note, "", warm, "", *columns_as_markdown(COLUMNS)]
    rules = [f"- never {check.error}" for check in ROW_CHECKS]
    return "\n".join([*lines, "", "In every row:", "", *rules, f"- {', '.join(KEY)} together name one row only", ""])


if __name__ == "__main__":
    print(as_markdown(), end="")
