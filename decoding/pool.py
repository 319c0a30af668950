r"""Caches of many texts in one buffer, so that one forward pass reads the next token of each.

For throughput on the engine that torch runs: the compiled one reads separate caches by itself. Every pass goes over all
places of the pool, those of texts that are over too, whose rows are of no account: the shapes never change, and on CUDA
the pass is captured as a graph (:mod:`decoding.replay`). In reduced precision a row's logits depend a little on the
number of places; in float32 they are those of the text read alone.

Example::

    caches = CachePool(32, weights, capacity=512).caches()
    target.prefill(caches[0], prompt_ids)                             # each is a cache like any other
    prefill_together(caches[1:], prompts)                             # or several prompts in one pass
    logits, hidden = read_together([caches[0], caches[5]], [17, 4])   # one token behind each: [2, V], [2, d]
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from decoding.cache import KVCache, additive
from decoding.llama import LlamaWeights, forward
from decoding.replay import Replayed


class PooledCache(KVCache):
    """The cache of one text, a place of a pool."""

    pool: CachePool
    place: int


class CachePool:
    """Room for the caches of ``count`` texts, ``[layers, 2, count, kv_heads, capacity, head_dim]``.

    Args:
        count: places for texts.
        weights: of the model that reads; all on one device.
        capacity: rows of each.
    """

    def __init__(self, count: int, weights: LlamaWeights, capacity: int) -> None:
        self.weights, self.capacity = weights, capacity
        device = weights.embedding.device
        shape = (len(weights.layers), 2, count, weights.num_kv_heads, capacity, weights.head_dim)
        # Zeros, not empty: a masked row still enters attention with weight 0, and 0 x NaN is NaN.
        self.buffer = torch.zeros(shape, dtype=weights.embedding.dtype, device=device)
        self._places = torch.arange(count, device=device)
        # A pool that held itself would keep its memory until the garbage collector comes by.
        self._read = Replayed(partial(decode_texts, weakref.proxy(self)), device)

    @property
    def problem(self) -> str | None:
        """Why passes are not captured on a device that could, in one line; None while they are."""
        return self._read.problem

    def caches(self) -> list[KVCache]:
        """Return a cache for each place. They hold the pool, and it does not hold them."""
        caches: list[KVCache] = []
        for place in range(len(self._places)):
            cache = PooledCache.over(self.buffer[:, :, place])
            cache.pool, cache.place = self, place
            caches.append(cache)
        return caches

    @torch.inference_mode()
    def read(
        self, places: Sequence[int], tokens: Sequence[int], rows: Sequence[int]
    ) -> tuple[Float[Tensor, "n v"], Float[Tensor, "n d"]]:
        """Read a token of each text named by its place, into these rows; return logits and hidden states."""
        # What is read for the other places goes to their last row, which a text that is over no longer needs.
        numbers = torch.tensor([[0], [self.capacity - 1]]).repeat(1, len(self._places))
        numbers[:, list(places)] = torch.tensor([tokens, rows])
        logits, hidden = self._read(numbers)
        asked = torch.tensor(places, device=logits.device)
        return logits[asked], hidden[asked]

    def write(
        self,
        layer: int,
        keys: Float[Tensor, "n kv hd"],
        values: Float[Tensor, "n kv hd"],
        rows: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Write one row of each text, at its place in ``rows``."""
        assert rows is not None
        for rows_of, new in zip(self.buffer[layer], (keys, values), strict=True):
            rows_of[self._places, :, rows] = new

    def attend(
        self, layer: int, queries: Float[Tensor, "n h hd"], mask: Float[Tensor, "n 1 1 capacity"]
    ) -> Float[Tensor, "n h hd"]:
        """Attend, each query over its own text."""
        keys, values = self.buffer[layer]
        grouped = queries.view(len(queries), keys.shape[1], -1, queries.shape[-1])
        found = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        return found.reshape(queries.shape)


class Prompts:
    """The first ``length`` rows of some places of a pool: what a pass over as many prompts writes, and attends to."""

    def __init__(self, pool: CachePool, places: Sequence[int], length: int) -> None:
        self.pool, self.length = pool, length
        self._places = torch.tensor(places, device=pool.buffer.device)

    def write(
        self,
        layer: int,
        keys: Float[Tensor, "n_l kv hd"],
        values: Float[Tensor, "n_l kv hd"],
        rows: Int[Tensor, " n_l"] | None = None,
    ) -> None:
        """Write the rows of all prompts."""
        for rows_of, new in zip(self.pool.buffer[layer], (keys, values), strict=True):
            by_text = new.view(len(self._places), self.length, *new.shape[1:])
            rows_of[self._places, :, : self.length] = by_text.transpose(1, 2)

    def attend(
        self, layer: int, queries: Float[Tensor, "n_l h hd"], mask: Float[Tensor, "l l"]
    ) -> Float[Tensor, "n_l h hd"]:
        """Attend, each row over its own prompt. Padding comes behind, so that under a causal mask no token sees it."""
        keys, values = self.pool.buffer[layer][:, self._places, :, : self.length].unsqueeze(3)
        count, kv_heads = keys.shape[:2]
        grouped = queries.view(count, self.length, kv_heads, -1, queries.shape[-1]).permute(0, 2, 3, 1, 4)
        shape = grouped.shape
        found = F.scaled_dot_product_attention(grouped, keys.expand(shape), values.expand(shape), attn_mask=mask)
        return found.permute(0, 3, 1, 2, 4).reshape(queries.shape)


def pool_of(caches: Sequence[KVCache]) -> tuple[CachePool, list[int]] | None:
    """Return the pool that caches share and their places in it; None if they share none."""
    pooled = [cache for cache in caches if isinstance(cache, PooledCache)]
    if len(pooled) < len(caches) or len({id(cache.pool) for cache in pooled}) != 1:
        return None
    return pooled[0].pool, [cache.place for cache in pooled]


def read_together(
    caches: Sequence[KVCache], tokens: Sequence[int]
) -> tuple[Float[Tensor, "n v"], Float[Tensor, "n d"]] | None:
    """Read one token behind the committed rows of each cache; the caller commits them. None: they share no pool."""
    if (shared := pool_of(caches)) is None:
        return None
    pool, places = shared
    return pool.read(places, tokens, [cache.length for cache in caches])


@torch.inference_mode()
def prefill_together(
    caches: Sequence[KVCache], prompts: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "n v"], Float[Tensor, "n d"]] | None:
    """Read whole prompts into empty caches in one pass, padded to the longest, and commit them.

    No graph is captured: prompts of these lengths may not come again.

    Returns:
        Logits and hidden states of the last token of each. None: the caches share no pool.

    Raises:
        ValueError: the longest prompt does not fit, or a cache is not empty.
    """
    if (shared := pool_of(caches)) is None:
        return None
    pool, places = shared
    weights, device = pool.weights, pool.buffer.device
    length = max(map(len, prompts))
    if any(cache.length for cache in caches):
        raise ValueError("prompts are read into empty caches")
    caches[0].check_room(length)
    tokens = torch.tensor([[*prompt, *[0] * (length - len(prompt))] for prompt in prompts], device=device)
    positions = torch.arange(length, device=device).repeat(len(prompts))
    mask = additive(torch.ones(length, length, dtype=torch.bool, device=device).tril(), weights.embedding.dtype)
    read = forward(weights, tokens.flatten(), positions, Prompts(pool, places, length), mask)
    ends = torch.tensor([row * length + len(prompt) - 1 for row, prompt in enumerate(prompts)], device=device)
    for cache, prompt in zip(caches, prompts, strict=True):
        cache.keep(range(len(prompt)))
    hidden = read[ends]
    return weights.head.in_float32(hidden), hidden


def decode_texts(pool: CachePool, numbers: Int[Tensor, "2 n"]) -> tuple[Float[Tensor, "n v"], Float[Tensor, "n d"]]:
    """Return logits and hidden states; ``numbers`` are each text's token, and the row that it is written to."""
    weights = pool.weights
    tokens, rows = numbers
    visible = torch.arange(pool.capacity, device=rows.device) <= rows[:, None]
    mask = additive(visible, weights.embedding.dtype)[:, None, None]
    positions = rows.clamp(max=weights.config.max_position_embeddings - 1)  # of a text that is over
    hidden = forward(weights, tokens, positions, pool, mask, rows)
    return weights.head.in_float32(hidden), hidden
