"""Slots in order, by every path at once: the loss against all paths written out, and repeats that are said once."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from shuffle.shufflelm.ctc import best_paths, ctc_loss
from shuffle.shufflelm.objective import choose_shown, show
from shuffle.shufflelm.ordering import starts_of_runs
from tests.shuffle.test_shufflelm_model import BATCH, TARGETS, UPSAMPLED, make

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


def test_a_target_that_no_path_can_say_does_not_count_among_the_tokens() -> None:
    logits, keep = torch.randn(2, SLOTS, VOCABULARY), torch.randn(2, SLOTS)
    alone = ctc_loss(logits[:1], keep[:1], torch.tensor([[0, 2]]))
    beside = ctc_loss(logits, keep, torch.tensor([[0, 2, -100], [1, 1, 1]]))  # which needs five slots
    torch.testing.assert_close(beside, alone)


def likeliest_path(logits: Tensor, keep: Tensor, target: list[int]) -> list[int]:
    """Of all paths written out that say ``target``, the likeliest: the place of what each slot says, -1 for nothing."""
    kept, said = keep.sigmoid(), logits.softmax(-1)
    best, found = 0.0, [-1] * len(keep)
    for path in itertools.product([None, *range(VOCABULARY)], repeat=len(keep)):
        runs = [(token, len(list(run))) for token, run in itertools.groupby(path)]
        if [token for token, _ in runs if token is not None] != target:
            continue
        p = math.prod(float(1 - kept[k] if t is None else kept[k] * said[k, t]) for k, t in enumerate(path))
        if p > best:
            numbers = itertools.count()
            best = p
            found = [place for token, n in runs for place in [-1 if token is None else next(numbers)] * n]
    return found


def test_the_best_path_is_the_likeliest_of_all_written_out() -> None:
    torch.manual_seed(0)
    targets = [[0], [2, 1], [1, 1], [0, 1, 0], [2, 2, 1], [1, 1, 1], [0, 1, 2, 0], []]
    labels = torch.full((len(targets), 4), -100)
    for row, target in enumerate(targets):
        labels[row, : len(target)] = torch.tensor(target)
    for _ in range(5):
        logits, keep = 2 * torch.randn(len(targets), SLOTS, VOCABULARY), torch.randn(len(targets), SLOTS)
        for there in (SLOTS, 3):
            found = best_paths(logits, keep, labels, torch.full((len(targets),), there))
            for row, target in enumerate(targets):
                wanted = likeliest_path(logits[row, :there], keep[row, :there], target)
                assert found[row].tolist() == wanted + [-1] * (SLOTS - there)
        assert torch.equal(best_paths(logits, keep, labels), best_paths(logits, keep, labels, torch.full((8,), SLOTS)))


def test_glancing_counts_a_token_as_wrong_once_and_shows_it_in_all_slots_of_its_run() -> None:
    labels = torch.tensor([[5, 6, 7]])
    places = torch.tensor([[0, 0, -1, 1, 2]])  # 5, 5, nothing, 6, 7
    logits = torch.zeros(1, 5, 9)
    logits[0, 0, 5] = logits[0, 3, 6] = logits[0, 4, 7] = 1.0  # the second slot alone is wrong
    draws = torch.cat([choose_shown(logits, labels, places, ratio=1.0) for _ in range(40)])
    assert (draws.sum(1) == 1).all()
    assert draws.any(0).all()
    slots, tokens = torch.zeros(1, 5, 2), torch.tensor([[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]])
    shown = show(slots, tokens, torch.tensor([[True, False, True]]), places)
    assert shown[0, :, 0].tolist() == [1.0, 1.0, 0.0, 0.0, 3.0]


def test_glancing_shows_ever_fewer_tokens_where_the_best_path_has_them() -> None:
    torch.manual_seed(0)
    model = make(**UPSAMPLED, glancing=1.0).train()
    seen: list[Tensor] = []
    model.say = lambda ids, real, slots, say=model.say: (seen.append(slots), say(ids, real, slots))[1]
    for progress in (0.0, 1.0):
        model.set_progress(progress)
        model(**BATCH).loss.backward()
    changed = [(seen[i] != seen[i + 1]).any(-1) for i in (0, 2)]
    assert changed[0].sum() > changed[1].sum() > 0
    assert not changed[0][1].any()  # a text of five tokens on two slots
    for row, slot in changed[0].nonzero().tolist():
        embeddings = model.embed(torch.tensor(TARGETS[row]))
        assert (embeddings == seen[1][row, slot]).all(-1).any()
    seen.clear()
    model.eval()(**BATCH)
    assert len(seen) == 1


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
