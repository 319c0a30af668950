"""What the schemas of our tables share: reading, writing, and saying in words what a column must be.

Each table has a module of its own with its columns, its key and what must be true of its rows::

    check_names(table, COLUMNS, "image.csv")
    column_complaint(wrong, COLUMNS)        # "accuracy is '1.5', must be at most 1"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa

from pipeline.errors import UserError, nearest
from pipeline.files import atomic_path
from pipeline.schemas.columns import NOT_EMPTY

Columns = Mapping[str, pa.Column]


def text_columns(columns: Columns) -> list[str]:
    """Return the names of the columns of text."""
    return [name for name, column in columns.items() if (column.metadata or {})["unit"] == "text"]


def check_names(table: pd.DataFrame, columns: Columns, name: str) -> None:
    """Raise the ``UserError`` that names the first column of ``table`` that is unknown, or missing."""
    unknown = [column for column in table.columns if column not in columns]
    if unknown:
        raise UserError(f"{name}: unknown column {unknown[0]!r}; {nearest(unknown[0], columns)}")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(f"{name}: column {missing[0]!r} is missing")


def column_complaint(wrong: pd.Series, columns: Columns) -> str:
    """Say in words what one of pandera's failure cases found in a column."""
    column, found = columns[wrong["column"]], f"{wrong['column']} is {str(wrong['failure_case'])!r}"
    if pd.isna(wrong["check_number"]):
        return f"{found}, not of type {column.dtype}"
    return f"{found}, must be {rule_in_words(column.checks[int(wrong['check_number'])])}"


def filled(rows: list[dict[str, Any]], columns: Columns) -> pd.DataFrame:
    """Return the table of ``rows``, not yet checked; text that a row leaves out is ``""``, a figure is missing."""
    table = pd.DataFrame(rows, columns=list(columns), dtype=object)
    return table.assign(**{name: table[name].fillna("") for name in text_columns(columns)})


def read_csv(path: Path, texts: Iterable[str], figures: Iterable[str], maker: str) -> pd.DataFrame:
    """Read a table, not yet checked. Empty text is ``""``, an empty figure is missing.

    Raises:
        UserError: there is no such file, which ``maker`` makes, or it is no table.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}; python -m {maker} makes it")
    try:
        # A reason may read "None" and a method "NA": only an empty figure is a missing one.
        empty = {name: [""] for name in figures}
        return pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=empty)
    except (ValueError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path} is not a table: {error}") from error


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write ``table`` to ``path``, whole or not at all; floats with six significant digits."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", encoding="utf-8", lineterminator="\n")


def columns_as_markdown(columns: Columns) -> list[str]:
    """Return the lines of a table of the columns."""
    lines = ["| column | unit | meaning | holds |", "|---|---|---|---|"]
    for name, column in columns.items():
        unit = (column.metadata or {})["unit"]
        holds = ", ".join(rule_in_words(check) for check in column.checks)
        lines.append(f"| `{name}` | {unit} | {column.description} | {holds} |")
    return lines


def rule_in_words(check: pa.Check) -> str:
    """Say a check in words: ``greater_than_or_equal_to(0.0)`` -> ``at least 0``."""
    values = check.statistics or {}
    match check.name:
        case "greater_than_or_equal_to":
            return f"at least {values['min_value']:g}"
        case "greater_than":
            return f"above {values['min_value']:g}"
        case "less_than_or_equal_to":
            return f"at most {values['max_value']:g}"
        case "isin":
            return " or ".join(f"`{value}`" if value else "empty" for value in values["allowed_values"])
    return "not empty" if values["pattern"] == NOT_EMPTY else "64 hex digits or empty"
