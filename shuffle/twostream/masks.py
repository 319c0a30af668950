r"""Groups of tokens, and who sees whom in the two streams of XLNet (Yang et al. 2019, section 2.3).

Token j has a group g_j; a lower group comes earlier. Every token has a content row, which knows the token, and one that
is to be predicted has a query row besides, which knows its place alone:

    content row i sees the content rows j with g_j <= g_i        h_i = Attention(Q = h_i, KV = h_{g_j <= g_i})
    query row i sees the content rows j with g_j < g_i           q_i = Attention(Q = q_i, KV = h_{g_j < g_i})

Nobody sees a query row, so the tokens of a group are predicted at once, each independent of the others. Both rules are
"sees the columns of the groups below a limit", which is g_i + 1 for content and g_i for a query.

Example::

    groups = group_tokens(mask, target, sizes, permuted, block_groups=4, causal_prompt=False)      # 0 0 0 1 1 2 2
    places, queried = query_places(target)                                                         # 3 4 5 6
    visible = two_stream_mask(groups, places, queried)                                             # [1, 11, 11]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

PADDING = -1  # the group of a column that nobody sees


def below_limit(columns: Int[Tensor, "b c"], limits: Int[Tensor, "b r"]) -> Bool[Tensor, "b r c"]:
    """Return which columns each row sees: those whose group is below the row's limit and is not ``PADDING``.

    The rows are the last ``r`` of the ``c`` columns (the columns before them are a cache's). A row that would see
    nothing, padding or a query of the first group, sees itself, because the attention of an empty row is NaN.
    """
    visible = (columns >= 0)[:, None] & (columns[:, None] < limits[:, :, None])
    lonely = ~visible.any(-1)
    itself = torch.diag_embed(lonely)  # [b, r, r]
    return visible | F.pad(itself, (columns.shape[1] - limits.shape[1], 0))


def two_stream_mask(
    groups: Int[Tensor, "b t"], places: Int[Tensor, "b q"], queried: Bool[Tensor, "b q"]
) -> Bool[Tensor, "b r r"]:
    """Return who sees whom among ``t`` content rows and, behind them, ``q`` query rows; r = t + q.

    Args:
        groups: of the tokens; ``PADDING`` for padding.
        places: the token that each query row predicts.
        queried: False for a query row that fills up a batch.
    """
    own = groups.gather(1, places).masked_fill(~queried, PADDING)
    columns = torch.cat([groups, torch.full_like(own, PADDING)], 1)
    return below_limit(columns, torch.cat([groups + 1, own], 1))


def query_places(wanted: Bool[Tensor, "b t"]) -> tuple[Int[Tensor, "b q"], Bool[Tensor, "b q"]]:
    """Return the places that are wanted, from left to right, and which of them are real; q is the most of a text."""
    count = wanted.sum(1)
    places = (~wanted).byte().argsort(dim=1, stable=True)[:, : int(count.max())]
    return places, torch.arange(places.shape[1], device=wanted.device) < count[:, None]


def group_tokens(
    mask: Bool[Tensor, "b t"],
    target: Bool[Tensor, "b t"],
    sizes: Int[Tensor, " b"],
    permuted: Bool[Tensor, " b"],
    *,
    block_groups: int,
    causal_prompt: bool,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b t"]:
    """Put the tokens of each text into groups: first the prompt's, then the target's, ``sizes[i]`` tokens each.

    Args:
        mask: False for padding, which is in group ``PADDING``.
        target: the tokens that are to be generated; the others are the prompt.
        sizes: tokens of a group; the last one of a text holds what is left.
        permuted: the target's order is random within each block; from left to right where False.
        block_groups: groups in a block.
        causal_prompt: a group for each of the prompt's tokens; one for the prompt where False.
        generator: draws the order; torch's own where None.
    """
    target, prompt = target & mask, mask & ~target
    step = target.long().cumsum(1) - 1
    block = step.div((sizes * block_groups)[:, None], rounding_mode="floor")
    noise = torch.rand(target.shape, generator=generator, device=target.device)
    # Sorted by this, blocks stay in order; float32 tells the steps of any text apart.
    key = torch.where(permuted[:, None], block + noise, step.float()).masked_fill(~target, torch.inf)
    rank = key.argsort(dim=1, stable=True).argsort(dim=1)
    num_prompt_groups = prompt.sum(1, keepdim=True) if causal_prompt else prompt.any(1, keepdim=True).long()
    before = prompt.long().cumsum(1) - 1 if causal_prompt else torch.zeros_like(step)
    groups = torch.where(target, num_prompt_groups + rank // sizes[:, None], before)
    return groups.masked_fill(~mask, PADDING)
