"""Slots in order, by every path at once: the loss against all paths written out, and repeats that are said once."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from shuffle.shufflelm.objective import ctc_loss
from shuffle.shufflelm.ordering import starts_of_runs

SLOTS, VOCABULARY = 4, 3


@pytest.mark.parametrize("target", [[0], [2, 1], [1, 1], [0, 1, 0], [2, 2, 1]])
def test_loss_is_that_of_all_paths_written_out(target: list[int]) -> None:
    torch.manual_seed(len(target))
    logits, keep = torch.randn(1, SLOTS, VOCABULARY), torch.randn(1, SLOTS)
    kept, said = keep[0].sigmoid(), logits[0].softmax(-1)
    total = 0.0
    for path in itertools.product([None, *range(VOCABULARY)], repeat=SLOTS):
        if [token for token, _ in itertools.groupby(path) if token is not None] == target:
            total += math.prod(
                float(1 - kept[k] if token is None else kept[k] * said[k, token]) for k, token in enumerate(path)
            )
    loss = ctc_loss(logits, keep, torch.tensor([target]))
    assert float(loss) == pytest.approx(-math.log(total) / len(target), rel=1e-5)


def test_loss_counts_each_token_of_a_batch_once() -> None:
    logits, keep = torch.randn(2, SLOTS, VOCABULARY), torch.randn(2, SLOTS)
    alone = [ctc_loss(logits[i : i + 1], keep[i : i + 1], torch.tensor([text])) for i, text in enumerate([[0, 2], [1]])]
    together = ctc_loss(logits, keep, torch.tensor([[0, 2], [1, -100]]))
    torch.testing.assert_close(together, (2 * alone[0] + alone[1]) / 3)


def test_a_target_that_no_path_can_say_adds_nothing() -> None:
    logits = torch.randn(1, SLOTS, VOCABULARY, requires_grad=True)
    loss = ctc_loss(logits, torch.randn(1, SLOTS), torch.tensor([[1, 1, 1]]))  # needs five slots
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("order", "tokens", "places"),
    [
        ([], [], []),
        ([0, 1, 2], [7, 7, 7], [0]),
        ([0, 2, 3], [7, 7, 7], [0, 1]),  # what lies between them says nothing
        ([1, 2, 3, 4], [7, 8, 8, 7], [0, 1, 3]),
    ],
)
def test_neighbours_that_say_the_same_say_it_once(order: list[int], tokens: list[int], places: list[int]) -> None:
    assert starts_of_runs(order, tokens) == places
