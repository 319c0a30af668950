"""Pairs of texts as training examples, and as the batches of a whole training, drawn beforehand from a seed.

Texts meet at random, unless a pool of several batches is sorted by length before it is cut into them (``length_pool``).
On captions, half of a random batch is padding and a step takes a third of the time with pools of 8. Batches of like
lengths teach worse on verbalised numbers, dates and prices, where length tells the kind: ShuffleLM's validation loss
after 150 steps was 1.98 with them and 1.01 without::

    examples = read_examples(Path("results/twins/verbalized/pairs"))
    batches = Batches(examples["train"], batch_size=64, num_batches=600, seed=0, collate=collate_pairs)
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from pipeline.errors import UserError
from pipeline.tasks.source import Document, keep, read_jsonl
from shuffle.examples import Example

Collate = Callable[[Sequence[Example]], dict[str, Any]]


def read_examples(pairs: Path, distilled: Path | None = None) -> dict[str, list[Example]]:
    """Return the examples of each split as token ids; the targets of the train split from ``distilled``, if given.

    Raises:
        UserError: the folder is not one of ``pipeline.pairs``, says why it is empty, or is damaged.
    """
    from transformers import AutoTokenizer

    check(pairs)
    tokenizer = AutoTokenizer.from_pretrained(pairs, local_files_only=True, trust_remote_code=False)
    rows = read_jsonl(pairs / "pairs.jsonl", keep("split", "source", "target"))
    targets: Mapping[str, str] = {}
    if distilled is not None:
        targets = {row["source"]: row["target"] for row in read_jsonl(distilled, _answer)}
        if missing := [row for row in rows if row["split"] == "train" and row["source"] not in targets]:
            raise UserError(f"{distilled}: has no target for {len(missing)} sources; run pipeline.distill again")
    texts: dict[str, list[Example]] = {"train": [], "validation": []}
    sources = tokenizer([row["source"] for row in rows])["input_ids"]
    answers = [targets.get(row["source"], row["target"]) if row["split"] == "train" else row["target"] for row in rows]
    outputs = tokenizer(answers, add_special_tokens=False)["input_ids"]
    for row, source, output in zip(rows, sources, outputs, strict=True):
        texts[row["split"]].append(Example(tuple(source), (*output, tokenizer.eos_token_id)))
    return texts


def _answer(row: Mapping[str, Any]) -> Document:
    """Return an answer of ``pipeline.distill``; raise the ``UserError`` for which it wrote none."""
    if "error" in row:
        raise UserError(row["error"])
    return keep("source", "target")(row)


def check(pairs: Path) -> None:
    """Raise the ``UserError`` for which a folder holds no pairs, if any."""
    try:
        record = json.loads((pairs / "pairs.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{pairs}: no pairs here; run python -m pipeline.pairs first") from None
    except ValueError as error:
        raise UserError(f"{pairs / 'pairs.json'} is damaged: {error}") from None
    if "error" in record:
        raise UserError(record["error"])


class Batches(Dataset[dict[str, Any]]):
    """The batches of a training, or one pass over the examples, as a data set whose items are whole batches.

    Args:
        examples: to draw from.
        batch_size: examples a batch.
        num_batches: as many as this, over as many epochs as it takes; None: each example once.
        seed: of the order.
        collate: makes a model's arguments of examples.
        length_pool: batches whose examples are sorted by length together; 1: none are.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        num_batches: int | None,
        seed: int,
        collate: Collate,
        length_pool: int = 1,
    ) -> None:
        self.examples, self.collate = examples, collate
        lengths = [len(example.prompt_ids) + len(example.target_ids) for example in examples]
        drawn: list[list[int]] = []
        for epoch in _epochs(lengths, batch_size, seed, length_pool):
            drawn += epoch
            if num_batches is None or len(drawn) >= num_batches:
                break
        self.batches = drawn[:num_batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.collate([self.examples[i] for i in self.batches[index]])


def _epochs(lengths: Sequence[int], batch_size: int, seed: int, length_pool: int) -> Iterator[list[list[int]]]:
    """Yield the batches of one epoch after the other, as indices."""
    rng = random.Random(seed)
    order, pool = list(range(len(lengths))), batch_size * length_pool
    while True:
        rng.shuffle(order)
        if length_pool == 1:
            yield [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
            continue
        pools = [sorted(order[i : i + pool], key=lengths.__getitem__) for i in range(0, len(order), pool)]
        batches = [members[i : i + batch_size] for members in pools for i in range(0, len(members), batch_size)]
        rng.shuffle(batches)  # else an epoch cut short would miss the long ones of its last pool
        yield batches
