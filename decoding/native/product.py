"""A linear layer that is called by itself, its weight read in bfloat16 by the compiled code.

What drafts beside a target, heads or a mixer, is kept in bfloat16. Beside a target in float32 torch would have to read
it widened, twice the bytes; here it is widened as it is read. Example::

    project = NativeProduct(weight, bias)        # weight [out, in]
    y = project(x)                               # [w, in] -> [w, out], float32
    y = project.add(x, residual)                 # residual + project(x)
"""

from __future__ import annotations

from ctypes import byref, c_int64, c_void_p

import torch
from jaxtyping import Float
from torch import Tensor

from decoding.native.build import load_library
from decoding.native.engine import can_sum
from decoding.native.layers import NativeLinear


def can_multiply(device: torch.device) -> bool:
    """Whether there is a compiled library, and for this device."""
    return device.type == "cpu" and can_sum()


class NativeProduct(NativeLinear):
    """Multiplies float32 rows, rounded to bfloat16 as they enter, with a weight in bfloat16; sums are in float32."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None) -> None:
        super().__init__(weight.detach().bfloat16(), bias)
        self._multiply = load_library().multiply_bfloat16
        self._layer = self.whole()
        self._scratch = torch.empty(0)

    def __call__(self, x: Float[Tensor, "w in"]) -> Float[Tensor, "w out"]:
        """Return ``x`` times the transposed weight, plus the bias."""
        rows, inner = x.shape
        x, y = x.contiguous(), torch.empty(rows, self.num_outputs)
        if self._scratch.numel() < rows * (self.num_inputs + 1):
            self._scratch = torch.empty(rows * (self.num_inputs + 1))
        self._multiply(
            byref(self._layer),
            c_void_p(x.data_ptr()),
            c_int64(rows),
            c_int64(inner),
            c_void_p(self._scratch.data_ptr()),
            c_void_p(y.data_ptr()),
        )
        return y

    def add(self, x: Float[Tensor, "w in"], residual: Float[Tensor, "w out"]) -> Float[Tensor, "w out"]:
        """Return ``residual`` plus the layer's output."""
        return self(x).add_(residual)
