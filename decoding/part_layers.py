"""Layers of what is trained to draft beside a target: Medusa's heads, the mixer.

They are kept in bfloat16, and so the compiled code reads them, whatever the target has; rows are then float32. Where
there is none, torch computes with weights and rows in the target's dtype. What is drafted may depend on it by
rounding; what a verified method emits does not. Example::

    layer = part_layer(weight, bias, target.dtype, target.device)
    y = layer(x.to(rows_dtype(target.dtype, target.device)))
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from decoding.linear import Linear, make_linear
from decoding.native.product import NativeProduct, can_multiply

PartLayer = Linear | NativeProduct


def part_layer(
    weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, dtype: torch.dtype, device: torch.device
) -> PartLayer:
    """Lay out a layer for reading once, beside a target of ``dtype`` on ``device``."""
    if can_multiply(device):
        return NativeProduct(weight, bias)
    return make_linear(weight.to(device, dtype), None if bias is None else bias.to(device, dtype))


def rows_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return what the rows are in that such layers multiply."""
    return torch.float32 if can_multiply(device) else dtype
