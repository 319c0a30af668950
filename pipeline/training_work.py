"""The folder that a training works in: it outlives a killed run, and becomes the result at once.

Example::

    keep_freed_memory()
    work = prepared_work(output.with_name(f".{output.name}.work"), settings)    # a killed run's, or an empty one
    trainer.train(resume_from_checkpoint=last_checkpoint(work / "checkpoints"))
    write_loss_curve(work / "draft", trainer.state.log_history)
    publish(work, work / "draft", output)
"""

from __future__ import annotations

import csv
import ctypes
import json
import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import atomic_write

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainingArguments

STATE = "trainer_state.json"  # of a checkpoint
STOPWATCH = "Stopwatch"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where the C library is glibc; elsewhere nothing is done.

    By default each large tensor is mapped from the system and given back: a training step then clears the same pages
    again and again, a fifth of the time of a small model's step on a CPU.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # as unsigned: never


def trains_in_bfloat16() -> bool:
    """Return whether mixed precision pays: on a GPU, or a CPU whose matrix products in bfloat16 are not emulated."""
    import torch

    from pipeline.precision import multiplies_in

    return torch.cuda.is_available() or multiplies_in(torch.device("cpu"), torch.bfloat16)


def on_one_card(arguments: TrainingArguments) -> TrainingArguments:
    """Keep a process to one card, and return ``arguments``.

    The Trainer would spread over all cards that a process sees, and take as many items a step for them: items here are
    whole batches, of which one would be learned from. Several cards have a process each, by a launcher.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def only(items: Sequence[Any]) -> Any:
    """Collate: an item is a whole batch. Raises ``ValueError`` where there are several."""
    (item,) = items
    return item


def prepared_work(work: Path, settings: Mapping[str, Any]) -> Path:
    """Return ``work``, emptied unless it is of an unfinished training with the same settings."""
    stamp, described = work / "settings.json", json.dumps(settings, indent=2) + "\n"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != described:
        shutil.rmtree(work, ignore_errors=True)
        atomic_write(stamp, described)
    return work


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that a Trainer left in ``folder``; one that a kill left in parts is removed."""
    from transformers.trainer_utils import get_last_checkpoint

    if not folder.is_dir():
        return None
    for checkpoint in folder.glob("checkpoint-*"):
        if not is_whole(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)  # under a launcher each process comes by here
    found: str | None = get_last_checkpoint(str(folder))  # type: ignore[no-untyped-call]
    return found


def is_whole(checkpoint: Path) -> bool:
    """Return whether all of a checkpoint is there: the Trainer writes its own state last."""
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def stopwatch() -> TrainerCallback:
    """Return what notes the time of a training in every checkpoint: a killed run's part counts too."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    class Stopwatch(TrainerCallback, ExportableState):
        started, before = time.perf_counter(), 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            # What the checkpoint says that is gone on with; without one all begins anew.
            noted = state.stateful_callbacks[STOPWATCH]["attributes"]["seconds"] if state.global_step else 0.0
            self.started, self.before = time.perf_counter(), noted

        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {"seconds": self.before + time.perf_counter() - self.started}}

    assert Stopwatch.__name__ == STOPWATCH  # the name under which the Trainer notes its state
    return Stopwatch()


def guard() -> TrainerCallback:
    """Return what ends a training whose loss is no number any more.

    Needs ``logging_nan_inf_filter=False``: transformers' Trainer else logs such a loss as none. Raises ``UserError``.
    """
    from transformers import TrainerCallback

    class Guard(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
            # Before the step's checkpoint is written, so that the last one is whole.
            if not all(math.isfinite(float(logs.get(name, 0.0))) for name in ("loss", "eval_loss")):
                raise UserError(
                    f"the loss is no number any more at step {state.global_step}: a lower learning rate"
                    f" (now {args.learning_rate}) may help; the same command goes on from the last checkpoint"
                )

    return Guard()


def spent_seconds(work: Path) -> float:
    """Return the time that a training took up to its last checkpoint, of which the Trainer writes one at the end."""
    checkpoint = last_checkpoint(work / "checkpoints")
    if checkpoint is None:
        return 0.0
    state = json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8"))
    return round(float(state["stateful_callbacks"][STOPWATCH]["attributes"]["seconds"]), 1)


def write_loss_curve(folder: Path, log: Iterable[Mapping[str, Any]]) -> None:
    """Write what a Trainer logged of its loss to ``loss.csv``."""
    with (folder / "loss.csv").open("w", encoding="utf-8", newline="") as file:
        names = ["step", "epoch", "loss", "eval_loss", "learning_rate"]
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(log)


def publish(work: Path, folder: Path, output: Path) -> None:
    """Let ``folder`` become ``output``, in place of an older one, and remove ``work``."""
    if output.exists():
        output.rename(work / "old")
    folder.rename(output)
    shutil.rmtree(work, ignore_errors=True)
