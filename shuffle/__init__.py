"""Models that generate in parallel, one folder each: ShuffleLM, FasterDecodeMixer, diffusion, two streams, images.

    from shuffle import ShuffleConfig, ShuffleLM, visualize_shuffle

    model = ShuffleLM.from_pretrained("results/twins/verbalized-2m/shufflelm")
    ids = model.generate(**tokenizer(prompt, return_tensors="pt"), max_parallel_tokens=8, shuffle_strategy="rotary")

What is named here is imported when it is first used: a name costs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "DiffusionConfig": "shuffle.diffusion.config",
    "DiffusionTransformer": "shuffle.diffusion.model",
    "FasterDecodeMixer": "shuffle.fasterdecodemixer.model",
    "LlamaTwoStreamForCausalLM": "shuffle.twostream.model",
    "ShuffleConfig": "shuffle.shufflelm.config",
    "ShuffleLM": "shuffle.shufflelm.model",
    "TokenShuffle": "shuffle.tokenshuffle.layers",
    "TokenShuffleConfig": "shuffle.tokenshuffle.config",
    "TokenShuffleTransformer": "shuffle.tokenshuffle.model",
    "TokenUnshuffle": "shuffle.tokenshuffle.layers",
    "TwoStreamConfig": "shuffle.twostream.config",
    "visualize_shuffle": "shuffle.shufflelm.visualize",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shuffle' has no attribute {name!r}; known: {', '.join(_HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
