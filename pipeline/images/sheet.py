r"""Rule: draw generated digits of every method beside real ones, without choosing among them. By hand::

    python -m pipeline.images.sheet --tokens results/images/laptop/digits --output results/figures/image_sheet.png \
        --samples results/images/laptop/samples/window_1/none results/images/laptop/samples/window_2/none

Of each class the first few of a folder, whatever they look like; of the real digits the first held-out ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from pipeline.errors import UserError, command
from pipeline.figures import save, without_windows
from pipeline.images.data import NUM_CLASSES
from pipeline.images.patches import PatchTokenizer
from pipeline.images.records import IMAGES, SAMPLES_RECORD, TOKENIZER, TOKENS, read_arrays, read_record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PER_CLASS = 3
GAP = 1  # pixels between digits


def strip(
    images: Float[np.ndarray, "n h w c"], classes: Int[np.ndarray, " n"], per_class: int = PER_CLASS
) -> Float[np.ndarray, "h_g w_total"]:
    """Return the first images of each class side by side, in the order of the classes; a place without one is white.

    Raises:
        UserError: there is no image at all.
    """
    if not len(images):
        raise UserError("samples: there is no image to show")
    height, width = images.shape[1:3]
    tiles = np.zeros((NUM_CLASSES * per_class, height + GAP, width + GAP))
    for label in range(NUM_CLASSES):
        chosen = images[classes == label][:per_class, :, :, 0]
        tiles[label * per_class : label * per_class + len(chosen), :height, :width] = chosen
    return np.concatenate(list(tiles), axis=1)


def sheet(rows: list[tuple[str, np.ndarray]]) -> Figure:
    """Return the figure: a named strip of digits a row."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="white", context="notebook", font_scale=0.8)
    figure, axes = plt.subplots(len(rows), 1, figsize=(11, 0.42 * len(rows) + 0.3), squeeze=False, layout="constrained")
    for panel, (name, pixels) in zip(axes[:, 0], rows, strict=True):
        panel.imshow(pixels, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        panel.set(xticks=[], yticks=[])
        panel.set_ylabel(name, rotation=0, ha="right", va="center")
    sns.despine(figure, left=True, bottom=True)
    return figure


def rows_of(tokens: Path, samples: list[Path]) -> list[tuple[str, np.ndarray]]:
    """Return the strips with their names: real digits, the same encoded and decoded, and each folder's."""
    arrays: dict[str, Any] = read_arrays(tokens / TOKENS, "tokenise")
    held_out = ~arrays["is_training"].astype(bool)
    images, ids, classes = (arrays[name][held_out] for name in ("images", "ids", "classes"))
    tokenizer = PatchTokenizer.load(tokens / TOKENIZER)
    rows = [("real", strip(images, classes)), ("encoded and decoded", strip(tokenizer.decode(ids), classes))]
    for folder in samples:
        record, found = read_record(folder / SAMPLES_RECORD, "generate"), read_arrays(folder / IMAGES, "generate")
        name = f"window {record['model']['window']}, {record['guidance']}"
        rows.append((name, strip(found["images"], found["classes"])))
    return rows


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True, help="the folder of the digits' tokens")
    parser.add_argument("--samples", type=Path, nargs="*", default=[], help="folders of pipeline.images.generate")
    parser.add_argument("--output", type=Path, required=True, help="the image to write")
    given = parser.parse_args()
    without_windows()
    save(sheet(rows_of(given.tokens, given.samples)), given.output)


if __name__ == "__main__":
    main()
