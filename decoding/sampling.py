"""From logits to the distribution that is decoded from, and one draw from it.

``temperature`` 0 is greedy decoding: the distribution is then a point. Filters are applied in the order that is usual
in the field: temperature, then top-k, then top-p (Holtzman et al. 2020). Probabilities are computed in float64, so that
the rejection tests that compare them are not decided by rounding.

Example::

    probabilities = Sampling(temperature=0.8, top_p=0.95).probabilities(logits)   # [..., V], sums to 1
    token = draw(probabilities, generator)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 for greedy decoding.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose mass reaches p; 1 keeps all.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:  # so that NaN is refused, too
            raise ValueError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    def probabilities(self, logits: Float[Tensor, "*b v"]) -> Float[Tensor, "*b v"]:
        """Return the distribution that is sampled from, float64, ``[..., V]``."""
        scores = logits.double()
        if self.is_greedy:
            return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)
        scores = scores / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            smallest_kept = scores.topk(self.top_k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < smallest_kept, -torch.inf)
        probabilities = torch.softmax(scores, dim=-1)
        if self.top_p < 1:
            ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
            # A token stays if the mass before it has not yet reached p: the first one always does.
            outside = ordered.cumsum(-1) - ordered >= self.top_p
            ordered = ordered.masked_fill(outside, 0.0)
            probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities


GREEDY = Sampling()


def draw_each(probabilities: Float[Tensor, "*b v"], generator: torch.Generator | None) -> Int[Tensor, "*b"]:
    """Draw a token id for each row; on the CPU, where the generator is: the same draws on every device."""
    rows = probabilities.flatten(0, -2).cpu()
    ids = torch.multinomial(rows, 1, generator=generator)
    return ids.view(probabilities.shape[:-1]).to(probabilities.device)


def draw(probabilities: Float[Tensor, " v"], generator: torch.Generator | None) -> int:
    """Draw one token id from ``[V]`` probabilities."""
    return int(torch.multinomial(probabilities, 1, generator=generator))
