r"""Rule: draw quality against speed, and cost against resolution, from ``results/image.csv``. By hand::

    python -m pipeline.images.figures --images results/image.csv --output results/figures

``image_quality.png``: accuracy, and distance to real digits, against images a second, the guidances of a window in one
colour; dashed lines are real digits. ``image_cost.png``: what reading a photograph takes, a line a window; dashed is
the formula, which says rows and attention and neither time nor memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.errors import command
from pipeline.figures import darker, looks_of, save, without_windows, words_alone
from pipeline.images.records import BASELINE
from pipeline.labels import place_names
from pipeline.schemas import image
from pipeline.schemas.image import DIGITS, PHOTOGRAPH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

QUALITIES = (("accuracy", "accuracy of the classifier, by class"), ("frechet", "Fréchet distance (lower is better)"))
COSTS = (
    ("rows", "rows of the transformer", "predicted_rows", 1.0),
    ("attention_flops", "operations of attention", "predicted_attention_flops", 1.0),
    ("prefill_s", "time to read the image, s", None, 1.0),
    ("peak_memory_bytes", "peak memory, MiB", None, 2.0**20),
)


def quality(table: pd.DataFrame) -> Figure:
    """Return two panels over images a second: accuracy, and distance to real digits."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    rows = table[(table["subject"] == DIGITS) & table["image_s"].notna()]
    if rows.empty:
        return words_alone("no digits were generated")
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.85)
    looks = looks_of(sorted(rows["method"].unique()))
    real = table[(table["subject"] == DIGITS) & (table["method"] == "real")]
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.6), layout="constrained")
    names: list[list[Text]] = []
    for panel, (column, label) in zip(axes, QUALITIES, strict=True):
        drawn = [draw_guidances(panel, of, column, *looks[str(name)]) for name, of in rows.groupby("method", sort=True)]
        names.append([name for one in drawn for name in one])
        if len(real):
            panel.axhline(real[column].iloc[0], color="dimgrey", linestyle="--", linewidth=1.2, label="real digits")
        panel.set(xlabel="digits a second, one at a time", ylabel=label)
        panel.set_xlim(left=0, right=1.25 / rows["image_s"].min())
        panel.set_ylim(bottom=0 if column == "frechet" else None, top=1.01 if column == "accuracy" else None)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    sns.despine(figure)
    figure.draw_without_rendering()  # settles the layout, which the placing of names needs
    figure.set_layout_engine("none")
    for panel, texts in zip(axes, names, strict=True):
        place_names(panel, texts)
    return figure


def draw_guidances(
    panel: Axes, members: pd.DataFrame, column: str, colour: tuple[float, float, float], marker: str
) -> list[Text]:
    """Draw the guidances of one window; return their names, not yet placed."""
    names: list[Text] = []
    for row in members.to_dict("records"):
        place = (1 / row["image_s"], row[column])
        panel.errorbar(
            *place,
            yerr=row["accuracy_stderr"] if column == "accuracy" else None,
            color=colour,
            marker=marker,
            capsize=2,
            linestyle="",
            label="_" if names else str(row["method"]),
        )
        names.append(panel.text(*place, row["guidance"], color=darker(colour), fontsize=9, zorder=4))
    return names


def cost(table: pd.DataFrame) -> Figure:
    """Return four panels over the side of a photograph: rows, attention, time, memory."""
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.ticker import LogLocator, ScalarFormatter, StrMethodFormatter

    rows = table[table["subject"] == PHOTOGRAPH]
    if rows.empty:
        return words_alone("the cost of an image was not measured")
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.85)
    looks = looks_of(sorted(rows["method"].unique()))
    figure, axes = plt.subplots(1, len(COSTS), figsize=(15, 4.2), layout="constrained")
    for panel, (column, label, formula, unit) in zip(axes, COSTS, strict=True):
        for method, members in rows.groupby("method", sort=True):
            ordered, (colour, marker) = members.sort_values("side"), looks[str(method)]
            panel.plot(ordered["side"], ordered[column] / unit, color=colour, marker=marker, label=named(ordered))
            if formula:
                panel.plot(ordered["side"], ordered[formula], color="black", linestyle="--", linewidth=0.9, zorder=4)
        panel.set(xscale="log", yscale="log", xlabel="side of the image, pixels", title=label)
        panel.set_xticks(sorted(rows["side"].unique()))
        panel.minorticks_off()
        if not formula:  # of fewer powers of ten
            panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_major_formatter(ScalarFormatter())
    axes[0].plot([], [], color="black", linestyle="--", linewidth=0.9, label="formula")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    sns.despine(figure)
    return figure


def named(members: pd.DataFrame) -> str:
    """Return how a window is called in a legend."""
    window = int(members["window"].iloc[0])
    return "a row a token" if window == BASELINE else f"a row for {window} x {window} tokens"


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="results/image.csv")
    parser.add_argument("--output", type=Path, required=True, help="the folder of the figures")
    given = parser.parse_args()
    without_windows()
    table = image.read(given.images)
    save(quality(table), given.output / "image_quality.png")
    save(cost(table), given.output / "image_cost.png")


if __name__ == "__main__":
    main()
