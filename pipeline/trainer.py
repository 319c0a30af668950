"""How a twin, a parallel generator or an image model is trained: the recipe, and transformers' Trainer set up for it.

Example::

    trainer = make_trainer(model, Batches(...), Batches(...), Recipe(steps=600), work)
    trainer.train(resume_from_checkpoint=last_checkpoint(work / "checkpoints"))
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pipeline.errors import UserError
from pipeline.generators import TWIN
from pipeline.training_examples import Batches, Collate
from pipeline.training_work import guard, keep_freed_memory, on_one_card, only, stopwatch, trains_in_bfloat16

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments

    from shuffle.examples import Example

SMALL = 50_000_000  # parameters
PART = 64  # examples of a step that a CPU reads at once
CHECKPOINTS = 10  # in the course of a training, and as often the validation loss is measured


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a model learns; the same for a twin and all that is compared with it."""

    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    dropout: float = 0.0
    length_pool: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0 and name not in ("seed", "weight_decay", "dropout"):
                raise UserError(f"--{name.replace('_', '-')} must be above 0, not {value}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout must be at least 0 and below 1, not {self.dropout}")


@runtime_checkable
class ChangesInTraining(Protocol):
    """A model whose loss changes in the course of training."""

    def set_progress(self, fraction: float) -> None:
        """Take note of the share of training that is done."""


def training_arguments(recipe: Recipe, work: Path, num_parameters: int, parts: int = 1) -> TrainingArguments:
    """Return what transformers' Trainer is told; under a launcher it finds the other processes by itself."""
    import torch
    from transformers import TrainingArguments

    on_cpu = not torch.cuda.is_available()
    # The kernels of a small model are shorter on a GPU than the time that starting them takes, and mixed precision adds
    # casts to them. TF32 adds none, and is fast enough.
    is_small = not on_cpu and num_parameters < SMALL
    every = max(1, recipe.steps // CHECKPOINTS)
    return TrainingArguments(
        output_dir=str(work / "checkpoints"),
        max_steps=recipe.steps,
        per_device_train_batch_size=1,  # an item is a whole batch
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=parts,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, recipe.steps // 20),
        weight_decay=recipe.weight_decay,
        adam_beta2=0.98,
        optim="adamw_torch_fused",
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        bf16=trains_in_bfloat16() and not is_small,
        tf32=True if is_small and torch.cuda.get_device_capability() >= (8, 0) else None,
        eval_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=1,
        logging_steps=max(1, recipe.steps // 50),
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to="none",
        logging_nan_inf_filter=False,  # a loss that is no number is to be seen
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        dataloader_pin_memory=not on_cpu,
    )


def parts_of_a_step(generator: str, batch_size: int) -> int:
    """Return in how many parts a step reads its examples, one after the other; their gradients are added.

    A CPU reads 512 captions in parts of 64 in 2.5 s, and at once in 3.5: what a part leaves for its backward pass stays
    near, and there is less padding. It is done where the sum is the gradient of the whole, whose loss is a mean over
    all of a step's tokens: the Trainer tells a twin their number, and our own models take the mean of each part.
    """
    import torch

    whole = batch_size % PART == 0 and generator == TWIN and not torch.cuda.is_available()
    return batch_size // PART if whole else 1


def training_batches(examples: Sequence[Example], recipe: Recipe, collate: Collate, parts: int) -> Batches:
    """Return what a training reads, a step in ``parts`` items."""
    pool = recipe.length_pool if recipe.length_pool == 1 else recipe.length_pool * parts
    return Batches(examples, recipe.batch_size // parts, recipe.steps * parts, recipe.seed, collate, pool)


def make_trainer(
    model: PreTrainedModel, train: Batches, validation: Batches, recipe: Recipe, work: Path, parts: int = 1
) -> Trainer:
    """Return transformers' Trainer over whole batches; the model is given the recipe's dropout.

    A step takes ``parts`` items of ``train``. Training raises ``UserError`` where the loss is no number any more.
    """
    from transformers import Trainer, TrainerCallback

    from shuffle.dropout import add_dropout

    class Progress(TrainerCallback):
        """Tells a model that changes in the course of training how far it is."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if isinstance(model, ChangesInTraining):
                model.set_progress(state.global_step / state.max_steps)

    keep_freed_memory()
    add_dropout(model, recipe.dropout)
    return Trainer(
        model=model,
        args=on_one_card(training_arguments(recipe, work, model.num_parameters(), parts)),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=only,
        callbacks=[Progress(), guard(), stopwatch()],
    )
