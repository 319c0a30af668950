r"""Generation a group at a time, with a cache of the content stream.

One pass reads the tokens settled last as content, to be committed to the cache, and asks for the next group:

    rows      [ content of the group settled last (c rows) ; queries of the next group (q rows) ]
    each sees   the cache and the c content rows; a query is seen by nobody, and is not kept

so a text of T tokens takes T / group_size passes; the first one reads the prompt. A single text runs on the decoding
engine (:mod:`decoding.blocks`); many abreast on the torch module with transformers' cache, a pass for all of them,
where the engine is not the compiled one.

Example::

    generator = TwoStreamGenerator.from_pretrained("results/models/twostream", dtype=torch.bfloat16, group_size=2)
    generator.generate(prompt_ids, max_new_tokens=64).output_ids
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from decoding import Generation, Sampling, StopStrings, TargetModel
from decoding.blocks import read_block
from decoding.cache import KVCache
from decoding.ranking import choices
from decoding.requests import ReusedCache, check_request
from decoding.sampling import draw_each
from decoding.stopping import NO_STRINGS, Cut, Ending
from shuffle.backbone import attention_input
from shuffle.examples import padded
from shuffle.passes import PassClock, reads_one_by_one
from shuffle.twostream.config import check_grouping
from shuffle.twostream.masks import PADDING, below_limit, group_tokens
from shuffle.twostream.model import LlamaTwoStreamForCausalLM

UNSETTLED = -1


class TwoStreamGenerator:
    """A two-stream model laid out for generation.

    Args:
        model: the model; it is put into evaluation mode, and into ``dtype`` and on ``device``, in place.
        dtype: of the weights and the arithmetic.
        device: where it runs.
        group_size: tokens settled in a pass; the model's own where None.
        order: "left_to_right" or "random", within blocks of ``block_groups`` groups; the model's own where None.
        seed: of the random order, the same for every text.
        temperature: 0 takes the most likely token of each place; otherwise the tokens of a group are drawn, each
            independent of the others.

    Raises:
        ValueError: an option is out of range.
    """

    goes_abreast = True

    def __init__(
        self,
        model: LlamaTwoStreamForCausalLM,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        group_size: int | None = None,
        order: str | None = None,
        seed: int = 0,
        temperature: float = 0.0,
    ) -> None:
        self.model = model.eval()
        model.set_attn_implementation("sdpa")  # whose masks a batch is read with
        nn.Module.to(model, device=device, dtype=dtype)
        self.group_size = model.config.group_size if group_size is None else group_size
        self.order = model.config.order if order is None else order
        check_grouping(self.group_size, self.order)
        self.dtype, self.seed, self.sampling = dtype, seed, Sampling(temperature=temperature)
        self._query_id, self._vocab_size = model.special_id(0), model.config.vocab_size
        self._is_causal = model.config.prompt_groups == "causal"
        self.end_token_ids = frozenset(model.config.end_token_ids)
        self._plans: dict[int, list[list[int]]] = {}
        self.target: TargetModel = model.engine(dtype, model.device)
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
        """Load a local folder; ``options`` are those of the class."""
        model = LlamaTwoStreamForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
        return cls(model, dtype=dtype, device=device, **options)

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: StopStrings = NO_STRINGS,
        generator: torch.Generator | None = None,
    ) -> Generation:
        """Generate from one prompt until an end token, a stop string or the limit.

        Raises:
            ValueError: the prompt is empty, or it and the limit do not fit the model's positions.
        """
        check_request(prompt_ids, max_new_tokens, self.target.max_context)
        cache = self._caches.empty(len(prompt_ids) + max_new_tokens, self.group_size)
        plan = self._plan(max_new_tokens)
        clock, ending = PassClock(len(prompt_ids)), Ending(max_new_tokens, self.end_token_ids, stop)
        length, known, cut = len(prompt_ids), 0, Cut(0, ended=False)
        output = [UNSETTLED] * max_new_tokens
        content, places = list(prompt_ids), list(range(length))
        for group in plan:
            asked = [length + place for place in group]
            logits = self._read(cache, content, places, asked)
            content, places = self._choose_each(logits, generator), asked
            for place, token in zip(group, content, strict=True):
                output[place] = token
            before = known
            while known < max_new_tokens and output[known] != UNSETTLED:
                known += 1
            clock.tick(len(group), known > 0)
            cut = ending.check(output[:known], start=before)
            if cut.ended:
                break
        return clock.generation(output[: cut.kept], truncated=not cut.ended)

    @torch.inference_mode()
    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
    ) -> list[tuple[int, ...]]:
        """Generate from many prompts; the new ids of each, an end token included.

        Raises:
            ValueError: as :meth:`generate`, of any prompt.
        """
        for prompt in prompts:
            check_request(prompt, max_new_tokens, self.target.max_context)
        if reads_one_by_one(self.target):
            return [self.generate(p, max_new_tokens=max_new_tokens, generator=generator).output_ids for p in prompts]
        return self.generate_abreast(prompts, max_new_tokens=max_new_tokens, generator=generator)

    @torch.inference_mode()
    def generate_abreast(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
    ) -> list[tuple[int, ...]]:
        """As :meth:`generate_batch`, with the torch module and a group of each text in a pass.

        A text that has ended is not read any more.
        """
        if not prompts:
            return []
        device, ends = self.model.device, self.end_token_ids
        content, places = self._prompt_rows(prompts)
        lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
        groups = torch.where(places < lengths, places if self._is_causal else 0, PADDING)
        latest = int(groups.max())  # a group's number counts on from the longest prompt's: only their order matters
        output = torch.full((len(prompts), max_new_tokens), UNSETTLED)
        cache, seen, texts, known = DynamicCache(), groups[:, :0], torch.arange(len(prompts)), 0
        for group in self._plan(max_new_tokens):
            asked = lengths + torch.tensor([group], device=device)
            latest += 1
            logits = self._read_batch(cache, seen, content, places, groups, asked, latest)
            content, places = self._choose(logits, generator), asked
            seen, groups = torch.cat([seen, groups], 1), torch.full_like(asked, latest)
            output[texts[:, None], torch.tensor(group)] = content.cpu()
            rows = output[texts].tolist()
            known = rows[0].index(UNSETTLED) if UNSETTLED in rows[0] else max_new_tokens
            going = torch.tensor([i for i, row in enumerate(rows) if ends.isdisjoint(row[:known])], dtype=torch.long)
            if not len(going):
                break
            if len(going) < len(texts):
                texts, kept = texts[going], going.to(device)
                cache.batch_select_indices(kept)
                lengths, content, places, seen, groups = (
                    each[kept] for each in (lengths, content, places, seen, groups)
                )
        ending = Ending(max_new_tokens, ends)
        return [tuple(row[: ending.check(row[:known], start=0).kept]) for row in output.tolist()]

    def _plan(self, max_new_tokens: int) -> list[list[int]]:
        """Return the places of each group, counted from the target's first, as training would group them."""
        if max_new_tokens not in self._plans:
            whole = torch.ones(1, max_new_tokens, dtype=torch.bool)
            ids = group_tokens(
                whole,
                whole,
                torch.tensor([self.group_size]),
                torch.tensor([self.order == "random"]),
                block_groups=self.model.config.block_groups,
                causal_prompt=False,
                generator=torch.Generator().manual_seed(self.seed),
            )[0].tolist()
            plan: list[list[int]] = [[] for _ in range(max(ids) + 1)]
            for place, group in enumerate(ids):
                plan[group].append(place)
            self._plans[max_new_tokens] = plan
        return self._plans[max_new_tokens]

    def _read(self, cache: KVCache, content: list[int], places: list[int], asked: list[int]) -> Float[Tensor, "q v"]:
        """Read and commit content; return the logits of the queries at ``asked``."""
        known, queries = len(content), len(asked)
        # Committed groups are whole; only a causal prompt is several groups in one pass.
        is_causal = self._is_causal and cache.length == 0
        leading = [*range(1, known + 1)] if is_causal else [known] * known
        tokens = content + [self._query_id] * queries
        output = read_block(self.target, cache, tokens, places + asked, leading + [known] * queries, known)
        cache.keep(range(known))
        return output.logits[:, : self._vocab_size]

    def _read_batch(
        self,
        cache: DynamicCache,
        seen: Int[Tensor, "b p"],
        content: Int[Tensor, "b c"],
        places: Int[Tensor, "b c"],
        groups: Int[Tensor, "b c"],
        asked: Int[Tensor, "b q"],
        next_group: int,
    ) -> Float[Tensor, "b q v"]:
        """As :meth:`_read`, for a batch; ``seen`` are the groups of the cache's columns, ``groups`` the content's."""
        model, known = self.model, content.shape[1]
        columns = torch.cat([seen, groups, torch.full_like(asked, PADDING)], 1)
        limits = torch.cat([groups + 1, torch.full_like(asked, next_group)], 1)
        mask = attention_input(below_limit(columns, limits), "sdpa", model.dtype)
        x = model.embed(torch.cat([content, torch.full_like(asked, self._query_id)], 1))
        positions = torch.cat([places, asked], 1)
        rotary = model.backbone.rotary_emb(x, position_ids=positions)
        for layer in model.backbone.layers:
            x = layer(x, attention_mask=mask, position_embeddings=rotary, past_key_values=cache, is_causal=False)
        cache.crop(-asked.shape[1])  # the queries
        logits: Tensor = model.head(model.backbone.norm(x[:, known:]))
        return logits

    def _prompt_rows(self, prompts: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
        """Return the prompts, padded on the right, and their positions."""
        ids = padded(prompts, 0).to(self.model.device)
        return ids, torch.arange(ids.shape[1], device=ids.device).expand_as(ids)

    def _choose_each(self, logits: Float[Tensor, "q v"], generator: torch.Generator | None) -> list[int]:
        """As :meth:`_choose`, and of most likely tokens that are equally so the first."""
        return list(choices(logits)) if self.sampling.is_greedy else self._choose(logits, generator).tolist()

    def _choose(self, logits: Float[Tensor, "*b v"], generator: torch.Generator | None) -> Int[Tensor, "*b"]:
        """Return a token for each place."""
        if self.sampling.is_greedy:
            return logits.argmax(-1)
        return draw_each(self.sampling.probabilities(logits), generator)
