"""The benchmark for people: one small table a task, one line a method, every cell that did not end well named.

Example::

    python -m pipeline.tables --benchmark results/benchmark.csv --output results/tables/benchmark.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import command
from pipeline.files import atomic_write
from pipeline.schemas import benchmark

NONE = "-"
BATCH = "tokens/s in a batch"
TRAINED = "trained on"

NOTES = """\
- **tokens/s**: new tokens by seconds from prompt to last token, prefill included; median over prompts.
- **speed-up**: against `autoregressive` on the same prompts, timed in turn in the same process; in brackets its
  95 % interval. If the interval holds 1.00, no difference was shown.
- **tokens/step**: tokens emitted by one step (one draft-and-verify round), prefill excluded.
- **tokens/s in a batch**: many prompts given at once, for models that generate in parallel; in brackets the ratio to
  the twin's, with its 95 % interval; none where the twin's engine reads text by text.
- **trained on**: examples, repeats counted, of a twin or of a model that generates in parallel; what starts from the
  twin's weights had the twin's on top.
- **TTFT**: time to first token, median over prompts.
- **MBU**: model bandwidth utilisation, the share of the measured memory bandwidth that reading the weights and the
  cache used; none where the weights fit into the processor's last-level cache.
- **same as baseline**: share of prompts whose token ids equal those of `autoregressive`. A lossless method has 100 % in
  float32; in bfloat16 near-ties may fall otherwise.
- **cut off**: outputs that hit the token limit.
- *(lossy)*: the method does not claim to keep the model's output. ± is one standard error over prompts."""


def as_markdown(table: pd.DataFrame, provenance: dict[str, Any]) -> str:
    """Return the whole page: a header that says what ran where, a table for each task, the notes."""
    sections = [section(name, rows) for name, rows in table.groupby(["task", "model", "dtype"], sort=True)]
    return "\n\n".join(["# Benchmark", header(table, provenance), *sections, "## Notes", NOTES]) + "\n"


def header(table: pd.DataFrame, provenance: dict[str, Any]) -> str:
    """Return one line: hardware, threads, dtype, prompts, commit, profile."""
    prompts = table["num_prompts"].dropna()
    return " · ".join(
        [
            listed(table["hardware"]) or "hardware unknown",
            threads(table),
            listed(table["dtype"]),
            f"{span(prompts)} prompts a cell",
            commit_of(provenance),
            f"profile {listed(table['profile'])}",
        ]
    )


def threads(table: pd.DataFrame) -> str:
    """Return how many threads computed, and how much faster than one they were, where that was measured."""
    scaling = table["thread_scaling"].dropna()
    count = f"{listed(table['num_threads'])} threads"
    return count if scaling.empty else f"{count}, {span(scaling.round(1))} times as fast as one"


def commit_of(provenance: dict[str, Any]) -> str:
    """Return the commit that the cells ran with, or that there were several."""
    states = [entry["commit"] for entry in provenance.get("cells_ran_with", {}).get("commit", [])]
    commits = {state["commit"] for state in states}
    if len(commits) > 1:
        return "several commits"
    changes = " with changes" if any(state["dirty"] for state in states) else ""
    return f"commit {(''.join(filter(None, commits)) or 'unknown')[:12]}{changes}"


def section(name: tuple[str, str, str], rows: pd.DataFrame) -> str:
    """Return the table of one task, model and dtype; below it the cells that did not end well."""
    task, model, dtype = name
    lines = [f"## {task} · {model} · {dtype}"]
    measured = rows[rows["tokens_per_second"].notna()]
    if len(measured):
        first = measured["method"] == "autoregressive"
        ordered = measured.assign(first=first).sort_values(["seed", "first", "speedup"], ascending=[True, False, False])
        metric = listed(measured["metric"]) or "quality"
        cells = pd.DataFrame([line(row, metric) for _, row in ordered.iterrows()])
        cells = cells.drop(columns=[] if cells["also"].any() else ["also"])
        cells = cells.drop(columns=[name for name in (BATCH, TRAINED) if (cells[name] == NONE).all()])
        cells = cells.drop(columns=[] if cells["seed"].nunique() > 1 else ["seed"])
        alignment = ["left"] + ["right"] * (len(cells.columns) - 1)
        lines.append(cells.to_markdown(index=False, disable_numparse=True, colalign=alignment))
    unwell = [
        f"- `{row.method}`{f' (seed {row.seed})' if row.seed else ''} {row.status}: {row.reason}"
        for row in rows[rows["status"] != "ok"].itertuples()
    ]
    return "\n\n".join([*lines, *(["\n".join(unwell)] if unwell else [])])


def line(row: pd.Series, metric: str) -> dict[str, str]:
    """Return the cells of one method's line, as text; ``metric`` heads the column of quality."""
    other = [name for name in benchmark.METRICS if pd.notna(row[name]) and name != row["metric"]]
    return {
        "method": row["method"] + ("" if pd.isna(row["lossless"]) or row["lossless"] else " *(lossy)*"),
        "seed": str(row["seed"]),
        metric: quality(row),
        "also": ", ".join(f"{name} {score(row[name], name)}" for name in other),
        "tokens/s": number(row["tokens_per_second"], ".1f"),
        "speed-up [95 %]": speedup(row),
        "tokens/step": number(row["tokens_per_step"], ".2f"),
        BATCH: batch(row),
        TRAINED: f"{row['train_examples']:,}" if pd.notna(row["train_examples"]) else NONE,
        "TTFT": number(row["ttft_s"] * 1000, ".0f", " ms"),
        "peak memory": number(row["peak_memory_bytes"] / 1e6, ",.0f", " MB"),
        "MBU": number(row["mbu"] * 100, ".0f", " %"),
        "same as baseline": number(row["lossless_match"] * 100, ".0f", " %"),
        "cut off": cut_off(row),
    }


def quality(row: pd.Series) -> str:
    """Return quality ± standard error, or why there is none."""
    if pd.isna(row["quality"]):
        return str(row["status"])
    error = f" ± {score(row['quality_stderr'], row['metric'])}" if pd.notna(row["quality_stderr"]) else ""
    return score(row["quality"], row["metric"]) + error


def speedup(row: pd.Series) -> str:
    """Return the speed-up with its interval, if it has one."""
    low, high = number(row["speedup_low"], ".2f"), number(row["speedup_high"], ".2f")
    return number(row["speedup"], ".2f") + ("" if NONE in (low, high) else f" [{low}, {high}]")


def cut_off(row: pd.Series) -> str:
    """Return how many texts were cut off and, where another, the speed-up over the prompts that ended in both runs."""
    if pd.isna(row["truncated"]):
        return NONE
    others = f" ({row['speedup_ended']:.2f} where both ended)" if ended_otherwise(row) else ""
    return f"{row['truncated']} of {row['num_prompts']}{others}"


def ended_otherwise(row: pd.Series) -> bool:
    """Return whether the speed-up is known to be another without the texts that were cut off, of either run."""
    return bool(pd.notna(row["speedup_ended"]) and row["speedup_ended"] != row["speedup"])


def batch(row: pd.Series) -> str:
    """Return tokens/s with many prompts at once, and what that is over the twin's."""
    if pd.isna(row["batch_tokens_per_second"]):
        return NONE
    ends = f" [{row['batch_speedup_low']:.2f}, {row['batch_speedup_high']:.2f}]"
    ratio = f"{row['batch_speedup']:.2f}x{ends if pd.notna(row['batch_speedup_low']) else ''}"
    return f"{row['batch_tokens_per_second']:,.0f} ({ratio}, {row['batch_size']} prompts)"


def score(value: float, metric: str) -> str:
    """Return a score with the digits that its scale deserves: 27.1 of 100, 0.167 of 1."""
    return f"{value:.1f}" if metric in benchmark.PERCENT_METRICS else f"{value:.3f}"


def number(value: float, form: str, unit: str = "") -> str:
    """Return a number with its unit, or a dash where there is none."""
    return NONE if pd.isna(value) else f"{value:{form}}{unit}"


def listed(column: pd.Series) -> str:
    """Return the different values of a column, the empty ones left out."""
    return ", ".join(str(value) for value in sorted(column.dropna().unique()) if value != "")


def span(counts: pd.Series) -> str:
    """Return ``6``, or ``6 to 12``."""
    if counts.empty:
        return "no"
    return str(counts.min()) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"


def read_provenance(path: Path) -> dict[str, Any]:
    """Return ``provenance.json``; empty if it is not there, as with a table from elsewhere."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", type=Path, required=True, help="results/benchmark.csv")
    parser.add_argument("--provenance", type=Path, help="default: provenance.json beside the benchmark")
    parser.add_argument("--output", type=Path, required=True, help="the Markdown file to write")
    arguments = parser.parse_args()
    origin = arguments.provenance or arguments.benchmark.with_name("provenance.json")
    atomic_write(arguments.output, as_markdown(benchmark.read(arguments.benchmark), read_provenance(origin)))


if __name__ == "__main__":
    main()
