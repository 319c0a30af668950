"""Binds a model's weights to the compiled forward pass.

Example::

    engine = NativeEngine(LlamaWeights.load(config, read, dtype, device, NativeLinear))
    hidden, logits = engine.forward(cache, tokens, positions, parents, first_row=0)
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PretrainedConfig

from decoding.cache import KVCache
from decoding.llama import LlamaWeights, head_dim_of, rotary_tables
from decoding.native.build import BuildError, attempt, load_library

PANEL = 16
BLOCK = 32  # numbers of a row that have a scale together, in int8
SCALE_BYTES = torch.bfloat16.itemsize


class NativeLinear:
    """A linear layer's weight in panels ``[out / 16, in / pair, 16, pair]``, zero-padded; ``pair`` is 2 in bfloat16.

    Not called by itself: the compiled forward pass reads it.

    Attributes:
        num_bytes: bytes of the weight, and of its scales where it has some, without padding.
    """

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None) -> None:
        self.num_outputs, inner = weight.shape
        self.num_inputs = inner + -inner % self._multiple(weight.dtype)
        padded = torch.nn.functional.pad(weight, (0, self.num_inputs - inner, 0, -self.num_outputs % PANEL))
        self.num_bytes = weight.nbytes
        self.weight = self._panels(padded)
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


class _Layer(Structure):
    _fields_ = (
        ("input_norm", c_void_p),
        ("query_key_value", Linear),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("output", Linear),
        ("mlp_norm", c_void_p),
        ("gate", Linear),
        ("up", Linear),
        ("down", Linear),
    )


class _Model(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("num_layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim")),
        ("eps", c_float),
        ("embedding", c_void_p),
        ("cosine", c_void_p),
        ("sine", c_void_p),
        ("layers", POINTER(_Layer)),
        ("norm", c_void_p),
        ("head", Linear),
    )


class _Batch(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("width", "length", "capacity")),
        *((name, c_void_p) for name in ("tokens", "positions", "parents", "leading")),
        *((name, c_void_p) for name in ("cache", "caches", "lengths", "scratch")),
        ("first_row", c_int64),
        ("hidden", c_void_p),
        ("logits", c_void_p),
    )


def why_not(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why this model cannot run in the compiled forward pass here, or None if it can."""
    if device.type != "cpu":
        return f"device {device.type}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"dtype {dtype}"
    if config.intermediate_size % PANEL or head_dim_of(config) % 2:
        return f"intermediate_size {config.intermediate_size} or head_dim {head_dim_of(config)}"
    try:
        load_library()
    except BuildError as error:
        return str(error)
    return None


def can_sum() -> bool:
    """Whether there is a compiled library here."""
    return attempt()[0] is not None


def sum_of(data: Float[Tensor, "*n"]) -> float:
    """Return the sum of float32 numbers, read by all threads as fast as memory is: a measure of that."""
    if data.dtype != torch.float32 or not data.is_contiguous():
        raise ValueError(f"sums contiguous float32, not {data.dtype}")
    return float(load_library().sum_of(c_void_p(data.data_ptr()), c_int64(data.numel())))


class NativeEngine:
    """Runs the compiled forward pass on weights that were loaded with :class:`NativeLinear`."""

    def __init__(self, weights: LlamaWeights) -> None:
        self.weights = weights
        self._library = load_library()
        is_float32 = weights.embedding.dtype == torch.float32
        name = "int8" if isinstance(weights.head, Int8Linear) else "float32" if is_float32 else "bfloat16"
        self._forward = getattr(self._library, f"forward_{name}")
        self._copies = FloatCopies()
        cosine, sine = rotary_tables(weights.config, torch.float32, weights.embedding.device)
        layers = (_Layer * len(weights.layers))(*map(self._layer, weights.layers))
        self._model = _Model(
            len(weights.layers),
            weights.config.hidden_size,
            weights.config.intermediate_size,
            weights.num_heads,
            weights.num_kv_heads,
            weights.head_dim,
            weights.config.rms_norm_eps,
            weights.embedding.data_ptr(),
            self._float(cosine),
            self._float(sine),
            layers,
            self._float(weights.norm),
            weights.head.whole(),  # type: ignore[union-attr]
        )
        self._scratch = torch.empty(0)

    def forward(
        self,
        cache: KVCache,
        tokens: Sequence[int],
        positions: Sequence[int],
        parents: Sequence[int],
        first_row: int = 0,
    ) -> tuple[Float[Tensor, "w2 d"], Float[Tensor, "w2 v"]]:
        """Run ``w`` tokens through the model, writing their keys and values behind the cached prefix.

        Args:
            cache: receives their keys and values.
            tokens: ids of the rows.
            positions: their positions.
            parents: index of the row that each row follows, -1 for the first.
            first_row: nothing is wanted of the rows before it but their keys and values.

        Returns:
            Last hidden states, normalised, and logits of the rows from ``first_row`` on, both float32.
        """
        numbers = torch.tensor([tokens, positions, parents], dtype=torch.int64)
        return self._run(numbers, _Batch(cache=cache.buffer.data_ptr(), length=cache.length), cache, first_row)

    def forward_block(
        self,
        cache: KVCache,
        tokens: Sequence[int],
        positions: Sequence[int],
        leading: Sequence[int],
        first_row: int,
        with_logits: bool,
    ) -> tuple[Float[Tensor, "w2 d"], Float[Tensor, "w2 v"]]:
        """Run a block whose rows see the cached prefix and its own first ``leading[i]`` rows, later ones included.

        Otherwise as :meth:`forward`; a row's arithmetic depends on what it sees alone. Without logits, there are none
        in the place of the rows'.
        """
        numbers = torch.tensor([tokens, positions, leading], dtype=torch.int64)
        batch = _Batch(cache=cache.buffer.data_ptr(), length=cache.length, leading=numbers[2].data_ptr())
        return self._run(numbers, batch, cache, first_row, with_logits)

    def forward_each(
        self, caches: Sequence[KVCache], tokens: Sequence[int]
    ) -> tuple[Float[Tensor, "w d"], Float[Tensor, "w v"]]:
        """Run one token of each of ``w`` texts through the model, writing its key and value behind the text's own.

        The numbers are those of :meth:`forward` on each alone, bit for bit.

        Raises:
            ValueError: the caches differ in capacity.
        """
        if len({cache.capacity for cache in caches}) > 1:
            raise ValueError(f"caches of different capacities: {sorted({cache.capacity for cache in caches})}")
        lengths = [cache.length for cache in caches]
        numbers = torch.tensor([tokens, lengths, lengths], dtype=torch.int64)
        pointers = torch.tensor([cache.buffer.data_ptr() for cache in caches], dtype=torch.int64)
        batch = _Batch(caches=pointers.data_ptr(), lengths=numbers[1].data_ptr())
        return self._run(numbers, batch, caches[0], first_row=0)

    def _run(
        self, numbers: Int[Tensor, "3 w"], batch: _Batch, cache: KVCache, first_row: int, with_logits: bool = True
    ) -> tuple[Float[Tensor, "w2 d"], Float[Tensor, "w3 v"]]:
        """Complete ``batch`` and call the compiled code; ``numbers`` are tokens, positions and parents."""
        width = numbers.shape[1]
        hidden = torch.empty(width - first_row, self._model.hidden)
        logits = torch.empty(width - first_row if with_logits else 0, self._model.head.n)
        needed = self._library.scratch_floats(byref(self._model), c_int64(width))
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed)
        batch.width, batch.capacity, batch.first_row = width, cache.capacity, first_row
        batch.tokens, batch.positions, batch.parents = (row.data_ptr() for row in numbers)
        batch.scratch, batch.hidden = self._scratch.data_ptr(), hidden.data_ptr()
        batch.logits = logits.data_ptr() if with_logits else None
        self._forward(byref(self._model), byref(batch))
        return hidden, logits

    def _layer(self, layer: Any) -> _Layer:
        intermediate = self.weights.config.intermediate_size
        return _Layer(
            self._float(layer.input_norm),
            layer.query_key_value.whole(),
            self._float(layer.query_norm),
            self._float(layer.key_norm),
            layer.output.whole(),
            self._float(layer.mlp_norm),
            layer.gate_up.part(0, intermediate),
            layer.gate_up.part(intermediate, 2 * intermediate),
            layer.down.whole(),
        )

    def _float(self, tensor: Tensor | None) -> int | None:
        """Return the address of a float32 copy, or None where there is no tensor."""
        return None if tensor is None else self._copies.address(tensor)
