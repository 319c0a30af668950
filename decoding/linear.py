"""Linear layers whose weights are laid out once for the kernel that reads them.

At batch size 1 a decoding step reads every weight once, so its time is the time of reading. oneDNN keeps its own
blocked layout for that; ``torch.nn.functional.linear`` converts into it at every call, a packed weight only once.
Measured on two cores with AMX for all linear layers of SmolLM2-135M in bfloat16: 23 ms plain, 15 ms packed, at any
width from 1 to 16.

Example::

    project = make_linear(weight, bias=None)     # weight [out, in]
    y = project(x)                               # [w, in] -> [w, out]
    y = project.add(x, residual)                 # residual + project(x)
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PACKING_WIDTH = 16  # the width that the blocked layout is chosen for; any width can be computed with it


class DenseLinear:
    """The plain layer, for devices without a packed layout."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> None:
        self.weight, self.bias = weight, bias
        self.num_bytes = weight.nbytes

    def __call__(self, x: Float[Tensor, "w in"]) -> Float[Tensor, "w out"]:
        """Return ``x`` times the transposed weight, plus the bias."""
        return F.linear(x, self.weight, self.bias)

    def add(self, x: Float[Tensor, "w in"], residual: Float[Tensor, "w out"]) -> Float[Tensor, "w out"]:
        """Return ``residual`` plus the layer's output."""
        return F.linear(x, self.weight, self.bias).add_(residual)

    def in_float32(self, x: Float[Tensor, "w in"]) -> Float[Tensor, "w out"]:
        """Return the layer's output before it is rounded to the type of its weights, where the device gives it.

        In bfloat16 logits of 16 and more are whole eighths: on an H200 the two greatest were equal in half of the
        steps at which a tree's tokens parted from the baseline's.
        """
        if self.bias is None and gives_float32(self.weight.device, self.weight.dtype):
            return torch.mm(x, self.weight.T, out_dtype=torch.float32)
        return self(x)


class PackedLinear:
    """The layer with its weight in oneDNN's blocked layout; the sum with the residual is part of the kernel."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKING_WIDTH)
        self.bias = bias
        self.num_bytes = weight.nbytes

    def __call__(self, x: Float[Tensor, "w in"]) -> Float[Tensor, "w out"]:
        """Return ``x`` times the transposed weight, plus the bias."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y

    def add(self, x: Float[Tensor, "w in"], residual: Float[Tensor, "w out"]) -> Float[Tensor, "w out"]:
        """Return ``residual`` plus the layer's output."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return y

    def in_float32(self, x: Float[Tensor, "w in"]) -> Float[Tensor, "w out"]:
        """Return the layer's output; oneDNN gives it in the type of its weights alone."""
        return self(x)


Linear = DenseLinear | PackedLinear


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of torch and this processor have packed layers for ``dtype``."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


@cache
def gives_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch gives a product of ``dtype`` in float32, unrounded, on this device: it does on CUDA."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    row = torch.ones(1, 16, dtype=dtype, device=device)
    try:
        return bool(torch.mm(row, row.T, out_dtype=torch.float32).item() == 16)
    except RuntimeError:  # of which NotImplementedError is one
        return False


def make_linear(weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None) -> Linear:
    """Build the fastest layer that the weight's device and dtype allow."""
    if can_pack(weight.device, weight.dtype):
        return PackedLinear(weight, bias)
    return DenseLinear(weight.contiguous(), bias)
