r"""Rule: train an autoregressive twin, or a model that generates in parallel, on pairs of texts. By hand::

    python -m pipeline.train --generator autoregressive --pairs results/twins/verbalized/pairs \
        --backbone '{"hidden_size": 192, "num_layers": 4}' --steps 600 --output results/models/verbalized
    python -m pipeline.train --generator shufflelm --pairs results/twins/verbalized/pairs \
        --backbone '{"hidden_size": 192, "num_layers": 4}' --steps 600 --output results/twins/verbalized/shufflelm

Two models are compared only if all that differs is how they generate: same pairs, tokenizer, backbone, number of steps,
examples a step, schedule and seed. ``--distilled`` gives the file of the twin's answers (``pipeline.distill``), which a
distilled generator learns from in place of the references; ``--start-from`` a pretrained Llama, not random weights.

On several devices or machines the same command goes under a launcher, and a step then takes the examples of all
processes together::

    torchrun --nproc_per_node 2 -m pipeline.train ...
    accelerate launch --use_fsdp --fsdp_version 2 -m pipeline.train ...

A killed run goes on from its last checkpoint when the same command is run again. The folder appears whole or not at
all: the model in safetensors, ``generator.json`` (``source.json`` of a twin), and ``loss.csv`` with the learning curve.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.arguments import json_object
from pipeline.errors import UserError, command, nearest, written_down
from pipeline.files import sha256_of, sha256_of_all, write_reason
from pipeline.generators import GENERATORS, TWIN
from pipeline.registry import find, import_target
from pipeline.trainer import Recipe, make_trainer, parts_of_a_step, training_batches
from pipeline.training_device import add_device, claim_device
from pipeline.training_examples import Batches, read_examples
from pipeline.training_work import last_checkpoint, prepared_work, publish, spent_seconds, write_loss_curve

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from shuffle.examples import Example

VALIDATION_EXAMPLES = 256


def make_model(
    generator: str,
    backbone: dict[str, Any],
    options: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    start_from: str | None,
) -> PreTrainedModel:
    """Return the model, with random weights or those of ``start_from``; ``longest`` is the longest target in tokens.

    Raises:
        UserError: a key is unknown or a value out of range.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from shuffle.backbone import BackboneConfig

    if start_from:
        check_tokenizer(start_from, tokenizer)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if generator == TWIN:
        if options:
            raise UserError(f"--options {options}: the twin has none; --backbone shapes it")
        if start_from:
            twin: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                start_from, use_safetensors=True, dtype=torch.float32
            )
            return twin
        config = checked(BackboneConfig, backbone | ids).llama()
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        return made
    entry = find(generator, GENERATORS, "generator")
    config_class, model_class = import_target(entry.config), import_target(entry.model)
    own: dict[str, Any] = {**entry.training, **options}
    if "max_parallel_tokens" in config_class.__dataclass_fields__:
        own.setdefault("max_parallel_tokens", -(-longest // 4) * 4)
    if start_from:
        checked(config_class, own | ids)  # before anything is loaded
        started: PreTrainedModel = model_class.from_backbone(start_from, **own)
        for name, value in backbone.items():
            if (theirs := getattr(started.config, name, value)) != value:
                raise UserError(f"--backbone {name} = {value}: --start-from {start_from} has {theirs}")
        return started
    built: PreTrainedModel = model_class(checked(config_class, backbone | own | ids))
    return built


def check_tokenizer(start_from: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a model means by its token ids what the pairs mean.

    Raises:
        UserError: it does not, or brings no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(start_from, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--start-from {start_from}: its tokenizer cannot be read ({error})") from None
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"--start-from {start_from}: its tokenizer has {len(theirs)} tokens and is not that of the pairs "
            f"({len(tokenizer)} tokens), whose ids would mean other words to it"
        )


def fitted(model: PreTrainedModel, texts: Sequence[Example]) -> list[Example]:
    """Return what a model learns from ``texts``: one with slots, a text of more tokens than those block by block.

    Raises:
        UserError: a prompt, with the blocks before, leaves the slots no positions.
    """
    from shuffle.examples import in_blocks

    slots = getattr(model.config, "max_parallel_tokens", None)
    if slots is None:
        return list(texts)
    room = model.config.max_position_embeddings
    blocks = [block for example in texts for block in in_blocks(example, slots)]
    for prompt, _ in blocks:
        if len(prompt) + slots > room:
            raise UserError(
                f"backbone.max_position_embeddings = {room}: a prompt of {len(prompt)} tokens and {slots} slots "
                "exceed it"
            )
    return blocks


def checked(config_class: Any, values: dict[str, Any]) -> Any:
    """Return the configuration; a dataclass of transformers would keep an unknown key in silence."""
    known = set(config_class.__dataclass_fields__)
    for name in values:
        if name not in known:
            raise UserError(f"{config_class.__name__}.{name} = {values[name]!r}: no such key; {nearest(name, known)}")
    try:
        return config_class(**values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{config_class.__name__}: {error}") from error


def train(given: argparse.Namespace) -> None:
    """Do all that the command line asks for.

    Raises:
        UserError: the pairs are missing or damaged, or an option is not valid.
    """
    import torch
    from transformers import AutoTokenizer, set_seed

    from shuffle.examples import collate_causal

    recipe = Recipe(**{name: getattr(given, name) for name in asdict(Recipe())})
    texts = read_examples(given.pairs, given.distilled)
    tokenizer = AutoTokenizer.from_pretrained(given.pairs, local_files_only=True, trust_remote_code=False)
    longest = max(len(example.target_ids) for split in texts.values() for example in split)
    set_seed(recipe.seed)
    model = make_model(given.generator, given.backbone, given.options, tokenizer, longest, given.start_from)
    texts = {split: fitted(model, examples) for split, examples in texts.items()}
    if given.generator == TWIN or not torch.cuda.is_available():
        # On texts this short the backward pass of the CPU's SDPA kernel alone takes a quarter of a step. On a GPU (seen
        # on an H200 with torch 2.11) it gives NaN where a row of a causal model sees nothing, as padding before a text.
        model.set_attn_implementation("eager")
    collate = getattr(type(model), "collate", collate_causal)
    parts = parts_of_a_step(given.generator, recipe.batch_size)
    batches = training_batches(texts["train"], recipe, collate, parts)
    validation = Batches(texts["validation"][:VALIDATION_EXAMPLES], recipe.batch_size, None, recipe.seed, collate)
    settings = description(given, recipe) | {"parts_of_a_step": parts}
    work = prepared_work(given.output.with_name(f".{given.output.name}.work"), settings)
    trainer = make_trainer(model, batches, validation, recipe, work, parts)
    trainer.train(resume_from_checkpoint=last_checkpoint(work / "checkpoints"))
    # By all processes together: where the weights are sharded, each has only its part.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    log = trainer.state.log_history
    record = settings | {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_tokens": sum(len(example.target_ids) for example in texts["train"]),
        "training_seconds": spent_seconds(work),
        "validation_loss": next((row["eval_loss"] for row in reversed(log) if "eval_loss" in row), None),
        "num_processes": trainer.args.world_size,
    }
    save(model, weights, tokenizer, given, work, log, record)


def description(given: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Return all that the weights depend on: a killed run is gone on with only if it was the same."""
    entry = GENERATORS.get(given.generator)
    return {
        "generator": given.generator,
        "definition": entry.definition if entry else TWIN,
        "pairs_sha256": sha256_of(given.pairs / "pairs.jsonl"),
        "distilled_sha256": sha256_of(given.distilled) if given.distilled else None,
        "backbone": given.backbone,
        "options": given.options,
        "start_from": given.start_from,
        "start_from_sha256": weights_of(given.start_from),
        **asdict(recipe),
    }


def weights_of(start_from: str | None) -> str | None:
    """Return a hash of the weights that a training starts from; None for random ones, and those of a hub."""
    files = list(Path(start_from).glob("*.safetensors")) if start_from else []
    return sha256_of_all(files) if files else None


def record_of(generator: str) -> str:
    """Return the name of the file that says how a model was made: a twin is a model like any other."""
    return "source.json" if generator == TWIN else "generator.json"


def save(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    given: argparse.Namespace,
    work: Path,
    log: list[dict[str, Any]],
    record: dict[str, Any],
) -> None:
    """Write the folder beside its place, then put it there."""
    folder = work / "model"
    shutil.rmtree(folder, ignore_errors=True)
    if hasattr(model, "generation_config") and model.generation_config is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    write_loss_curve(folder, [row for row in log if "loss" in row or "eval_loss" in row])
    if given.generator == TWIN:
        digest = sha256_of_all(folder.glob("*.safetensors"))
        record = {"source": f"trained:{given.output.name}", "weights_sha256": digest, **record}
    (folder / record_of(given.generator)).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    publish(work, folder, given.output)
    seconds, loss = record["training_seconds"], record["validation_loss"]
    told = f"validation loss {loss:.4f} after {seconds:.0f} s"
    print(f"train: {given.generator}: {told}: {given.output}", file=sys.stderr)


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", required=True, help=f"{TWIN}, {', '.join(GENERATORS)}")
    parser.add_argument("--pairs", type=Path, required=True, help="the folder that pipeline.pairs wrote")
    parser.add_argument("--distilled", type=Path, help="targets of pipeline.distill, in place of the references")
    parser.add_argument("--backbone", type=json_object, default={}, help="shape of the backbone, JSON")
    parser.add_argument("--options", type=json_object, default={}, help="the generator's own settings, JSON")
    parser.add_argument("--start-from", help="a pretrained Llama: a folder or a hub id, in safetensors")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    add_device(parser)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write, which is replaced")
    parser.add_argument("--errors-as-rows", action="store_true", help="write the reason alone if there is no model")
    given = parser.parse_args()
    record = given.output / record_of(given.generator)
    with written_down(given.errors_as_rows, lambda reason: write_reason(record, reason)):
        if given.generator != TWIN:
            find(given.generator, {TWIN: None, **GENERATORS}, "generator")
        claim_device(given.device)
        train(given)


if __name__ == "__main__":
    main()
