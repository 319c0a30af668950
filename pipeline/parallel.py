"""The methods that generate in parallel, by name: lines of the registry like any other, for the models of ``twins``.

A name stands for weights (``pipeline.generators``) and for options of what generates with them, so that a curve over
passes or group sizes has a name for each of its points. Example::

    PARALLEL_METHODS["diffusion_4_passes"].fixed     # {"num_refinement_steps": 4}: in 4 passes at most
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.entries import Method, Share
from pipeline.generators import GENERATORS

SHUFFLE: Mapping[str, Any] = {
    "shuffle_strategy": Literal["rotary", "assignment", "none"],
    "keep_threshold": Share,
    "temperature": NonNegativeFloat,
}
DIFFUSION: Mapping[str, Any] = {
    "block_length": PositiveInt,
    "confidence_threshold": Share,
    "num_refinement_steps": PositiveInt,
    "remask_threshold": Share,
    "temperature": NonNegativeFloat,
    "top_k": NonNegativeInt,
    "top_p": Share,
    "repetition_penalty": PositiveFloat,
    "num_candidates": PositiveInt,
    "energy_rounds": NonNegativeInt,
}
TWO_STREAM: Mapping[str, Any] = {
    "group_size": PositiveInt,
    "order": Literal["left_to_right", "random"],
    "seed": NonNegativeInt,
    "temperature": NonNegativeFloat,
}
OPTIONS = {  # of what generates, by the module of its model
    "shuffle.shufflelm.model": SHUFFLE,
    "shuffle.diffusion.model": DIFFUSION,
    "shuffle.twostream.model": TWO_STREAM,
}
PASSES = (1, 2, 4, 8, 10)
GROUPS = (1, 2, 3, 4)


def _generator(weights: str, **fixed: Any) -> Method:
    """Return the method that generates with the weights of that name."""
    options = OPTIONS[GENERATORS[weights].module]
    own = {name: kind for name, kind in options.items() if name not in fixed}
    return Method(
        GENERATORS[weights].generator, lossless=False, kind="generator", options=own, parts=(weights,), fixed=fixed
    )


def _as_trained(weights: str) -> Method:
    """Return the method that has the weights' own name: where they have no positions, there is one order."""
    has_positions = GENERATORS[weights].training.get("position_head") != "none"
    return _generator(weights) if has_positions else _generator(weights, shuffle_strategy="none")


DRAFT: Mapping[str, Any] = {"num_draft_tokens": PositiveInt, "max_text": PositiveInt}


def _drafter(weights: str) -> Method:
    """Return the lossless method in which a generator drafts for its twin."""
    return Method(
        "shuffle.drafting:OutputDrafter",
        lossless=True,
        kind="drafter",
        options=DRAFT,
        parts=(weights,),
        fixed={"generator": GENERATORS[weights].generator},
        also=(GENERATORS[weights].generator.partition(":")[0],),
    )


def _reranked(weights: str) -> Method:
    """Return the method in which the twin chooses among the likeliest texts of the generator's slots."""
    fixed = _as_trained(weights).fixed
    own = {name: kind for name, kind in SHUFFLE.items() if name not in {"temperature", *fixed}}
    return Method(
        "shuffle.shufflelm.reranked:RerankedGenerator",
        lossless=False,
        kind="generator",
        options={**own, "num_candidates": PositiveInt},
        parts=(weights,),
        fixed=fixed,
        twin_chooses=True,
    )


RERANKED = ("shufflelm", "shufflelm_from_twin", "shufflelm_from_twin_ctc", "shufflelm_from_twin_ctc_upsampled")
PARALLEL_METHODS: Mapping[str, Method] = {
    **{weights: _as_trained(weights) for weights in GENERATORS},
    "shufflelm_assignment": _generator("shufflelm", shuffle_strategy="assignment"),
    "shufflelm_unordered": _generator("shufflelm", shuffle_strategy="none"),
    "shufflelm_from_twin_assignment": _generator("shufflelm_from_twin", shuffle_strategy="assignment"),
    "shufflelm_from_twin_upsampled_unordered": _generator("shufflelm_from_twin_upsampled", shuffle_strategy="none"),
    **{
        f"{weights}_{n}_passes": _generator(weights, num_refinement_steps=n)
        for weights in ("diffusion", "diffusion_from_twin")
        for n in PASSES
    },
    **{
        f"{weights}_groups_of_{n}": _generator(weights, group_size=n)
        for weights in ("twostream", "twostream_from_twin")
        for n in GROUPS
    },
    **{f"{weights}_reranked": _reranked(weights) for weights in RERANKED},
    **{f"{weights}_draft": _drafter(weights) for weights in ("shufflelm", "diffusion", "twostream")},
}
