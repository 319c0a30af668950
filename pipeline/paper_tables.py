r"""Rule: the tables of the source systems, each in its own form, published figures beside ours.

What others published lies in ``published.yaml`` with its source; ours are read from ``results/benchmark.csv``. Each
table becomes a CSV file, a Markdown page that says what differs, and a LaTeX table. A published figure that is
doubted is marked with ``*``: those named in ``doubted``, and every speed-up that is not its tokens/s by its baseline's.
Example::

    python -m pipeline.paper_tables --benchmark results/benchmark.csv --output results/tables
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from pipeline.errors import command
from pipeline.files import atomic_write
from pipeline.paper_pages import OURS, Doubt, as_latex, as_markdown, as_text
from pipeline.registry import METHODS, TASKS, is_generator
from pipeline.schemas import benchmark

PUBLISHED = Path(__file__).with_name("published.yaml")
THEIRS, BOTH = "published", "both"
LATENCY_TOKENS = 10
# A ratio of figures with two decimals can be off by this much, and be right.
ROUNDING = 0.012
BY = ["model", "dtype", "method"]
PUBLISHED_TASKS = {"gsm8k": "GSM8K", "cnn_dailymail": "CNN/DM", "wmt16": "WMT16"}
STANDS_IN = {"wmt14": "WMT16"}  # where a run has not the task itself
OUROBOROS = {
    "Greedy": "autoregressive",
    "Speculative": "speculative",
    "Lookahead": "lookahead",
    "Ouroboros": "ouroboros",
    "Ouroboros†": "ouroboros_warm_start",
}


@dataclass(frozen=True)
class Published:
    """A table of others: its figures, where they stand, and what must be said of them.

    ``rows`` begin with names, as many as there are more values than ``columns``. ``doubted`` are (name, column, why).
    ``baseline`` names the row that the speed-ups are against.
    """

    title: str
    source: str
    differs: str
    columns: list[str]
    rows: list[list[Any]]
    doubted: list[list[str]] = field(default_factory=list)
    baseline: str | None = None

    def frame(self, names: list[str]) -> pd.DataFrame:
        """Return the figures under ``names`` and ``columns``."""
        return pd.DataFrame(self.rows, columns=[*names, *self.columns])


Ours = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class Form:
    """How a table is laid out: the columns that name a row, and how our rows are made."""

    names: list[str]
    ours: Ours


def read_published(path: Path = PUBLISHED) -> dict[str, Published]:
    """Return the published tables by name."""
    return {name: Published(**values) for name, values in yaml.safe_load(path.read_text(encoding="utf-8")).items()}


def well(table: pd.DataFrame) -> pd.DataFrame:
    """Return the cells that ended well, the first seed's, with their ``group`` (translation, code, ...)."""
    good = table[table["status"] == "ok"]
    good = good[good["seed"] == good["seed"].min()]
    return good.assign(group=[TASKS[task].group for task in good["task"]])


def by_method(cells: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each model and method: mean speed and scores over its tasks, peak memory.

    A mean is empty where a method has not every task that its model was run on: over other tasks it is another figure.
    """
    means = {name: (name, "mean") for name in ("tokens_per_second", "bleu", "rougeL", "speedup", "tokens_per_step")}
    told = cells.assign(
        latency=cells["ttft_s"] + (LATENCY_TOKENS - 1) * cells["tpot_s"],
        asked=cells.groupby(["model", "dtype"])["task"].transform("nunique"),
    )
    rows = told.groupby(BY, sort=False, as_index=False).agg(
        **means,
        latency=("latency", "mean"),
        peak=("peak_memory_bytes", "max"),
        tasks=("task", "nunique"),
        asked=("asked", "first"),
    )
    rows.loc[rows["tasks"] < rows["asked"], [*means, "latency"]] = np.nan
    return rows.drop(columns=["tasks", "asked"])


def system_of(rows: pd.DataFrame) -> pd.Series:
    """Return how a row of ours is named."""
    return rows["method"] + " on " + rows["model"] + " (" + rows["dtype"] + ")"


def shufflelm(cells: pd.DataFrame) -> pd.DataFrame:
    """Return ours for ShuffleLM's table: generators, the mixer, and what both are held against; by paired speed-up."""
    rows = by_method(cells)
    twins = twin_models(cells)
    wanted = rows["method"].str.startswith(("shufflelm", "fasterdecodemixer")) | (rows["method"] == "autoregressive")
    rows = rows[wanted].sort_values("speedup", ascending=False)
    rows = rows.sort_values("model", key=lambda names: ~names.isin(twins), kind="stable")
    rows = rows.assign(system=system_of(rows), memory_gb=rows["peak"] / 1e9)
    return rows[["system", "tokens_per_second", "bleu", "rougeL", "memory_gb", "speedup"]]


def parallel_llm(cells: pd.DataFrame) -> pd.DataFrame:
    """Return ours for Parallel-LLM's table: transformers, the baseline, the methods, no twins; by paired speed-up."""
    rows = by_method(cells[~cells["model"].isin(twin_models(cells))])
    rows = rows.assign(system=system_of(rows), latency_ms=rows["latency"] * 1000)
    return rows.sort_values("speedup")[["system", "tokens_per_second", "latency_ms", "speedup"]]


def twin_models(cells: pd.DataFrame) -> set[str]:
    """Return the models that parallel generators are held against."""
    return set(cells.loc[cells["method"].map(is_generator).astype(bool), "model"])


def nothing(cells: pd.DataFrame) -> pd.DataFrame:
    """Return no rows: we have nothing to put beside it."""
    return pd.DataFrame()


def ouroboros(cells: pd.DataFrame) -> pd.DataFrame:
    """Return ours for the Ouroboros table: its algorithms, task by task.

    Of one model in one dtype they stand in the lines of the published ones; of several, in lines that name theirs.
    """
    rows = cells[cells["method"].isin(OUROBOROS.values()) & ~cells["model"].isin(twin_models(cells))]
    names = {method: name for name, method in OUROBOROS.items()}
    several = len(rows[["model", "dtype"]].drop_duplicates()) > 1
    rows = rows.assign(
        algorithm=pd.Categorical(rows["method"].map(names), list(OUROBOROS), ordered=True),
        our_tokens_per_second=rows["tokens_per_second"],
        our_speedup=rows["speedup"],
        task=rows["task"].replace({**({} if "wmt16" in set(rows["task"]) else STANDS_IN), **PUBLISHED_TASKS}),
    ).sort_values(["task", "algorithm"])
    rows = rows.astype({"algorithm": str})
    if several:
        rows["algorithm"] += " on " + rows["model"] + " (" + rows["dtype"] + ")"
    return rows[["task", "algorithm", "our_tokens_per_second", "our_speedup"]]


def medusa(cells: pd.DataFrame) -> pd.DataFrame:
    """Return ours for Medusa's table: its methods, and what else drafts from the last hidden state."""
    rows = by_method(cells[cells["method"].str.contains("medusa|fasterdecodemixer")])
    return rows.assign(system=system_of(rows))[["system", "speedup", "tokens_per_step"]]


def spec_bench(cells: pd.DataFrame) -> pd.DataFrame:
    """Return ours in Spec-Bench's form: speed-up by category, and mean accepted tokens."""
    ours = cells["method"].map(lambda method: METHODS[method].kind == "drafter").astype(bool)
    rows = cells[ours & ~cells["model"].isin(twin_models(cells))]
    categories = {"translation": "translation", "summarization": "summarization", "math": "mathematical_reasoning"}
    speed = rows.pivot_table(index=BY, columns="group", values="speedup", aggfunc="mean")
    table = speed.rename(columns=categories).reindex(columns=[*categories.values(), "code"])
    overall = by_method(rows).set_index(BY)  # empty where a method has not all tasks
    table = table.assign(mean_accepted_tokens=overall["tokens_per_step"], overall=overall["speedup"]).reset_index()
    table = table.assign(system=system_of(table)).sort_values("overall", ascending=False)
    return table[["system", *categories.values(), "mean_accepted_tokens", "overall", "code"]]


def parallel_generators(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the parallel generators and their twins: passes a text, quality, speed."""
    rows = cells[cells["model"].isin(twin_models(cells))]
    rows = rows.assign(system=system_of(rows), passes=(rows["target_forwards"] / rows["num_prompts"]).astype(float))
    return rows.sort_values(["model", "passes"])[["system", "passes", "bleu", "speedup", "batch_speedup"]]


FORMS = {
    "shufflelm": Form(["system"], shufflelm),
    "parallel_llm": Form(["system"], parallel_llm),
    "parallel_llm_training": Form(["system"], nothing),
    "ouroboros": Form(["task", "algorithm"], ouroboros),
    "medusa": Form(["system"], medusa),
    "spec_bench": Form(["system"], spec_bench),
    "parallel_generators": Form(["system"], parallel_generators),
}


def paper_table(name: str, published: Published, table: pd.DataFrame) -> pd.DataFrame:
    """Return published rows, then ours, under one head; ``from`` says whose a row is."""
    form = FORMS[name]
    theirs, ours = published.frame(form.names), form.ours(well(table))
    if len(form.names) > 1 and len(ours):  # ours stands in the line of theirs, if they have the task
        joined = theirs.merge(ours, on=form.names, how="outer", indicator="from", sort=False)
        whose = {"left_only": THEIRS, "right_only": OURS, "both": BOTH}
        joined["from"] = joined["from"].astype(str).map(whose)
        order = [*map(tuple, theirs[form.names].to_numpy()), *map(tuple, ours[form.names].to_numpy())]
        places = [order.index(tuple(row)) for row in joined[form.names].to_numpy()]
        return joined.iloc[np.argsort(places, kind="stable")].reset_index(drop=True)
    parts = [part.assign(**{"from": whose}) for part, whose in ((theirs, THEIRS), (ours, OURS)) if len(part)]
    if not parts:
        return pd.DataFrame(columns=[*form.names, "from", *published.columns])
    joined = pd.concat(parts, ignore_index=True)
    return joined[[*form.names, "from", *[name for name in joined if name not in (*form.names, "from")]]]


def doubts(name: str, published: Published) -> list[Doubt]:
    """Return (row, column, why) of the published figures that are doubted, those found by arithmetic among them."""
    names = FORMS[name].names
    rows = published.frame(names)
    found = [
        (int(index), column, why)
        for system, column, why in published.doubted
        for index in rows.index[(rows[names[-1]] == system) & rows[column].notna()]
    ]
    if published.baseline is None:
        return found
    for column in [column for column in published.columns if column.endswith("speedup")]:
        speed = column.replace("speedup", "tokens_per_second")
        base = rows[rows[names[-1]] == published.baseline].set_index(names[0])[speed]
        for index, row in rows.iterrows():
            ratio = row[speed] / base[row[names[0]]]
            if abs(ratio / row[column] - 1) > ROUNDING:
                found.append((int(str(index)), column, f"{row[speed]} by {base[row[names[0]]]} is {ratio:.2f}"))
    return found


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", type=Path, required=True, help="results/benchmark.csv")
    parser.add_argument("--output", type=Path, required=True, help="the folder of the tables")
    given = parser.parse_args()
    table = benchmark.read(given.benchmark)
    for name, published in read_published().items():
        rows, marked = paper_table(name, published, table), doubts(name, published)
        texts = as_text(rows, published, marked)
        atomic_write(given.output / f"{name}.csv", rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
        atomic_write(given.output / f"{name}.md", as_markdown(published, texts, marked))
        atomic_write(given.output / f"{name}.tex", as_latex(name, published, texts))


if __name__ == "__main__":
    main()
