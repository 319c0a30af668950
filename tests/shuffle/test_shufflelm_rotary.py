"""Rotary regression against the sums written out, and what the angles are for: telling positions apart."""

from __future__ import annotations

import math

import pytest
import torch

from shuffle.shufflelm.rotary import expected_positions, frequencies, position_scores, targets

OMEGA = frequencies(num_frequencies=8, max_positions=24)


def test_frequencies_go_from_half_a_turn_over_all_positions_to_that_of_rope() -> None:
    assert OMEGA[0].item() == pytest.approx(math.pi / 24)
    assert OMEGA[-1].item() == pytest.approx(1.0)
    ratios = OMEGA[1:] / OMEGA[:-1]
    assert ratios.min() > 1
    torch.testing.assert_close(ratios, ratios[:1].expand(7))


@pytest.mark.parametrize(("num_frequencies", "max_positions"), [(0, 4), (4, 0)])
def test_refuses_no_frequencies(num_frequencies: int, max_positions: int) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        frequencies(num_frequencies, max_positions)


def test_scores_are_the_mean_cosine_of_the_errors() -> None:
    torch.manual_seed(0)
    rotary = torch.randn(2, 5, 8, 2) * 3
    scores = position_scores(rotary, OMEGA, num_positions=24)
    for b in range(2):
        for k in range(5):
            for j in range(24):
                angles = [math.atan2(float(y), float(x)) for x, y in rotary[b, k]]
                terms = [math.cos(angle - j * float(omega)) for angle, omega in zip(angles, OMEGA, strict=True)]
                assert scores[b, k, j].item() == pytest.approx(sum(terms) / 8, abs=1e-5)


@pytest.mark.parametrize("max_positions", [1, 2, 24, 64])
def test_right_angles_score_one_at_their_position_and_less_at_all_others(max_positions: int) -> None:
    omega = frequencies(16, max_positions)
    scores = position_scores(targets(torch.arange(max_positions), omega), omega, max_positions)
    torch.testing.assert_close(scores.diagonal(), torch.ones(max_positions))
    others = scores - 2 * torch.eye(max_positions)
    assert others.max() < 0.995


def test_expected_position_is_between_the_places_that_fit() -> None:
    scores = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    torch.testing.assert_close(expected_positions(scores, 0.01), torch.tensor([1.0, 1.0, 1.5]))
    by_hand = sum(j * math.exp(s / 0.5) for j, s in enumerate([0, 1, 0, 0])) / (3 + math.exp(2))
    assert expected_positions(scores, 0.5)[0].item() == pytest.approx(by_hand)


def test_is_float32_and_differentiable_under_autocast() -> None:
    rotary = torch.randn(3, 8, 2, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = position_scores(rotary, OMEGA, 24)
    assert scores.dtype == torch.float32
    scores.sum().backward()
    assert rotary.grad is not None
    assert rotary.grad.isfinite().all()
