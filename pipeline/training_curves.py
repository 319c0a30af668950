r"""Rule: the learning curves of everything that was trained here: twins, generators, draft model, heads, mixer.

A panel a folder of models: those of one twin learned the same pairs for the same number of steps. The losses of
different kinds of models are not of one scale (a mixer's holds positions, diffusion's is weighted), so that only the
form of curves compares across them. Example::

    python -m pipeline.training_curves --models results/models/verbalized-2m results/twins/verbalized-2m/shufflelm \
        --output results/figures/training.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.errors import UserError, command
from pipeline.figures import looks_of, save, without_windows, words_alone

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_losses(folders: list[Path]) -> pd.DataFrame:
    """Return ``loss.csv`` of each folder, with ``model`` and ``group``; a folder that failed has no rows.

    Raises:
        UserError: a file is damaged.
    """
    parts = []
    for folder in folders:
        path = folder / "loss.csv"
        if not path.is_file():
            continue
        try:
            losses = pd.read_csv(path)
            losses = losses.reindex(columns=["step", "loss", "eval_loss"]).astype(float)
        except (ValueError, pd.errors.EmptyDataError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
        model, group = _named(folder)
        parts.append(losses.assign(model=model, group=group))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["step", "loss", "model", "group"])


def _named(folder: Path) -> tuple[str, str]:
    """Return what was trained in a folder, and beside what it is shown.

    A twin lies among the models, its generators in a folder of its name, parts in one of their target's and run's.
    """
    if folder.parent.name == "models":
        return "autoregressive", folder.name
    if folder.parent.parent.parent.name == "parts":
        return folder.name, f"{folder.parent.parent.name}, {folder.parent.name}"
    return folder.name, folder.parent.name


def figure_of(losses: pd.DataFrame) -> Figure:
    """Return the figure: training loss as a line, validation loss as marks on it."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.8)
    if losses.empty:
        return words_alone("nothing was trained")
    groups = list(losses.groupby("group", sort=True))
    figure, axes = plt.subplots(1, len(groups), figsize=(6.0 * len(groups), 4.2), squeeze=False, layout="constrained")
    for panel, (group, rows) in zip(axes[0], groups, strict=True):
        looks = looks_of(sorted(rows["model"].unique()))
        for model, curve in rows.groupby("model", sort=True):
            colour, marker = looks[str(model)]
            trained = curve.dropna(subset=["loss"])
            panel.plot(trained["step"], trained["loss"], color=colour, linewidth=1, alpha=0.8)
            tested = curve.dropna(subset=["eval_loss"])
            shown = tested if len(tested) else trained.iloc[:: max(1, len(trained) // 10)]
            column = "eval_loss" if len(tested) else "loss"
            panel.plot(
                shown["step"], shown[column], color=colour, marker=marker, linestyle="", markersize=5, label=str(model)
            )
        panel.set(title=str(group), xlabel="step", ylabel="loss (marks: validation, where there is one)", yscale="log")
        panel.legend(fontsize=7)
    sns.despine(figure)
    return figure


@command
def main() -> None:
    """Read the command line and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="folders with a loss.csv")
    parser.add_argument("--output", type=Path, required=True, help="the image to write")
    given = parser.parse_args()
    without_windows()
    save(figure_of(read_losses(given.models)), given.output)


if __name__ == "__main__":
    main()
