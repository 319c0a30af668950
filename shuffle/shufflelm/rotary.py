r"""Rotary regression: a slot says where its token belongs as angles, the way rotary embeddings write a position down.

Position ``j`` is written as M points on the unit circle, at the angles ``j omega_m``, slow frequencies to fast ones
(RoPE: Su et al. 2021). The slow ones tell far places apart, the fast ones neighbours. A slot regresses M vectors in the
plane; with ``theta_km`` the angle of the m-th, its score for position ``j`` is the mean cosine of the errors,

    S[k, j] = (1 / M) sum_m cos(theta_km - j omega_m),        1 where all M angles are right

which is also a loss without a wrap-around: 1 - S. As a mean of inner products with unit vectors it is one matrix
product.

Example::

    omega = frequencies(num_frequencies=16, max_positions=32)
    scores = position_scores(targets(torch.tensor([2, 0, 1]), omega), omega, num_positions=3)    # [3, 3]
    scores.argmax(-1)                                                                            # 2, 0, 1
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

FASTEST = 1.0  # radians a position, as the fastest frequency of RoPE


def frequencies(num_frequencies: int, max_positions: int) -> Float[Tensor, " m"]:
    """Return ``omega``, in radians a position, evenly spaced on a log scale from slow to fast.

    The slowest makes half a turn over ``max_positions``, so that no two of them look alike to it.

    Raises:
        ValueError: there is none to return.
    """
    if num_frequencies < 1 or max_positions < 1:
        raise ValueError(f"num_frequencies={num_frequencies} and max_positions={max_positions} must be 1 or more")
    slowest = min(math.pi / max_positions, FASTEST)
    return torch.logspace(math.log10(slowest), math.log10(FASTEST), num_frequencies)


def targets(positions: Int[Tensor, "*b"], omega: Float[Tensor, " m"]) -> Float[Tensor, "*b m 2"]:
    """Return the unit vectors ``(cos, sin)`` of the positions' angles, which are what a slot is to regress."""
    angles = positions[..., None] * omega
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def position_scores(
    rotary: Float[Tensor, "*b k m 2"], omega: Float[Tensor, " m"], num_positions: int
) -> Float[Tensor, "*b k j"]:
    """Return ``S``, in -1..1: how well each slot's angles fit each of the positions 0 to ``num_positions - 1``.

    Args:
        rotary: the regressed vectors, of any length; only their angles count.
        omega: the frequencies.
        num_positions: J.
    """
    places = targets(torch.arange(num_positions, device=rotary.device), omega).flatten(-2)  # [J, 2 M]
    unit = F.normalize(rotary.float(), dim=-1).flatten(-2)
    with torch.autocast(rotary.device.type, enabled=False):  # neighbours score too much alike for bfloat16
        scores: Tensor = unit @ places.T / len(omega)
    return scores


def expected_positions(scores: Float[Tensor, "*b k j"], temperature: float) -> Float[Tensor, "*b k"]:
    """Return each slot's mean position under ``softmax(S / temperature)``; a low temperature takes the best one."""
    places = torch.arange(scores.shape[-1], device=scores.device, dtype=scores.dtype)
    return (scores / temperature).softmax(-1) @ places
