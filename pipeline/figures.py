"""Quality against speed, one panel a task: the picture that answers the project's question.

Right is faster, up is better; the stepped line is the Pareto front, the methods that no other beats in both. Faster is
meant as the paired speed-up: tokens/s of two cells do not compare, since between them the machine's own speed drifts
(the baseline's by half within one run). Both directions carry their uncertainty: the speed-up's interval, and the
standard error of quality. A filled mark is a lossless method, a hollow one a lossy one.
Each point carries its method's name, placed where it covers nothing.

Example::

    python -m pipeline.figures --benchmark results/benchmark.csv --output results/figures/speed_quality.png
"""

from __future__ import annotations

import argparse
import itertools
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.errors import command
from pipeline.files import atomic_path
from pipeline.labels import place_names
from pipeline.schemas import benchmark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

MARKERS = "osD^vP<X>ph*"
Looks = dict[str, tuple[tuple[float, float, float], str]]  # method -> colour, marker
ACROSS = "speed-up over the baseline, paired"
PANEL = ["task", "model", "dtype"]


def speed_quality(table: pd.DataFrame) -> Figure:
    """Return the figure of all cells that have both a speed and a quality; cells without are named in their panel."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.85)
    looks = looks_of(sorted(table["method"].unique()))
    panels = list(table.groupby(PANEL, sort=True))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(6.0 * columns, 8.5), 4.4 * rows + 0.5), squeeze=False, layout="constrained"
    )
    names = [draw_panel(panel, cells, looks) for panel, (_, cells) in zip(axes.flat, panels, strict=False)]
    for unused in axes.flat[len(panels) :]:
        unused.set_axis_off()
    draw_legend(figure)
    sns.despine(figure)
    figure.draw_without_rendering()  # settles the layout, which the placing of names needs
    figure.set_layout_engine("none")
    for panel, texts in zip(axes.flat, names, strict=False):
        place_names(panel, texts)
    return figure


def looks_of(methods: list[str]) -> Looks:
    """Return a colour that the colour-blind can tell apart, and a marker, for each method."""
    import seaborn as sns

    colours = itertools.cycle(sns.color_palette("colorblind"))
    return {method: (next(colours), MARKERS[index % len(MARKERS)]) for index, method in enumerate(methods)}


def draw_panel(panel: Axes, cells: pd.DataFrame, looks: Looks) -> list[Text]:
    """Draw one task's points with their intervals; return their names, not yet placed."""
    task, model, dtype = cells[PANEL].iloc[0]
    good = cells[cells["status"] == "ok"]
    metric = next(iter(good["metric"]), "quality")
    panel.set(title=f"{task} · {model} · {dtype}", xlabel=ACROSS, ylabel=metric)
    names = []
    for row in good.itertuples():
        colour, marker = looks[row.method]
        lossy = pd.notna(row.lossless) and not row.lossless
        panel.errorbar(
            row.speedup,
            row.quality,
            xerr=speed_interval(row),
            yerr=None if pd.isna(row.quality_stderr) else row.quality_stderr,
            color=colour,
            marker=marker,
            markersize=8,
            markerfacecolor="white" if lossy else colour,
            markeredgewidth=1.8 if lossy else 0.8,
            markeredgecolor=colour if lossy else "white",
            elinewidth=1.2,
            capsize=2.5,
            zorder=3,
        )
        seed = f" (seed {row.seed})" if good["seed"].nunique() > 1 else ""
        names.append(panel.text(row.speedup, row.quality, row.method + seed, color=darker(colour), zorder=4))
    panel.axvline(1, color="lightgrey", linewidth=1, zorder=0)
    set_limits(panel, good, metric)
    draw_front(panel, good)
    tell_missing(panel, cells[cells["status"] != "ok"])
    return names


def front_of(good: pd.DataFrame) -> pd.DataFrame:
    """Return the cells that no other beats in speed and quality at once, the fastest first."""
    ordered = good.sort_values(["speedup", "quality"], ascending=False)
    best_so_far = ordered["quality"].cummax().shift(fill_value=-np.inf)
    return ordered[ordered["quality"] > best_so_far]


def draw_front(panel: Axes, good: pd.DataFrame) -> None:
    """Draw the Pareto front behind the points, from the panel's top edge of quality down to its fastest method."""
    front = front_of(good)
    if len(front):
        left, bottom = panel.get_xlim()[0], panel.get_ylim()[0]
        x = [front["speedup"].iloc[0], *front["speedup"], left]
        y = [bottom, *front["quality"], front["quality"].iloc[-1]]
        panel.step(x, y, where="post", color="silver", linewidth=1.4, linestyle="--", zorder=1)


def speed_interval(row: Any) -> np.ndarray | None:
    """Return ``[[below], [above]]``, how far the speed-up's interval reaches; None where it has none."""
    bars = np.array([[row.speedup - row.speedup_low], [row.speedup_high - row.speedup]], dtype=float)
    return None if np.isnan(bars).any() else bars


def set_limits(panel: Axes, good: pd.DataFrame, metric: str) -> None:
    """Leave room for names, and never stretch a difference of nothing over the whole height."""
    if good.empty:
        panel.set(xticks=[], yticks=[])
        return
    top = 100.0 if metric in benchmark.PERCENT_METRICS else 1.0
    fastest = good["speedup"].max()
    # A bar over two prompts may reach far beyond all points: it leaves the panel before it presses them together.
    left, right = panel.get_xlim()
    across = max(left, 0.0), min(right, 2 * fastest)
    wanted = (("x", across, 0.2 * fastest, np.inf), ("y", panel.get_ylim(), 0.1 * top, top))
    for axis, (low, high), least, most in wanted:
        span = max(high - low, least)
        middle = (low + high) / 2
        # Neither a speed nor a quality is negative: an axis that starts far below zero would look as if one could be.
        bottom, ceiling = max(middle - 0.65 * span, -0.2 * span), min(middle + 0.65 * span, most + 0.2 * span)
        getattr(panel, f"set_{axis}lim")(bottom, ceiling)


def tell_missing(panel: Axes, cells: pd.DataFrame) -> None:
    """Name, below the panel, the methods that have no point in it."""
    if len(cells):
        listed = ", ".join(f"{row.method} ({row.status})" for row in cells.itertuples())
        panel.set_xlabel(f"{ACROSS}\n" + textwrap.fill(f"no point: {listed}", 80))


def draw_legend(figure: Figure) -> None:
    """Say what filled and hollow marks and the bars mean; the methods are named in place."""
    from matplotlib.lines import Line2D

    mark = partial(Line2D, [], [], color="dimgrey", linestyle="", marker="o", markersize=8)
    bars = "across: 95 % interval of the speed-up;  up: ± standard error"
    entries = [
        mark(label="lossless"),
        mark(markerfacecolor="white", markeredgewidth=1.8, label="lossy"),
        Line2D([], [], color="dimgrey", linewidth=1.2, label=bars),
        Line2D([], [], color="silver", linewidth=1.4, linestyle="--", label="Pareto front"),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=4, frameon=False)


def darker(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return the colour dark enough to be read as text on white."""
    red, green, blue = colour
    return 0.6 * red, 0.6 * green, 0.6 * blue


def draw_command(description: str | None, draw: Callable[[pd.DataFrame], Figure]) -> None:
    """Read the command line of a figure, draw it from the table and write it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", type=Path, required=True, help="results/benchmark.csv")
    parser.add_argument("--output", type=Path, required=True, help="the image to write")
    arguments = parser.parse_args()
    without_windows()
    save(draw(benchmark.read(arguments.benchmark)), arguments.output)


def words_alone(words: str) -> Figure:
    """Return a figure of one line of text, where there is nothing to draw."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(6, 1))
    figure.text(0.5, 0.5, words, ha="center")
    return figure


def without_windows() -> None:
    """Draw to files alone: no window system is asked for, also where there is one."""
    import matplotlib

    matplotlib.use("Agg")


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    with atomic_path(path) as temporary:
        # Without the software's version the same table gives the same bytes.
        figure.savefig(temporary, dpi=150, metadata={"Software": None})


@command
def main() -> None:
    """Draw quality against speed."""
    draw_command(__doc__, speed_quality)


if __name__ == "__main__":
    main()
