"""What exists: the methods and the tasks, by name, as strings that are resolved only when used.

Nothing here imports a method, so that reading a configuration or drawing a table never loads torch. To add a method,
write its file and add its line; a test compares ``options`` with what the method really takes. Example::

    Drafter = import_target(find("prompt_lookup", METHODS, "method").target)
    drafter = Drafter(num_draft_tokens=8)
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.entries import Method, Origin, Part, Share, Task
from pipeline.errors import UserError, nearest
from pipeline.parallel import PARALLEL_METHODS

Entry = TypeVar("Entry")


def _task(name: str, metric: str, group: str, *origins: Origin) -> Task:
    """Return a task whose module and YAML are named after it."""
    return Task(f"pipeline.tasks.{name}", f"pipeline/tasks/{name}.yaml", metric, group, origins)


def _plain(name: str, metric: str, group: str, *origins: Origin, stratum: str | None = None) -> Task:
    """Return the task that asks with the bare source of the documents of ``name``."""
    return Task(f"pipeline.tasks.{name}", f"pipeline/tasks/{name}_plain.yaml", metric, group, origins, stratum)


def _ngrams_in_order(options: Mapping[str, Any]) -> None:
    shortest, longest = options.get("min_ngram", 1), options.get("max_ngram", 3)
    if shortest > longest:
        raise ValueError(f"min_ngram = {shortest} is more than max_ngram = {longest}")


def _draft_lengths_in_order(options: Mapping[str, Any]) -> None:
    first, longest = options.get("num_draft_tokens", 5), options.get("max_draft_tokens", 15)
    if options.get("adaptive", False) and first > longest:
        raise ValueError(f"num_draft_tokens = {first} is more than max_draft_tokens = {longest}")


SPECULATIVE: Mapping[str, Any] = {
    "num_draft_tokens": PositiveInt,
    "adaptive": bool,
    "max_draft_tokens": PositiveInt,
    "confidence_threshold": Share,
    "use_shortlist": bool,
}
LOOKAHEAD: Mapping[str, Any] = {
    "window": PositiveInt,
    "ngram": Annotated[int, Field(ge=2)],
    "guesses": PositiveInt,
    "pool_from_prompt": bool,
    "max_nodes": NonNegativeInt,
    "seed": NonNegativeInt,
}
MEDUSA: Mapping[str, Any] = {
    "num_nodes": PositiveInt,
    "num_heads": PositiveInt | None,
    "tree": Literal["dynamic", "fitted"] | Annotated[list[list[NonNegativeInt]], Field(min_length=1)],
    "row_cost": NonNegativeFloat,
}

OUROBOROS: Mapping[str, Any] = {
    "use_shortlist": bool,
    "num_draft_tokens": PositiveInt,
    "window": PositiveInt,
    "ngram": Annotated[int, Field(ge=2)],
    "guesses": PositiveInt,
    "num_suffixes": NonNegativeInt,
    "num_alternatives": NonNegativeInt,
    "pool_from_prompt": bool,
    "max_nodes": NonNegativeInt,
    "seed": NonNegativeInt,
}

ATTENTION: Mapping[str, Any] = {"attention": Literal["sdpa", "eager", "flash_attention_2"]}  # of transformers' own
ASSISTED: Mapping[str, Any] = {  # None: transformers' own default
    "num_assistant_tokens": PositiveInt | None,
    "assistant_confidence_threshold": Share | None,
    **ATTENTION,
}
RECYCLING: Mapping[str, Any] = {
    "num_nodes": PositiveInt,
    "top_k": PositiveInt,
    "key_length": Annotated[int, Field(ge=1, le=2)],
    "warm_start": bool,
    "row_cost": NonNegativeFloat,
}
REST: Mapping[str, Any] = {
    "num_nodes": PositiveInt,
    "max_ngram": Annotated[int, Field(ge=1, le=31)],
    "row_cost": NonNegativeFloat,
}
SUFFIX_DECODING: Mapping[str, Any] = {
    "num_nodes": PositiveInt,
    "max_ngram": PositiveInt,
    "warm_start": bool,
    "row_cost": NonNegativeFloat,
}
UNITED = Literal["prompt_lookup", "suffix_decoding", "recycling", "rest", "medusa", "fasterdecodemixer"]
UNION: Mapping[str, Any] = {
    "drafters": Annotated[list[UNITED], Field(min_length=1)],
    "num_nodes": PositiveInt,
    "warm_start": bool,
    "row_cost": NonNegativeFloat,
}


def _union_needs(options: Mapping[str, Any]) -> tuple[Part, ...]:
    """Return the parts of its drafters; one that there is not is refused where the union is built."""
    drafters = options.get("drafters", ["fasterdecodemixer"])
    return tuple(part for drafter in drafters if drafter in METHODS for part in METHODS[drafter].parts)


def _ouroboros(warm_start: bool) -> Method:
    """Return the method that keeps its pool from prompt to prompt, or the one that does not: two names in a table."""
    return Method(
        "baselines.ouroboros:OuroborosDrafter",
        lossless=True,
        kind="drafter",
        options=OUROBOROS,
        parts=("draft",),
        fixed={"warm_start": warm_start},
    )


METHODS: Mapping[str, Method] = {
    "autoregressive": Method("baselines.autoregressive:AutoregressiveDrafter", lossless=True, kind="drafter"),
    "prompt_lookup": Method(
        "baselines.prompt_lookup:PromptLookupDrafter",
        lossless=True,
        kind="drafter",
        options={"max_ngram": PositiveInt, "min_ngram": PositiveInt, "num_draft_tokens": PositiveInt},
        check=_ngrams_in_order,
    ),
    "suffix_decoding": Method(
        "baselines.suffix_decoding:SuffixDecodingDrafter", lossless=True, kind="drafter", options=SUFFIX_DECODING
    ),
    "speculative": Method(
        "baselines.speculative:SpeculativeDrafter",
        lossless=True,
        kind="drafter",
        options=SPECULATIVE,
        check=_draft_lengths_in_order,
        parts=("draft",),
    ),
    "lookahead": Method("baselines.lookahead:LookaheadDrafter", lossless=True, kind="drafter", options=LOOKAHEAD),
    "medusa": Method("baselines.medusa:MedusaDrafter", lossless=True, kind="drafter", options=MEDUSA, parts=("heads",)),
    "medusa_typical": Method(
        "baselines.medusa:MedusaDrafter",
        lossless=False,
        kind="drafter",
        options=MEDUSA,
        parts=("heads",),
        acceptance="decoding.typical:TypicalAcceptance",
        acceptance_options={"epsilon": Share, "delta": PositiveFloat, "temperature": PositiveFloat},
    ),
    "ouroboros": _ouroboros(warm_start=False),
    "ouroboros_warm_start": _ouroboros(warm_start=True),
    "recycling": Method("baselines.recycling:RecyclingDrafter", lossless=True, kind="drafter", options=RECYCLING),
    "rest": Method("baselines.rest:RestDrafter", lossless=True, kind="drafter", options=REST, parts=("datastore",)),
    "union": Method(
        "baselines.union:UnionDrafter",
        lossless=True,
        kind="drafter",
        options=UNION,
        parts=("mixer",),
        needs=_union_needs,
        also=(
            "baselines.prompt_lookup",
            "baselines.suffix_decoding",
            "baselines.recycling",
            "baselines.rest",
            "baselines.medusa",
            "shuffle.fasterdecodemixer.drafter",
        ),
    ),
    "fasterdecodemixer": Method(
        "shuffle.fasterdecodemixer.drafter:MixerDrafter",
        lossless=True,
        kind="drafter",
        options={"num_nodes": PositiveInt, "max_children": PositiveInt, "row_cost": NonNegativeFloat},
        parts=("mixer",),
    ),
    "fasterdecodemixer_raw": Method(
        "shuffle.fasterdecodemixer.generator:KeptSlotsDrafter",
        lossless=False,
        kind="drafter",
        options={"keep_threshold": Share},
        parts=("mixer",),
        acceptance="shuffle.fasterdecodemixer.generator:AcceptAll",
    ),
    "hf_greedy": Method(
        "baselines.transformers_generate:TransformersGreedy", lossless=True, kind="peer", options=ATTENTION
    ),
    "hf_prompt_lookup": Method(
        "baselines.transformers_generate:TransformersPromptLookup",
        lossless=True,
        kind="peer",
        options={"prompt_lookup_num_tokens": PositiveInt, "max_matching_ngram_size": PositiveInt, **ATTENTION},
    ),
    "hf_assisted": Method(
        "baselines.transformers_assisted:TransformersAssisted",
        lossless=True,
        kind="peer",
        options=ASSISTED,
        parts=("draft",),
    ),
    **PARALLEL_METHODS,
}

TASKS: Mapping[str, Task] = {
    "humaneval": _task("humaneval", "pass_at_1", "code", "embedded", "path", "hub"),
    "mbpp": _task("mbpp", "pass_at_1", "code", "path", "hub"),
    "gsm_symbolic": _task("gsm_symbolic", "exact_match", "math", "embedded", "path", "hub"),
    "gsm8k": _task("gsm8k", "exact_match", "math", "path", "hub"),
    "docstrings": _task("docstrings", "rouge1", "summarization", "embedded", "path"),
    "cnn_dailymail": _task("cnn_dailymail", "rouge1", "summarization", "path", "hub"),
    "verbalized": _task("verbalized", "bleu", "translation", "embedded", "path"),
    "multi30k": _task("multi30k", "bleu", "translation", "path", "hub"),
    # for models that were trained on the task alone (twins and parallel generators): no instruction, no examples
    "verbalized_plain": _plain(
        "verbalized", "bleu", "translation", "embedded", "path", stratum="pipeline.tasks.verbalized:order_of"
    ),
    "multi30k_plain": _plain("multi30k", "bleu", "translation", "path", "hub"),
    "wmt14": _task("wmt14", "bleu", "translation", "path", "hub"),
    "wmt16": Task("pipeline.tasks.wmt14", "pipeline/tasks/wmt16.yaml", "bleu", "translation", ("path", "hub")),
}


def find(name: str, known: Mapping[str, Entry], what: str) -> Entry:
    """Return ``known[name]``.

    Raises:
        UserError: there is no such ``what``; names the nearest one.
    """
    if name not in known:
        raise UserError(f"unknown {what} {name!r}; {nearest(name, known)}")
    return known[name]


def is_generator(method: str) -> bool:
    """Whether a method, as a table names it, is a model that generates in parallel."""
    return method in METHODS and METHODS[method].kind == "generator"


def import_target(target: str) -> Any:
    """Import ``module`` and return ``name`` of a ``module:name`` string."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
