"""``python -m pipeline list``: the models, methods and tasks that there are, and what of them a profile runs.

Read off the registry and the profile alone, so it is quick: torch is not loaded.

Example::

    show("methods", read_profile("laptop"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.cli.choices import models_of
from pipeline.cli.output import show_table
from pipeline.config import Settings
from pipeline.errors import UserError, nearest
from pipeline.registry import METHODS, TASKS

KINDS = {"drafter": "engine", "peer": "transformers", "generator": "parallel"}  # what runs the method


def show(what: str, settings: Settings) -> None:
    """Print the table of ``what``.

    Raises:
        UserError: there is no such table.
    """
    if what not in TABLES:
        raise UserError(f"list: unknown {what!r}; {nearest(what, TABLES)}")
    TABLES[what](settings)


def _models(settings: Settings) -> None:
    rows = []
    for name, model in models_of(settings).items():
        there = "yes" if model.is_there or model.record is None else model.command(model.record)
        rows.append([name, model.origin, " ".join(model.dtypes), str(model.folder), there])
    show_table(["model", "from", "dtypes", "folder", "there, or how to get it"], rows)


def _methods(settings: Settings) -> None:
    used = {*settings.methods, *(name for twin in settings.twins.values() for name in twin.methods)}
    rows = []
    for name, entry in METHODS.items():
        claim = "lossless" if entry.lossless else "lossy"
        rows.append([name, claim, KINDS[entry.kind], " ".join(entry.parts) or "-", "yes" if name in used else "-"])
    show_table(["method", "claims", "runs on", "needs", f"in {settings.profile}"], rows)


def _options(settings: Settings) -> None:
    show_table(["method", "options"], [[name, " ".join(entry.all_options) or "-"] for name, entry in METHODS.items()])


def _tasks(settings: Settings) -> None:
    prompts = {name: task.num_prompts for name, task in settings.tasks.items()}
    prompts |= {twin.task: twin.num_prompts for twin in settings.twins.values()}
    rows = [
        [name, task.group, task.metric, " ".join(task.origins), str(prompts.get(name, "-"))]
        for name, task in TASKS.items()
    ]
    show_table(["task", "kind", "metric", "data from", f"prompts in {settings.profile}"], rows)


TABLES: Mapping[str, Callable[[Settings], None]] = {
    "models": _models,
    "methods": _methods,
    "options": _options,
    "tasks": _tasks,
}
