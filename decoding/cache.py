"""The key/value cache: one buffer, allocated once, in which candidates are written and the accepted ones kept.

Nothing is ever concatenated. A forward pass over a candidate tree writes its rows behind the committed prefix; after
verification the rows of the accepted path are moved into place and the rest is forgotten by not counting it. In the
eager engine the whole buffer takes part in attention under a mask, so the shapes, and with them the rounding, do not
depend on the method; the compiled one reads the rows that count.

Example::

    cache = KVCache(num_layers=30, num_kv_heads=3, head_dim=64, capacity=512, dtype=torch.bfloat16, device=cpu)
    cache.write(layer, keys, values)         # the rows behind the prefix
    cache.keep([0, 2, 5])                    # tree nodes on the accepted path become part of the prefix
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decoding.pages import zeros


def additive(visible: Bool[Tensor, "*b"], dtype: torch.dtype) -> Float[Tensor, "*b"]:
    """Return what attention adds to its scores: 0 where something is visible, -inf where not."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


class KVCache:
    """Keys and values of one sequence, ``[layers, 2, kv_heads, capacity, head_dim]``.

    Args:
        num_layers: layers of the model.
        num_kv_heads: key and value heads of a layer.
        head_dim: width of a head.
        capacity: rows.
        dtype: type of keys and values.
        device: where they are.
        places: the device of each layer, where a model is spread over several.

    Attributes:
        buffers: one for each run of layers on a device.
        length: number of committed tokens; the rows behind them are candidates or free.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        places: Sequence[torch.device] = (),
    ) -> None:
        shape = (2, num_kv_heads, capacity, head_dim)
        # Zeros, not empty: a masked row still enters attention with weight 0, and 0 x NaN is NaN.
        self.buffers = [
            zeros(len(list(run)), *shape, dtype=dtype, device=place)
            for place, run in groupby(places or [device] * num_layers)
        ]
        self._cut_in_layers()

    @classmethod
    def over(cls, buffer: Float[Tensor, "layers 2 kv capacity hd"]) -> Self:
        """Return an empty cache whose rows are ``buffer``'s."""
        cache = cls.__new__(cls)
        cache.buffers = [buffer]
        cache._cut_in_layers()
        return cache

    def _cut_in_layers(self) -> None:
        self.layers = [(layer[0], layer[1]) for buffer in self.buffers for layer in buffer]
        self.length = 0

    @property
    def buffer(self) -> Float[Tensor, "layers 2 kv capacity hd"]:
        """The one buffer of all layers.

        Raises:
            ValueError: they are on several devices.
        """
        (buffer,) = self.buffers
        return buffer

    @property
    def capacity(self) -> int:
        """Number of rows, committed, candidate and free."""
        return self.buffers[0].shape[3]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one committed token occupies, and that each later forward pass reads."""
        return sum(buffer[:, :, :, 0].numel() * buffer.element_size() for buffer in self.buffers)

    def clear(self) -> None:
        """Forget everything; the old rows are masked and later overwritten."""
        self.length = 0

    def truncate(self, length: int) -> None:
        """Take back what was committed behind the first ``length`` tokens.

        Raises:
            ValueError: there are not that many.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of length {self.length} cannot be truncated to {length}")
        self.length = length

    def check_room(self, rows: int) -> None:
        """Check that ``rows`` more fit.

        Raises:
            ValueError: they do not.
        """
        if self.length + rows > self.capacity:
            raise ValueError(f"{self.length + rows} rows do not fit a cache of capacity {self.capacity}")

    def write(
        self,
        layer: int,
        keys: Float[Tensor, "w kv hd"],
        values: Float[Tensor, "w kv hd"],
        rows: Int[Tensor, " w"] | None = None,
    ) -> None:
        """Write the rows of one forward pass behind the committed prefix.

        ``rows`` tells the device which rows those are. A CUDA graph needs it, since it would freeze a number that comes
        from Python; elsewhere a slice is faster.
        """
        key_rows, value_rows = self.layers[layer]
        if rows is not None:
            key_rows.index_copy_(1, rows, keys.transpose(0, 1))
            value_rows.index_copy_(1, rows, values.transpose(0, 1))
            return
        end = self.length + keys.shape[0]
        key_rows[:, self.length : end] = keys.transpose(0, 1)
        value_rows[:, self.length : end] = values.transpose(0, 1)

    def attend(
        self, layer: int, queries: Float[Tensor, "w h hd"], mask: Float[Tensor, "gw capacity"]
    ) -> Float[Tensor, "w h hd"]:
        """Attend over the whole buffer; the mask is repeated for the ``g`` queries that share a key head.

        They are one matrix then: ``g x w`` queries of a key head.
        """
        key_rows, value_rows = self.layers[layer]
        width, heads, head_dim = queries.shape
        kv_heads = key_rows.shape[0]
        grouped = queries.view(width, kv_heads, -1, head_dim).permute(1, 2, 0, 3).reshape(1, kv_heads, -1, head_dim)
        found = F.scaled_dot_product_attention(grouped, key_rows[None], value_rows[None], attn_mask=mask)
        return found.view(kv_heads, -1, width, head_dim).permute(2, 0, 1, 3).reshape(width, heads, head_dim)

    def keep(self, path: Sequence[int]) -> None:
        """Commit the nodes of ``path`` (indices of the last forward's rows, root first) and forget the others."""
        if list(path) != list(range(len(path))):
            source = torch.tensor([self.length + node for node in path])
            for buffer in self.buffers:
                rows = buffer.index_select(3, source.to(buffer.device))
                buffer[:, :, :, self.length : self.length + len(path)] = rows
        self.length += len(path)
