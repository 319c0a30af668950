"""The matching against every permutation, its cost against the sum written out, and the loss on it against loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from shuffle.examples import IGNORED
from shuffle.shufflelm.matching import UNMATCHED, identity_matching, least_cost_matching, match_cost, to_slots
from shuffle.shufflelm.matching import places_of_slots as places
from shuffle.shufflelm.objective import choose_shown, slot_loss

B, K, V = 3, 5, 7
LABELS = torch.tensor([[3, 6, 3, 1], [2, 5, IGNORED, IGNORED], [0, IGNORED, IGNORED, IGNORED]])
LENGTHS = (LABELS >= 0).sum(1)


def said(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator) for shape in [(B, K, V), (B, K, K), (B, K)])  # type: ignore[return-value]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_cost_is_of_token_position_and_keep(alpha: float) -> None:
    logits, scores, keep = said()
    cost = match_cost(logits, LABELS, scores, keep, alpha)
    for b in range(B):
        for k in range(K):
            for j in range(int(LENGTHS[b])):
                token = -float(logits[b, k].log_softmax(-1)[LABELS[b, j]])
                wanted = token - alpha * float(scores[b, k, j]) + softplus(-float(keep[b, k]))
                assert cost[b, k, j].item() == pytest.approx(wanted, abs=1e-5)
    without = match_cost(logits, LABELS, None, keep, alpha)
    torch.testing.assert_close(without, match_cost(logits, LABELS, scores, keep, 0.0))


@pytest.mark.parametrize("seed", range(5))
def test_least_cost_is_that_of_the_best_permutation(seed: int) -> None:
    cost = torch.randn(B, K, 4, generator=torch.Generator().manual_seed(seed))
    slots = least_cost_matching(cost, LENGTHS)
    for b, length in enumerate(LENGTHS.tolist()):
        best = min(
            itertools.permutations(range(K), length),
            key=lambda chosen: sum(float(cost[b, k, j]) for j, k in enumerate(chosen)),
        )
        assert slots[b].tolist() == [*best, *[UNMATCHED] * (4 - length)]


def test_identity_is_slot_j_for_token_j() -> None:
    assert identity_matching(LENGTHS, 4).tolist() == [[0, 1, 2, 3], [0, 1, -1, -1], [0, -1, -1, -1]]


def test_refuses_more_tokens_than_slots() -> None:
    with pytest.raises(ValueError, match="6 tokens does not fit 5 slots"):
        least_cost_matching(torch.zeros(1, 5, 6), torch.tensor([6]))


def test_slots_get_the_values_and_places_of_their_tokens() -> None:
    slots = torch.tensor([[4, 0, 2], [1, -1, -1]])
    assert to_slots(slots, torch.tensor([[7, 8, 9], [5, 0, 0]]), 5, -100).tolist() == [
        [8, -100, 9, -100, 7],
        [-100, 5, -100, -100, -100],
    ]
    assert places(slots, 5).tolist() == [[1, -1, 2, -1, 0], [-1, 0, -1, -1, -1]]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("with_scores", [True, False])
def test_loss_is_the_sum_of_its_three_terms(smoothing: float, with_scores: bool) -> None:
    logits, scores, keep = said()
    slots = torch.tensor([[4, 0, 2, 1], [3, 1, -1, -1], [2, -1, -1, -1]])
    shown = torch.zeros(B, 4, dtype=torch.bool)
    shown[0, 1] = shown[1, 0] = True
    token, place, keeping, asked = 0.0, 0.0, 0.0, 0
    for b in range(B):
        stands = [k in slots[b].tolist() for k in range(K)]
        keeping += sum(softplus(-float(x) if yes else float(x)) for x, yes in zip(keep[b], stands, strict=True))
        for j in range(int(LENGTHS[b])):
            k = int(slots[b, j])
            log_probs = logits[b, k].log_softmax(-1)
            place += 1 - float(scores[b, k, j])
            if not shown[b, j]:
                asked += 1
                token -= (1 - smoothing) * float(log_probs[LABELS[b, j]]) + smoothing * float(log_probs.mean())
    wanted = token / asked + keeping / (B * K) + (0.7 * place / int(LENGTHS.sum()) if with_scores else 0)
    loss = slot_loss(
        logits, scores if with_scores else None, keep, LABELS, slots, beta=0.7, label_smoothing=smoothing, shown=shown
    )
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_shows_as_many_as_were_wrong_times_the_ratio_and_no_padding() -> None:
    slots = identity_matching(LENGTHS, 4)
    stood_for = places(slots, K)
    logits = torch.zeros(B, K, V)
    for b, j in [(0, 2), (1, 0), (1, 1)]:  # right guesses; 3 of the first are wrong, 0 of the second, the third's one
        logits[b, j, LABELS[b, j]] = 1.0
    logits[2, 0, 6] = 1.0
    torch.manual_seed(0)
    draws = [choose_shown(logits, LABELS, stood_for, ratio=0.7) for _ in range(40)]
    assert all(draw.sum(1).tolist() == [2, 0, 1] for draw in draws)
    assert not any((draw & (slots == UNMATCHED)).any() for draw in draws)
    assert torch.stack(draws).any(0)[0].all()  # any token of the first, also the one that was right
