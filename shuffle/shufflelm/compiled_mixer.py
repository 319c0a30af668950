"""An MLP-Mixer over slots as the compiled code is told of it: ShuffleLM's and FasterDecodeMixer's (``native/slots.h``).

Example::

    block = describe_block(mixer_block, address, up.whole(), down.whole())     # a ctypes structure
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, c_void_p

from torch import Tensor

from decoding.native.layers import Linear
from shuffle.shufflelm.mixer import MixerBlock


class Block(Structure):
    """A :class:`MixerBlock` as the compiled code is told of it."""

    _fields_ = (
        *((name, c_void_p) for name in ("slot_norm", "up", "up_bias", "down", "down_bias", "channel_norm")),
        ("channels_up", Linear),
        ("channels_down", Linear),
    )


def describe_block(block: MixerBlock, address: Callable[[Tensor], int], up: Linear, down: Linear) -> Block:
    """Describe a block.

    Args:
        block: its small weights are read where ``address`` puts them.
        address: keeps a float32 copy of a tensor and says where it is.
        up: the block's ``channels_up``, laid out.
        down: its ``channels_down``.
    """
    small = (block.slot_norm.weight, block.slots_up.weight, block.slots_up.bias, block.slots_down.weight)
    return Block(*map(address, (*small, block.slots_down.bias, block.channel_norm.weight)), up, down)
