r"""Rule: the figures of the whole table: speed-up, where the time goes, distance to the memory's limit, memory.

One panel a model, methods from top to bottom by their mean speed-up, so that all four read alike. Tasks differ by
colour and by mark, so that a print without colour tells them apart. Example::

    python -m pipeline.overview --benchmark results/benchmark.csv --output results/figures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.errors import command
from pipeline.figures import looks_of, save, without_windows, words_alone
from pipeline.registry import is_generator
from pipeline.schemas import benchmark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Axes", pd.DataFrame], None]
PANEL = ["model", "dtype"]
HEIGHT = 0.30  # inches a method
TIMES = {"draft": "draft_s", "verify": "verify_s", "rest": "rest_s"}
BYTES = {
    "weights": "weight_bytes",
    "trained parts": "part_bytes",
    "cache": "cache_bytes",
    "rest of the peak": "rest_bytes",
}


def panels(table: pd.DataFrame, draw: Draw, label: str, note: str = "") -> Figure:
    """Return a figure with a panel a model; ``draw`` is given the panel and its cells, and ``label`` is the axis'."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.8)
    good = table[table["status"] == "ok"]
    groups = [(name, cells) for name, cells in good.groupby(PANEL, sort=True)]
    if not groups:
        return words_alone("no cell ended well")
    heights = [HEIGHT * cells["method"].nunique() + 1.0 for _, cells in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(8.5, sum(heights) + 0.4), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for panel, (name, cells) in zip(axes[:, 0], groups, strict=True):
        draw(panel, cells)
        panel.set(title=" · ".join(map(str, name)), xlabel=label, ylabel="")
        panel.grid(visible=False, axis="y")
    if note:
        figure.supxlabel(note, fontsize=8, color="dimgrey")
    sns.despine(figure)
    return figure


def in_order(cells: pd.DataFrame) -> list[str]:
    """Return the methods from the slowest to the fastest, so that the fastest is drawn at the top."""
    return list(cells.groupby("method")["speedup"].mean().sort_values().index)


def dots(panel: Axes, cells: pd.DataFrame, column: str, low: str | None = None, high: str | None = None) -> None:
    """Draw ``column`` of each cell beside its method, tasks apart by colour and mark, with intervals if it has any."""
    methods, tasks = in_order(cells), sorted(cells["task"].unique())
    looks = looks_of(tasks)
    offsets = dict(zip(tasks, np.linspace(0.27, -0.27, len(tasks)) if len(tasks) > 1 else [0.0], strict=True))
    for task, rows in cells.dropna(subset=[column]).groupby("task", sort=True):
        heights = [methods.index(method) + offsets[task] for method in rows["method"]]
        bars = None
        if low and high:
            ends = rows[[low, high]].to_numpy(dtype=float)
            middle = rows[column].to_numpy(dtype=float)
            bars = np.nan_to_num(np.abs(np.stack([middle - ends[:, 0], ends[:, 1] - middle])))
        colour, marker = looks[str(task)]
        panel.errorbar(
            rows[column],
            heights,
            xerr=bars,
            color=colour,
            marker=marker,
            linestyle="",
            markersize=5,
            elinewidth=1.1,
            capsize=1.5,
            label=str(task),
        )
    panel.set_yticks(range(len(methods)), methods)
    panel.set_ylim(-0.6, len(methods) - 0.4)
    if len(tasks) > 1:
        panel.legend(fontsize=7, loc="best")


def bars(panel: Axes, sums: pd.DataFrame, parts: list[str]) -> None:
    """Draw stacked bars, a method each: ``sums`` has the methods in order as its index and ``parts`` as columns."""
    import seaborn as sns

    hatches = ("", "//", "..", "xx")
    left = np.zeros(len(sums))
    for part, colour, hatch in zip(parts, sns.color_palette("colorblind"), hatches, strict=False):
        values = sums[part].fillna(0.0).to_numpy(dtype=float)
        panel.barh(
            range(len(sums)), values, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5, label=part
        )
        left += values
    panel.set_yticks(range(len(sums)), list(sums.index))
    panel.legend(fontsize=7, loc="best")


def speedup(panel: Axes, cells: pd.DataFrame) -> None:
    """Draw each cell's speed-up over the baseline with its 95 % interval."""
    panel.axvline(1, color="dimgrey", linewidth=1)
    dots(panel, cells, "speedup", "speedup_low", "speedup_high")
    # A bar over two prompts may reach far beyond all points: it leaves the panel before it presses them together.
    if pd.notna(fastest := cells["speedup"].max()):
        panel.set_xlim(0.0, min(panel.get_xlim()[1], max(2 * fastest, 1.5)))


def time_per_step(panel: Axes, cells: pd.DataFrame) -> None:
    """Draw the milliseconds of a decode step: drafting, the target's forward pass and verdict, and the rest.

    A method that does not tell its parts has one bar, "rest".
    """
    # An older table does not tell; all but parallel generators have one pass a prompt before the first token.
    one_each = (cells["target_forwards"] - cells["num_prompts"]).where(~cells["method"].map(is_generator).astype(bool))
    rows = cells.dropna(subset=["decode_s"]).assign(steps=cells["decode_steps"].fillna(one_each))
    sums = rows.groupby("method")[["decode_s", "draft_s", "verify_s", "steps"]].sum(min_count=1).astype(float)
    sums = (
        sums[sums["steps"] > 0]
        .reindex([method for method in in_order(cells) if method in sums.index])
        .dropna(how="all")
    )
    sums["rest_s"] = (sums["decode_s"] - sums[["draft_s", "verify_s"]].fillna(0.0).sum(axis=1)).clip(lower=0)
    milliseconds = pd.DataFrame({part: 1000 * sums[column] / sums["steps"] for part, column in TIMES.items()})
    bars(panel, milliseconds, list(TIMES))


def memory(panel: Axes, cells: pd.DataFrame) -> None:
    """Draw the peak memory of a method's largest cell: weights, trained parts, cache and what else was taken."""
    rows = cells.dropna(subset=["peak_memory_bytes"])
    largest = rows.loc[rows.groupby("method")["peak_memory_bytes"].idxmax()].set_index("method")
    largest = largest.reindex([method for method in in_order(cells) if method in largest.index])
    known = largest[["weight_bytes", "part_bytes", "cache_bytes"]].astype(float).fillna(0.0)
    rest = (largest["peak_memory_bytes"].astype(float) - known.sum(axis=1)).clip(lower=0)
    sums = pd.DataFrame({part: known.assign(rest_bytes=rest)[column] / 1e6 for part, column in BYTES.items()})
    bars(panel, sums, list(BYTES))


def mbu(panel: Axes, cells: pd.DataFrame) -> None:
    """Draw each cell's share of the memory's measured speed; 1 is the limit."""
    if cells["mbu"].isna().all():
        words = "none: the weights fit into the processor's cache, or it was not told"
        panel.text(0.5, 0.5, words, ha="center", va="center", transform=panel.transAxes)
        panel.set(xticks=[], yticks=[])
        return
    panel.axvline(1, color="dimgrey", linewidth=1)
    dots(panel, cells, "mbu")


FIGURES: dict[str, tuple[Draw, str, str]] = {
    "speedup_by_task": (
        speedup,
        "speed-up over autoregressive (twins: over the twin)",
        "bars: 95 % interval; some may reach beyond the panel",
    ),
    "time_per_step": (time_per_step, "ms a decode step", "peers and parallel generators do not tell their parts"),
    "mbu": (
        mbu,
        "model bandwidth utilisation",
        "bytes that had to be read, by what the memory gives in that time; none where the weights fit into the cache",
    ),
    "memory": (memory, "peak memory, MB", "of the method's largest cell"),
}


@command
def main() -> None:
    """Read the command line and draw all four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", type=Path, required=True, help="results/benchmark.csv")
    parser.add_argument("--output", type=Path, required=True, help="the folder of the figures")
    given = parser.parse_args()
    without_windows()
    table = benchmark.read(given.benchmark)
    for name, (draw, label, note) in FIGURES.items():
        save(panels(table, draw, label, note), given.output / f"{name}.png")


if __name__ == "__main__":
    main()
