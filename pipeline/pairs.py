r"""Rule: the pairs that a twin and its parallel generators are trained on, and a tokenizer of their own.

The pairs come from a task's train split or from a file of one's own (JSONL with ``source`` and ``target``). A pair
whose source is among the evaluated documents is dropped and counted. The tokenizer is a byte-level BPE (Sennrich et al.
2016) trained on both sides of the train split, so that no text is unknown to it; it ends every prompt with ``<sep>``,
behind which the target begins. By hand::

    python -m pipeline.pairs --task verbalized_plain --evaluated results/tasks/verbalized_plain/data.jsonl \
        --num-pairs 20000 --vocab-size 512 --seed 0 --output results/twins/verbalized/pairs
    python -m pipeline.pairs --path my_pairs.jsonl --vocab-size 8000 --seed 0 --output results/twins/mine/pairs
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, command, tell
from pipeline.files import atomic_path, atomic_write, sha256_of, write_reason
from pipeline.registry import TASKS, find
from pipeline.tasks.source import Document, keep, read_jsonl, to_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, SEPARATOR, END = "<pad>", "<sep>", "</s>"
VALIDATION_PER_MILLE = 20  # of a file of one's own, which brings no split
Splits = dict[str, list[Document]]


def split_file(rows: Iterable[Document]) -> Splits:
    """Split one's own pairs by the hash of their source, the same whatever their order."""
    splits: Splits = {"train": [], "validation": []}
    for row in rows:
        bucket = int(hashlib.sha256(row["source"].encode()).hexdigest(), 16) % 1000
        splits["validation" if bucket < VALIDATION_PER_MILLE else "train"].append(row)
    return splits


def pairs_of(task: str | None, path: Path | None, num_pairs: int | None, seed: int) -> Splits:
    """Return the train and validation pairs.

    Raises:
        UserError: neither a task with a train split nor a readable file, or a split is empty.
    """
    if task is None:
        if path is None:
            raise UserError("pairs: give --task or --path")
        splits = split_file(read_jsonl(path, keep("source", "target")))
    else:
        module = importlib.import_module(find(task, TASKS, "task").source)
        if not hasattr(module, "training_pairs"):
            raise UserError(f"task {task!r} has no train split to learn from")
        splits = module.training_pairs(path, num_pairs, seed)
    for name, rows in splits.items():
        if not rows:
            raise UserError(f"pairs: the {name} split is empty")
    return {name: rows[:num_pairs] if name == "train" else rows for name, rows in splits.items()}


def without(splits: Splits, evaluated: Iterable[Mapping[str, Any]]) -> tuple[Splits, int]:
    """Drop the pairs whose source is evaluated, in any letter case and spacing; return also how many they were."""
    asked = {" ".join(str(document["source"]).lower().split()) for document in evaluated}
    kept = {
        name: [row for row in rows if " ".join(row["source"].lower().split()) not in asked]
        for name, rows in splits.items()
    }
    return kept, sum(map(len, splits.values())) - sum(map(len, kept.values()))


def within(splits: Splits, tokenizer: PreTrainedTokenizerFast, most: int | None) -> tuple[Splits, int]:
    """Drop the pairs whose target has more than ``most`` tokens, its end among them; return also how many they were.

    A few long texts set how many slots a model must have, and so what each of its passes costs.
    """
    if most is None:
        return splits, 0
    kept: Splits = {}
    for name, rows in splits.items():
        ids = tokenizer([row["target"] for row in rows], add_special_tokens=False)["input_ids"]
        kept[name] = [row for row, target in zip(rows, ids, strict=True) if len(target) < most]
        if not kept[name]:
            raise UserError(f"--max-target-tokens {most}: no pair of the {name} split has so few")
    return kept, sum(map(len, splits.values())) - sum(map(len, kept.values()))


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE over ``texts`` that ends a prompt with the separator."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, SEPARATOR, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    separator = tokenizer.token_to_id(SEPARATOR)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {SEPARATOR}", pair=None, special_tokens=[(SEPARATOR, separator)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    )


def write_pairs(given: argparse.Namespace) -> None:
    """Write ``pairs.jsonl``, the tokenizer's files, and last ``pairs.json``, which says that all is there."""
    splits = pairs_of(given.task, given.path, given.num_pairs, given.seed)
    evaluated = [] if given.evaluated is None else read_jsonl(given.evaluated, keep("source"))
    splits, dropped = without(splits, evaluated)
    texts = [row[side] for row in splits["train"] for side in ("source", "target")]
    tokenizer = train_tokenizer(texts, given.vocab_size)
    splits, too_long = within(splits, tokenizer, given.max_target_tokens)
    rows = [{"split": name, **row} for name in splits for row in splits[name]]
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "pairs.json").unlink(missing_ok=True)
    with atomic_path(given.output / "tokenizer.json") as temporary:
        tokenizer.backend_tokenizer.save(str(temporary))
    tokenizer.save_pretrained(given.output)
    atomic_write(given.output / "pairs.jsonl", to_jsonl(rows))
    record = {
        "task": given.task,
        "path": None if given.path is None else str(given.path),
        "seed": given.seed,
        "num_pairs": {name: len(pairs) for name, pairs in splits.items()},
        "dropped_since_evaluated": dropped,
        "dropped_since_long": too_long,
        "vocab_size": len(tokenizer),
        "sha256": sha256_of(given.output / "pairs.jsonl"),
    }
    atomic_write(given.output / "pairs.json", json.dumps(record, indent=2) + "\n")


@command
def main() -> None:
    """Write the pairs, or, as a row, why there are none."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.pairs", description="Write training pairs.")
    parser.add_argument("--task", help="a task with a train split")
    parser.add_argument("--path", type=Path, help="the task's data, or a JSONL of one's own with source and target")
    parser.add_argument("--evaluated", type=Path, help="data.jsonl whose sources must not be learned")
    parser.add_argument("--num-pairs", type=int, help="at most so many pairs of the train split")
    parser.add_argument("--vocab-size", type=int, default=512)
    parser.add_argument("--max-target-tokens", type=int, help="leave out pairs with a longer target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--errors-as-rows", action="store_true", help="write the reason alone if there are no pairs")
    given = parser.parse_args()
    try:
        write_pairs(given)
    except UserError as error:
        if not given.errors_as_rows:
            raise
        tell(error)
        write_reason(given.output / "pairs.json", str(error))


if __name__ == "__main__":
    main()
