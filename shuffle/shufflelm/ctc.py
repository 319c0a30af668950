r"""Slots in order, trained on every way to stand in them: connectionist temporal classification.

Graves et al. (2006); for texts Libovický and Helcl (2018). A path has each slot say a token of the target or nothing,
from the first slot to the last; a run of slots with the same token says it once. The loss sums over all paths:

    loss = -log sum_paths prod_k p(path_k),    p(nothing_k) = 1 - keep_k,    p(v_k) = keep_k p_k(v)

Glancing (:mod:`shuffle.shufflelm.objective`) shows a token in the slots that say it on the likeliest path (Gu and Kong
2021).

Example::

    ctc_loss(logits, keep_logits, labels).backward()
    places = best_paths(logits, keep_logits, labels)            # [B, K], such as [[-1, 0, 0, -1, 1]]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shuffle.shufflelm.matching import UNMATCHED


def log_probabilities(
    logits: Float[Tensor, "b k v"], keep_logits: Float[Tensor, "b k"]
) -> Float[Tensor, "b k one_and_v"]:
    """Return those of what a slot can say, nothing before all tokens."""
    said = logits.float().log_softmax(-1) + F.logsigmoid(keep_logits.float())[..., None]
    return torch.cat([F.logsigmoid(-keep_logits.float())[..., None], said], dim=-1)


def ctc_loss(
    logits: Float[Tensor, "b k v"],
    keep_logits: Float[Tensor, "b k"],
    labels: Int[Tensor, "b t"],
    num_slots: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Return the loss of slots in order, in nats a target token.

    A target that no path can say adds nothing, to the sum or to the tokens: there are fewer slots than tokens and,
    between two that are the same, dropped slots.

    Args:
        logits: over the vocabulary.
        keep_logits: of the slots.
        labels: the target tokens, below 0 where there is none.
        num_slots: the first so many slots are there; None: all.
    """
    log_probs = log_probabilities(logits, keep_logits).transpose(0, 1)
    lengths = (labels >= 0).sum(1)
    there = torch.full_like(lengths, logits.shape[1]) if num_slots is None else num_slots
    repeats = ((labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] >= 0)).sum(1)
    counted = lengths * (lengths + repeats <= there)
    total = F.ctc_loss(log_probs, labels.clamp(min=0) + 1, there, lengths, reduction="sum", zero_infinity=True)
    return total / counted.sum().clamp(min=1)


@torch.no_grad()
def best_paths(
    logits: Float[Tensor, "b k v"],
    keep_logits: Float[Tensor, "b k"],
    labels: Int[Tensor, "b t"],
    num_slots: Int[Tensor, " b"] | None = None,
) -> Int[Tensor, "b k"]:
    """Return the likeliest path: the place in the target of what each slot says, ``UNMATCHED`` where that is nothing.

    It is ``UNMATCHED`` everywhere for a target that no path can say. The arguments are those of :func:`ctc_loss`.
    """
    batch, most, _ = logits.shape
    lengths = (labels >= 0).sum(1)
    there = torch.full_like(lengths, most) if num_slots is None else num_slots
    # The states are nothing, the first token, nothing, the second, ..., nothing.
    states = labels.new_zeros(batch, 2 * labels.shape[1] + 1)
    states[:, 1::2] = labels.clamp(min=0) + 1
    scores = log_probabilities(logits, keep_logits).gather(2, states[:, None].expand(-1, most, -1))
    skips = skippable(states)
    best = scores[:, 0].masked_fill(torch.arange(states.shape[1], device=states.device) > 1, -torch.inf)
    steps = []  # of each slot: how many states behind the state at it is the one at the slot before
    for slot in range(1, most):
        one, two = F.pad(best, (1, 0), value=-torch.inf)[:, :-1], F.pad(best, (2, 0), value=-torch.inf)[:, :-2]
        reached, step = torch.stack([best, one, two.masked_fill(~skips, -torch.inf)]).max(0)
        is_there = (slot < there)[:, None]
        best = torch.where(is_there, reached + scores[:, slot], best)
        steps.append(step.where(is_there, 0))
    ends = torch.stack([(2 * lengths - 1).clamp(min=0), 2 * lengths], dim=1)
    score, which = best.gather(1, ends).max(1)
    state = ends.gather(1, which[:, None])
    path = [state]
    for step in reversed(steps):
        state = state - step.gather(1, state)
        path.append(state)
    passed = torch.cat(path[::-1], dim=1)
    is_there = torch.arange(most, device=states.device) < there[:, None]
    says = (passed % 2 == 1) & is_there & score.isfinite()[:, None]
    return torch.where(says, passed // 2, UNMATCHED)


def skippable(states: Int[Tensor, "b s"]) -> Bool[Tensor, "b s"]:
    """Return which states may follow the one two before: tokens, where that one is another."""
    before = F.pad(states, (2, 0))[:, :-2]
    return (states > 0) & (states != before)
