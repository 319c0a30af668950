r"""What the slots are trained on: their tokens, their tokens' places, and whether they stand for any.

With the matching given (:mod:`shuffle.shufflelm.matching`), slot ``k`` for token ``j``,

    loss = mean_kj -log p_k(y_j)  +  beta mean_kj (1 - S[k, j])  +  mean_k BCE(keep_k, k is matched)

over the slots of the examples of which a token is matched. A slot that is not there has a keep logit of negative
infinity.

Glancing (Qian et al. 2021) makes the first term easier while the model is bad at it: the more it gets wrong in a first
pass, the more tokens, drawn among all, are shown, each one's embedding in the place of its slot's, and the second pass
is trained on the rest alone.

Slots in order need no matching: :mod:`shuffle.shufflelm.ctc`.

Example::

    slots = least_cost_matching(match_cost(logits, labels, scores, keep_logits, alpha), lengths)       # [B, T]
    loss = slot_loss(logits, scores, keep_logits, labels, slots, beta=1.0)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shuffle.shufflelm.matching import UNMATCHED


def slot_loss(
    logits: Float[Tensor, "b k v"],
    scores: Float[Tensor, "b k j"] | None,
    keep_logits: Float[Tensor, "b k"],
    labels: Int[Tensor, "b t"],
    slots: Int[Tensor, "b t"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
    shown: Bool[Tensor, "b t"] | None = None,
) -> Float[Tensor, ""]:
    """Return the loss of slots that stand for target tokens.

    Args:
        logits: over the vocabulary.
        scores: of the positions; None where there is no position head.
        keep_logits: of the slots.
        labels: the target tokens.
        slots: the slot of each, ``UNMATCHED`` where there is no token.
        beta: weight of the positions.
        label_smoothing: of the tokens' cross-entropy.
        shown: tokens that the slots were shown and are not asked for.
    """
    matched = slots != UNMATCHED
    row, token = matched.nonzero(as_tuple=True)
    stands = torch.zeros_like(keep_logits).index_put_((row, slots[matched]), keep_logits.new_ones(()))
    counts = keep_logits.isfinite() & matched.any(1, keepdim=True)
    kept = F.binary_cross_entropy_with_logits(keep_logits.where(counts, 0), stands, reduction="none")
    loss = kept.where(counts, 0).sum() / counts.sum().clamp(min=1)
    if scores is not None:
        loss = loss + beta * (1 - scores[row, slots[matched], token]).sum() / matched.sum().clamp(min=1)
    asked = matched if shown is None else matched & ~shown
    row, _ = asked.nonzero(as_tuple=True)
    said = F.cross_entropy(
        logits[row, slots[asked]].float(), labels[asked], label_smoothing=label_smoothing, reduction="sum"
    )
    return loss + said / asked.sum().clamp(min=1)  # all may have been shown


@torch.no_grad()
def choose_shown(
    logits: Float[Tensor, "b k v"], labels: Int[Tensor, "b t"], places: Int[Tensor, "b k"], ratio: float
) -> Bool[Tensor, "b t"]:
    """Draw the tokens to be shown: of each example, ``ratio`` times as many as its slots got wrong, at random.

    Args:
        logits: over the vocabulary.
        labels: the target tokens.
        places: the place in the target of what each slot stands for, ``UNMATCHED`` for nothing.
        ratio: of the tokens that a slot which stands for them says otherwise.
    """
    row, slot = (places != UNMATCHED).nonzero(as_tuple=True)
    place = places[row, slot]
    is_wrong = logits[row, slot].argmax(-1) != labels[row, place]
    stood_for, wrong = torch.zeros_like(labels, dtype=torch.bool), torch.zeros_like(labels, dtype=torch.bool)
    stood_for[row, place] = True
    wrong[row[is_wrong], place[is_wrong]] = True
    # Ranked by a random number, those that no slot stands for behind all others.
    ranks = torch.rand(labels.shape, device=labels.device).masked_fill(~stood_for, 2.0).argsort(1).argsort(1)
    return ranks < (ratio * wrong.sum(1, keepdim=True)).round()


def show(
    slots: Float[Tensor, "b k d"],
    tokens: Float[Tensor, "b t d"],
    shown: Bool[Tensor, "b t"],
    places: Int[Tensor, "b k"],
) -> Float[Tensor, "b k d"]:
    """Return what the slots start from, with the embedding of a shown token in place of that of its slots."""
    at = places.clamp(min=0)
    told = (places != UNMATCHED) & shown.gather(1, at)
    return torch.where(told[..., None], tokens.gather(1, at[..., None].expand(-1, -1, tokens.shape[2])), slots)
