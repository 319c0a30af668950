"""ShuffleLM laid out for decoding: one prompt at a time on the engine that its autoregressive twin runs on.

A text takes one forward pass, however long, up to the number of slots. The engine reads prompt and slots as one block;
mixers and heads follow in one call where the engine is the compiled one, else in torch, and the vocabulary's head for
the kept slots alone (in torch, without mixers, for all: the engine has read it with the block).

Example::

    generator = ShuffleGenerator.from_pretrained(folder, dtype=torch.float32, shuffle_strategy="assignment")
    generator.generate(prompt_ids, max_new_tokens=64).output_ids
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from decoding import Generation, StopStrings
from decoding.blocks import read_block
from decoding.cache import KVCache
from decoding.linear import make_linear
from decoding.ranking import choices
from decoding.requests import ReusedCache
from decoding.stopping import NO_STRINGS, Ending
from decoding.target import TreeOutput
from shuffle.passes import PassClock, reads_one_by_one
from shuffle.shufflelm.blocks import check_prompt, end_of, ends_last, generate_texts, has_room
from shuffle.shufflelm.compiled import CompiledHeads
from shuffle.shufflelm.model import ShuffleLM
from shuffle.shufflelm.ordering import choose_tokens

LENGTHS_KEPT = 256  # prompt lengths for which it is kept how many slots there are, and what they copy


class ShuffleGenerator:
    """Generates with a :class:`ShuffleLM`; a :class:`shuffle.passes.ParallelGenerator`.

    Args:
        model: trained; it is moved to ``device`` and ``dtype``.
        shuffle_strategy: rotary, assignment or none; None for rotary, where the model has it.
        keep_threshold: least probability at which a slot is kept.
        temperature: of the tokens; 0 takes the likeliest.

    Raises:
        ValueError: an option is out of range, or the model cannot do it.
    """

    goes_abreast = True

    def __init__(
        self,
        model: ShuffleLM,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        shuffle_strategy: str | None = None,
        keep_threshold: float = 0.5,
        temperature: float = 0.0,
    ) -> None:
        self.ordering = model.ordering(shuffle_strategy, keep_threshold)
        self.temperature = temperature
        self.target = model.engine(dtype, device)
        self.model = model.eval().to(device=torch.device(device), dtype=dtype)
        embeddings, self._vocab_size = self.model.get_input_embeddings().weight, model.config.vocab_size
        rows = embeddings if model.config.tie_word_embeddings else self.model.lm_head.weight
        rows = rows.detach()[: self._vocab_size]
        self._compiled, self._head = None, None
        if self.target.native is not None:
            self._compiled = self._compiled_heads(rows)
        elif len(self.model.mixers):  # the engine's own head reads what no mixer has mixed
            self._head = make_linear(rows)
        behind = (model.mixers, model.mixer_norm, model.keep_head, getattr(model, "rotary_head", None))
        self.head_bytes = sum(weight.nbytes for each in behind if each is not None for weight in each.parameters())
        self._slot_ids = [model.special_id(k) for k in range(model.config.max_parallel_tokens)]
        self._slots = embeddings.detach()[self._slot_ids[0] :].clone()
        self._shares = lru_cache(maxsize=LENGTHS_KEPT)(self._copied_shares)
        self._num_slots = lru_cache(maxsize=LENGTHS_KEPT)(model.config.num_slots)
        self._caches = ReusedCache(self.target)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> Self:
        """Load a folder that ``ShuffleLM.save_pretrained`` wrote; ``options`` are the constructor's."""
        model = ShuffleLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return cls(model, dtype=dtype, device=device, **options)

    @torch.inference_mode()
    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: StopStrings = NO_STRINGS,
        generator: torch.Generator | None = None,
    ) -> Generation:
        """Generate from one prompt until the set is whole, an end token, a stop string or the limit.

        Raises:
            ValueError: the prompt is empty, or it and the slots or the limit exceed the context.
        """
        check_prompt(self.model, prompt_ids, max_new_tokens)
        cache = self._caches.empty(len(prompt_ids) + max_new_tokens, len(self._slot_ids))
        ending = Ending(max_new_tokens, self.target.end_token_ids, stop)
        clock = PassClock(len(prompt_ids))
        text: list[int] = []
        while True:
            context = [*prompt_ids, *text]
            block = self._chosen(context, self._read(context, cache), generator, clock)
            text += block
            cut = end_of(text, len(block), ending, self._num_slots(len(context)))
            clock.tick(len(block), first_is_known=True)
            if cut.ended or not has_room(self.model, len(prompt_ids), cut.kept, max_new_tokens):
                return clock.generation(text[: cut.kept], truncated=not cut.ended)

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
    ) -> list[tuple[int, ...]]:
        """Generate from many prompts; the new ids of each, an end token included.

        Raises:
            ValueError: a prompt is empty, or it and the slots or the limit exceed the context.
        """
        if not self.goes_abreast or reads_one_by_one(self.target):
            for prompt in prompts:  # all of them, before any text is begun
                check_prompt(self.model, prompt, max_new_tokens)
            return [self.generate(p, max_new_tokens=max_new_tokens, generator=generator).output_ids for p in prompts]
        return self.generate_abreast(prompts, max_new_tokens=max_new_tokens, generator=generator)

    def generate_abreast(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
    ) -> list[tuple[int, ...]]:
        """As :meth:`generate_batch`, with the torch module and a forward pass for all of them."""
        texts = generate_texts(self.model, prompts, self.ordering, max_new_tokens, self.temperature, generator)
        return [tuple(text) for text in texts]

    def _copied_shares(self, length: int) -> Float[Tensor, "k n"]:
        """Return how much of each token's embedding the slots behind ``length`` tokens start with."""
        real = torch.ones(1, length, dtype=torch.bool, device=self.target.device)
        shares: Tensor = self.model.copied_shares(real, self.model.config.num_slots(length))[0]
        return shares.to(self.target.dtype)

    def _compiled_heads(self, rows: Float[Tensor, "v d"]) -> CompiledHeads:
        """Lay the heads out, that of the vocabulary being ``rows``."""
        return CompiledHeads(self.model, self.ordering, rows, with_logits=self.temperature != 0)

    def _read(self, context: list[int], cache: KVCache) -> TreeOutput:
        """Run one pass behind what ``cache`` holds of the ``context``; return what it makes of the slots."""
        first, end, slots = cache.length, len(context), self._num_slots(len(context))
        width = end - first + slots
        if self.model.config.source_copy:
            # The engine looks the slots up by their ids: what they start from goes where it looks.
            table = self.target.weights.embedding
            ids = torch.tensor(context, device=self.target.device)
            table[self._slot_ids[0] :][:slots] = self._slots[:slots] + self._shares(end) @ table[ids]
        is_causal = self.model.config.prompt_attention == "causal"
        leading = [*range(1, end - first + 1)] if is_causal else [width] * (end - first)
        output = read_block(
            self.target,
            cache,
            context[first:] + self._slot_ids[:slots],
            range(first, end + slots),
            leading + [width] * slots,
            first_row=end - first,
            with_logits=self._head is None and self._compiled is None,
        )
        if is_causal:
            cache.keep(range(end - first))  # no later row changes them
        return output

    def _chosen(
        self, context: list[int], output: TreeOutput, generator: torch.Generator | None, clock: PassClock
    ) -> list[int]:
        """Return the tokens that a pass gives, in order, its end tokens last."""
        order, tokens = self._said(output, generator)
        return ends_last([tokens[place] for place in self.ordering.spoken(order, tokens)], self.target.end_token_ids)

    def _said(self, output: TreeOutput, generator: torch.Generator | None) -> tuple[Sequence[int], Sequence[int]]:
        """Return the kept slots in the order of the text, and what they say."""
        if self._compiled is not None:
            said = self._compiled(output.hidden)
            places = self.ordering.arranged(len(said.kept), said.scores, said.expected)
            order = [said.kept[place] for place in places]
            if said.logits is None:
                return order, [said.tokens[place] for place in places]
            return order, self._choose(said.logits[list(places)], generator)
        states, scores, keep = self.model.heads(output.hidden.to(self.target.dtype))
        in_order = self.ordering.of(scores, keep)
        if self._head:
            return in_order, self._choose(self._head.in_float32(states[in_order]), generator)
        spoken = self._choose(output.logits[:, : self._vocab_size], generator)
        return in_order, [spoken[slot] for slot in in_order]

    def _choose(self, logits: Float[Tensor, "k v"], generator: torch.Generator | None) -> Sequence[int]:
        """Return a token for each slot: of most likely ones that are equally so, the first."""
        if self.temperature == 0:
            return choices(logits)
        drawn: list[int] = choose_tokens(logits, self.temperature, generator).tolist()
        return drawn
