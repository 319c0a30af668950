r"""Rule: quality by kind of document, for the tasks that tell kinds apart (``stratum`` in ``pipeline.registry``).

A mean over all texts hides what a method is bad at: slots that stand in a wrong order cost nothing on texts whose words
come in the order of their source. By hand::

    python -m pipeline.strata --cells results/cells/laptop/verbalized-2m/float32/verbalized_plain/shufflelm/0 \
        --output results/tables

Writes ``strata.csv``, a row for each cell and kind, and ``strata.md``, a line for each cell.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from pipeline.collect import ORDER, read_cell, read_score
from pipeline.errors import command
from pipeline.files import atomic_write

COLUMNS = [*ORDER, "kind", "num_prompts", "metric", "quality", "quality_stderr"]
HEAD = """\
# Quality by kind of document

The same texts and scores as in the benchmark, the documents of each kind by themselves; ± is one standard error over
them, in brackets their number."""


def rows_of(cells: list[Path]) -> pd.DataFrame:
    """Return a row for each kind of each cell that has a score, in the order of the benchmark."""
    rows = []
    for cell in cells:
        run, score = read_cell(cell), read_score(cell)
        identity = {name: run.get(name) for name in ORDER}
        for kind, figures in score.get("strata", {}).items():
            rows.append({**identity, "kind": kind, "metric": score["metric"], **figures})
    return pd.DataFrame(rows, columns=COLUMNS).sort_values([*ORDER, "kind"], ignore_index=True)


def as_markdown(rows: pd.DataFrame) -> str:
    """Return the page: a table for each task, model and dtype."""
    sections = [HEAD]
    for (task, model, dtype), found in rows.groupby(["task", "model", "dtype"], sort=True):
        many = found["seed"].nunique() > 1
        lines = found.assign(
            method=[f"{row.method}, seed {row.seed}" if many else row.method for row in found.itertuples()],
            said=[said(row.quality, row.quality_stderr, row.num_prompts) for row in found.itertuples()],
        )
        wide = lines.pivot_table(index="method", columns="kind", values="said", aggfunc="first", fill_value="-")
        columns = {kind: f"{kind}: {found['metric'].iloc[0]}" for kind in wide.columns}
        sections += [
            f"## {task} · {model} · {dtype}",
            wide.rename(columns=columns).reset_index().to_markdown(index=False),
        ]
    if rows.empty:
        sections.append("No cell has a score.")
    return "\n\n".join(sections) + "\n"


def said(quality: float, stderr: float | None, num_prompts: int) -> str:
    """Return one score as the page tells it; without an error where there is but one text."""
    error = "" if stderr is None or pd.isna(stderr) else f" ± {stderr:.1f}"
    return f"{quality:.1f}{error} ({num_prompts})"


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, nargs="+", required=True, help="folders with cell.json and score.json")
    parser.add_argument("--output", type=Path, required=True, help="the folder of the tables")
    given = parser.parse_args()
    rows = rows_of(given.cells)
    table = rows.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    atomic_write(given.output / "strata.csv", table)
    atomic_write(given.output / "strata.md", as_markdown(rows))


if __name__ == "__main__":
    main()
