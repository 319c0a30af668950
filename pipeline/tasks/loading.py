"""Load a task through lm-eval's Task API: ours by name, or any other ``generate_until`` YAML by path.

Example::

    task = load_task("docstrings", Path("results/tasks/docstrings/data.jsonl"), max_new_tokens=64)
    task.build_all_requests(limit=10)
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.registry import TASKS, find

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

PROJECT = Path(__file__).resolve().parents[2]


def yaml_of(task: str) -> Path:
    """Return the YAML file of a registered task, or the path itself if ``task`` is one.

    Raises:
        UserError: neither a known name nor a file.
    """
    if not task.endswith((".yaml", ".yml")):
        return PROJECT / find(task, TASKS, "task").yaml
    if not Path(task).is_file():
        raise UserError(f"task {task!r}: no such file")
    return Path(task)


def load_task(task: str, data_file: Path, max_new_tokens: int | None = None) -> ConfigurableTask:
    """Return lm-eval's Task over the documents of ``data_file``.

    Args:
        task: a name from ``pipeline.registry.TASKS``, or the path of a YAML (one that does not read
            ``metadata.data_file`` brings its own data).
        data_file: JSONL, one document a line, as ``pipeline.dataset`` writes it.
        max_new_tokens: replaces the YAML's ``generation_kwargs.max_gen_toks``.

    Raises:
        UserError: unknown task, missing or empty data file, or a task that does not generate text.
    """
    yaml = yaml_of(task)
    if not data_file.is_file() or not data_file.stat().st_size:
        raise UserError(f"{data_file}: missing or empty; run python -m pipeline.dataset --task {task} first")
    # lm-eval warns about every default that it fills in; here they are all meant.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, metadata={"data_file": str(data_file)})
    (loaded,) = manager.load(str(yaml))["tasks"].values()
    if loaded.OUTPUT_TYPE != "generate_until":
        raise UserError(f"task {task!r} has output_type {loaded.OUTPUT_TYPE!r}; only 'generate_until' can be timed")
    if max_new_tokens is not None:
        loaded.set_config("generation_kwargs", {"max_gen_toks": max_new_tokens}, update=True)
    return loaded
