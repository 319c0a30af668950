"""The configuration's section of twins: models trained here, and the parallel generators that are held against them.

Example::

    twins:
      verbalized:
        task: verbalized_plain
        backbone: {hidden_size: 192, num_layers: 4, num_heads: 6}
        methods: {autoregressive: {}, shufflelm: {}, diffusion: {confidence_threshold: 0.9}}
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.config_sections import Differing, ModelDtype, Place, Positive, Section, Seed, exists
from pipeline.errors import nearest
from pipeline.generators import GENERATORS, TWIN
from pipeline.registry import METHODS, TASKS, find

Rate = Annotated[float, Field(gt=0, le=1)]


class BackboneSettings(Section):
    """The shape that the twin and all its generators share."""

    hidden_size: Positive = 192
    intermediate_size: Positive = 512
    num_layers: Positive = 4
    num_heads: Positive = 6
    max_position_embeddings: Positive = 256

    @model_validator(mode="after")
    def _heads_fit(self) -> BackboneSettings:
        if self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 2:
            raise ValueError(f"hidden_size {self.hidden_size} must be num_heads {self.num_heads} times an even number")
        return self


class OwnRecipe(Section):
    """How a generator learns, where that differs from how the twin learned."""

    steps: Positive | None = None
    batch_size: Positive | None = None
    learning_rate: Rate | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None


class TwinSettings(Section):
    """What a twin learns from, how, and which methods generate what it does.

    Attributes:
        task: a task that models are trained on, whose name ends with ``_plain``.
        path: its data, where no package brings it.
        max_target_tokens: pairs with a longer target are not learned from; all are evaluated.
        dropout: of embeddings and residual branches, for the twin and all its generators.
        length_pool: batches whose pairs are sorted by length together, for less padding; 1: none.
        fine_tuning: the recipe of generators that start from the twin; what it does not name is as above.
        recipes: of single generators, by the name of their weights; what one does not name is as above.
        generators: settings of a generator's own configuration, by the name of its weights.
        methods: the twin itself (``autoregressive``), its parallel generators, and drafters that need no trained part.
        dtypes: of the cells; ``auto`` as a model's.
        num_prompts: prompts of the test split; as many of them as a timed batch holds (32) are also generated at once.
    """

    task: str
    path: Place | None = None
    num_pairs: Positive | None = None
    vocab_size: Positive = 512
    max_target_tokens: Positive | None = None
    backbone: BackboneSettings = BackboneSettings()
    steps: Positive = 600
    batch_size: Positive = 64
    learning_rate: Rate = 2e-3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    length_pool: Positive = 1
    seed: Seed = 0
    fine_tuning: OwnRecipe = OwnRecipe()
    recipes: dict[str, OwnRecipe] = Field(default={})
    generators: dict[str, dict[str, Any]] = Field(default={})
    dtypes: Annotated[list[ModelDtype], Field(min_length=1), Differing] = Field(default=["float32"])
    num_prompts: Positive
    max_new_tokens: Positive
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]

    @model_validator(mode="after")
    def _belongs_together(self) -> TwinSettings:
        exists(self.path)
        plain = {name: task for name, task in TASKS.items() if name.endswith("_plain")}
        origins = find(self.task, plain, "task of a twin").origins
        if ("path" if self.path else "embedded") not in origins:
            known = [origin for origin in origins if origin != "hub"]  # whose train split is not read
            raise ValueError(f"task {self.task!r} takes its data from: {', '.join(known)}")
        used: set[str] = set()
        for name in self.methods:
            needs = METHODS[name].parts_with(self.methods[name])
            if set(needs) - set(GENERATORS):
                raise ValueError(f"methods: {name!r} needs trained parts ({', '.join(needs)}), which a twin has not")
            used |= set(needs)
        for key, names in (("generators", self.generators), ("recipes", self.recipes)):
            for name in names:
                if name == TWIN:
                    raise ValueError(f"{key}: {name!r} is the twin itself, whose keys are those around {key!r}")
                if name not in GENERATORS:
                    raise ValueError(f"{key}: unknown {name!r}; {nearest(name, GENERATORS)}")
                if name not in used:
                    raise ValueError(f"{key}: no method of this twin uses {name!r}; {nearest(name, used)}")
        return self
