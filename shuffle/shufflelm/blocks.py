"""Texts in blocks: what one pass gives is a block, appended to the prompt of the next where a text is longer than that.

A text ends at an end token, a stop string or the limit, as with every method; beside them where the slots say that the
set is whole, which is when one of them is dropped.

Example::

    texts = generate_texts(model, [[5, 6, 7], [8, 9]], model.ordering(), max_new_tokens=32)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from decoding.requests import NoRoomError, check_request
from decoding.stopping import Cut, Ending
from shuffle.examples import padded
from shuffle.shufflelm.ordering import Ordering, choose_tokens

if TYPE_CHECKING:
    from shuffle.shufflelm.model import ShuffleLM


@torch.inference_mode()
def generate_texts(
    model: ShuffleLM,
    prompts: Sequence[Sequence[int]],
    ordering: Ordering,
    max_new_tokens: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Generate from many prompts at once, in padded batches of those whose text is not at its end.

    Raises:
        ValueError: a prompt is empty, or it and the limit exceed the context.
    """
    for prompt in prompts:
        check_prompt(model, prompt, max_new_tokens)
    ending = Ending(max_new_tokens, model.config.end_token_ids)
    texts: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    while going:
        rows = [[*prompts[i], *texts[i]] for i in going]
        ids = padded(rows, 0, left=True).to(model.device)
        real = padded([[1] * len(row) for row in rows], 0, left=True).to(model.device).bool()
        logits, scores, keep = model.say(ids, real, model.slot_embeddings(ids, real))
        tokens = choose_tokens(logits, temperature, generator).tolist()
        for row, i in enumerate(going):
            order = ordering.of(None if scores is None else scores[row], keep[row])
            block = [tokens[row][slot] for slot in order]
            block = [block[place] for place in ordering.spoken(order, block)][: ordering.most]
            texts[i] += ends_last(block, ending.end_token_ids)
            slots = model.config.num_slots(len(rows[row]))
            cut = end_of(texts[i], len(block), ending, min(ordering.most or slots, slots))
            del texts[i][cut.kept :]
            if cut.ended or not has_room(model, len(prompts[i]), cut.kept, max_new_tokens):
                going[row] = -1
        going = [i for i in going if i >= 0]
    return texts


def ends_last(block: Sequence[int], end_token_ids: Collection[int]) -> list[int]:
    """Return a block with its end tokens behind all others: what a kept slot says is part of the text."""
    return sorted(block, key=lambda token: token in end_token_ids)


def end_of(text: Sequence[int], block: int, ending: Ending, most: int) -> Cut:
    """Return how much stays of a text whose last ``block`` tokens are new, out of at most ``most``."""
    cut = ending.check(text, start=len(text) - block)
    is_whole = block < most and cut.kept == len(text)
    return Cut(cut.kept, cut.ended or is_whole)


def has_room(model: ShuffleLM, prompt_length: int, text_length: int, max_new_tokens: int) -> bool:
    """Whether another block may and can follow: its prompt is the prompt and the text so far."""
    length = prompt_length + text_length
    needed = length + model.config.num_slots(length)
    return text_length < max_new_tokens and needed <= model.config.max_position_embeddings


def check_prompt(model: ShuffleLM, prompt: Sequence[int], max_new_tokens: int) -> None:
    """Check that there is a prompt and room for the slots and the limit behind it.

    Raises:
        ValueError: the prompt is empty, or the limit below 1.
        NoRoomError: they exceed the context.
    """
    slots, context = model.config.num_slots(len(prompt)), model.config.max_position_embeddings
    check_request(prompt, max_new_tokens, context)
    if len(prompt) + slots > context:
        raise NoRoomError(f"a prompt of {len(prompt)} tokens and {slots} slots exceed the context of {context} tokens")
