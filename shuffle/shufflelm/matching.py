r"""Which slot stands for which target token: at least cost, one to one, whatever the order of the slots.

A model that generates a set has no slot for the first word; it is to be told off for saying the wrong things, not for
saying them in another order. So before the loss is taken each target token ``j`` is given the slot ``k`` for which

    cost[k, j] = -log p_k(y_j) - alpha S[k, j] - log sigmoid(keep_k)

is least in sum (the Hungarian method; DETR: Carion et al. 2020; order-agnostic cross-entropy: Du et al. 2021). The
other slots are to be dropped.

A matching is written as the slot of each target token, ``[B, T]``, with ``UNMATCHED`` behind the target's end.

Example::

    slots = least_cost_matching(match_cost(logits, labels, scores, keep_logits, alpha=1.0), lengths)
    slot_labels = to_slots(slots, labels, num_slots=32, fill=IGNORED)                     # [B, K], what each should say
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

UNMATCHED = -1


def match_cost(
    logits: Float[Tensor, "b k v"],
    labels: Int[Tensor, "b t"],
    scores: Float[Tensor, "b k j"] | None,
    keep_logits: Float[Tensor, "b k"],
    alpha: float,
) -> Float[Tensor, "b k t"]:
    """Return what it costs that slot ``k`` stands for target token ``j``; rubbish where ``labels`` are padding.

    Args:
        logits: over the vocabulary.
        labels: the target; below 0 where it is padding.
        scores: of the positions, J >= T of them; None where positions do not count.
        keep_logits: of the slots.
        alpha: weight of the positions.
    """
    wanted = labels.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)
    log_probs = logits.float().gather(2, wanted) - logits.float().logsumexp(-1, keepdim=True)
    cost = -log_probs - F.logsigmoid(keep_logits.float())[..., None]
    return cost if scores is None else cost - alpha * scores[..., : labels.shape[1]]


@torch.no_grad()
def least_cost_matching(cost: Float[Tensor, "b k t"], lengths: Int[Tensor, " b"]) -> Int[Tensor, "b t"]:
    """Return the one-to-one matching of least total cost of each example.

    Args:
        cost: of slot and token.
        lengths: tokens of each target; the columns behind do not count.

    Raises:
        ValueError: a target has more tokens than there are slots, or a cost is no number.
    """
    check_lengths(lengths, cost.shape[1])
    slots = torch.full((cost.shape[0], cost.shape[2]), UNMATCHED)
    costs = cost.float().cpu().numpy()
    for i, length in enumerate(lengths.tolist()):
        # Transposed, the rows are tokens, which all get a slot and come back in order.
        _, columns = linear_sum_assignment(costs[i, :, :length].T)
        slots[i, :length] = torch.from_numpy(columns)
    return slots.to(cost.device)


def identity_matching(lengths: Int[Tensor, " b"], num_tokens: int) -> Int[Tensor, "b t"]:
    """Return the matching in which slot ``j`` stands for token ``j``; T is ``num_tokens``."""
    places = torch.arange(num_tokens, device=lengths.device)
    return torch.where(places < lengths[:, None], places, UNMATCHED)


def to_slots(slots: Int[Tensor, "b t"], values: Int[Tensor, "b t"], num_slots: int, fill: int) -> Int[Tensor, "b k"]:
    """Return the tokens' ``values`` at their slots, and ``fill`` at slots that stand for none."""
    out = values.new_full((slots.shape[0], num_slots + 1), fill)  # one more, for the unmatched, which goes again
    out.scatter_(1, torch.where(slots == UNMATCHED, num_slots, slots), values)
    return out[:, :num_slots]


def places_of_slots(slots: Int[Tensor, "b t"], num_slots: int) -> Int[Tensor, "b k"]:
    """Return the position of each slot's token, ``UNMATCHED`` for a slot without one."""
    places = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
    return to_slots(slots, places, num_slots, UNMATCHED)


def check_lengths(lengths: Int[Tensor, " b"], num_slots: int) -> None:
    """Check that every target fits the slots.

    Raises:
        ValueError: one does not.
    """
    if int(lengths.max()) > num_slots:
        raise ValueError(f"a target of {int(lengths.max())} tokens does not fit {num_slots} slots")
