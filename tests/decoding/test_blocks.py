"""Blocks against transformers with an explicit mask: who sees whom, prefix or none, both engines, rows alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from decoding import TargetModel
from decoding.blocks import read_block
from decoding.native import build
from tests.decoding.tiny import save_model

RNG = random.Random(3)
PROMPT = [RNG.randrange(3, 48) for _ in range(21)]
BLOCK = [RNG.randrange(3, 48) for _ in range(9)]
ENGINES = ["eager", "native"]


def load(folder: Path, engine: str) -> TargetModel:
    if engine == "native" and build.attempt()[0] is None:
        pytest.skip(f"no native engine here: {build.attempt()[1]}")
    return TargetModel.from_pretrained(folder, engine=engine)


@torch.no_grad()
def reference(model: torch.nn.Module, positions: list[int], leading: list[int]) -> Tensor:
    """The logits of the block's rows: prompt and block as one sequence under a mask written out cell by cell."""
    total = len(PROMPT) + len(BLOCK)
    mask = torch.full((total, total), -torch.inf)
    for row in range(total):
        for column in range(total):
            in_prompt = column <= row if row < len(PROMPT) else column < len(PROMPT)
            in_block = row >= len(PROMPT) and 0 <= column - len(PROMPT) < leading[row - len(PROMPT)]
            if in_prompt or in_block:
                mask[row, column] = 0.0
    places = torch.tensor([[*range(len(PROMPT)), *positions]])
    ids = torch.tensor([[*PROMPT, *BLOCK]])
    return model(ids, attention_mask=mask[None, None], position_ids=places).logits[0, len(PROMPT) :]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("leading", [[9] * 9, [4] * 9, [1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 0, 9, 9, 1, 1, 5, 5, 0]])
@pytest.mark.parametrize("member", ["llama", "qwen3"])
def test_rows_see_the_prefix_and_the_leading_rows(tmp_path: Path, engine: str, leading: list[int], member: str) -> None:
    model, target = save_model(tmp_path, member), load(tmp_path, engine)
    positions = [21, 25, 22, 29, 23, 24, 28, 27, 26]
    cache = target.new_cache(256)
    target.prefill(cache, PROMPT)
    output = read_block(target, cache, BLOCK, positions, leading)
    torch.testing.assert_close(output.logits, reference(model, positions, leading), atol=3e-4, rtol=1e-4)
    assert output.hidden.shape[0] == len(BLOCK)
    assert cache.length == len(PROMPT)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("width", [9, 40])
def test_what_is_wanted_of_some_rows_is_what_they_have_among_all(tmp_path: Path, engine: str, width: int) -> None:
    """And so are the keys and values of all rows, though the last layer does no more than these for the others."""
    save_model(tmp_path)
    target = load(tmp_path, engine)
    tokens = [BLOCK[i % len(BLOCK)] for i in range(width)]
    positions = range(len(PROMPT), len(PROMPT) + width)
    caches = [target.new_cache(256) for _ in range(2)]
    for cache in caches:
        target.prefill(cache, PROMPT)
    whole = read_block(target, caches[0], tokens, positions, [width] * width)
    close = 0.0 if engine != "eager" else 1e-5
    for first in (0, 1, 5, 6, width - 1):
        caches[1].buffer[:, :, :, len(PROMPT) :] = 0
        some = read_block(target, caches[1], tokens, positions, [width] * width, first_row=first)
        torch.testing.assert_close(some.hidden, whole.hidden[first:], atol=close, rtol=0)
        torch.testing.assert_close(some.logits, whole.logits[first:], atol=close, rtol=0)
        assert torch.equal(caches[1].buffer, caches[0].buffer)
        none = read_block(target, caches[1], tokens, positions, [width] * width, first_row=first, with_logits=False)
        assert torch.equal(none.hidden, some.hidden)
        assert none.logits.shape == (0, whole.logits.shape[1])
    for first in (-1, width):
        with pytest.raises(ValueError, match=f"rows from {first} on of a block of {width}"):
            read_block(target, caches[1], tokens, positions, [width] * width, first_row=first)


@pytest.mark.parametrize("engine", ENGINES)
def test_committed_rows_are_the_prefix_of_the_next_block(tmp_path: Path, engine: str) -> None:
    save_model(tmp_path)
    target = load(tmp_path, engine)
    whole, parts = target.new_cache(256), target.new_cache(256)
    steps = list(range(1, 10))
    at_once = read_block(target, whole, BLOCK, range(9), steps).logits
    first = read_block(target, parts, BLOCK[:4], range(4), steps[:4]).logits
    parts.keep(range(4))
    rest = read_block(target, parts, BLOCK[4:], range(4, 9), steps[:5]).logits
    torch.testing.assert_close(torch.cat([first, rest]), at_once, atol=1e-4, rtol=1e-4)


def test_a_row_does_not_depend_on_rows_that_it_does_not_see(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = load(tmp_path, "native")
    cache = target.new_cache(256)
    target.prefill(cache, PROMPT)
    together = read_block(target, cache, BLOCK, range(21, 30), [3] * 9).logits
    alone = read_block(target, cache, BLOCK[:3], range(21, 24), [3] * 3).logits
    assert torch.equal(together[:3], alone)


@pytest.mark.parametrize(
    ("tokens", "positions", "leading"),
    [([], [], []), ([3], [0, 1], [1]), ([3, 4], [0, 1], [0, 1]), ([3], [0], [2]), ([3], [512], [1]), ([3], [-1], [1])],
)
def test_refuses_what_no_row_can_mean(
    tmp_path: Path, tokens: list[int], positions: list[int], leading: list[int]
) -> None:
    save_model(tmp_path)
    target = load(tmp_path, "eager")
    with pytest.raises(ValueError, match=r"block|rows|positions"):
        read_block(target, target.new_cache(256), tokens, positions, leading)


def test_refuses_a_block_that_does_not_fit(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = load(tmp_path, "eager")
    with pytest.raises(ValueError, match="do not fit"):
        read_block(target, target.new_cache(4), BLOCK, range(9), [9] * 9)
