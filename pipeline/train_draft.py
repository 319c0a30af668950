r"""Rule: train a draft model: a few of the target's own layers, fine-tuned to say what the target says.

The draft is layers chosen from the target (the first two and the last, or ``--layers``) between its embedding and its
final norm, both kept as they are, so that the vocabulary and the tied LM head are the target's. It is trained with hard
labels on text that the target generated greedily (``pipeline.selfgen``), on output tokens alone: for greedy decoding
what counts is the same first choice,

    loss = - mean over output tokens t of log softmax(E_S h_t)[y_t],

where E_S are the head's rows for the shortlist S, the ids most frequent in that text. Over 49,152 rows the head would
cost more than all layers of the draft together (vocabulary-restricted drafting, FR-Spec: Zhao et al. 2025).

``draft.json`` tells the share of held-out output tokens on which draft and target agree, and how many tokens a step a
chain of the draft would give there: counted, not modelled, since a greedy draft that agrees so far reads what the
target wrote. A killed training goes on at its last checkpoint. By hand::

    python -m pipeline.train_draft --model results/models/smollm2-135m \
        --text results/parts/smollm2-135m/default/text.jsonl --epochs 3 --shortlist-size 8192 --seed 0 \
        --output results/parts/smollm2-135m/default/draft
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from decoding.loading import end_tokens
from pipeline.draft_objective import IGNORED, DraftObjective, Row, chosen_layers, cut_draft, measured
from pipeline.errors import UserError, command, written_down
from pipeline.files import json_lines, sha256_of, write_reason
from pipeline.selfgen import most_frequent
from pipeline.training_device import add_device, claim_device
from pipeline.training_work import (
    guard,
    keep_freed_memory,
    last_checkpoint,
    on_one_card,
    only,
    prepared_work,
    publish,
    spent_seconds,
    stopwatch,
    trains_in_bfloat16,
    write_loss_curve,
)

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from transformers import LlamaForCausalLM

LEARNING_RATE = 1e-3
CHECKPOINT_STEPS = 50
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "chat_template*")


def read_text(path: Path) -> list[Row]:
    """Return the answers of a text.jsonl.

    Raises:
        UserError: missing, damaged, or without both splits.
    """
    try:
        rows = json_lines(path)
        if rows and "error" in rows[0]:
            raise UserError(rows[0]["error"])
        splits = {row["split"] for row in rows if row["output_ids"] and row["prompt_ids"]}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); run python -m pipeline.selfgen first") from None
    if missing := {"train", "validation"} - splits:
        raise UserError(f"{path}: no answers of the split {sorted(missing)[0]!r}; generate more tokens")
    return rows


def shortlist_of(rows: Iterable[Row], size: int, end_ids: Iterable[int]) -> list[int]:
    """Return the ``size`` ids that the outputs have most often, and the end tokens, in ascending order."""
    ends = set(end_ids)
    others = (token for row in rows for token in row["output_ids"] if token not in ends)
    return sorted([*ends, *most_frequent(others, size - len(ends))])


def examples(
    rows: Sequence[Row], shortlist: Sequence[int], prompt_tokens: int, tokens_per_batch: int, seed: int
) -> list[dict[str, Tensor]]:
    """Return batches of about ``tokens_per_batch`` tokens: ids, and for each place the next output token's label.

    Of a prompt they have the last ``prompt_tokens``: few-shot examples before them teach a draft little and cost much.
    """
    place = {token: index for index, token in enumerate(shortlist)}
    texts = []
    for row in rows:
        prompt, output = row["prompt_ids"][-prompt_tokens:], row["output_ids"]
        labels = [IGNORED] * (len(prompt) - 1) + [place.get(token, IGNORED) for token in output]
        if any(label != IGNORED for label in labels):
            texts.append(((prompt + output)[:-1], labels))
    texts.sort(key=lambda text: len(text[0]))
    groups: list[list[Any]] = [[]]
    for text in texts:
        if (len(groups[-1]) + 1) * len(text[0]) > tokens_per_batch and groups[-1]:
            groups.append([])
        groups[-1].append(text)
    random.Random(seed).shuffle(groups)
    return [padded(group) for group in groups if group]


def padded(texts: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Return ids and labels of several texts as one batch."""
    width = max(len(ids) for ids, _ in texts)
    batch = {
        "input_ids": [ids + [0] * (width - len(ids)) for ids, _ in texts],
        "labels": [labels + [IGNORED] * (width - len(labels)) for _, labels in texts],
    }
    return {name: torch.tensor(values) for name, values in batch.items()}


def train(objective: DraftObjective, batches: list[dict[str, Tensor]], epochs: int, seed: int, work: Path) -> list[Row]:
    """Fine-tune with transformers' Trainer, from the last checkpoint in ``work`` if there is one; return its log."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(work / "checkpoints"),
        num_train_epochs=epochs,
        per_device_train_batch_size=1,  # an example is a whole batch
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=min(20, len(batches)),
        weight_decay=0.01,
        bf16=trains_in_bfloat16(),
        use_cpu=not torch.cuda.is_available(),
        save_steps=CHECKPOINT_STEPS,
        save_total_limit=1,
        logging_steps=5,
        logging_nan_inf_filter=False,
        seed=seed,
        report_to=[],
        remove_unused_columns=False,
    )
    keep_freed_memory()
    trainer = Trainer(
        model=objective,
        args=on_one_card(arguments),
        train_dataset=cast("Dataset[Any]", batches),
        data_collator=only,
        callbacks=[guard(), stopwatch()],
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(work / "checkpoints"))
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def save(
    draft: LlamaForCausalLM, given: argparse.Namespace, work: Path, shortlist: list[int], log: list[Row], record: Row
) -> None:
    """Write the model folder beside its place, then put it there."""
    folder = work / "draft"
    shutil.rmtree(folder, ignore_errors=True)
    cast(nn.Module, draft).to(torch.bfloat16)
    draft.save_pretrained(folder)
    for pattern in TOKENIZER_FILES:
        for file in given.model.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    (folder / "shortlist.json").write_text(json.dumps(shortlist) + "\n", encoding="utf-8")
    write_loss_curve(folder, log)
    (folder / "draft.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    publish(work, folder, given.output)


def train_draft(given: argparse.Namespace) -> None:
    """Do all that the command line asks for."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(given.seed)
    rows = read_text(given.text)
    config = AutoConfig.from_pretrained(given.model, local_files_only=True, trust_remote_code=False)
    layers = chosen_layers(given.layers, config.num_hidden_layers)  # before gigabytes are loaded
    target = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32, local_files_only=True)
    ends = end_tokens(given.model, target.config)
    training = [row for row in rows if row["split"] == "train"]
    held_out = [row for row in rows if row["split"] == "validation"]
    shortlist = shortlist_of(training, given.shortlist_size, ends)
    draft = cut_draft(target, layers)
    del target
    settings = {"text_sha256": sha256_of(given.text), "layers": layers, "epochs": given.epochs}
    settings |= {"shortlist_size": given.shortlist_size, "prompt_tokens": given.prompt_tokens}
    settings |= {"tokens_per_batch": given.tokens_per_batch, "seed": given.seed, "target": given.model.name}
    work = prepared_work(given.output.with_name(f".{given.output.name}.work"), settings)
    objective = DraftObjective(draft, shortlist)
    before = measured(objective, held_out, shortlist)["agreement"]
    batches = examples(training, shortlist, given.prompt_tokens, given.tokens_per_batch, given.seed)
    log = train(objective, batches, given.epochs, given.seed, work)
    objective.cpu()  # where the Trainer found a GPU it left the draft there; it is measured where it was before
    record = settings | {
        "shortlist_size": len(shortlist),
        "output_tokens": sum(len(row["output_ids"]) for row in training),
        "training_seconds": spent_seconds(work),
        "agreement_before": before,
        **measured(objective, held_out, shortlist),
    }
    save(draft, given, work, shortlist, log, record)


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.train_draft", description="Train a draft model.")
    parser.add_argument("--model", type=Path, required=True, help="the target's folder")
    parser.add_argument("--text", type=Path, required=True, help="text.jsonl of pipeline.selfgen")
    parser.add_argument("--layers", type=int, nargs="+", help="default: the first two and the last")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--shortlist-size", type=int, default=8192)
    parser.add_argument("--prompt-tokens", type=int, default=192, help="of each prompt, its last ones")
    parser.add_argument("--tokens-per-batch", type=int, default=1024, help="of a step, prompts and padding included")
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)
    parser.add_argument("--output", type=Path, required=True, help="the draft's folder, which is replaced")
    parser.add_argument(
        "--errors-as-rows", action="store_true", help="if there is no draft, write a draft.json with the reason alone"
    )
    given = parser.parse_args()
    with written_down(given.errors_as_rows, lambda reason: write_reason(given.output / "draft.json", reason)):
        claim_device(given.device)
        train_draft(given)


if __name__ == "__main__":
    main()
