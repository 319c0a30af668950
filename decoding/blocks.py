"""Blocks: rows that are read together and may see each other in both directions, for models that generate in parallel.

A candidate tree's node sees its ancestors; a block's row sees the committed prefix and the first ``leading`` rows of
the block, whatever its own place. That is enough for every parallel generator on Llama weights:

    every row sees all rows            leading = (w,) * w              slots, masked diffusion
    queries see c content rows         leading = (c,) * w              two streams: content first, then the queries

Example::

    output = read_block(target, cache, tokens, positions, leading=[4] * 4)    # logits [4, V], hidden [4, d]
    cache.keep(range(2))                                                      # commit the first two rows
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decoding.cache import KVCache, additive
from decoding.llama import forward
from decoding.target import TargetModel, TreeOutput


@torch.inference_mode()
def read_block(
    target: TargetModel,
    cache: KVCache,
    tokens: Sequence[int],
    positions: Sequence[int],
    leading: Sequence[int],
    first_row: int = 0,
    with_logits: bool = True,
) -> TreeOutput:
    """Run one forward pass over a block of ``w`` rows; they stay uncommitted until ``cache.keep``.

    Args:
        target: the weights.
        cache: holds the prefix; its next ``w`` rows are written.
        tokens: ids of the rows.
        positions: their positions, which need not be in order.
        leading: how many leading rows of the block each row sees beside the prefix.
        first_row: nothing is wanted of the rows before it but their keys and values.
        with_logits: whether the head is wanted; without it, there are logits of no row.

    Returns:
        Logits ``[w - first_row, V]`` and last hidden states ``[w - first_row, d]``.

    Raises:
        ValueError: the numbers of rows differ, a row sees nothing or more than there is, the first row is none of
            them, or the block does not fit.
    """
    width = len(tokens)
    if not width or len(positions) != width or len(leading) != width:
        raise ValueError(f"a block of {width} tokens, {len(positions)} positions and {len(leading)} leading counts")
    if min(leading) < (cache.length == 0) or max(leading) > width:
        seen = f"{min(leading)} to {max(leading)} of {width} rows"
        raise ValueError(f"rows that see {seen} and a prefix of {cache.length}")
    if not 0 <= min(positions) <= max(positions) < target.max_context:
        raise ValueError(f"positions {min(positions)} to {max(positions)} in a context of {target.max_context}")
    if not 0 <= first_row < width:
        raise ValueError(f"rows from {first_row} on of a block of {width}")
    cache.check_room(width)
    if target.native is not None:
        hidden, logits = target.native.forward_block(cache, tokens, positions, leading, first_row, with_logits)
        return TreeOutput(logits, hidden)
    device = target.device
    visible = torch.arange(cache.capacity, device=device) < torch.tensor(leading, device=device)[:, None] + cache.length
    mask = additive(visible, target.dtype).repeat(target.weights.num_heads // target.weights.num_kv_heads, 1)
    rows, places = torch.tensor(tokens, device=device), torch.tensor(positions, device=device)
    hidden = forward(target.weights, rows, places, cache, mask)[first_row:]
    return TreeOutput(target.weights.head.in_float32(hidden if with_logits else hidden[:0]), hidden)
