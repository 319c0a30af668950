"""The sampler with predictors made up: what a pass settles, when it ends, what is masked again, what is drawn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shuffle.diffusion.sampler import Denoising, Predict, Rows, denoise

MASK, EOS, V = 9, 2, 10


def says(tokens: list[int], confidences: list[float]) -> Predict:
    """A predictor that says ``tokens[i]`` at place i with that probability, whatever the block."""

    def predict(block: Tensor, rows: Rows) -> Tensor:
        rows = torch.tensor([[(1 - c) / (V - 2)] * V for c in confidences])
        rows[:, MASK] = 0  # never predicted, as in the generator
        rows[torch.arange(len(tokens)), tokens] = torch.tensor(confidences)
        return rows.log().expand(len(block), -1, -1).clone()

    return predict


def run(predict: Predict, rules: Denoising, width: int = 6, batch: int = 1, **keys: object) -> list[list[int]]:
    """The first row of the block after each pass."""
    block = torch.full((batch, width), MASK)
    return [b[0].tolist() for b in denoise(predict, block, rules, mask_id=MASK, end_token_ids=(EOS,), **keys)]


TOKENS, SURE = [3, 4, 5, 6, 7, 8], [0.95, 0.5, 0.92, 0.6, 0.99, 0.3]


def test_settles_what_reaches_the_threshold_and_then_the_most_confident_one_by_one() -> None:
    assert run(says(TOKENS, SURE), Denoising(confidence_threshold=0.9)) == [
        [3, MASK, 5, MASK, 7, MASK],
        [3, MASK, 5, 6, 7, MASK],
        [3, 4, 5, 6, 7, MASK],
        TOKENS,
    ]


def test_a_threshold_of_nearly_nothing_settles_all_at_once_and_of_one_a_place_a_pass() -> None:
    assert len(run(says(TOKENS, SURE), Denoising(confidence_threshold=1e-6))) == 1
    passes = run(says(TOKENS, SURE), Denoising(confidence_threshold=1.0))
    assert [MASK in block for block in passes] == [True] * 5 + [False]


@pytest.mark.parametrize(("steps", "left"), [(1, [0]), (2, [3, 0]), (4, [4, 2, 1, 0]), (6, [5, 4, 3, 2, 1, 0])])
def test_takes_exactly_the_passes_that_it_is_given(steps: int, left: list[int]) -> None:
    rules = Denoising(num_refinement_steps=steps, adaptive_steps=False)
    assert [block.count(MASK) for block in run(says(TOKENS, SURE), rules)] == left
    ends = says([3, EOS, 5, EOS, 7, EOS], SURE)
    assert [block.count(MASK) for block in run(ends, rules)] == left


def test_takes_a_pass_a_place_where_it_is_given_more() -> None:
    assert len(run(says(TOKENS, SURE), Denoising(num_refinement_steps=50, adaptive_steps=False))) == 6


def test_adaptive_steps_settle_the_confident_ahead_of_schedule() -> None:
    passes = run(says(TOKENS, SURE), Denoising(num_refinement_steps=4, confidence_threshold=0.9))
    assert [block.count(MASK) for block in passes] == [3, 2, 1, 0]
    assert run(says(TOKENS, [0.95] * 6), Denoising(num_refinement_steps=4)) == [TOKENS]


def test_is_done_when_the_text_is_known_up_to_an_end_token() -> None:
    predict = says([3, 4, EOS, 6, 7, 8], [0.95, 0.5, 0.92, 0.6, 0.4, 0.3])
    assert run(predict, Denoising()) == [[3, MASK, EOS, MASK, MASK, MASK], [3, 4, EOS, MASK, MASK, MASK]]
    assert run(predict, Denoising(adaptive_steps=False))[-1] == [3, 4, EOS, 6, 7, 8]


def test_places_behind_the_limit_need_not_be_settled() -> None:
    assert run(says(TOKENS, SURE), Denoising(confidence_threshold=1.0), limit=2) == [
        [3, MASK, MASK, MASK, MASK, MASK],
        [3, 4, MASK, MASK, MASK, MASK],
    ]


def test_what_is_known_stays_and_a_known_block_needs_no_pass() -> None:
    block = torch.tensor([[3, MASK, 1]])
    passes = list(denoise(says([4, 4, 4], [0.9] * 3), block, Denoising(), mask_id=MASK))
    assert [b.tolist() for b in passes] == [[[3, 4, 1]]]
    assert not list(denoise(says([4, 4, 4], [0.9] * 3), passes[-1], Denoising(), mask_id=MASK))


def test_rows_of_a_batch_do_not_affect_each_other_and_one_that_is_done_is_not_read_again() -> None:
    texts = [TOKENS, [3, EOS, 5, 6, 7, 8], TOKENS]
    confidences = [SURE, [0.95, 0.91, 0.92, 0.3, 0.3, 0.3], [0.95] * 6]
    alone = [says(tokens, sure) for tokens, sure in zip(texts, confidences, strict=True)]
    read: list[list[int]] = []

    def all_three(block: Tensor, rows: Rows) -> Tensor:
        which = torch.arange(3)[rows].tolist()
        read.append(which)
        return torch.cat([alone[row](part[None], rows) for row, part in zip(which, block, strict=True)])

    blocks = list(denoise(all_three, torch.full((3, 6), MASK), Denoising(), mask_id=MASK, end_token_ids=(EOS,)))
    passes = [run(predict, Denoising()) for predict in alone]
    assert blocks[-1].tolist() == [each[-1] for each in passes]
    assert [block[0].tolist() for block in blocks] == passes[0]
    assert read == [[row for row in range(3) if len(passes[row]) > done] for done in range(4)]
    assert read[0] == [0, 1, 2]
    assert read[1:] == [[0], [0], [0]]


def test_second_thoughts_are_a_rows_own() -> None:
    """The last row is masked again and ends long after the first, whose text was known all along."""
    block = torch.tensor([[3, 4, 5], [MASK, MASK, MASK]])
    rules = Denoising(confidence_threshold=1.0, remask_threshold=0.5)
    *_, last = denoise(changing_its_mind, block, rules, mask_id=MASK)
    assert last.tolist() == [[3, 4, 5], run(changing_its_mind, rules, width=3)[-1]]
    assert block.tolist() == [[3, 4, 5], [MASK, MASK, MASK]]


def changing_its_mind(block: Tensor, rows: Rows) -> Tensor:
    """Sure of 3 behind a mask, sure of 4 where it sees a 3."""
    wanted = torch.where(block == 3, 4, 3)
    return torch.nn.functional.one_hot(wanted, V).float() * 6


def test_masks_again_what_is_no_longer_likely_once() -> None:
    rules = Denoising(confidence_threshold=1.0, remask_threshold=0.5)
    passes = run(changing_its_mind, rules, width=3)
    # The first settled token is masked again in the next pass; after one change of mind each, all stay.
    assert passes[:2] == [[3, MASK, MASK], [MASK, 3, MASK]]
    assert passes[-1] == [3, 3, 3]
    assert len(passes) <= 2 * 3
    assert len(run(changing_its_mind, Denoising(confidence_threshold=1.0), width=3)) == 3


def test_masking_again_keeps_to_the_number_of_passes() -> None:
    rules = Denoising(num_refinement_steps=3, adaptive_steps=False, remask_threshold=0.5)
    passes = run(changing_its_mind, rules, width=6)
    assert len(passes) == 3
    assert MASK not in passes[-1]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("steps", [None, 3])
def test_ends_whatever_the_predictor_says(seed: int, steps: int | None) -> None:
    generator = torch.Generator().manual_seed(seed)

    def predict(block: Tensor, rows: Rows) -> Tensor:
        logits = torch.randn(*block.shape, V, generator=generator) * 4
        logits[..., MASK] = -torch.inf
        return logits

    rules = Denoising(
        confidence_threshold=0.7, num_refinement_steps=steps, remask_threshold=0.6, temperature=1.0, top_k=4, top_p=0.9
    )
    block = torch.full((3, 8), MASK)
    passes = list(denoise(predict, block, rules, mask_id=MASK, end_token_ids=(EOS,), generator=generator))
    assert len(passes) <= (steps or 16)
    for row in passes[-1].tolist():
        known = row[: row.index(EOS)] if EOS in row else row
        assert MASK not in known


def shares(rules: Denoising, logits: list[float], draws: int = 20_000) -> Tensor:
    def predict(block: Tensor, rows: Rows) -> Tensor:
        return torch.tensor(logits).expand(*block.shape, -1).clone()

    generator = torch.Generator().manual_seed(0)
    *_, block = denoise(predict, torch.full((draws, 1), MASK), rules, mask_id=MASK, generator=generator)
    return torch.bincount(block.flatten(), minlength=len(logits)) / draws


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        (Denoising(temperature=1.0), [0, 1, 2, 3]),
        (Denoising(temperature=0.5), [0, 1, 2, 3]),
        (Denoising(temperature=1.0, top_k=2), [0, 1]),
        (Denoising(temperature=1.0, top_p=0.7), [0, 1]),
        (Denoising(), [0]),
    ],
)
def test_draws_from_the_filtered_distribution(rules: Denoising, kept: list[int]) -> None:
    logits = [2.0, 1.0, 0.5, -1.0]
    weights = [2.718281828 ** (x / (rules.temperature or 1)) if i in kept else 0.0 for i, x in enumerate(logits)]
    expected = torch.tensor(weights) / sum(weights)
    torch.testing.assert_close(shares(rules, logits), expected, atol=0.015, rtol=0)


def test_the_repetition_penalty_is_of_settled_tokens_and_text_but_not_of_end_tokens() -> None:
    seen: list[list[int]] = []

    def predict(block: Tensor, rows: Rows) -> Tensor:
        seen.append(block[0].tolist())
        logits = torch.full((1, 3, V), -5.0)
        logits[..., 3], logits[..., 4], logits[..., 5] = 4.0, 3.0, 2.5
        logits[..., MASK] = -torch.inf
        return logits

    rules = Denoising(confidence_threshold=1.0, repetition_penalty=2.0)
    text = torch.tensor([[4, 4]])
    assert run(predict, rules, width=3, text=text)[-1] == [3, 5, 3]  # 4 is penalised from the start, then 3, then 5
    assert run(says([EOS] * 3, [0.6] * 3), Denoising(confidence_threshold=1.0, repetition_penalty=50.0,
                                                     adaptive_steps=False), width=3)[-1] == [EOS] * 3  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"confidence_threshold": 0.0}, {"confidence_threshold": 1.1}, {"num_refinement_steps": 0},
        {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"repetition_penalty": 0.0}, {"remask_threshold": 1.0},
    ],
)  # fmt: skip
def test_refuses_what_is_out_of_range(options: dict[str, float]) -> None:
    make: Callable[..., Denoising] = Denoising
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)
