"""Generation with a masked diffusion model: block by block, and one text or many at a time.

One text is timed, so it runs on the engine with finished blocks cached. That costs no pass of its own: the rows of what
is finished, the prompt or the last block, ride in the first pass of the next block, as ``[finished ; masks]``, and are
kept from it. Since attention is block-causal, the cached rows are what they would be if all were read anew, which is
how many texts are generated abreast.

Example::

    generator = DiffusionGenerator.from_pretrained(folder, confidence_threshold=0.9)
    generation = generator.generate(prompt_ids, max_new_tokens=64)
    texts = generator.generate_batch(prompts, max_new_tokens=64)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM

from decoding import Generation, StopStrings, TargetModel
from decoding.blocks import read_block
from decoding.cache import KVCache
from decoding.options import at_least
from decoding.requests import ReusedCache, check_request
from decoding.stopping import NO_STRINGS, Ending
from shuffle.diffusion.energy import hide_worst, pseudo_log_likelihoods
from shuffle.diffusion.model import DiffusionTransformer
from shuffle.diffusion.sampler import Denoising, Predict, Rows, denoise
from shuffle.examples import padded
from shuffle.passes import PassClock, reads_one_by_one
from shuffle.scoring import Scorer, causal_scorer, check_twin, least_energy

HIDDEN_SHARE = 0.25  # of a text's tokens are denoised again in an energy round


class DiffusionGenerator:
    """Generates with a masked diffusion model; a :class:`shuffle.passes.ParallelGenerator`.

    Args:
        model: moved to ``dtype`` and ``device``.
        block_length: tokens denoised together; None: as in training.
        num_candidates: texts drawn at once, of which the one of least energy is kept; needs a temperature.
        energy_rounds: how often the worst tokens of the text are masked and denoised again; the better text is kept.
        scorer: says what the energy is; None: the model's own pseudo-log-likelihood.
        rules: see :class:`shuffle.diffusion.sampler.Denoising`.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        model: DiffusionTransformer,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        block_length: int | None = None,
        num_candidates: int = 1,
        energy_rounds: int = 0,
        scorer: Scorer | None = None,
        **rules: Any,
    ) -> None:
        self.rules = Denoising(**rules)
        longest = model.config.block_length if model.config.placed_masks else model.config.max_position_embeddings
        if block_length is not None and not 1 <= block_length <= longest:
            raise ValueError(f"block_length must be None or 1 to {longest}, not {block_length}")
        at_least(1, num_candidates=num_candidates)
        at_least(0, energy_rounds=energy_rounds)
        if num_candidates > 1 and not self.rules.temperature:
            raise ValueError(f"num_candidates={num_candidates} at temperature=0 are all the same: set a temperature")
        self.block_length = block_length or model.config.block_length
        self.num_candidates, self.energy_rounds = num_candidates, energy_rounds
        self.target: TargetModel = model.engine(dtype, device)
        self.model = model.eval().to(device=torch.device(device), dtype=dtype)
        # Read once: a configuration of transformers takes its time to answer.
        self.mask_id, self.vocab_size = model.mask_id, int(model.config.vocab_size)
        self.scorer = scorer or self._own_scores
        self._caches = ReusedCache(self.target)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        scorer: Scorer | str | Path | None = None,
        **options: Any,
    ) -> Self:
        """Load a trained model; ``scorer`` may be the folder of an autoregressive one.

        Raises:
            ValueError: that one has other tokens, or an option is out of range.
        """
        model = DiffusionTransformer.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        if isinstance(scorer, str | Path):
            twin = AutoModelForCausalLM.from_pretrained(
                scorer, dtype=dtype, trust_remote_code=False, use_safetensors=True, local_files_only=True
            )
            check_twin(model, twin.config.vocab_size)
            scorer = causal_scorer(twin.eval().to(torch.device(device)))
        return cls(model, dtype=dtype, device=device, scorer=scorer, **options)

    @torch.inference_mode()
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
            ValueError: the prompt is empty, or it and the limit do not fit the context.
        """
        check_request(prompt_ids, max_new_tokens, self.target.max_context)
        ending = Ending(max_new_tokens, self.target.end_token_ids, stop)
        if self.num_candidates > 1 or self.energy_rounds:
            return self._generate_best(prompt_ids, ending, generator)
        cache = self._caches.empty(len(prompt_ids) + max_new_tokens, self.block_length)
        clock, unread = PassClock(len(prompt_ids)), list(prompt_ids)
        text: list[int] = []
        cut = ending.check(text, 0)
        while not cut.ended and cut.kept < max_new_tokens:
            start, known = len(text), 0
            block = self._next_block([text], len(prompt_ids))
            passes = self._denoise(self._cached(cache, unread), block, [text], ending, generator)
            for block in passes:
                unread = block[0].tolist()
                before, known = known, len(unread) - unread.count(self.mask_id)
                clock.tick(max(known - before, 0), bool(start) or unread[0] != self.mask_id)
            text += unread
            cut = ending.check(text, start)
        return clock.generation(text[: cut.kept], truncated=not cut.ended)

    @property
    def goes_abreast(self) -> bool:
        """Whether its options allow many texts in one pass: candidates are of one text, and so is their energy."""
        return self.num_candidates == 1 and not self.energy_rounds

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
        if not self.goes_abreast or reads_one_by_one(self.target):
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
        """As :meth:`generate_batch`, with the torch module, a forward pass for all texts and one candidate of each."""
        ending = Ending(max_new_tokens, self.target.end_token_ids)
        # A prompt so long that its last block is cut short by the context goes alone.
        whole = -(-max_new_tokens // self.block_length) * self.block_length
        fits = [i for i, prompt in enumerate(prompts) if len(prompt) + whole <= self.target.max_context]
        groups = [[i] for i in range(len(prompts)) if i not in set(fits)] + ([fits] if fits else [])
        texts: dict[int, tuple[int, ...]] = {}
        for group in groups:
            texts.update(zip(group, self._abreast([prompts[i] for i in group], ending, generator), strict=True))
        return [texts[i] for i in range(len(prompts))]

    def _next_block(
        self,
        texts: Sequence[Sequence[int]],
        longest_prompt: int,
        drafts: Sequence[Sequence[int]] | None = None,
    ) -> Int[Tensor, "b l"]:
        """Return masks, the next block of ``texts``, all of one length; what ``drafts`` have in its place is known."""
        start, mask = len(texts[0]), self.mask_id
        width = min(self.block_length, self.target.max_context - longest_prompt - start)
        rows = [list(draft[start : start + width]) for draft in drafts or [()] * len(texts)]
        return torch.tensor([row + [mask] * (width - len(row)) for row in rows], device=self.model.device)

    def _denoise(
        self,
        predict: Predict,
        block: Int[Tensor, "b l"],
        texts: Sequence[Sequence[int]],
        ending: Ending,
        generator: torch.Generator | None,
    ) -> Iterator[Int[Tensor, "b l"]]:
        penalised = self.rules.repetition_penalty != 1
        return denoise(
            predict,
            block,
            self.rules,
            mask_id=self.mask_id,
            end_token_ids=ending.end_token_ids,
            limit=ending.max_new_tokens - len(texts[0]),
            text=torch.tensor(texts, dtype=torch.long, device=self.model.device) if penalised else None,
            generator=generator,
        )

    def _cached(self, cache: KVCache, unread: list[int]) -> Predict:
        """Return what predicts one block on the engine; its first pass reads and commits ``unread`` as well."""

        def predict(block: Int[Tensor, "1 l"], _: Rows) -> Float[Tensor, "1 l v"]:
            masks = self.model.placed(block[0], torch.arange(block.shape[1], device=block.device))
            rows, width = unread + masks.tolist(), len(unread)
            leading = [width] * width + [len(rows)] * (len(rows) - width)
            positions = range(cache.length, cache.length + len(rows))
            logits = read_block(self.target, cache, rows, positions, leading, width).logits
            cache.keep(range(width))
            unread.clear()
            return logits[None, :, : self.vocab_size]  # no text has masks

        return predict

    def _abreast(
        self,
        prompts: Sequence[Sequence[int]],
        ending: Ending,
        generator: torch.Generator | None,
        drafts: Sequence[Sequence[int]] | None = None,
        clock: PassClock | None = None,
    ) -> list[tuple[int, ...]]:
        """Generate many texts, reading all anew in each pass; passes are told to ``clock`` as settling nothing yet."""
        texts: list[list[int]] = [[] for _ in prompts]
        kept = [0] * len(prompts)
        active = list(range(len(prompts)))
        while active:
            here, start = [texts[i] for i in active], len(texts[active[0]])
            there = [prompts[i] for i in active]
            known = [drafts[i] for i in active] if drafts else None
            block = self._next_block(here, max(map(len, there)), known)
            for after_pass in self._denoise(self._anew(there, here), block, here, ending, generator):
                block = after_pass
                if clock:
                    clock.tick(0, False)
            for i, row in zip(list(active), block.tolist(), strict=True):
                texts[i] += row
                cut = ending.check(texts[i], start)
                kept[i] = cut.kept
                if cut.ended or cut.kept == ending.max_new_tokens:
                    active.remove(i)
        return [tuple(text[:end]) for text, end in zip(texts, kept, strict=True)]

    def _anew(self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> Predict:
        """Return what predicts the next block of many texts with the model itself, nothing cached."""
        model, device = self.model, self.model.device
        rows = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
        clean = padded(rows, 0).to(device)
        sizes = torch.tensor([len(row) for row in rows], device=device)
        lengths, offset = sizes - len(texts[0]), len(texts[0])
        valid = torch.arange(clean.shape[1], device=device) < sizes[:, None]

        def predict(block: Int[Tensor, "r l"], which: Rows) -> Float[Tensor, "r l v"]:
            context = clean[which], valid[which], lengths[which]
            hidden = model.read_blocks(*context, block, offset=offset, block_length=self.block_length)
            logits: Tensor = model.head(hidden[:, clean.shape[1] :])
            return logits.float()

        return predict

    def _generate_best(
        self, prompt_ids: Sequence[int], ending: Ending, generator: torch.Generator | None
    ) -> Generation:
        """Draw several texts, keep the best, and repair it; no token is known before the last scoring."""
        clock = PassClock(len(prompt_ids))
        texts = self._abreast([prompt_ids] * self.num_candidates, ending, generator, clock=clock)
        for rounds_left in reversed(range(self.energy_rounds + 1)):
            scores = self.scorer(prompt_ids, texts)
            best = least_energy(scores)
            clock.tick(0 if rounds_left else len(texts[best]), not rounds_left)
            if rounds_left:
                draft = hide_worst(texts[best], scores[best], HIDDEN_SHARE, self.mask_id)
                repaired = self._abreast([prompt_ids], ending, generator, [draft], clock)
                texts = [texts[best], *repaired]
        text = texts[best]
        return clock.generation(text, truncated=not ending.check(text, 0).ended)

    def _own_scores(self, prompt_ids: Sequence[int], texts: Sequence[Sequence[int]]) -> list[Tensor]:
        return pseudo_log_likelihoods(self.model, prompt_ids, texts, self.block_length)
