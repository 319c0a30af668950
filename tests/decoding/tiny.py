"""Tiny random models of the Llama family, saved and loaded as real ones are; and the slow references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SCALED = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
SCALED |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
FAMILY = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "llama-untied-scaled": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=SCALED)),
    "llama-attention-bias": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None, head_dim=8)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
}


def save_model(folder: Path, member: str = "llama", spread: float = 1.0, seed: int = 0) -> PreTrainedModel:
    """Save a random model in ``folder`` and return it. A larger ``spread`` makes its choices more certain."""
    torch.manual_seed(seed)
    model = FAMILY[member]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2 * spread)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Run the whole sequence anew, without a cache: ``[V]`` logits of the last token."""
    return model(torch.tensor([list(ids)])).logits[0, -1]


def greedy_of(model: PreTrainedModel, prompt: Sequence[int], limit: int, end: int = 2) -> list[int]:
    """One token at a time, the whole text anew for each."""
    output: list[int] = []
    while len(output) < limit and end not in output:
        output.append(int(logits_of(model, [*prompt, *output]).argmax()))
    return output
