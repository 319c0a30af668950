"""As many slots as the prompt asks for: each prompt has its own; a text that does not fit them counts for nothing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from shuffle.examples import Example, collate_pairs
from tests.shuffle.test_shufflelm_model import BATCH, MATCHED, PROMPTS, TARGETS, UPSAMPLED, make, slots_alone


@pytest.mark.parametrize("prompt_attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("source_copy", [False, True])
def test_a_prompt_has_the_slots_that_it_would_have_alone(prompt_attention: str, source_copy: bool) -> None:
    model = make(**UPSAMPLED, prompt_attention=prompt_attention, source_copy=source_copy)
    output = model(BATCH["input_ids"], BATCH["attention_mask"])
    assert output.logits.shape[1] == 6
    for row, (prompt, count) in enumerate(zip(PROMPTS, [6, 2, 5], strict=True)):
        alone = slots_alone(model, prompt)
        assert len(alone) == count
        torch.testing.assert_close(output.logits[row, :count], alone, atol=2e-4, rtol=1e-4)
        assert output.keep_logits[row, :count].isfinite().all()
        assert (output.keep_logits[row, count:] == -torch.inf).all()


def test_slots_that_are_not_there_say_nothing_in_the_loss() -> None:
    model = make(**UPSAMPLED)
    model(**BATCH).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    losses, lengths = [], []
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        one = collate_pairs([Example(tuple(prompt), tuple(target))])
        losses.append(model(**one).loss * len(target))
        lengths.append(len(target))
    assert losses[1] == 0  # five tokens and two slots: no path
    torch.testing.assert_close(model(**BATCH).loss, sum(losses) / (lengths[0] + lengths[2]))  # nor do its tokens count


@pytest.mark.parametrize(("glancing", "matching"), [(0.0, "assignment"), (0.5, "assignment"), (0.0, "identity")])
def test_matched_slots_are_a_prompts_own_and_a_text_that_does_not_fit_them_counts_for_nothing(
    glancing: float, matching: str
) -> None:
    model = make(**MATCHED | {"glancing": glancing, "matching": matching}).train()
    model(**BATCH).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    said, placed, kept = [], [], []
    output = model.eval()(**BATCH)
    for row, count in ((0, 6), (2, 5)):  # the second has five tokens and two slots
        target, logits = TARGETS[row], output.logits[row, :count].log_softmax(-1)
        scores, keep = output.shuffle_scores[row, :count], output.keep_logits[row, :count].sigmoid()

        def cost(slots: tuple[int, ...], parts: tuple[Any, ...] = (target, logits, scores, keep)) -> Tensor:
            target, logits, scores, keep = parts
            each = [
                logits[k, t] + scores[k, j] + keep[k].log() for j, (k, t) in enumerate(zip(slots, target, strict=True))
            ]
            return -sum(each)

        ways = itertools.permutations(range(count), len(target))
        best = min(ways, key=cost) if matching == "assignment" else range(len(target))
        said += [-logits[slot, token] for slot, token in zip(best, target, strict=True)]
        placed += [1 - scores[slot, place] for place, slot in enumerate(best)]
        kept += [-(keep[slot] if slot in best else 1 - keep[slot]).log() for slot in range(count)]
    torch.testing.assert_close(output.loss, sum(sum(part) / len(part) for part in (said, placed, kept)))


@pytest.mark.parametrize("ratio", [0.1, 1.1, 1.4, 1.5, 2.3])
def test_a_batch_has_as_many_slots_as_each_prompt_alone(ratio: float) -> None:
    model = make(**UPSAMPLED | {"max_parallel_tokens": 40, "slots_per_prompt_token": ratio})
    lengths = range(1, 48)
    real = torch.stack([torch.arange(48) >= 48 - length for length in lengths])
    assert model.num_slots(real).tolist() == [model.config.num_slots(length) for length in lengths]
