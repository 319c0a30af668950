"""Training examples, a prompt and its target, as tensors: kept apart, or one behind the other.

Example::

    batch = collate_pairs([Example((5, 6), (7, 8, 2))])      # input_ids [1, 2], attention_mask [1, 2], labels [1, 3]
    batch = collate_joined([Example((5, 6), (7, 8, 2))])     # input_ids [1, 5], ..., labels -100 -100 7 8 2
    batch = collate_causal([Example((5, 6), (7, 8, 2))])     # input_ids [1, 5], ..., labels [1, 4]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

IGNORED = -100  # the label that a loss leaves out


class Example(NamedTuple):
    """A prompt's ids, and the ids to be generated from it, the end token among them."""

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


def in_blocks(example: Example, most: int) -> list[Example]:
    """Return an example for each ``most`` tokens of the target; its prompt holds the blocks before it."""
    prompt, target = example
    return [Example((*prompt, *target[:at]), target[at : at + most]) for at in range(0, len(target), most)]


def padded(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Int[Tensor, "b t"]:
    """Return the rows as one tensor, the shorter ones filled with ``value`` behind, or before."""
    width = max(map(len, rows))
    out = torch.full((len(rows), width), value)
    for i, row in enumerate(rows):
        start = width - len(row) if left else 0
        out[i, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
    return out


def collate_pairs(examples: Sequence[Example], pad_id: int = 0) -> dict[str, Tensor]:
    """Return prompts padded on the left, ``[B, n]``, and targets as labels padded on the right, ``[B, T]``."""
    prompts = [example.prompt_ids for example in examples]
    return {
        "input_ids": padded(prompts, pad_id, left=True),
        "attention_mask": padded([[1] * len(prompt) for prompt in prompts], 0, left=True),
        "labels": padded([example.target_ids for example in examples], IGNORED),
    }


def collate_joined(examples: Sequence[Example], pad_id: int = 0) -> dict[str, Tensor]:
    """Return prompt and target as one sequence ``[B, T]``, padded on the right; labels on the target alone."""
    rows = [[*prompt, *target] for prompt, target in examples]
    return {
        "input_ids": padded(rows, pad_id),
        "attention_mask": padded([[1] * len(row) for row in rows], 0),
        "labels": padded([[IGNORED] * len(prompt) + [*target] for prompt, target in examples], IGNORED),
    }


def collate_causal(examples: Sequence[Example], pad_id: int = 0) -> dict[str, Any]:
    """Return what a causal language model of transformers takes: sequences ``[B, T]`` that end together.

    Their targets then lie in the last columns of the batch, and logits of more (``logits_to_keep``; ``labels`` are as
    many) are not computed: over half the columns hold prompts, and a small model's head is a third of its arithmetic.
    """
    rows = [[*prompt, *target] for prompt, target in examples]
    keep = 1 + max(len(target) for _, target in examples)  # the token before a target predicts its first one
    return {
        "input_ids": padded(rows, pad_id, left=True),
        "attention_mask": padded([[1] * len(row) for row in rows], 0, left=True),
        "position_ids": padded([range(len(row)) for row in rows], 0, left=True),
        "labels": padded([[IGNORED] * (keep - len(target)) + [*target] for _, target in examples], IGNORED),
        "logits_to_keep": keep,
    }
