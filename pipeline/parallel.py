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
PASSES = (1, 2, 4, 8)
GROUPS = (1, 2, 3, 4)


def _generator(weights: str, options: Mapping[str, Any], **fixed: Any) -> Method:
    """Return the method that generates with the weights of that name."""
    own = {name: kind for name, kind in options.items() if name not in fixed}
    return Method(
        GENERATORS[weights].generator, lossless=False, kind="generator", options=own, parts=(weights,), fixed=fixed
    )


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


PARALLEL_METHODS: Mapping[str, Method] = {
    "shufflelm": _generator("shufflelm", SHUFFLE),
    "shufflelm_assignment": _generator("shufflelm", SHUFFLE, shuffle_strategy="assignment"),
    "shufflelm_unordered": _generator("shufflelm", SHUFFLE, shuffle_strategy="none"),
    "shufflelm_distilled": _generator("shufflelm_distilled", SHUFFLE),
    "shufflelm_distilled_glancing": _generator("shufflelm_distilled_glancing", SHUFFLE),
    "shufflelm_from_twin": _generator("shufflelm_from_twin", SHUFFLE),
    "shufflelm_from_twin_glancing": _generator("shufflelm_from_twin_glancing", SHUFFLE),
    "shufflelm_identity_matching": _generator("shufflelm_identity_matching", SHUFFLE),
    "shufflelm_no_mixer": _generator("shufflelm_no_mixer", SHUFFLE),
    "shufflelm_glancing": _generator("shufflelm_glancing", SHUFFLE),
    "shufflelm_slot_order": _generator("shufflelm_slot_order", SHUFFLE, shuffle_strategy="none"),
    "diffusion": _generator("diffusion", DIFFUSION),
    "diffusion_distilled": _generator("diffusion_distilled", DIFFUSION),
    "diffusion_from_twin": _generator("diffusion_from_twin", DIFFUSION),
    **{f"diffusion_{n}_passes": _generator("diffusion", DIFFUSION, num_refinement_steps=n) for n in PASSES},
    "twostream": _generator("twostream", TWO_STREAM),
    "twostream_distilled": _generator("twostream_distilled", TWO_STREAM),
    "twostream_from_twin": _generator("twostream_from_twin", TWO_STREAM),
    **{f"{weights}_draft": _drafter(weights) for weights in ("shufflelm", "diffusion", "twostream")},
    **{f"twostream_groups_of_{n}": _generator("twostream", TWO_STREAM, group_size=n) for n in GROUPS},
}
