"""Which reference a run is held against: the one in its own dtype.

A model whose dtype is ``auto`` is in float32 on one machine and in bfloat16 on another, so a profile may have several
references: ``<profile>.csv`` and, for what that has in another dtype, ``<profile>_<dtype>.csv`` beside it. Where a run
has one model in this and another in that, each is held against the rows that are in its own. Example::

    reference, told = reference_of(benchmark.read(Path("results/benchmark.csv")), Path("results/reference/laptop.csv"))
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pipeline.errors import UserError
from pipeline.schemas import benchmark


def in_other_dtypes(now: pd.DataFrame, reference: pd.DataFrame) -> dict[str, tuple[list[str], list[str]]]:
    """Return each model that two tables have no dtype of in common, with its dtypes in either."""
    found = {}
    for model in sorted(set(now["model"]) & set(reference["model"])):
        dtypes, before = (sorted(set(table.loc[table["model"] == model, "dtype"])) for table in (now, reference))
        if not set(dtypes) & set(before):
            found[model] = (dtypes, before)
    return found


def check_dtypes(now: pd.DataFrame, reference: pd.DataFrame) -> None:
    """Refuse tables that have a model in no dtype in common.

    Raises:
        UserError: they do; says how to run what is in the reference.
    """
    if not (others := in_other_dtypes(now, reference)):
        return
    twins = set(now.loc[now["model_source"].str.startswith("trained:"), "model"])
    entries: dict[str, list[str]] = {"models": [], "twins": []}
    for model, (_, before) in others.items():
        entries["twins" if model in twins else "models"].append(f"{model}: {{dtypes: [{', '.join(before)}]}}")
    as_before = " ".join(f"'{key}={{{', '.join(models)}}}'" for key, models in entries.items() if models)
    what = "; ".join(f"{', '.join(own)} of {model}" for model, (own, _) in others.items())
    dtypes = sorted({dtype for _, before in others.values() for dtype in before})
    raise UserError(
        f"dtype = {what} cannot be held against a reference in {', '.join(dtypes)}; "
        f"--config {as_before} runs it so, update_reference=true makes this run the reference"
    )


def reference_of(now: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the table that a run is held against, and what is to be said of where it is from.

    Args:
        now: the run.
        path: ``<profile>.csv``.

    Raises:
        UserError: there is none.
    """
    places = (path, *beside(path, now["dtype"].dropna()))
    tables = {place: benchmark.read(place) for place in places if place.is_file()}
    if not tables:
        hint = "--config update_reference=true makes this run's table the reference"
        raise UserError(f"there is no reference {path} for profile {now['profile'].iloc[0]!r}; {hint}")
    for place, table in tables.items():
        if not in_other_dtypes(now, table):
            return table, [] if place == path else [f"gate: against {place}, which is in this run's dtype"]
    (_, reference), *others = tables.items()
    told = []
    for model, (dtypes, _) in in_other_dtypes(now, reference).items():
        for place, table in others:
            rows = table[table["model"] == model]
            if set(rows["dtype"]) & set(dtypes):
                reference = pd.concat([reference[reference["model"] != model], rows], ignore_index=True)
                told.append(f"gate: {model} against {place}, where it is in this run's dtype")
                break
    return reference, told


def path_to_update(now: pd.DataFrame, path: Path) -> Path:
    """Return the file that a run becomes: the one in its dtypes, or a new one; never one that is another machine's.

    Raises:
        UserError: the run has one model in the dtype of this file, and another in that of that.
    """
    for place in (path, *beside(path, now["dtype"].dropna())):
        if place.is_file() and not in_other_dtypes(now, benchmark.read(place)):
            return place
    if not path.is_file():
        return path
    others = in_other_dtypes(now, benchmark.read(path))
    places = beside(path, [dtype for dtypes, _ in others.values() for dtype in dtypes])
    free = [place for place in places if not place.is_file()]
    if not free:
        kinds = now.groupby("model")["dtype"].unique()
        what = ", ".join(f"{model} in {' and '.join(sorted(dtypes))}" for model, dtypes in kinds.items())
        files = " nor of ".join(str(place) for place in (path, *places))
        raise UserError(
            f"dtype: {what}: these are the dtypes neither of {files}; run all models in those of one of them"
        )
    return free[0]


def beside(path: Path, dtypes: Iterable[str]) -> list[Path]:
    """Return where the references in these dtypes would be, beside the first."""
    return [path.with_stem(f"{path.stem}_{dtype}") for dtype in sorted(set(dtypes))]
