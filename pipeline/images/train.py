r"""Rule: train an image transformer on the digits that may be learned from. By hand::

    python -m pipeline.images.train --tokens results/images/laptop/digits --window 2 --shuffle-blocks 1 \
        --backbone '{"hidden_size": 128, "num_layers": 4}' --steps 400 --output results/images/laptop/window_2

Windows are compared only if all that differs is how many tokens a row holds: same digits, codes, backbone, number of
steps, images a step, schedule and seed. The one with a window of 1 has no added layers, the others have; the record
says how many weights each has and how long it took. A killed run goes on from its last checkpoint. The folder appears
whole or not at all: safetensors, ``model.json``, ``loss.csv``. The validation loss is of held-out digits; nothing is
chosen by it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.arguments import json_object
from pipeline.errors import UserError, command
from pipeline.files import sha256_of, sha256_of_all
from pipeline.images.data import NUM_CLASSES
from pipeline.images.records import MODEL_RECORD, TOKENIZER_RECORD, TOKENS, read_arrays, read_record
from pipeline.train import checked
from pipeline.trainer import Recipe, make_trainer
from pipeline.training_device import add_device, claim_device
from pipeline.training_examples import Batches
from pipeline.training_work import last_checkpoint, prepared_work, publish, spent_seconds, write_loss_curve
from shuffle.examples import Example


def examples_of(arrays: dict[str, Any], training: bool) -> list[Example]:
    """Return the digits that may be learned from, or the others: class and codes."""
    chosen = arrays["is_training"] == training
    pairs = zip(arrays["classes"][chosen].tolist(), arrays["ids"][chosen], strict=True)
    return [Example((label,), tuple(ids.flatten().tolist())) for label, ids in pairs]


def train(given: argparse.Namespace) -> None:
    """Do all that the command line asks for.

    Raises:
        UserError: the tokens are missing, or an option is not valid.
    """
    from transformers import set_seed

    from shuffle.tokenshuffle.config import TokenShuffleConfig
    from shuffle.tokenshuffle.model import TokenShuffleTransformer

    recipe = Recipe(**{name: getattr(given, name) for name in asdict(Recipe())})
    arrays = read_arrays(given.tokens / TOKENS, "tokenise")
    tokenizer = read_record(given.tokens / TOKENIZER_RECORD, "tokenise")
    own = {
        "vocab_size": tokenizer["codebook_size"],
        "grid_size": arrays["ids"].shape[1],
        "window": given.window,
        "shuffle_blocks": given.shuffle_blocks,
        "num_classes": NUM_CLASSES,
    }
    config = checked(TokenShuffleConfig, given.backbone | own)
    set_seed(recipe.seed)
    model = TokenShuffleTransformer(config)
    learned, held_out = examples_of(arrays, training=True), examples_of(arrays, training=False)
    batches = Batches(learned, recipe.batch_size, recipe.steps, recipe.seed, model.collate, recipe.length_pool)
    validation = Batches(held_out, recipe.batch_size, None, recipe.seed, model.collate)
    settings = {"tokens_sha256": sha256_of(given.tokens / TOKENS), "backbone": given.backbone, **own, **asdict(recipe)}
    work = prepared_work(given.output.with_name(f".{given.output.name}.work"), settings)
    trainer = make_trainer(model, batches, validation, recipe, work)
    trainer.train(resume_from_checkpoint=last_checkpoint(work / "checkpoints"))
    log = trainer.state.log_history
    record = settings | {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_images": len(learned),
        "training_seconds": spent_seconds(work),
        "validation_loss": next((row["eval_loss"] for row in reversed(log) if "eval_loss" in row), None),
    }
    save(model, log, record, work, given.output)


def save(model: Any, log: list[dict[str, Any]], record: dict[str, Any], work: Path, output: Path) -> None:
    """Write the folder beside its place, then put it there."""
    folder = work / "model"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    write_loss_curve(folder, [row for row in log if "loss" in row or "eval_loss" in row])
    record |= {"weights_sha256": sha256_of_all(folder.glob("*.safetensors"))}
    (folder / MODEL_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    publish(work, folder, output)
    told = f"validation loss {record['validation_loss']:.4f} after {record['training_seconds']:.0f} s"
    print(f"images.train: window {record['window']}: {told}: {output}", file=sys.stderr)


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True, help="the folder of the digits' tokens")
    parser.add_argument(
        "--window", type=int, required=True, help="tokens along a side of a window; 1: no Token-Shuffle"
    )
    parser.add_argument("--shuffle-blocks", type=int, default=1, help="residual MLP blocks in each added layer")
    parser.add_argument("--backbone", type=json_object, default={}, help="shape of the backbone, JSON")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    add_device(parser)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write, which is replaced")
    given = parser.parse_args()
    if given.window < 1:
        raise UserError(f"window must be 1 or more, not {given.window}")
    claim_device(given.device)
    train(given)


if __name__ == "__main__":
    main()
