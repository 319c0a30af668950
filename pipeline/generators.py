"""The models that generate in parallel, by name, as they are trained: strings, resolved only when used.

Each is trained on the same pairs as its autoregressive twin, with the same backbone, tokenizer, steps and seed. What
sets a name apart is ``training``, keys of the model's configuration that it stands for; a variant with one thing
removed is an ablation. To add one, write its model and add its line; its methods go into ``pipeline.parallel``.
Example::

    entry = find("shufflelm_no_mixer", GENERATORS, "generator")
    config = import_target(entry.config)(num_mixer_layers=0, ...)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.entries import Share


@dataclass(frozen=True)
class Generator:
    """How a name's weights are made and run.

    ``model``, ``config`` and ``generator`` are ``module:name``: what is trained, its configuration, and what generates
    with it. ``settings`` gives the type of each key of its own that a configuration may set, unless the name stands for
    it. ``distilled`` models learn from what the twin answers instead of from the references (sequence-level
    distillation: Kim and Rush 2016). Those ``from_twin`` start from the twin's weights and not from random ones: they
    have learned twice as long as the twin, and know its words before they learn to say them at once.
    """

    model: str
    config: str
    generator: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    distilled: bool = False
    from_twin: bool = False

    @property
    def module(self) -> str:
        """The package that defines the model."""
        return self.model.partition(":")[0]

    @property
    def options(self) -> Mapping[str, Any]:
        """The type of each key of the model's configuration that may be set: what the name stands for may not."""
        return {name: kind for name, kind in self.settings.items() if name not in self.training}

    @property
    def definition(self) -> str:
        """What the name stands for, as text that changes when that does."""
        start = ["from the twin"] if self.from_twin else []
        return " ".join([self.model, self.config, *(f"{k}={v!r}" for k, v in self.training.items()), *start])


SHUFFLELM: Mapping[str, Any] = {
    "max_parallel_tokens": PositiveInt,
    "slots_per_prompt_token": PositiveFloat | None,
    "rotary_dim": Annotated[int, Field(ge=2, multiple_of=2)],
    "shuffle_temperature": PositiveFloat,
    "num_mixer_layers": NonNegativeInt,
    "prompt_attention": Literal["bidirectional", "causal"],
    "position_head": Literal["rotary", "none"],
    "matching": Literal["assignment", "identity", "ctc"],
    "matching_warmup": Share,
    "alpha": NonNegativeFloat,
    "beta": NonNegativeFloat,
    "glancing": Share,
    "source_copy": bool,
    "label_smoothing": Share,
}
DIFFUSION: Mapping[str, Any] = {
    "block_length": PositiveInt,
    "loss_weighting": Literal["uniform", "1/t"],
    "min_mask_ratio": Annotated[float, Field(gt=0, lt=1)],
    "placed_masks": bool,
}
TWOSTREAM: Mapping[str, Any] = {
    "group_sizes": Annotated[list[PositiveInt], Field(min_length=1)],
    "permute": Share,
    "block_groups": PositiveInt,
    "prompt_groups": Literal["single", "causal"],
    "group_size": PositiveInt,
    "order": Literal["left_to_right", "random"],
}


def _shufflelm(distilled: bool = False, from_twin: bool = False, **training: Any) -> Generator:
    return Generator(
        "shuffle.shufflelm.model:ShuffleLM",
        "shuffle.shufflelm.config:ShuffleConfig",
        "shuffle.shufflelm.generator:ShuffleGenerator",
        SHUFFLELM,
        training,
        distilled,
        from_twin,
    )


def _diffusion(distilled: bool = False, from_twin: bool = False) -> Generator:
    return Generator(
        "shuffle.diffusion.model:DiffusionTransformer",
        "shuffle.diffusion.config:DiffusionConfig",
        "shuffle.diffusion.generator:DiffusionGenerator",
        DIFFUSION,
        distilled=distilled,
        from_twin=from_twin,
    )


def _twostream(distilled: bool = False, from_twin: bool = False) -> Generator:
    return Generator(
        "shuffle.twostream.model:LlamaTwoStreamForCausalLM",
        "shuffle.twostream.config:TwoStreamConfig",
        "shuffle.twostream.generator:TwoStreamGenerator",
        TWOSTREAM,
        distilled=distilled,
        from_twin=from_twin,
    )


ABLATIONS: Mapping[str, Mapping[str, Any]] = {  # one thing of ShuffleLM's removed, or added, in turn
    "identity_matching": {"matching": "identity"},
    "no_mixer": {"num_mixer_layers": 0},
    "slot_order": {"matching": "identity", "position_head": "none"},
    "ctc": {"matching": "ctc", "position_head": "none"},  # in slot order too
    "ctc_glancing": {"matching": "ctc", "position_head": "none", "glancing": 0.5},
    # As CTC is trained elsewhere: as many slots as the prompt asks for, which start from it. They can have no mixer.
    "ctc_upsampled": {
        "matching": "ctc",
        "position_head": "none",
        "num_mixer_layers": 0,
        "source_copy": True,
        "slots_per_prompt_token": 1.5,
    },
    # As many slots too, which start from the prompt, and so stand for something from the first step on; matched, and
    # put in order by rotary regression.
    "upsampled": {
        "num_mixer_layers": 0,
        "source_copy": True,
        "slots_per_prompt_token": 2.0,
        "matching_warmup": 0.0,
    },
    "glancing": {"glancing": 0.5},
}
TWIN = "autoregressive"  # what a model of the configuration's ``twins`` is itself
GENERATORS: Mapping[str, Generator] = {
    "shufflelm": _shufflelm(),
    "shufflelm_distilled": _shufflelm(distilled=True),
    "shufflelm_distilled_glancing": _shufflelm(distilled=True, glancing=0.5),  # as GLAT is trained
    "shufflelm_from_twin": _shufflelm(distilled=True, from_twin=True),
    "shufflelm_from_twin_references": _shufflelm(from_twin=True),  # not distilled
    **{f"shufflelm_{name}": _shufflelm(**changed) for name, changed in ABLATIONS.items()},
    **{
        f"shufflelm_from_twin_{name}": _shufflelm(distilled=True, from_twin=True, **changed)
        for name, changed in ABLATIONS.items()
    },
    "diffusion": _diffusion(),
    "diffusion_distilled": _diffusion(distilled=True),
    "diffusion_from_twin": _diffusion(distilled=True, from_twin=True),
    "twostream": _twostream(),
    "twostream_distilled": _twostream(distilled=True),
    "twostream_from_twin": _twostream(distilled=True, from_twin=True),
}
