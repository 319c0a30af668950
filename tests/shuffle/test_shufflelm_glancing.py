"""Glancing: what a slot was shown it is not asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.shuffle.test_shufflelm_model import BATCH, TARGETS, make


def test_the_loss_asks_for_the_tokens_that_were_not_shown_and_for_no_other() -> None:
    model = make(glancing=0.5, matching="identity").train()
    said: list[tuple[Tensor, Tensor]] = []  # slots and logits of each pass
    say = model.say

    def listening(ids: Tensor, real: Tensor, slots: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        logits, scores, keep = say(ids, real, slots)
        if logits.requires_grad:
            logits.retain_grad()
        said.append((slots, logits))
        return logits, scores, keep

    model.say = listening
    model.set_progress(0.0)
    model(**BATCH).loss.backward()
    (first, _), (second, logits) = said
    shown = (first != second).any(-1)
    is_target = torch.tensor([[slot < len(target) for slot in range(6)] for target in TARGETS])
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, is_target & ~shown)
    assert 0 < shown.sum() < is_target.sum()
