"""Groups and masks of the two streams against rules written out cell by cell."""

from __future__ import annotations

import random

import pytest
import torch

from shuffle.twostream.masks import PADDING, below_limit, group_tokens, query_places, two_stream_mask


def reference_mask(groups: list[int], places: list[int], queried: list[bool]) -> list[list[bool]]:
    """Who sees whom in one text, from the two rules of the paper."""
    length, total = len(groups), len(groups) + len(places)
    mask = [[False] * total for _ in range(total)]
    for row in range(total):
        for column in range(length):
            if groups[column] == PADDING:
                continue
            if row < length:
                mask[row][column] = groups[row] != PADDING and groups[column] <= groups[row]
            elif queried[row - length]:
                mask[row][column] = groups[column] < groups[places[row - length]]
        if not any(mask[row]):
            mask[row][row] = True
    return mask


@pytest.mark.parametrize("seed", range(20))
def test_each_row_sees_what_the_two_rules_say(seed: int) -> None:
    rng = random.Random(seed)
    length, queries = rng.randint(1, 9), rng.randint(1, 6)
    groups = [[rng.randint(PADDING, 4) for _ in range(length)] for _ in range(3)]
    places = [[rng.randrange(length) for _ in range(queries)] for _ in range(3)]
    queried = [[rng.random() < 0.8 for _ in range(queries)] for _ in range(3)]
    found = two_stream_mask(torch.tensor(groups), torch.tensor(places), torch.tensor(queried))
    assert found.tolist() == [reference_mask(*text) for text in zip(groups, places, queried, strict=True)]


def test_rows_behind_a_cache_see_its_groups_and_no_padding() -> None:
    columns = torch.tensor([[0, 0, PADDING, 1, 2, PADDING]])  # three of a cache, three of this pass
    seen = below_limit(columns, torch.tensor([[2, 3, 0]]))[0].int().tolist()
    assert seen == [[1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]]  # the last sees itself


def test_query_places_are_the_wanted_ones_from_left_to_right() -> None:
    wanted = torch.tensor([[False, True, False, True], [False, False, False, True], [True, True, True, False]])
    places, real = query_places(wanted)
    found = [[p for p, r in zip(*row, strict=True) if r] for row in zip(places.tolist(), real.tolist(), strict=True)]
    assert found == [[1, 3], [3], [0, 1, 2]]


@pytest.mark.parametrize("causal_prompt", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_groups_from_left_to_right(size: int, causal_prompt: bool) -> None:
    # Padding on the left, on the right, on neither side, and no prompt.
    marks = ["..ppttttt", "pppttttt.", "pttttttttt"[:9], "ttttttt.."]
    expected = []
    for text in marks:
        groups, prompt, target = [], 0, 0
        prompt_groups = text.count("p") if causal_prompt else int("p" in text)
        for mark in text:
            groups.append({".": PADDING, "p": prompt * causal_prompt, "t": prompt_groups + target // size}[mark])
            prompt, target = prompt + (mark == "p"), target + (mark == "t")
        expected.append(groups)
    found = group_tokens(
        torch.tensor([[mark != "." for mark in text] for text in marks]),
        torch.tensor([[mark == "t" for mark in text] for text in marks]),
        torch.full((4,), size),
        torch.zeros(4, dtype=torch.bool),
        block_groups=4,
        causal_prompt=causal_prompt,
    )
    assert found.tolist() == expected


def test_a_random_order_is_one_within_blocks_of_full_groups() -> None:
    torch.manual_seed(0)
    prompt, target, size, block_groups = 3, 24, 2, 4
    is_target = torch.tensor([[False] * prompt + [True] * target]).repeat(200, 1)
    permuted = torch.arange(200) % 2 == 0
    groups = group_tokens(
        torch.ones_like(is_target),
        is_target,
        torch.full((200,), size),
        permuted,
        block_groups=block_groups,
        causal_prompt=False,
    )
    orders = set()
    for text, is_permuted in zip(groups.tolist(), permuted.tolist(), strict=True):
        assert text[:prompt] == [0] * prompt
        steps = [group - 1 for group in text[prompt:]]
        if not is_permuted:
            assert steps == [place // size for place in range(target)]
            continue
        orders.add(tuple(steps))
        assert all(steps.count(group) == size for group in range(target // size))
        for place, group in enumerate(steps):
            assert group // block_groups == place // (size * block_groups)
    assert len(orders) == 100


def test_the_order_follows_the_generator() -> None:
    ones, sizes, permuted = torch.ones(1, 12).bool(), torch.tensor([1]), torch.tensor([True])
    draws = [
        group_tokens(
            ones,
            ones,
            sizes,
            permuted,
            block_groups=12,
            causal_prompt=False,
            generator=torch.Generator().manual_seed(seed),
        ).tolist()
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
