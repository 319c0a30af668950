"""Rule: one page that answers in words, made from the table: what is fastest at no loss, what at which loss, and where.

Nothing is said that the intervals do not carry: a method whose interval holds 1 was not shown to be faster, and methods
whose intervals meet the fastest one's are named with it. Over all tasks a speed-up is a random-effects mean
(``pipeline.pooling``). Example::

    python -m pipeline.answers --benchmark results/benchmark.csv --output results/report.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import command
from pipeline.files import atomic_write
from pipeline.pooling import mean_over_tasks, one_a_task
from pipeline.registry import is_generator
from pipeline.schemas import benchmark
from pipeline.statistics import interval_errors
from pipeline.tables import NONE, ended_otherwise, listed, score, span

BASELINE = "autoregressive"
ENDED = "speedup_ended"
PANEL = ["model", "dtype"]


def as_markdown(table: pd.DataFrame) -> str:
    """Return the page."""
    good = table[table["status"] == "ok"]
    lines = ["# What the figures say", opening(table, good)]
    for (model, dtype), cells in good.groupby(PANEL, sort=True):
        lines.append(f"## {model}, {dtype}")
        once = over_seeds(cells)
        if cells["method"].map(is_generator).any():
            lines += of_twin(once)
        else:
            lines += [*of_lossless(once), *of_lossy(once), of_exactness(cells)]
    return "\n\n".join([*lines, "## Mind", caveats(table, good)]) + "\n"


def over_seeds(cells: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each task and method: means over its seeds, which have the same prompts and are no further data.

    Of speed-ups and the ends of their intervals it is the geometric mean, so that the interval stays as wide as one.
    """
    ratios = [f"{name}{end}" for name in ("speedup", ENDED) for end in ("", "_low", "_high")]
    numbers = set(cells.select_dtypes("number").columns)
    how = {name: "mean" if name in numbers else "first" for name in cells.columns if name not in ("task", "method")}
    logs = cells.assign(**{name: np.log(cells[name]) for name in ratios})
    rows = logs.groupby(["task", "method"], sort=False, as_index=False).agg(how)
    return rows.assign(**{name: np.exp(rows[name]) for name in ratios})


def opening(table: pd.DataFrame, good: pd.DataFrame) -> str:
    """Return what was run, in two sentences."""
    failed = len(table) - len(good)
    told = (
        f"{failed} of them did not end well: {named(table[table['status'] != 'ok'])}." if failed else "All ended well."
    )
    return (
        f"Profile {listed(table['profile'])} on {listed(table['hardware']) or 'unknown hardware'}, "
        f"{listed(table['num_threads'])} threads: {len(table)} cells of {span(good['num_prompts'].dropna())} prompts. "
        f"{told} Speed-ups are of end-to-end tokens/s over the baseline on the same prompts, timed in turn, with 95 % "
        "intervals."
    )


def named(cells: pd.DataFrame) -> str:
    """Return cells as ``method on task``, the first few of them."""
    names = [f"{row.method} on {row.task}" for row in cells.itertuples()]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def of_lossless(cells: pd.DataFrame) -> list[str]:
    """Return which lossless method is fastest: on the mean over tasks, and for each task."""
    ours = cells[cells["lossless"].fillna(False).astype(bool) & ~cells["method"].isin([BASELINE])]
    ours = ours[ours["engine"] != "transformers"]
    if ours.empty:
        return ["No lossless method beside the baseline was run."]
    by_task = "\n".join(fastest(task, rows) for task, rows in ours.groupby("task", sort=True))
    looked_at = int(ours["speedup_low"].notna().sum())
    caution = (
        f"{looked_at} intervals were looked at here, none corrected for how many they are: were no method any faster "
        f"or slower than the baseline, {looked_at / 40:.1f} of them would be expected above 1 by chance."
    )
    return [in_all(over_tasks(ours)), by_task, *of_ended(ours), caution]


def of_ended(cells: pd.DataFrame) -> list[str]:
    """Return the speed-ups over all tasks without the texts that were cut off, where those make a difference."""
    if not any(ended_otherwise(row) for _, row in cells.iterrows()):
        return []
    pooled = over_tasks(cells, ENDED)
    told = with_intervals(pooled[:4])
    return [f"**Of the texts that ended before the limit**, in both runs, over all tasks: {told}."] if told else []


def in_all(pooled: pd.DataFrame) -> str:
    """Return what is fastest over all tasks together, with its 95 % interval."""
    if pooled.empty:
        return "**At no loss** nothing can be said over all tasks together: no cell has an interval. By task:"
    best = pooled.iloc[0]
    told = ""
    if best["high"] < 1:
        told = ": it is slower than the baseline"
    elif best["low"] <= 1:
        told = ", an interval that holds 1: it was not shown to be faster than the baseline"
    others = with_intervals(pooled[1:4])
    return (
        f"**At no loss**, `{best.name}` is fastest over all tasks together: {best['mean']:.2f} times the baseline "
        f"[{best['low']:.2f}, {best['high']:.2f}], at 95 %{told}{f' (then {others})' if others else ''}. By task:"
    )


def with_intervals(pooled: pd.DataFrame) -> str:
    """Return each method with its mean over tasks and its interval."""
    rows = pooled[["mean", "low", "high"]].itertuples()
    return ", ".join(f"`{name}` {mean:.2f} [{low:.2f}, {high:.2f}]" for name, mean, low, high in rows)


def over_tasks(cells: pd.DataFrame, column: str = "speedup") -> pd.DataFrame:
    """Return for each method that ran on every task its mean speed-up with a 95 % interval, the fastest first.

    Cells without an interval (one prompt) are left out: how sure they are is not known.
    """
    cells = cells[cells[f"{column}_low"].notna()]
    # A lossless method's texts are the baseline's, so that both ended or neither.
    cells = cells.assign(counted=cells["num_prompts"] - (cells["truncated"] if column == ENDED else 0))
    counts = cells.groupby("method")["task"].nunique()
    rows = {}
    for method in counts.index[counts == counts.max()]:
        own = cells[cells["method"] == method]
        columns = (own[name] for name in (column, f"{column}_low", f"{column}_high", "counted"))
        rows[method] = mean_over_tasks(*one_a_task(own["task"], np.log(own[column]), interval_errors(*columns)))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])
    return table.sort_values("mean", ascending=False)


def fastest(task: str, rows: pd.DataFrame) -> str:
    """Return one line: the fastest method of a task, whether it was shown to be faster, and who is as fast."""
    ordered = rows.sort_values("speedup", ascending=False)
    best = ordered.iloc[0]
    shown = ordered[ordered["speedup_low"] > 1]
    if rows["speedup_low"].isna().all():
        told = "; without intervals nothing is shown"
    elif shown.empty:
        told = "; no interval is above 1, so nothing was shown to be faster than the baseline"
    elif not best["speedup_low"] > 1:
        names = ", ".join(f"`{row['method']}` {interval(row)}" for _, row in shown.iterrows())
        told = f"; its own interval is not above 1: it was not shown to be faster than the baseline, as were {names}"
    else:
        near = ordered.iloc[1:]
        near = near[near["speedup_high"] >= best["speedup_low"]]
        told = f"; not told apart from {', '.join(f'`{name}`' for name in near['method'])}" if len(near) else ""
    steps = f"{best['tokens_per_step']:.2f} tokens a step"
    return f"- {task}: `{best['method']}`, {interval(best)}, {steps}{ended_alone(best)}{told}."


def ended_alone(row: pd.Series) -> str:
    """Return what the speed-up is without the texts that were cut off, where that is known and another."""
    return f" ({interval(row, ENDED)} where texts ended before the limit)" if ended_otherwise(row) else ""


def interval(row: pd.Series, column: str = "speedup") -> str:
    """Return a speed-up with its interval."""
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    return f"{row[column]:.2f}{f' [{low:.2f}, {high:.2f}]' if pd.notna(low) else ''}"


def of_lossy(cells: pd.DataFrame) -> list[str]:
    """Return what the lossy methods gain, and what they lose, for each task."""
    lossy = cells[~cells["lossless"].fillna(True).astype(bool)]
    if lossy.empty:
        return []
    lines = []
    for task, rows in lossy.groupby("task", sort=True):
        base = cells[(cells["task"] == task) & (cells["method"] == BASELINE)]
        for _, row in rows.sort_values("speedup", ascending=False).iterrows():
            same = f", {row['lossless_match']:.0%} of texts the baseline's" if pd.notna(row["lossless_match"]) else ""
            lines.append(f"- {task}: `{row['method']}`, {interval(row)}{ended_alone(row)}, {loss(row, base)}{same}.")
    return ["**At a loss:**", "\n".join(lines)]


def loss(row: pd.Series, base: pd.DataFrame) -> str:
    """Return the change of quality against the baseline's, and whether it is more than chance."""
    if base.empty:
        return f"{row['metric']} {score(row['quality'], row['metric'])}"
    before = base.iloc[0]
    change = row["quality"] - before["quality"]
    error = float(np.hypot(*np.array([row["quality_stderr"], before["quality_stderr"]], dtype=float)))
    told = f"{row['metric']} {score(row['quality'], row['metric'])}"
    if before["quality"] == 0 and change == 0:
        return f"{told} (the baseline's is 0 too: nothing could be lost)"
    told += f" ({'+' if change >= 0 else '-'}{score(abs(change), row['metric'])}"
    if np.isnan(error):
        return f"{told}; of unknown error)"
    told += f", {'more' if abs(change) > 1.96 * error else 'no more'} than chance"
    return told + ("; the baseline's is 0: nothing could be lost)" if before["quality"] == 0 else ")")


def of_exactness(cells: pd.DataFrame) -> str:
    """Return whether the methods that claim it gave the baseline's ids."""
    claimed = cells[cells["lossless"].fillna(False).astype(bool) & cells["lossless_match"].notna()]
    ours = claimed[claimed["engine"] != "transformers"]
    wrong = ours[ours["lossless_match"] < 1]
    told = f"All {len(ours)} cells of our lossless methods gave the baseline's ids on every prompt."
    if len(wrong):
        told = f"Of {len(ours)} cells of our lossless methods {len(wrong)} did not give the baseline's ids: "
        told += f"{named(wrong)}."
    peers = claimed[claimed["engine"] == "transformers"]
    if len(peers):
        low, high = peers["lossless_match"].min(), peers["lossless_match"].max()
        told += f" transformers' own, which round elsewhere, gave them on {low:.0%} to {high:.0%} of a cell's prompts."
    return f"**Exactness.** {told}"


def of_twin(cells: pd.DataFrame) -> list[str]:
    """Return what parallel generators cost and gain against their twin."""
    twin, others = cells[cells["method"] == BASELINE], cells[cells["method"] != BASELINE]
    if twin.empty or others.empty:
        return ["The twin or its generators are not in the table."]
    before = twin.iloc[0]
    ordered = others.sort_values("speedup", ascending=False)
    errors = np.hypot(ordered["quality_stderr"].astype(float), before["quality_stderr"])
    # Without an error nothing is known of a loss: such a row is kept only if it has none at all.
    least = before["quality"] - 1.96 * errors.fillna(0.0)
    kept = ordered[ordered["quality"] >= least]
    lines = [
        f"The autoregressive twin has {before['metric']} {score(before['quality'], before['metric'])} "
        f"at {before['tokens_per_second']:,.0f} tokens/s."
    ]
    for told, rows in (("Fastest of all", ordered), ("Fastest with no loss that was shown", kept)):
        if len(rows):
            row = rows.iloc[0]
            batch = f"; in a batch {row['batch_speedup']:.2f}" if pd.notna(row["batch_speedup"]) else ""
            passes = row["target_forwards"] / row["num_prompts"]
            lines.append(
                f"- {told}: `{row['method']}`, {interval(row)}{batch}, {passes:.1f} passes a text, {loss(row, twin)}."
            )
    return [lines[0], "\n".join(lines[1:])] if lines[1:] else lines


def caveats(table: pd.DataFrame, good: pd.DataFrame) -> str:
    """Return what a reader must know before trusting a difference."""
    base = good[good["method"] == BASELINE]
    noise = f"{base['speedup'].min():.2f} to {base['speedup'].max():.2f}" if len(base) else NONE
    cut = good["truncated"].sum() / max(1, good["num_prompts"].sum())
    share = good["truncated_tokens"].sum() / max(1, good["num_new_tokens"].sum())
    is_known = cut > 0 and good["truncated_tokens"].notna().all()
    tokens = f" and have {share:.0%} of the tokens, on which speed-ups depend" if is_known else ""
    few = good["num_prompts"].min() if len(good) else 0
    return "\n".join(
        [
            f"- The baseline timed against itself has speed-ups from {noise}: smaller differences are noise.",
            f"- {cut:.0%} of texts were cut off by the token limit{tokens}; their quality is that of a beginning.",
            f"- The smallest cell has {few} prompts: intervals over so few are rough, and quality says little.",
            "- Speed-ups are against our own baseline; `hf_greedy` in the table says what transformers does.",
        ]
    )


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", type=Path, required=True, help="results/benchmark.csv")
    parser.add_argument("--output", type=Path, required=True, help="the Markdown page to write")
    given = parser.parse_args()
    atomic_write(given.output, as_markdown(benchmark.read(given.benchmark)))


if __name__ == "__main__":
    main()
