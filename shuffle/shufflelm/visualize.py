"""A picture of one pass: the slots as they come, and the kept ones on their way to their places in the text.

On the left the slots, each with the token that it says; the dropped ones fade. The others move to the right, where they
stand in the order of the text, and leave a trail behind them. Colours go by place in the text, so they are mixed up on
the left and in order on the right.

Example::

    shown = visualize_shuffle(model, tokenizer, "twenty-one", save_animation=True, output_path="x.gif")   # and x.png
    for step, tokens in shown.steps: ...        # 0 all slots, 1 the kept ones, 2 the text
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from decoding.stopping import Ending
from shuffle.shufflelm.blocks import check_prompt
from shuffle.shufflelm.model import ShuffleLM

FRAMES_MOVING, FRAME_MS, REST_MS = 30, 60, 1000
ROW_INCHES, WIDTH_INCHES = 0.27, 6.4
TRAIL_FROM = 0.2  # of the way: behind the slot's own token, where the way turns to the place


@dataclass(frozen=True)
class ShuffleSteps:
    """How a set of slots became a text.

    Attributes:
        tokens: what each slot says, kept or not.
        order: the kept slots, in the order of the text.
    """

    tokens: tuple[str, ...]
    order: tuple[int, ...]

    @property
    def steps(self) -> list[tuple[int, tuple[str, ...]]]:
        """The step's number and the tokens then: 0 all, 1 the kept ones in the order of the slots, 2 of the text."""
        kept = tuple(self.tokens[slot] for slot in sorted(self.order))
        return [(0, self.tokens), (1, kept), (2, tuple(self.tokens[slot] for slot in self.order))]


@torch.inference_mode()
def visualize_shuffle(
    model: ShuffleLM,
    tokenizer: Any,
    prompt: str | Sequence[int],
    save_animation: bool = True,
    output_path: str | Path = "shuffle.gif",
    shuffle_strategy: str | None = None,
    keep_threshold: float = 0.5,
) -> ShuffleSteps:
    """Run one pass and draw how its slots are put in order.

    Args:
        model: trained.
        tokenizer: transformers', or anything with its ``encode(text)`` and ``decode(ids)``.
        prompt: a text, or ids where the tokenizer does not add what the model was trained with behind a prompt.
        save_animation: write the animated GIF and, beside it, its last frame as PNG; False writes nothing.
        output_path: the GIF's.
        shuffle_strategy: rotary, assignment or none; None for rotary, where the model has it.
        keep_threshold: least probability at which a slot is kept.

    Raises:
        ValueError: an option is out of range, or the prompt is empty or too long.
    """
    ids = list(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
    check_prompt(model, ids, max_new_tokens=1)
    output = model(torch.tensor([ids], device=model.device))
    scores = None if output.shuffle_scores is None else output.shuffle_scores[0]
    ordering = model.ordering(shuffle_strategy, keep_threshold)
    order = ordering.of(scores, output.keep_logits[0])
    chosen = output.logits[0].argmax(-1).tolist()
    order = [order[place] for place in ordering.spoken(order, [chosen[slot] for slot in order])]
    ends = model.config.end_token_ids
    order = sorted(order, key=lambda slot: chosen[slot] in ends)  # as ``generate`` has it: the end behind all others
    order = order[: Ending(len(order), ends).check([chosen[slot] for slot in order], 0).kept]
    shown = ShuffleSteps(tuple(tokenizer.decode([token]) for token in chosen), tuple(order))
    if save_animation:
        text = tokenizer.decode([chosen[slot] for slot in order])
        _animate(shown, f"{tokenizer.decode(ids)}  →  {text}", Path(output_path))
    return shown


def _animate(shown: ShuffleSteps, title: str, path: Path) -> None:
    """Write the frames as GIF to ``path``, and the last one as PNG beside it."""
    lines = textwrap.wrap(title.replace("\n", " "), 72)
    size = (WIDTH_INCHES, ROW_INCHES * (len(shown.tokens) + len(lines) + 2.5))
    figure = Figure(figsize=size, facecolor="white", dpi=100)
    canvas = FigureCanvasAgg(figure)
    frames = []
    for i in range(FRAMES_MOVING + 1):
        t = i / FRAMES_MOVING
        figure.clear()
        _draw(figure, shown, lines, share=t * t * (3 - 2 * t))  # slowly off, slowly in
        canvas.draw()
        frames.append(Image.fromarray(np.array(canvas.buffer_rgba())[..., :3]).quantize())
    path.parent.mkdir(parents=True, exist_ok=True)
    durations = [REST_MS, *[FRAME_MS] * (FRAMES_MOVING - 1), 2 * REST_MS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    figure.savefig(path.with_suffix(".png"), dpi=150)


def _draw(figure: Figure, shown: ShuffleSteps, title: Sequence[str], share: float) -> None:
    """Draw one frame: the kept tokens ``share`` of the way from their slots to their places."""
    rows = len(shown.tokens)
    height = rows + len(title) + 2.5
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(-0.2, 1.45), ylim=(rows + 0.4, rows + 0.4 - height))
    axes.axis("off")
    plain: dict[str, Any] = {"parse_math": False, "fontsize": 9, "va": "center"}  # a token may be a dollar sign
    for number, line in enumerate(title):
        axes.text(-0.15, number - len(title) - 1.1, line, **plain, color="black")
    for x, heading in [(0.0, "slots"), (1.0, "text")]:
        axes.text(x, -1.0, heading, **plain, color="dimgrey", ha="left", fontweight="bold")
    colours = colormaps["viridis"]
    places = {slot: place for place, slot in enumerate(shown.order)}
    for slot, token in enumerate(shown.tokens):
        label = token.replace(" ", "␣").replace("\n", "↵") or "∅"
        axes.text(-0.06, slot, str(slot), **plain, color="darkgrey", ha="right")
        place = places.get(slot)
        colour = "grey" if place is None else colours(0.75 * place / max(len(places) - 1, 1))
        # What stays at the slot: the token, pale, paler still where it is dropped.
        alpha = 1 - min(1.0, 3 * share) * (0.7 if place is None else 0.4)
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": to_rgba(colour, alpha)}
        axes.text(0.0, slot, label, **plain, color=colour, alpha=alpha, bbox=box)
        if place is None:
            continue
        x, turned = share, max(0.0, share - TRAIL_FROM) / (1 - TRAIL_FROM)
        y = slot + (place - slot) * turned
        if turned:
            axes.plot([TRAIL_FROM, x - 0.015], [slot, y], color=colour, alpha=0.5, linewidth=1.4, zorder=1)
        box = {"boxstyle": "round,pad=0.2", "facecolor": colour, "edgecolor": "white"}
        axes.text(x, y, label, **plain, color="white", bbox=box, zorder=2 + place)
        if share == 1:
            axes.text(1.36, y, str(place), **plain, color="darkgrey", ha="right")
