"""What exists: the methods and the tasks, by name, as strings that are resolved only when used.

Nothing here imports a method, so that reading a configuration or drawing a table never loads torch. To add a method,
write its file and add its line; a test compares ``options`` with what the method really takes. Example::

    Drafter = import_target(find("prompt_lookup", METHODS, "method").target)
    drafter = Drafter(num_draft_tokens=8)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import PositiveInt

from pipeline.errors import UserError, nearest

Entry = TypeVar("Entry")
Origin = Literal["embedded", "path", "hub"]


@dataclass(frozen=True)
class Method:
    """One way to generate.

    ``target`` is ``module:name`` of a class: of a drafter or, for a peer, of one with ``from_pretrained``. ``lossless``
    is what the method claims. ``kind`` is ``drafter`` (runs in our engine) or ``peer`` (another library's own loop).
    ``options`` gives the type of each option that a configuration may set; the default values are the target's own.
    ``check`` raises ValueError where options that are right one by one do not go together.
    """

    target: str
    lossless: bool
    kind: Literal["drafter", "peer"]
    options: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], None] | None = None

    @property
    def module(self) -> str:
        """The module that defines the method."""
        return self.target.partition(":")[0]


@dataclass(frozen=True)
class Task:
    """One thing to ask for.

    ``source`` is the module that reads the data, ``yaml`` the lm-eval task that turns a document into a prompt,
    ``metric`` the one repeated in ``quality``, ``group`` the kind of work. ``origins`` are where its data can come
    from: ``embedded`` (a package; taken if the configuration names no other), ``path``, ``hub``.
    """

    source: str
    yaml: str
    metric: str
    group: str
    origins: tuple[Origin, ...]


def _task(name: str, metric: str, group: str, *origins: Origin) -> Task:
    """Return a task whose module and YAML are named after it."""
    return Task(f"pipeline.tasks.{name}", f"pipeline/tasks/{name}.yaml", metric, group, origins)


def _ngrams_in_order(options: Mapping[str, Any]) -> None:
    shortest, longest = options.get("min_ngram", 1), options.get("max_ngram", 3)
    if shortest > longest:
        raise ValueError(f"min_ngram = {shortest} is more than max_ngram = {longest}")


METHODS: Mapping[str, Method] = {
    "autoregressive": Method("baselines.autoregressive:AutoregressiveDrafter", lossless=True, kind="drafter"),
    "prompt_lookup": Method(
        "baselines.prompt_lookup:PromptLookupDrafter",
        lossless=True,
        kind="drafter",
        options={"max_ngram": PositiveInt, "min_ngram": PositiveInt, "num_draft_tokens": PositiveInt},
        check=_ngrams_in_order,
    ),
    "hf_greedy": Method("baselines.transformers_generate:TransformersGreedy", lossless=True, kind="peer"),
    "hf_prompt_lookup": Method(
        "baselines.transformers_generate:TransformersPromptLookup",
        lossless=True,
        kind="peer",
        options={"prompt_lookup_num_tokens": PositiveInt, "max_matching_ngram_size": PositiveInt},
    ),
}

TASKS: Mapping[str, Task] = {
    "humaneval": _task("humaneval", "pass_at_1", "code", "embedded", "path", "hub"),
    "gsm_symbolic": _task("gsm_symbolic", "exact_match", "math", "embedded", "path", "hub"),
    "gsm8k": _task("gsm8k", "exact_match", "math", "path", "hub"),
    "docstrings": _task("docstrings", "rouge1", "summarization", "embedded", "path"),
    "cnn_dailymail": _task("cnn_dailymail", "rouge1", "summarization", "path", "hub"),
    "verbalized": _task("verbalized", "bleu", "translation", "embedded", "path"),
    "multi30k": _task("multi30k", "bleu", "translation", "path", "hub"),
    "wmt14": _task("wmt14", "bleu", "translation", "path", "hub"),
}


def find(name: str, known: Mapping[str, Entry], what: str) -> Entry:
    """Return ``known[name]``.

    Raises:
        UserError: there is no such ``what``; names the nearest one.
    """
    if name not in known:
        raise UserError(f"unknown {what} {name!r}; {nearest(name, known)}")
    return known[name]


def import_target(target: str) -> Any:
    """Import ``module`` and return ``name`` of a ``module:name`` string."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
