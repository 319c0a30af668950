"""From a method's name to what runs it: the drafter on our engine, its acceptance rule, a peer, or a generator.

A drafter that needs the target, trained parts or the sampling has a ``from_target``; the others are built from their
options alone. Some keep what they have learned from prompt to prompt (``warm_start``): what is run only to warm the
machine must not teach them, so it runs with :func:`unlearned`.

Example::

    decoder = build_decoder("speculative", {"num_draft_tokens": 6}, target, {"draft": folder}, Sampling())
    with unlearned(decoder):
        decoder.generate(prompt_ids, max_new_tokens=2)  # the drafter is then as it was
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from decoding import Drafter, Generation, Sampling, SpeculativeDecoder, StopStrings, TargetModel
from decoding.cache import KVCache
from pipeline.precision import Precision
from pipeline.registry import METHODS, find, import_target
from shuffle.passes import ParallelGenerator


class Generates(Protocol):
    """What is timed: the engine with a drafter, or a peer."""

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: StopStrings,
        generator: torch.Generator | None,
    ) -> Generation:
        """Generate from one prompt."""


def build_decoder(
    method: str, options: Mapping[str, Any], target: TargetModel, parts: Mapping[str, Path], sampling: Sampling
) -> SpeculativeDecoder:
    """Return the engine with the drafter and the rule of acceptance that ``method`` names.

    Raises:
        ValueError: an option is out of range, or a part is not one for this target.
    """
    entry = find(method, METHODS, "method")
    accepting = {name: value for name, value in options.items() if name in entry.acceptance_options}
    drafting = {name: value for name, value in options.items() if name not in accepting} | dict(entry.fixed)
    drafter_class = import_target(entry.target)
    if hasattr(drafter_class, "from_target"):
        drafter = drafter_class.from_target(target, parts=parts, sampling=sampling, **drafting)
    else:
        drafter = drafter_class(**drafting)
    if entry.acceptance is None:
        return SpeculativeDecoder(target, drafter, sampling)
    return SpeculativeDecoder(target, drafter, sampling, import_target(entry.acceptance)(**accepting))


def build_peer(
    method: str,
    options: Mapping[str, Any],
    model_dir: Path,
    parts: Mapping[str, Path],
    *,
    precision: Precision,
    device: torch.device,
    sampling: Sampling,
    device_map: str | None = None,
) -> Generates:
    """Return another library's own generation, loaded from ``model_dir``; parts are arguments by their names.

    ``device_map`` is transformers' own: over which cards it spreads the model.

    Raises:
        ValueError: the weights are to be in int8, which is our engine's own layout.
    """
    if precision.weights is not None:
        raise ValueError(f"{method} runs on transformers, which cannot run our weights in {precision.weights}")
    entry = find(method, METHODS, "method")
    where = {"device": device, "device_map": device_map}
    peer: Generates = import_target(entry.target).from_pretrained(
        model_dir, dtype=precision.arithmetic, **where, sampling=sampling, **parts, **options, **entry.fixed
    )
    return peer


def build_generator(
    method: str,
    options: Mapping[str, Any],
    parts: Mapping[str, Path],
    *,
    precision: Precision,
    device: torch.device,
    sampling: Sampling,
    twin: TargetModel | None = None,
) -> ParallelGenerator:
    """Return a model that generates in parallel, loaded from the weights that ``method`` names.

    It draws its tokens as its twin does, by ``sampling``, where ``options`` say nothing else. ``twin`` is for a method
    that cannot do without.

    Raises:
        ValueError: an option is out of range, the weights are to be in int8, it cannot sample in this way, or a twin is
            needed and not given.
    """
    if precision.weights is not None:
        raise ValueError(f"{method}: weights in {precision.weights} are for models of the autoregressive engine alone")
    entry = find(method, METHODS, "method")
    if entry.twin_chooses and twin is None:
        raise ValueError(f"{method} cannot do without its autoregressive twin")
    (weights,) = entry.parts
    asked = {name: value for name, value in asdict(sampling).items() if value != getattr(Sampling(), name)}
    for name, value in asked.items():
        if name not in entry.options:
            raise ValueError(f"{method} cannot sample with {name}={value}: it has no such option")
    given = asked | dict(options) | dict(entry.fixed) | ({"twin": twin} if entry.twin_chooses else {})
    generator: ParallelGenerator = import_target(entry.target).from_pretrained(
        parts[weights], dtype=precision.arithmetic, device=device, **given
    )
    return generator


def keeps_state(generates: Generates) -> bool:
    """Whether what a method learns from one prompt serves it at the next."""
    return isinstance(generates, SpeculativeDecoder) and bool(getattr(generates.drafter, "warm_start", False))


def meets_shapes_anew(generates: Generates) -> bool:
    """Whether a prompt of a new length costs a method once what it does not cost again.

    torch's libraries prepare themselves for each new shape. The compiled engine has nothing to prepare.
    """
    if not isinstance(generates, SpeculativeDecoder):
        return True
    models = [generates.target, *models_in(generates.drafter, set())]
    return any(
        isinstance(model, torch.nn.Module) or (isinstance(model, TargetModel) and model.native is None)
        for model in models
    )


@contextmanager
def unlearned(generates: Generates) -> Iterator[None]:
    """Let a method forget what it learns inside; one that keeps nothing is left as it is."""
    if not (isinstance(generates, SpeculativeDecoder) and keeps_state(generates)):
        yield
        return
    drafter = generates.drafter
    generates.drafter = copied(drafter)
    try:
        yield
    finally:
        generates.drafter = drafter


def copied(drafter: Drafter) -> Drafter:
    """Return a drafter that knows the same and learns apart; models, which do not change, are shared."""
    return copy.deepcopy(drafter, {id(model): model for model in models_in(drafter, set())})


def models_in(thing: Any, seen: set[int]) -> Iterator[Any]:
    """Find what ``thing`` holds of models, in its attributes and containers at any depth.

    All that the engine defines is taken for one, except a cache: weights may be laid out so that they cannot be copied.
    """
    if id(thing) in seen:
        return
    seen.add(id(thing))
    package = type(thing).__module__.partition(".")[0]
    if isinstance(thing, torch.nn.Module) or (package == "decoding" and not isinstance(thing, KVCache)):
        yield thing
    elif isinstance(thing, list | tuple | dict):
        for inner in thing.values() if isinstance(thing, dict) else thing:
            yield from models_in(inner, seen)
    elif package in ("baselines", "shuffle"):
        for inner in vars(thing).values() if hasattr(thing, "__dict__") else ():
            yield from models_in(inner, seen)
