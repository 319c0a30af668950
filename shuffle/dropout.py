"""Dropout for a Llama that is trained on little text: transformers' has none but on attention weights.

Where the Transformer has it (Vaswani et al. 2017, section 5.4): on the embeddings, and on what each attention and each
MLP adds to the residual. It is hooked in from outside, so that the weights, the configuration and generation know
nothing of it. Example::

    add_dropout(model, 0.1)      # acts in model.train() alone
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

# Modules of a Llama, and of ShuffleLM's mixers, whose two branches are added to the residual likewise.
PLACES = ("embed_tokens", "o_proj", "down_proj", "slots_down", "channels_down")


def add_dropout(model: nn.Module, probability: float) -> None:
    """Drop each number of these outputs with ``probability``, in training mode; 0 changes nothing.

    Raises:
        ValueError: the probability is not at least 0 and below 1.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, not {probability}")

    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return F.dropout(output, probability, module.training)

    for name, module in model.named_modules():
        if probability and name.endswith(PLACES):
            module.register_forward_hook(drop)
