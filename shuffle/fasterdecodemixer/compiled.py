"""The mixer's guesses in one call of the compiled code, in place of some seventy of torch: ``decoding/native/mixer.h``.

The weights are those that :class:`shuffle.fasterdecodemixer.guesses.DecodingMixer` has laid out for the compiled
products; it computes what ``DecodingMixer._guess`` does, but for rounding in float32. Example::

    guess = CompiledMixer(decoding_mixer)
    (packed,) = guess(hidden, rows)         # [d], [C] -> candidates, chances, links and keep chances, one by one
"""

from __future__ import annotations

from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decoding.native.build import load_library
from decoding.native.layers import FloatCopies, Linear
from decoding.native.product import NativeProduct
from decoding.part_layers import PartLayer
from shuffle.shufflelm.compiled_mixer import Block, describe_block

if TYPE_CHECKING:
    from shuffle.fasterdecodemixer.guesses import DecodingMixer


class _Mixer(Structure):
    _fields_ = (
        *(
            (name, c_int64)
            for name in ("hidden", "slots", "positions", "shortlist", "context", "blocks", "rotary", "candidates")
        ),
        ("eps", c_float),
        ("sharpness", c_float),
        *((name, Linear) for name in ("merge", "fan", "readout", "blend", "output")),
        ("block", POINTER(Block)),
        *((name, c_void_p) for name in ("embedded", "follow", "rows", "place_of_slot", "keep_of_slot", "places")),
    )


class CompiledMixer:
    """A mixer described to the compiled code, which reads the weights where they lie.

    Args:
        laid_out: the mixer; its layers are :class:`NativeProduct`.
        candidates: of a position.
    """

    def __init__(self, laid_out: DecodingMixer, candidates: int) -> None:
        # What the description points to is held: the small weights here, the layers below.
        self._copies = FloatCopies()
        address = self._copies.address
        linears = (laid_out.merge, laid_out.fan, laid_out.readout, laid_out.blend, laid_out.output)
        self._layers = (linears, laid_out.channels)
        config, mixer = laid_out.config, laid_out.mixer
        blocks = [
            describe_block(block, address, described(up), described(down))
            for block, (up, down) in zip(laid_out.blocks, laid_out.channels, strict=True)
        ]
        self._blocks = (Block * max(1, len(blocks)))(*blocks)
        shape = (config.hidden_size, config.num_slots, config.num_positions, config.shortlist_size, config.num_context)
        tables = (laid_out.embedded, laid_out.follow, mixer.rows, laid_out.place_of_slot, mixer.keep_of_slot)
        self._mixer = _Mixer(
            *(*shape, len(blocks), config.rotary_dim, candidates),
            float(mixer.mixer_blocks()[0].slot_norm.eps or 0.0) if blocks else 0.0,
            config.position_sharpness,
            *(described(linear) for linear in linears),
            self._blocks,
            *(address(table) for table in (*tables, laid_out.places)),
        )
        library = load_library()
        self._guess = library.mixer_guess
        self._scratch = torch.empty(library.mixer_scratch_floats(byref(self._mixer)))
        positions = config.num_positions
        self._found = (2 * positions + (positions - 1) * candidates) * candidates + positions

    def __call__(self, hidden: Float[Tensor, " d"], rows: Int[Tensor, " c"]) -> tuple[Float[Tensor, " n"]]:
        """Return each position's candidates (as rows), their chances, their links and the keep chances, one by one."""
        hidden, found = hidden.float().contiguous(), torch.empty(self._found)
        self._guess(
            byref(self._mixer),
            c_void_p(hidden.data_ptr()),
            c_void_p(rows.data_ptr()),
            c_void_p(self._scratch.data_ptr()),
            c_void_p(found.data_ptr()),
        )
        return (found,)


def described(layer: PartLayer) -> Linear:
    """Return a layer's weight as the compiled code is told of it."""
    assert isinstance(layer, NativeProduct)
    return layer.whole()
