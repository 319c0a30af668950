"""What the rules share that train something on a frozen target's hidden states: the Trainer's settings, the command.

Such a rule is a dataclass of settings, each a flag, and a function that writes a folder. Example::

    curve = fit(module, States(hidden, labels), settings, work, SAVE_STEPS, say)

    @command
    def main() -> None:
        run_rule(__doc__, Settings, train_heads, "heads")
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from pipeline.errors import written_down
from pipeline.files import write_reason
from pipeline.heads_states import States
from pipeline.training_device import add_device, claim_device
from pipeline.training_work import guard, keep_freed_memory, last_checkpoint, on_one_card, trains_in_bfloat16

Settings = TypeVar("Settings")


class Schedule(Protocol):
    """How long and how fast is learned."""

    @property
    def epochs(self) -> float:
        """Passes over the states."""

    @property
    def batch_size(self) -> int:
        """States a step."""

    @property
    def learning_rate(self) -> float:
        """The highest."""

    @property
    def seed(self) -> int:
        """Of the order."""


def fit(
    module: nn.Module, data: States, schedule: Schedule, work: Path, save_steps: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Train ``module`` in place, from the last checkpoint in ``work`` if there is one; return the loss curve."""
    on_cpu = not torch.cuda.is_available()
    steps_an_epoch = -(-len(data) // schedule.batch_size)
    arguments = TrainingArguments(
        output_dir=str(work / "checkpoints"),
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.05 * steps_an_epoch * schedule.epochs)),
        weight_decay=0.0,
        optim="adamw_torch_fused",
        use_cpu=on_cpu,
        bf16=trains_in_bfloat16(),
        logging_steps=10,
        logging_nan_inf_filter=False,
        save_steps=save_steps,
        save_total_limit=1,
        seed=schedule.seed,
        data_seed=schedule.seed,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=not on_cpu,
    )
    keep_freed_memory()
    # Nothing is collated: the data hands out whole batches.
    trainer = Trainer(
        model=module,
        args=on_one_card(arguments),
        train_dataset=data,
        data_collator=lambda batch: batch,  # type: ignore[arg-type, return-value]
        callbacks=[guard()],
    )
    last = last_checkpoint(work / "checkpoints")
    if last:
        say(f"going on from {Path(last).name}")
    trainer.train(resume_from_checkpoint=last)
    module.cpu()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def run_rule(
    description: str | None, settings: type[Settings], train: Callable[[Path, Path, Path, Settings], None], part: str
) -> None:
    """Read the command line and do it.

    Args:
        description: of the command.
        settings: a dataclass with defaults, each field a flag.
        train: takes the target's folder, the text, the folder to write, and the settings.
        part: what is trained, and the name of its record.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the target's folder")
    parser.add_argument("--text", type=Path, required=True, help="text.jsonl of pipeline.selfgen")
    add_device(parser)
    parser.add_argument("--output", type=Path, required=True, help=f"the folder to write: the {part}")
    for name, value in asdict(settings()).items():  # type: ignore[call-overload]
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument(
        "--errors-as-rows",
        action="store_true",
        help=f"if there is nothing to train, write {part}.json with the reason alone, for the cells to tell as a row",
    )
    arguments = vars(parser.parse_args())
    model_dir, text, output = (arguments.pop(name) for name in ("model", "text", "output"))
    errors_as_rows, device = arguments.pop("errors_as_rows"), arguments.pop("device")
    with written_down(errors_as_rows, lambda reason: write_reason(output / f"{part}.json", reason)):
        claim_device(device)
        train(model_dir, text, output, settings(**arguments))
