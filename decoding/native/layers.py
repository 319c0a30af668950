"""Weights of linear layers as the compiled code reads them, and how it is told where they lie.

Example::

    layer = NativeLinear(weight)      # [out, in], float32 or bfloat16; Int8Linear(weight) in whole numbers
    layer.whole()                     # the ctypes structure that a compiled call takes
"""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p

import torch
from jaxtyping import Float
from torch import Tensor

from decoding.native.build import load_library
from decoding.pages import keep

PANEL = 16
BLOCK = 32  # numbers of a row that have a scale together, in int8
SCALE_BYTES = torch.bfloat16.itemsize


class NativeLinear:
    """A linear layer's weight in panels ``[out / 16, in / pair, 16, pair]``, zero-padded; ``pair`` is 2 in bfloat16.

    Not called by itself: the compiled forward pass reads it. It lies in large pages (:mod:`decoding.pages`), beside the
    layer that was made before. Measured on two cores of a virtual machine (AMD Zen 3), keys and values in such pages
    too: passes take 0.92 to 0.99 of the time.

    Attributes:
        num_bytes: bytes of the weight, and of its scales where it has some, without padding.
    """

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None) -> None:
        self.num_outputs, inner = weight.shape
        self.num_inputs = inner + -inner % self._multiple(weight.dtype)
        padded = torch.nn.functional.pad(weight, (0, self.num_inputs - inner, 0, -self.num_outputs % PANEL))
        self.num_bytes = weight.nbytes
        self.weight = keep(self._panels(padded))
        self.bias = None if bias is None else bias.float()

    @staticmethod
    def _multiple(dtype: torch.dtype) -> int:
        """Return what a padded row's length is a multiple of."""
        return 1 if dtype == torch.float32 else 2

    def _panels(self, padded: Float[Tensor, "out2 in2"]) -> Tensor:
        """Lay a padded weight out in panels, the first axis theirs."""
        pair = self._multiple(padded.dtype)
        return padded.view(-1, PANEL, self.num_inputs // pair, pair).transpose(1, 2).contiguous()

    def part(self, first: int, last: int) -> Linear:
        """Describe the outputs ``first`` to ``last`` to the compiled code; ``first`` starts a panel."""
        bytes_per_panel = self.weight[0].nbytes
        bias = None if self.bias is None else self.bias.data_ptr() + 4 * first
        start = self.weight.data_ptr() + first // PANEL * bytes_per_panel
        return Linear(start, bias, last - first, self.num_inputs)

    def whole(self) -> Linear:
        """Describe all outputs to the compiled code."""
        return self.part(0, self.num_outputs)


class Int8Linear(NativeLinear):
    """The layer with its weight in int8, each 32 numbers of a row with a scale of their own: half bfloat16's bytes.

    ``weight ~ scale * whole`` with ``scale = max |block| / 127`` in bfloat16, to the nearest whole number. What is
    multiplied with it is rounded in the same way, as it comes; blocks are summed as whole numbers, exactly. A panel's
    bytes are ``[in / 32, 32 + 16 * 32]``: 16 scales, then ``[32 / place, 16, place]`` numbers, each plus 128.
    """

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None) -> None:
        super().__init__(weight.float(), bias)
        blocks_per_row = self.num_inputs // BLOCK
        self.num_bytes = weight.numel() + self.num_outputs * blocks_per_row * SCALE_BYTES

    @staticmethod
    def _multiple(dtype: torch.dtype) -> int:
        return BLOCK

    def _panels(self, padded: Float[Tensor, "out2 in2"]) -> Tensor:
        place = load_library().int8_place()
        blocks = padded.view(-1, PANEL, self.num_inputs // BLOCK, BLOCK)
        scale = (blocks.abs().amax(dim=-1) / 127).bfloat16()
        divisor = scale.float().where(scale > 0, 1.0)  # a block of zeros stays one
        whole = ((blocks / divisor[..., None]).round_() + 128).to(torch.uint8)
        numbers = whole.view(*blocks.shape[:3], BLOCK // place, place).permute(0, 2, 3, 1, 4)
        scales = scale.transpose(1, 2).contiguous().view(torch.uint8)
        return torch.cat([scales, numbers.flatten(2)], dim=-1)


class Linear(Structure):
    """A layer's weight as the compiled code is told of it."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("n", c_int64), ("k", c_int64))


class FloatCopies:
    """Copies in float32 that compiled code holds pointers to: they live as long as this does."""

    def __init__(self) -> None:
        self._copies: list[Tensor] = []

    def address(self, tensor: Float[Tensor, "*n"]) -> int:
        """Return where a copy of ``tensor`` lies, one number after the other."""
        self._copies.append(tensor.detach().float().contiguous())
        return self._copies[-1].data_ptr()
