r"""Rule: Token-Shuffle's table, published figures beside those of ``results/image.csv``. By hand::

    python -m pipeline.images.table --images results/image.csv --output results/tables

A CSV file, a Markdown page that says what differs, and a LaTeX table, as ``pipeline.paper_tables`` makes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from pipeline.errors import command
from pipeline.files import atomic_write
from pipeline.images.records import BASELINE
from pipeline.paper_pages import OURS, as_latex, as_markdown, as_text
from pipeline.paper_tables import THEIRS, Published, read_published
from pipeline.schemas import image
from pipeline.schemas.image import DIGITS, PHOTOGRAPH

NAME = "token_shuffle"
PUBLISHED = Path(__file__).with_name("published.yaml")


def of_digits(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for the real digits and one for each window and guidance: quality, and speed over window 1."""
    rows = table[(table["subject"] == DIGITS) & (table["method"] != "tokenizer")]
    system = [
        "real digits" if row.method == "real" else f"{tokens_a_pass(row.window)}, guidance {row.guidance}"
        for row in rows.itertuples()
    ]
    return rows.assign(system=system)[["system", "accuracy", "frechet", "speedup", "batch_speedup"]]


def of_photographs(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each window but 1 and each size of photograph: how many times less it takes than window 1."""
    rows = table[(table["subject"] == PHOTOGRAPH) & (table["window"] != BASELINE)]
    base = table[(table["subject"] == PHOTOGRAPH) & (table["window"] == BASELINE)].set_index("side")
    flops = base["attention_flops"].reindex(rows["side"]).to_numpy() / rows["attention_flops"].to_numpy()
    system = [f"{tokens_a_pass(row.window)}, reading {row.side} x {row.side} pixels" for row in rows.itertuples()]
    rows = rows.assign(
        system=system,
        times_fewer_rows=(rows["tokens"] / rows["rows"]).astype(float),
        times_less_attention=flops.astype(float),
        prefill_speedup=1 / rows["prefill_ratio"],
        times_less_memory=1 / rows["memory_ratio"],
    )
    return rows[["system", "times_fewer_rows", "times_less_attention", "prefill_speedup", "times_less_memory"]]


def tokens_a_pass(window: int) -> str:
    """Return how a window is called in the table."""
    return f"{window} x {window} tokens a row" if window != BASELINE else "a token a row"


def rows_of(published: Published, table: pd.DataFrame) -> pd.DataFrame:
    """Return published rows, then ours, under one head; ``from`` says whose a row is."""
    parts = [(published.frame(["system"]), THEIRS), (of_digits(table), OURS), (of_photographs(table), OURS)]
    joined = pd.concat([part.assign(**{"from": whose}) for part, whose in parts if len(part)], ignore_index=True)
    return joined[["system", "from", *[name for name in joined if name not in ("system", "from")]]]


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="results/image.csv")
    parser.add_argument("--output", type=Path, required=True, help="the folder of the tables")
    given = parser.parse_args()
    published = read_published(PUBLISHED)[NAME]
    rows = rows_of(published, image.read(given.images))
    texts = as_text(rows, published, [])
    atomic_write(given.output / f"{NAME}.csv", rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    atomic_write(given.output / f"{NAME}.md", as_markdown(published, texts, []))
    atomic_write(given.output / f"{NAME}.tex", as_latex(NAME, published, texts))


if __name__ == "__main__":
    main()
