r"""What the slots are trained on: their tokens, their tokens' places, and whether they stand for any.

With the matching given (:mod:`shuffle.shufflelm.matching`), slot ``k`` for token ``j``,

    loss = mean_kj -log p_k(y_j)  +  beta mean_kj (1 - S[k, j])  +  mean_k BCE(keep_k, k is matched)

Glancing (Qian et al. 2021) makes the first term easier while the model is bad at it: what it gets wrong in a first pass
is shown in part, the token's embedding in the place of the slot's, and the second pass is trained on the rest alone.

Where the slots stand in order, no matching is needed: connectionist temporal classification (Graves et al. 2006; for
texts Libovický and Helcl 2018) sums over all ways to say the target from the first slot to the last, each slot saying a
token or nothing, and a run of slots with the same token saying it once:

    loss = -log sum_paths prod_k p(path_k),    p(nothing_k) = 1 - keep_k,    p(v_k) = keep_k p_k(v)

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
    loss = F.binary_cross_entropy_with_logits(keep_logits, stands)
    if scores is not None:
        loss = loss + beta * (1 - scores[row, slots[matched], token]).mean()
    asked = matched if shown is None else matched & ~shown
    row, _ = asked.nonzero(as_tuple=True)
    said = F.cross_entropy(
        logits[row, slots[asked]].float(), labels[asked], label_smoothing=label_smoothing, reduction="sum"
    )
    return loss + said / asked.sum().clamp(min=1)  # all may have been shown


def ctc_loss(
    logits: Float[Tensor, "b k v"],
    keep_logits: Float[Tensor, "b k"],
    labels: Int[Tensor, "b t"],
    num_slots: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Return the loss of slots in order, in nats a target token.

    A target that no path can say adds nothing: there are fewer slots than tokens and, between two that are the same,
    dropped slots.

    Args:
        logits: over the vocabulary.
        keep_logits: of the slots.
        labels: the target tokens, below 0 where there is none.
        num_slots: the first so many slots are there; None: all.
    """
    said = logits.float().log_softmax(-1) + F.logsigmoid(keep_logits.float())[..., None]
    log_probs = torch.cat([F.logsigmoid(-keep_logits.float())[..., None], said], dim=-1)  # first: nothing
    lengths = (labels >= 0).sum(1)
    there = torch.full_like(lengths, logits.shape[1]) if num_slots is None else num_slots
    total = F.ctc_loss(
        log_probs.transpose(0, 1), labels.clamp(min=0) + 1, there, lengths, reduction="sum", zero_infinity=True
    )
    return total / lengths.sum()


@torch.no_grad()
def choose_shown(
    logits: Float[Tensor, "b k v"], labels: Int[Tensor, "b t"], slots: Int[Tensor, "b t"], ratio: float
) -> Bool[Tensor, "b t"]:
    """Draw the tokens to be shown: of each example, ``ratio`` times as many as its slots got wrong, at random."""
    matched = slots != UNMATCHED
    guesses = logits.argmax(-1).gather(1, slots.clamp(min=0))
    wrong = ((guesses != labels) & matched).sum(1, keepdim=True)
    # Ranked by a random number, the unmatched behind all others.
    ranks = torch.rand(slots.shape, device=slots.device).masked_fill(~matched, 2.0).argsort(1).argsort(1)
    return ranks < (ratio * wrong).round()
