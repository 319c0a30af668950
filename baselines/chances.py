r"""Chances that are learned by counting: how often has a guess of this kind been right?

A drafter that has more guesses than places in its tree must know which are worth reading. Guesses are sorted into kinds
(by rank, by the probability that came with them, by who made them); the chance of a kind is the posterior mean of a
Beta distribution,

    chance = (accepted + weight * prior) / (seen + weight),

so that it starts from a prior and follows what happens, sooner the smaller the weight. A guess counts as seen once the
token before it is accepted, whether or not it had a place in the tree: the next token is then known in any case.

Example::

    chances = Chances(weight=8.0)
    chances.of("lookup", prior=0.5)          # 0.5
    chances.count("lookup", accepted=True)
    chances.of("lookup", prior=0.5)          # (1 + 8 * 0.5) / (1 + 8)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable

# A guess's own probability is rough information: finer steps than these would only be learned more slowly.
PROBABILITY_STEPS = (0.01, 0.03, 0.06, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95)


class Chances:
    """Smoothed shares of accepted guesses, by kind.

    Args:
        weight: how many seen guesses the prior is worth.
    """

    def __init__(self, weight: float = 8.0) -> None:
        self.weight = weight
        self._counts: dict[Hashable, tuple[int, int]] = {}

    def of(self, kind: Hashable, prior: float) -> float:
        """Return the chance of a guess of this kind, given the chance that it would be taken to have unseen."""
        accepted, seen = self._counts.get(kind, (0, 0))
        return (accepted + self.weight * prior) / (seen + self.weight)

    def count(self, kind: Hashable, accepted: bool) -> None:
        """Learn what became of one guess."""
        before, seen = self._counts.get(kind, (0, 0))
        self._counts[kind] = (before + accepted, seen + 1)

    def clear(self) -> None:
        """Forget all counts."""
        self._counts = {}


def probability_step(probability: float) -> int:
    """Return which of the steps ``0 .. len(PROBABILITY_STEPS)`` a probability is on."""
    return bisect_right(PROBABILITY_STEPS, probability)
