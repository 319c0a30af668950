"""Quality against forward passes and against speed, for models that generate in parallel: what a pass less costs.

A family is one set of weights run at several settings (``diffusion_2_passes``, ``diffusion_4_passes``, ...), joined by
a line in the order of its passes; the twin, which takes one pass a token, is where all of them start from. Example::

    python -m pipeline.curves --benchmark results/benchmark.csv --output results/figures/passes.png
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.errors import command
from pipeline.figures import Looks, draw_command, looks_of, words_alone
from pipeline.registry import is_generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TWIN = "autoregressive"
SETTING = re.compile(r"_(?:(\d+)_passes|groups_of_(\d+))$")
PANELS = (("passes", "forward passes a text"), ("speedup", "speed-up over the twin, batch size 1"))


def points(table: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of twins and their generators, with ``passes`` a text, ``family`` and ``setting`` (or "")."""
    good = table[table["status"] == "ok"]
    parallel = good["method"].map(is_generator).astype(bool)
    twins = good["model"].isin(set(good.loc[parallel, "model"])) & (good["method"] == TWIN)
    rows = good[parallel | twins].copy()
    rows["passes"] = rows["target_forwards"] / rows["num_prompts"]
    rows["family"] = [SETTING.sub("", method) for method in rows["method"]]
    found = [SETTING.search(method) for method in rows["method"]]
    rows["setting"] = [next(filter(None, match.groups())) if match else "" for match in found]
    return rows


def curves(table: pd.DataFrame) -> Figure:
    """Return the figure: a row of two panels for each twin, or a line of text if no cell of one ended well."""
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.ticker import FuncFormatter

    rows = points(table)
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.85)
    if rows.empty:
        return words_alone("no cell of a model that generates in parallel ended well")
    twins = list(rows.groupby(["task", "model", "dtype"], sort=True))
    looks = looks_of(sorted(rows["family"].unique()))
    figure, axes = plt.subplots(
        len(twins), len(PANELS), figsize=(11.5, 4.4 * len(twins) + 0.6), squeeze=False, layout="constrained"
    )
    for line, (name, cells) in zip(axes, twins, strict=True):
        for panel, (column, label) in zip(line, PANELS, strict=True):
            draw(panel, cells, column, looks)
            panel.set(xlabel=label, ylabel=cells["metric"].iloc[0], title=" · ".join(name))
            if column == "passes":
                panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)
    sns.despine(figure)
    return figure


def draw(panel: Axes, cells: pd.DataFrame, column: str, looks: Looks) -> None:
    """Draw one twin's families over ``column``; settings stand beside their points."""
    for family, members in cells.groupby("family", sort=True):
        ordered = members.sort_values("passes")
        colour, marker = looks[str(family)]
        panel.errorbar(
            ordered[column],
            ordered["quality"],
            yerr=ordered["quality_stderr"].fillna(0.0),
            color=colour,
            marker=marker,
            linewidth=1.4,
            capsize=2,
            label=str(family),
        )
        for _, point in ordered[ordered["setting"] != ""].iterrows():
            place = (point[column], point["quality"])
            panel.annotate(point["setting"], place, textcoords="offset points", xytext=(5, 5), fontsize=8, color=colour)


@command
def main() -> None:
    """Draw quality against passes and speed."""
    draw_command(__doc__, curves)


if __name__ == "__main__":
    main()
