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
from typing import Any


@dataclass(frozen=True)
class Generator:
    """How a name's weights are made and run.

    ``model``, ``config`` and ``generator`` are ``module:name``: what is trained, its configuration, and what generates
    with it. ``distilled`` models learn from what the twin answers instead of from the references (sequence-level
    distillation: Kim and Rush 2016).
    """

    model: str
    config: str
    generator: str
    training: Mapping[str, Any] = field(default_factory=dict)
    distilled: bool = False

    @property
    def module(self) -> str:
        """The package that defines the model."""
        return self.model.partition(":")[0]

    @property
    def definition(self) -> str:
        """What the name stands for, as text that changes when that does."""
        return " ".join([self.model, self.config, *(f"{k}={v!r}" for k, v in self.training.items())])


def _shufflelm(distilled: bool = False, **training: Any) -> Generator:
    return Generator(
        "shuffle.shufflelm.model:ShuffleLM",
        "shuffle.shufflelm.config:ShuffleConfig",
        "shuffle.shufflelm.generator:ShuffleGenerator",
        training,
        distilled,
    )


def _diffusion(distilled: bool = False) -> Generator:
    return Generator(
        "shuffle.diffusion.model:DiffusionTransformer",
        "shuffle.diffusion.config:DiffusionConfig",
        "shuffle.diffusion.generator:DiffusionGenerator",
        distilled=distilled,
    )


def _twostream(distilled: bool = False) -> Generator:
    return Generator(
        "shuffle.twostream.model:LlamaTwoStreamForCausalLM",
        "shuffle.twostream.config:TwoStreamConfig",
        "shuffle.twostream.generator:TwoStreamGenerator",
        distilled=distilled,
    )


TWIN = "autoregressive"  # what a model of the configuration's ``twins`` is itself
GENERATORS: Mapping[str, Generator] = {
    "shufflelm": _shufflelm(),
    "shufflelm_distilled": _shufflelm(distilled=True),
    "shufflelm_distilled_glancing": _shufflelm(distilled=True, glancing=0.5),  # as GLAT is trained
    # one thing removed in turn
    "shufflelm_identity_matching": _shufflelm(matching="identity"),
    "shufflelm_no_mixer": _shufflelm(num_mixer_layers=0),
    "shufflelm_slot_order": _shufflelm(matching="identity", position_head="none"),
    # one thing added
    "shufflelm_glancing": _shufflelm(glancing=0.5),
    "diffusion": _diffusion(),
    "diffusion_distilled": _diffusion(distilled=True),
    "twostream": _twostream(),
    "twostream_distilled": _twostream(distilled=True),
}
