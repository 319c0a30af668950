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
from decoding.native.layers import PANEL, FloatCopies, Int8Linear, Linear


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
        self._check(tokens, positions)
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
        self._check(tokens, positions)
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
        self._check(tokens, lengths)
        numbers = torch.tensor([tokens, lengths, lengths], dtype=torch.int64)
        pointers = torch.tensor([cache.buffer.data_ptr() for cache in caches], dtype=torch.int64)
        batch = _Batch(caches=pointers.data_ptr(), lengths=numbers[1].data_ptr())
        return self._run(numbers, batch, caches[0], first_row=0)

    def _check(self, tokens: Sequence[int], positions: Sequence[int]) -> None:
        """Refuse what lies outside the tables, which the compiled code reads unasked."""
        known, longest = len(self.weights.embedding), self.weights.config.max_position_embeddings
        if not 0 <= min(tokens) <= max(tokens) < known:
            raise ValueError(f"token ids from {min(tokens)} to {max(tokens)}, where the model knows {known} tokens")
        if max(positions) >= longest:
            raise ValueError(f"position {max(positions)} in a context of {longest} tokens")

    def _run(
        self, numbers: Int[Tensor, "3 w"], batch: _Batch, cache: KVCache, first_row: int, with_logits: bool = True
    ) -> tuple[Float[Tensor, "w2 d"], Float[Tensor, "w3 v"]]:
        """Complete ``batch`` and call the compiled code; ``numbers`` are tokens, positions and parents."""
        width = numbers.shape[1]
        hidden = torch.empty(width - first_row, self._model.hidden)
        logits = torch.empty(width - first_row if with_logits else 0, self._model.head.n)
        needed = self._library.scratch_floats(byref(self._model), c_int64(width), c_int64(cache.capacity))
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
