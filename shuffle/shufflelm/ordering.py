"""From a set of slots to a text: drop the slots that stand for nothing, and put the others in order.

    "rotary"        sort by the expected position
    "assignment"    place the n kept slots on the positions 0 to n - 1, one to one, at the greatest sum of scores
    "none"          keep the order of the slots

Example::

    Ordering("rotary").of(scores, keep_logits)          # slots in the order of the text, such as [4, 0, 7]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from decoding.sampling import draw_each
from shuffle.shufflelm.rotary import expected_positions

STRATEGIES = ("rotary", "assignment", "none")


@dataclass(frozen=True)
class Ordering:
    """How slots become a text.

    Attributes:
        strategy: one of ``STRATEGIES``.
        keep_threshold: least probability at which a slot is kept; the best one always is.
        temperature: of the softmax over positions.
        most: tokens of a pass at most, the first of the text; None for all.
        merges_repeats: neighbouring slots that say the same token say it once.
    """

    strategy: str = "rotary"
    keep_threshold: float = 0.5
    temperature: float = 0.05
    most: int | None = None
    merges_repeats: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"shuffle_strategy={self.strategy!r} is unknown; known: {', '.join(STRATEGIES)}")
        if not 0 < self.keep_threshold < 1:
            raise ValueError(f"keep_threshold={self.keep_threshold} must be between 0 and 1")
        if self.most is not None and self.most < 1:
            raise ValueError(f"max_parallel_tokens={self.most} must be 1 or more")

    def of(self, scores: Float[Tensor, "k j"] | None, keep_logits: Float[Tensor, " k"]) -> Sequence[int]:
        """Return the kept slots in the order of the text; one at least."""
        kept = self.kept(keep_logits)
        return [kept[i] for i in self.arranged(len(kept), None if scores is None else scores[kept])]

    def arranged(
        self, count: int, scores: Float[Tensor, "n j"] | None, expected: Sequence[float] | None = None
    ) -> Sequence[int]:
        """Return in which order ``count`` slots, all of them kept, make up the text.

        Args:
            count: n.
            scores: theirs; None without a position head.
            expected: their mean positions, where they are known.
        """
        if self.strategy == "none" or scores is None:
            return range(count)
        if self.strategy == "assignment":
            _, places = linear_sum_assignment(scores[:, :count].numpy(force=True), maximize=True)
            return list(places.argsort().tolist())
        means = expected_positions(scores, self.temperature).tolist() if expected is None else expected
        return sorted(range(count), key=means.__getitem__)

    def spoken(self, order: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Return the places of ``order`` whose ``tokens`` make up the text: all, or those where a run begins."""
        return starts_of_runs(order, tokens) if self.merges_repeats else [*range(len(order))]

    @property
    def least_logit(self) -> float:
        """The keep logit at which a slot is kept."""
        return math.log(self.keep_threshold / (1 - self.keep_threshold))

    def kept(self, keep_logits: Float[Tensor, " k"]) -> list[int]:
        """Return the slots that are kept, in the order of the slots."""
        logits, least = keep_logits.tolist(), self.least_logit
        kept = [slot for slot, logit in enumerate(logits) if logit >= least]
        return kept or [int(keep_logits.argmax())]


def starts_of_runs(order: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """Return the places in a text that stay where neighbouring slots that say the same say it once (CTC).

    Args:
        order: the kept slots.
        tokens: what each of them says.
    """
    runs = zip(order, tokens, [-2, *order], [None, *tokens], strict=False)  # with what is before each
    return [place for place, (slot, token, before, said) in enumerate(runs) if (slot, token) != (before + 1, said)]


def choose_tokens(logits: Float[Tensor, "*b v"], temperature: float, generator: torch.Generator | None) -> Tensor:
    """Return the likeliest token of each row at temperature 0, else one drawn from the softmax.

    Raises:
        ValueError: the temperature is below 0.
    """
    if temperature < 0:
        raise ValueError(f"temperature={temperature} must be 0 or more")
    if temperature == 0:
        return logits.argmax(-1)
    return draw_each((logits.float() / temperature).softmax(-1), generator)
