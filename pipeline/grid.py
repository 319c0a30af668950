"""How large a configuration is: its cells, GPU-hours, storage, and what a changed method costs, before anything is run.

Arithmetic, not measurement. Decoding one text at a time reads every weight once a token, so that a model's speed is
the memory's by its size; how near to it an engine comes is assumed, and said. Every assumption is a constant here and
is printed with the figures; each is on the dear side. docs/paper_grid.md is what it prints for the paper's grid::

    python -m pipeline.grid --configfile config/paper.yaml
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Settings, load
from pipeline.errors import UserError, command
from pipeline.registry import METHODS

CARD_BYTES = 80e9
CARD_BYTES_PER_S = 2e12
ENGINE_SHARE = 0.6  # of the memory's speed, by our engine; over several cards, which work in turn, too
PEER_SHARE = 0.3  # by transformers' own generate
PARAMETER_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}
ROOM = 1.2  # of the weights: caches, activations, CUDA itself
LOAD_BYTES_PER_S = 1e9  # from disk to card
START_S = 60  # of a job: queue, Python, imports, capturing graphs
RECORD_BYTES = 64  # a token, in records.jsonl and samples.jsonl
STATE_BYTES = 16384  # a token of training text: the target's last hidden state
TRAINING = 2  # writing the text, and as long again for all that is trained on it
ASSUMED = f"""\
- a card has {CARD_BYTES / 1e9:.0f} GB and reads {CARD_BYTES_PER_S / 1e12:.1f} TB/s;
- weights take {ROOM:.1f} times their size, with caches and all;
- a model is given 1, 2, 4 or 8 cards, which hold two copies of it (a peer is loaded beside its baseline) and its draft;
- our engine decodes at {ENGINE_SHARE:.0%} of the memory's speed, transformers' `generate` at {PEER_SHARE:.0%}:
  that share of {CARD_BYTES_PER_S / 1e12:.1f}e12 by the bytes of the weights is the tokens/s;
- no method is faster than the baseline;
- every text runs to its limit; prefill and scoring are free;
- loading takes a second for each {LOAD_BYTES_PER_S / 1e9:.0f} GB, and a job starts in {START_S} s;
- the training text is written a token at a time, and training on it takes as long again;
- a record has {RECORD_BYTES} bytes a token, training text {STATE_BYTES} (the target's states)."""


@dataclass(frozen=True)
class Size:
    """What is assumed of one model in one dtype."""

    parameters: float
    draft_parameters: float
    parameter_bytes: int

    @property
    def weight_bytes(self) -> float:
        """Bytes of the target."""
        return self.parameters * self.parameter_bytes

    @property
    def cards(self) -> int:
        """Cards that hold the target twice and its draft once."""
        needed = ROOM * (2 * self.parameters + self.draft_parameters) * self.parameter_bytes / CARD_BYTES
        return int(2 ** max(0, math.ceil(math.log2(needed))))

    def tokens_per_second(self, share: float = ENGINE_SHARE) -> float:
        """Speed of plain decoding."""
        return share * CARD_BYTES_PER_S / self.weight_bytes


def parameters_of(name: str) -> float:
    """Return the number of parameters that a model's name tells: ``Yi-34B-Chat`` has 34e9, ``smollm2-135m`` 135e6.

    Raises:
        UserError: it tells none.
    """
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z])", name.lower())
    if found is None:
        raise UserError(f"models: {name!r} does not tell how large it is, as 'llama-3-8b' does")
    return float(found[1]) * (1e9 if found[2] == "b" else 1e6)


def sizes(settings: Settings) -> dict[tuple[str, str], Size]:
    """Return the size of each model in each of its dtypes."""
    found: dict[tuple[str, str], Size] = {}
    for name, model in settings.models.items():
        parameters = parameters_of(model.hub or name)
        draft = parameters_of(model.draft.hub or str(model.draft.path)) if model.draft else 0.1 * parameters
        for dtype in model.dtypes:
            found[name, dtype] = Size(parameters, draft, PARAMETER_BYTES[dtype])
    return found


def cell_hours(settings: Settings, size: Size, method: str, task: str) -> float:
    """Return the GPU-hours of one cell: each prompt by the method and by the baseline, in turn."""
    asked = settings.tasks[task]
    tokens = asked.num_prompts * asked.max_new_tokens * settings.repeats
    is_peer = METHODS[method].kind == "peer"
    speeds = (size.tokens_per_second(), size.tokens_per_second(PEER_SHARE if is_peer else ENGINE_SHARE))
    load_s = size.weight_bytes * (2 if is_peer else 1) / LOAD_BYTES_PER_S
    return size.cards * (START_S + load_s + sum(tokens / speed for speed in speeds)) / 3600


def training_hours(settings: Settings, size: Size) -> float:
    """Return the GPU-hours of the parts that are trained for one model; none where no method needs one."""
    if not any(METHODS[name].parts_with(options) for name, options in settings.methods.items()):
        return 0.0
    return TRAINING * size.cards * settings.training.num_tokens / size.tokens_per_second() / 3600


def hours(settings: Settings, method: str | None = None, model: tuple[str, str] | None = None) -> tuple[int, float]:
    """Return cells and GPU-hours of a method, of a model in a dtype, or of all; training left out."""
    chosen = [
        cell_hours(settings, size, name, task)
        for key, size in sizes(settings).items()
        for name in settings.methods
        for task in settings.tasks
        if name == (method or name) and key == (model or key)
    ]
    return len(chosen) * len(settings.seeds), sum(chosen) * len(settings.seeds)


def storage(settings: Settings) -> list[tuple[str, float]]:
    """Return what lies on disk, in bytes: weights as they come (two bytes a parameter), training states, records."""
    largest = {name: size for (name, _), size in sizes(settings).items()}
    targets = 2 * sum(size.parameters for size in largest.values())
    drafts = 2 * sum(size.draft_parameters for size in largest.values())
    cells, _ = hours(settings)
    tokens = sum(task.num_prompts * task.max_new_tokens for task in settings.tasks.values()) / len(settings.tasks)
    return [
        ("target models", targets),
        ("draft models", drafts),
        ("states of the training text", len(largest) * settings.training.num_tokens * STATE_BYTES),
        ("records and samples of the cells", cells * tokens * 2 * RECORD_BYTES),
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table, its numbers to the right."""
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(map(str, row))} |" for row in (head, marks, *rows)]


def rows_by_model(settings: Settings) -> Iterator[tuple[object, ...]]:
    """Yield the row of each model: its size, what is assumed of it, and what it costs."""
    for (name, dtype), size in sizes(settings).items():
        cells, spent = hours(settings, model=(name, dtype))
        billions = (f"{size.parameters / 1e9:g}", f"{size.draft_parameters / 1e9:g}")
        costs = (cells, f"{spent:,.0f}", f"{training_hours(settings, size):,.0f}")
        yield f"{name}, {dtype}", *billions, size.cards, f"{size.tokens_per_second():.0f}", *costs


def rows_by_method(settings: Settings) -> Iterator[tuple[object, ...]]:
    """Yield the row of each method: what is run again when it changes."""
    for name in settings.methods:
        cells, spent = hours(settings, method=name)
        yield f"`{name}`", cells, f"{spent:,.0f}"


def report(settings: Settings) -> str:
    """Return all figures as Markdown."""
    cells, spent = hours(settings)
    training = sum(training_hours(settings, size) for size in sizes(settings).values())
    counts = (len(sizes(settings)), len(settings.methods), len(settings.tasks), len(settings.seeds))
    words = ("models", "methods", "tasks", "seeds")
    grid = " x ".join(f"{count} {what}" for count, what in zip(counts, words, strict=True))
    stored = [(what, f"{size / 1e9:,.1f}") for what, size in storage(settings)]
    return "\n".join(
        [
            f"{grid} = **{cells} cells**; {spent:,.0f} GPU-hours of cells and {training:,.0f} of training: "
            f"**{spent + training:,.0f} GPU-hours**.",
            f"\nAssumed:\n\n{ASSUMED}",
            "\nBy model (parameters in billions):\n",
            *table(
                ("model", "target", "draft", "cards", "tokens/s", "cells", "GPU-hours", "of training"),
                rows_by_model(settings),
            ),
            "\nOn disk:\n",
            *table(("what", "GB"), stored),
            "\nWhat is run again when one method changes (its cells alone; everything else stands):\n",
            *table(("method", "cells", "GPU-hours"), rows_by_method(settings)),
            "\nA changed baseline or engine runs all cells again, a changed metric none; a new table costs seconds.\n",
        ]
    )


@command
def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", type=Path, required=True, help="a configuration with models and tasks")
    settings = load(parser.parse_args().configfile)
    if not settings.models:
        raise UserError("config: models: there are none; twins are trained here and are no part of this count")
    print(report(settings), end="")


if __name__ == "__main__":
    main()
