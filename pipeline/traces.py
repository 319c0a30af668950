r"""Rule: how many tokens a step emits, from the step traces of the cells: not only the mean, but the distribution.

A method whose steps emit 1 or 6 tokens and one whose steps always emit 3 have the same mean and another use. Each bar
is a method's decode steps over all its tasks, split by the tokens that they emitted. Example::

    python -m pipeline.traces --cells results/cells/laptop/smollm2-135m/bfloat16/humaneval/medusa/0 ... \
        --output results/figures/tokens_per_step.png
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.errors import UserError, command
from pipeline.figures import save, without_windows, words_alone
from pipeline.files import json_lines
from pipeline.registry import METHODS, find

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 8  # tokens a step that have a colour of their own; "8+" is this or more


def read_steps(cells: list[Path]) -> pd.DataFrame:
    """Return a row for each model with its dtype, method and number of tokens: how many decode steps emitted that many.

    Cells that failed have no records and are passed over.

    Raises:
        UserError: a file is damaged.
    """
    counts: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for cell in cells:
        model, method = f"{cell.parts[-5]} ({cell.parts[-4]})", cell.parts[-2]
        path = cell / "records.jsonl"
        try:
            for record in json_lines(path) if path.is_file() else ():
                counts[model, method].update(steps_of(method, record["method"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error!r}") from error
    rows = [(*name, tokens, steps) for name, counter in counts.items() for tokens, steps in counter.items()]
    return pd.DataFrame(rows, columns=["model", "method", "tokens", "steps"])


def steps_of(method: str, run: dict[str, Any]) -> list[int]:
    """Return the tokens of each decode step; of a model that generates in parallel, of each of its passes.

    Such a model has no prefill of its own: its first passes are counted as what they emitted, the first one foremost.
    """
    steps = list(run["tokens_by_step"])
    if find(method, METHODS, "method").kind != "generator":
        return steps
    first = [run["num_new_tokens"] - sum(steps), *[0] * (run["target_forwards"] - len(steps) - 1)]
    return [*first, *steps]


def shares(steps: pd.DataFrame) -> pd.DataFrame:
    """Return for each model and method the share of steps that emit 0, 1, ... ``MOST`` or more tokens, most first."""
    clipped = steps.assign(tokens=steps["tokens"].clip(upper=MOST))
    table = clipped.pivot_table(
        index=["model", "method"], columns="tokens", values="steps", aggfunc="sum", fill_value=0
    )
    table = table.div(table.sum(axis=1), axis=0)
    means = steps.assign(total=steps["tokens"] * steps["steps"]).groupby(["model", "method"])[["total", "steps"]].sum()
    return table.assign(mean=means["total"] / means["steps"]).sort_values(["model", "mean"])


def figure_of(steps: pd.DataFrame) -> Figure:
    """Return the figure: a panel a model, a bar a method, its mean beside it."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="white", context="notebook", font_scale=0.8)
    if steps.empty:
        return words_alone("no cell has a decode step")
    table = shares(steps)
    tokens = [column for column in table.columns if column != "mean"]
    colours = dict(zip(range(MOST + 1), sns.color_palette("viridis_r", MOST + 1), strict=True))
    groups = list(table.groupby(level="model", sort=True))
    heights = [0.30 * len(rows) + 0.9 for _, rows in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(8.5, sum(heights) + 0.5), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for panel, (model, rows) in zip(axes[:, 0], groups, strict=True):
        left = np.zeros(len(rows))
        for count in tokens:
            label = f"{count}+" if count == MOST else str(count)
            panel.barh(range(len(rows)), rows[count], left=left, color=colours[count], edgecolor="white", label=label)
            left += rows[count].to_numpy()
        for height, mean in enumerate(rows["mean"]):
            panel.text(1.01, height, f"{mean:.2f}", va="center", fontsize=8)
        panel.set_yticks(range(len(rows)), [method for _, method in rows.index])
        panel.set(title=str(model), xlim=(0, 1.08), xlabel="share of decode steps, or of passes; their mean")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, title="tokens a step", loc="outside lower center", ncols=MOST + 1, frameon=False)
    sns.despine(figure, left=True)
    return figure


@command
def main() -> None:
    """Read the command line and draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, fromfile_prefix_chars="@"
    )
    parser.add_argument("--cells", type=Path, nargs="+", required=True, help="the cells' folders, or @FILE, one a line")
    parser.add_argument("--output", type=Path, required=True, help="the image to write")
    given = parser.parse_args()
    without_windows()
    for cell in given.cells:
        if len(cell.parts) < 5:
            raise UserError(f"cells: {str(cell)!r} is not a cell's folder (…/<model>/<dtype>/<task>/<method>/<seed>)")
    save(figure_of(read_steps(given.cells)), given.output)


if __name__ == "__main__":
    main()
