"""Which device each layer of a model goes to, where one card cannot hold it.

The layers are cut into runs of one device each, in order, so that a forward pass crosses from card to card once for
each card. Embedding, last norm and head stay with the first run: what a drafter and verification work with is on one
device, the first. They weigh as much as some layers, and the first card gets so many fewer. The cards work one after
the other: this gives memory, not speed. Forward passes over several cards are not captured as CUDA graphs.

It has NOT been run on several cards yet; tests check it with fake devices.

Example::

    places = spread(config, [torch.device("cuda", 0), torch.device("cuda", 1)])    # one a layer
    TargetModel.from_pretrained(folder, device="cuda:0", dtype=torch.bfloat16, devices=["cuda:0", "cuda:1"])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig

from decoding.llama import head_dim_of


def layer_parameters(config: PretrainedConfig) -> int:
    """Return the weights of one layer: four products of attention and three of the MLP (norms and biases left out)."""
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads)
    return int(config.hidden_size * (heads * head_dim_of(config) + 3 * config.intermediate_size))


def outer_parameters(config: PretrainedConfig) -> int:
    """Return the weights outside the layers: the embedding, and the head where it is not the same."""
    return int(config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2))


def spread(config: PretrainedConfig, devices: Sequence[torch.device]) -> list[torch.device]:
    """Return the device of each layer, in order, so that every device holds about the same.

    Raises:
        ValueError: there are no devices, one is named twice, or there are more than layers.
    """
    count = int(config.num_hidden_layers)
    if not devices or len(set(devices)) < len(devices):
        raise ValueError(f"layers are spread over different devices, at least one; not {[*map(str, devices)]}")
    if len(devices) > count:
        raise ValueError(f"{count} layers cannot be spread over {len(devices)} devices")
    outer = min(outer_parameters(config) / layer_parameters(config), (count - 1) / len(devices))
    share = (count + outer) / len(devices)  # of each device, in layers
    ends = [max(index + 1, round(share * (index + 1) - outer)) for index in range(len(devices))]
    ends = [min(end, count - len(devices) + index + 1) for index, end in enumerate(ends)]
    return [device for device, end, before in zip(devices, ends, [0, *ends], strict=False) for _ in range(end - before)]
