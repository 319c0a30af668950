"""ShuffleLM's mixers and heads in one call of the compiled code, in place of some thirty of torch: ``native/slots.h``.

But for rounding it computes what :meth:`shuffle.shufflelm.model.ShuffleLM.heads` does, and who is kept as the ordering
has it; the vocabulary's head is read for the kept slots alone. Example::

    heads = CompiledHeads(model, ordering, model.get_input_embeddings().weight[:vocab_size], with_logits=False)
    said = heads(hidden)                     # [K, d], the slots' rows of the backbone's last states
    said.kept, said.tokens                   # such as [0, 4, 7], [17, 20, 3]
"""

from __future__ import annotations

from ctypes import POINTER, Structure, byref, c_double, c_float, c_int64, c_void_p
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from decoding.native.build import load_library
from decoding.native.layers import FloatCopies, Linear, NativeLinear
from shuffle.shufflelm.compiled_mixer import Block, describe_block
from shuffle.shufflelm.mixer import MixerBlock
from shuffle.shufflelm.model import ShuffleLM
from shuffle.shufflelm.ordering import Ordering
from shuffle.shufflelm.rotary import frequencies, targets


class _Heads(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("hidden", "slots", "blocks", "frequencies", "positions")),
        ("eps", c_float),
        ("temperature", c_float),
        ("least", c_double),
        ("block", POINTER(Block)),
        ("norm", c_void_p),
        ("places", c_void_p),
        ("readout", Linear),
        ("head", Linear),
    )


class _Said(Structure):
    _fields_ = tuple((name, c_void_p) for name in ("kept", "tokens", "keep", "scores", "expected", "logits"))


class Said(NamedTuple):
    """What the ``n`` kept slots say.

    Attributes:
        kept: which they are, in the order of the slots.
        tokens: each one's likeliest; none with logits.
        logits: over the vocabulary, ``[n, V]``, or None.
        scores: of each position, ``[n, J]``; None without a position head.
        expected: each one's mean position; none without a position head.
        keep: each one's logit of being kept.
    """

    kept: list[int]
    tokens: list[int]
    logits: Float[Tensor, "n v"] | None
    scores: Float[Tensor, "n j"] | None
    expected: list[float]
    keep: Float[Tensor, " n"]


class CompiledHeads:
    """The heads of a model on the processor, laid out in its dtype.

    Args:
        model: float32 or bfloat16.
        ordering: says who is kept; it may not limit how many.
        rows: of the vocabulary's head.
        with_logits: give logits to draw tokens from, in place of the likeliest tokens.
    """

    def __init__(self, model: ShuffleLM, ordering: Ordering, rows: Float[Tensor, "v d"], with_logits: bool) -> None:
        assert ordering.most is None
        config, library = model.config, load_library()
        # What the description points to is held: the small weights, the layers, the blocks.
        self._copies, self._layers = FloatCopies(), list[NativeLinear]()
        address = self._copies.address
        mixers = [mixer for mixer in model.mixers if isinstance(mixer, MixerBlock)]
        blocks = [
            describe_block(mixer, address, *map(self._laid_out, (mixer.channels_up, mixer.channels_down)))
            for mixer in mixers
        ]
        self._blocks = (Block * max(1, len(blocks)))(*blocks)
        slots, pairs, readers = config.max_parallel_tokens, 0, [model.keep_head]
        if config.position_head == "rotary":
            pairs, readers = config.num_frequencies, [model.rotary_head, model.keep_head]
        readout = self._linear(torch.cat([r.weight for r in readers]), torch.cat([r.bias for r in readers]))
        places = targets(torch.arange(slots), frequencies(config.num_frequencies, slots))  # as the module has them
        self._heads = _Heads(
            *(config.hidden_size, slots, len(blocks), pairs, slots if pairs else 0),
            *(config.rms_norm_eps, ordering.temperature, ordering.least_logit),
            self._blocks,
            address(model.mixer_norm.weight) if isinstance(model.mixer_norm, nn.RMSNorm) else None,
            address(places.flatten(1).T),
            readout,
            self._linear(rows, None),
        )
        self._say = library.slots_say_float32 if model.dtype == torch.float32 else library.slots_say_bfloat16
        self._scratch = torch.empty(library.slots_scratch_floats(byref(self._heads), c_int64(slots)))
        self._with_logits = with_logits

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the heads themselves: they do not change, and a drafter that learns apart shares them."""
        return self

    def _linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        self._layers.append(NativeLinear(weight.detach(), None if bias is None else bias.detach()))
        return self._layers[-1].whole()

    def _laid_out(self, linear: nn.Linear) -> Linear:
        return self._linear(linear.weight, linear.bias)

    def __call__(self, hidden: Float[Tensor, "k d"]) -> Said:
        """Return what the slots say of which the backbone's last states are ``hidden``, in float32.

        Raises:
            ValueError: they are more than the model's, or fewer where mixers have weights for each.
        """
        most = self._heads.slots
        if not 1 <= len(hidden) <= most or (self._heads.blocks and len(hidden) < most):
            raise ValueError(f"the heads are for {most} slots, not {len(hidden)}")
        slots, positions = len(hidden), self._heads.positions
        hidden = hidden.contiguous()
        kept, tokens = torch.empty(2, slots, dtype=torch.int64)
        scores, expected, keep = torch.empty(slots, positions), torch.empty(slots), torch.empty(slots)
        logits = torch.empty(slots, self._heads.head.n) if self._with_logits else None
        addresses = [tensor.data_ptr() for tensor in (kept, tokens, keep, scores, expected)]
        said = _Said(*addresses, None if logits is None else logits.data_ptr())
        pointers = (c_void_p(hidden.data_ptr()), c_int64(slots), c_void_p(self._scratch.data_ptr()))
        count = self._say(byref(self._heads), *pointers, byref(said))
        return Said(
            kept[:count].tolist(),
            tokens[:count].tolist() if logits is None else [],
            None if logits is None else logits[:count],
            scores[:count] if positions else None,
            expected[:count].tolist() if positions else [],
            keep[:count],
        )
