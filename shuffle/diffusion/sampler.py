"""Denoising a block: start from masks, and let each forward pass settle the tokens that it is confident of.

    c_i = max over v of p(v | block), at every masked place i
    settle     every i with c_i >= confidence_threshold, the most confident in any case   (Fast-dLLM: Wu et al. 2025)
    or settle  the ceil(masked / passes left) most confident, n passes a block            (LLaDA: Nie et al. 2025)

What was settled may turn out wrong: a token whose own probability has fallen below ``remask_threshold`` becomes a mask
again, each place at most once, so that it ends. (After ReMDM, Wang et al. 2025, which compares the probability with
which a token was settled. This one is of a token that the model sees, on which it is not trained; off by default.)
Sampling adds Gumbel noise in float64: in float32 its tail is cut off, and the temperature is lower than it says (Zheng
et al. 2024).

The model is only ``predict(block, rows) -> logits``, so this can be read, and tested, without one. ``rows`` are those
of the batch that ``block`` has: a text that is known is not read again.

Example::

    block = torch.full((1, 8), mask_id)
    for block in denoise(predict, block, Denoising(confidence_threshold=0.9), mask_id=mask_id, end_token_ids=(2,)):
        ...                                                # once after each forward pass
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decoding.ranking import most_likely
from decoding.sampling import Sampling

Rows = slice | Int[Tensor, " r"]
Predict = Callable[[Int[Tensor, "r l"], Rows], Float[Tensor, "r l v"]]


@dataclass(frozen=True)
class Denoising:
    """How a block is denoised.

    Attributes:
        confidence_threshold: settle what is at least as probable.
        num_refinement_steps: forward passes for a block, at most; None: as many as the threshold takes.
        adaptive_steps: stop as soon as the text is known up to an end token and, with ``num_refinement_steps``, settle
            what reaches the threshold ahead of schedule. False: every place is settled, in just that many passes (or
            one a place, where that is fewer).
        temperature: 0 for the most likely tokens.
        top_k: draw from the k most likely tokens; 0 from all.
        top_p: draw from the most likely tokens whose mass reaches p.
        repetition_penalty: divides the positive logits of tokens that the text already has and multiplies the negative
            ones (Keskar et al. 2019); 1 is none. Prompt and end tokens are exempt.
        remask_threshold: mask a settled token again whose probability has fallen below; 0 is never.

    Raises:
        ValueError: a value is out of range.
    """

    confidence_threshold: float = 0.9
    num_refinement_steps: int | None = None
    adaptive_steps: bool = True
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    remask_threshold: float = 0.0

    def __post_init__(self) -> None:
        _ = self.sampling  # checks its own
        if not 0 < self.confidence_threshold <= 1:
            raise ValueError(f"confidence_threshold must be above 0 and at most 1, not {self.confidence_threshold}")
        if self.num_refinement_steps is not None and self.num_refinement_steps < 1:
            raise ValueError(f"num_refinement_steps must be None or 1 or more, not {self.num_refinement_steps}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be above 0 (1 is none), not {self.repetition_penalty}")
        if not 0 <= self.remask_threshold < 1:
            raise ValueError(f"remask_threshold must be 0 (never) or more and below 1, not {self.remask_threshold}")

    @property
    def sampling(self) -> Sampling:
        """How a token is drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p)


def denoise(
    predict: Predict,
    block: Int[Tensor, "b l"],
    rules: Denoising,
    *,
    mask_id: int,
    end_token_ids: Collection[int] = (),
    limit: int | None = None,
    text: Int[Tensor, "b m"] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Int[Tensor, "b l"]]:
    """Yield the block after each forward pass, the last time when its text is known.

    Rows of the batch do not affect each other; one that is done stays as it is, unread, until all are.

    Args:
        predict: one forward pass over the rows that are not done.
        block: masks to be settled, and tokens that already are.
        rules: see :class:`Denoising`.
        mask_id: stands for an unknown token.
        end_token_ids: tokens that end a text; places behind a settled one need not be settled.
        limit: places from here on need not be settled either.
        text: what was generated before the block, for the repetition penalty.
        generator: of the draws.
    """
    known: list[list[int]] = block.tolist()
    may_remask = [[True] * len(row) for row in known]
    passes_left = rules.num_refinement_steps
    open_ = [open_places(row, rules, mask_id, end_token_ids, limit) for row in known]
    while running := [row for row, places in enumerate(open_) if places]:
        rows: Rows = slice(None)  # all of them, which copies nothing
        if len(running) < len(known):
            rows = torch.tensor(running, device=block.device)
        here, before = block[rows], None if text is None else text[rows]
        logits = predict(here, rows)
        scores = penalised(logits, rules, here, before, mask_id, end_token_ids)
        ids, confidence = (found.tolist() for found in choose(scores, rules.sampling, generator))
        wrong: list[list[int]] = [[] for _ in running]
        if rules.remask_threshold and passes_left != 1:
            own = own_probabilities(logits, here.masked_fill(here == mask_id, 0)).tolist()
            settled = zip(running, own, strict=True)
            wrong = [unlikely(known[row], may_remask[row], each, rules, mask_id) for row, each in settled]
        for row, said, sure, masks in zip(running, ids, confidence, wrong, strict=True):
            for place in to_settle(known[row], open_[row], sure, rules, passes_left, mask_id):
                known[row][place] = said[place]
            for place in masks:
                known[row][place], may_remask[row][place] = mask_id, False
            open_[row] = open_places(known[row], rules, mask_id, end_token_ids, limit)
        passes_left = None if passes_left is None else max(passes_left - 1, 1)
        block = torch.tensor(known, device=block.device)
        yield block


def open_places(
    row: Sequence[int], rules: Denoising, mask_id: int, end_token_ids: Collection[int], limit: int | None
) -> list[int]:
    """Return the masked places that the text is still waiting for."""
    end = len(row) if limit is None else min(limit, len(row))
    if rules.adaptive_steps:
        end = next((place for place in range(end) if row[place] in end_token_ids), end)
    return [place for place in range(end) if row[place] == mask_id]


def to_settle(
    row: Sequence[int],
    waiting: Sequence[int],
    confidence: Sequence[float],
    rules: Denoising,
    passes_left: int | None,
    mask_id: int,
) -> list[int]:
    """Return the places to settle: the most confident that are waited for, and any masked one at the threshold."""
    due = 1 if passes_left is None else -(-len(waiting) // passes_left)
    settled = sorted(waiting, key=lambda place: -confidence[place])[:due]
    if rules.adaptive_steps or rules.num_refinement_steps is None:
        least = rules.confidence_threshold
        settled += [place for place, token in enumerate(row) if token == mask_id and confidence[place] >= least]
    return settled


def own_probabilities(logits: Float[Tensor, "b l v"], ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """Return the model's probability of the token that stands at each place."""
    return torch.log_softmax(logits, -1).gather(-1, ids[..., None])[..., 0].exp()


def unlikely(
    row: Sequence[int], may_remask: Sequence[bool], own: Sequence[float], rules: Denoising, mask_id: int
) -> list[int]:
    """Return the settled places to mask again: those whose token has become unlikely, for the first time."""
    least = rules.remask_threshold
    return [i for i, token in enumerate(row) if token != mask_id and may_remask[i] and own[i] < least]


def choose(
    logits: Float[Tensor, "b l v"], sampling: Sampling, generator: torch.Generator | None
) -> tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]:
    """Return a token for every place, the most likely or a drawn one, and the model's probability of it."""
    if sampling.is_greedy:
        top = most_likely(logits.flatten(0, 1), 1)
        return top.ids.view(logits.shape[:2]), top.log_probabilities.view(logits.shape[:2]).exp()
    scores = sampling.probabilities(logits).log()
    # On the CPU, where the generator is: the same draws on every device.
    uniform = torch.rand(scores.shape, dtype=torch.float64, generator=generator).to(scores.device)
    ids = (scores - torch.log(-torch.log(uniform))).argmax(-1)
    return ids, torch.softmax(logits.float(), -1).gather(-1, ids[..., None])[..., 0]


def penalised(
    logits: Float[Tensor, "b l v"],
    rules: Denoising,
    block: Int[Tensor, "b l"],
    text: Int[Tensor, "b m"] | None,
    mask_id: int,
    end_token_ids: Collection[int],
) -> Float[Tensor, "b l v"]:
    """Return logits with the repetition penalty of the block's settled tokens and of the text before it."""
    if rules.repetition_penalty == 1:
        return logits
    used = block if text is None else torch.cat([text, block], dim=1)
    is_used = torch.zeros(len(block), max(logits.shape[-1], mask_id + 1), dtype=torch.bool, device=block.device)
    is_used.scatter_(1, used, True)
    is_used[:, mask_id] = False
    is_used[:, sorted(end_token_ids)] = False
    penalty = rules.repetition_penalty
    lower = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(is_used[:, None, : logits.shape[-1]], lower, logits)
