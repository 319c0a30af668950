r"""The one loop that every lossless method runs in: propose, read, verify, keep.

    tree    = drafter.propose(context)          the drafter's guess, rooted at the last token
    output  = target.read(cache, tree)          one forward pass of the target over all of it
    verdict = verify(tree, output.logits)       the path that the target itself would have taken
    cache.keep(verdict.path)                    the rest is forgotten

A method is only a :class:`Drafter`. It may be wrong at no cost but time: what is emitted is decided here.

Example::

    decoder = SpeculativeDecoder(target, PromptLookupDrafter())
    generation = decoder.generate(prompt_ids, max_new_tokens=128, stop=StopStrings(tokenizer.decode, ["\n\n"]))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from decoding.cache import KVCache
from decoding.requests import ReusedCache, check_request
from decoding.sampling import GREEDY, Sampling
from decoding.stopping import NO_STRINGS, Cut, Ending, StopStrings
from decoding.target import TargetModel
from decoding.trace import Generation, Step
from decoding.tree import CandidateTree
from decoding.verify import Verdict, verify

OnStep = Callable[[Sequence[int]], None]  # is told the new tokens of a step


class Drafter(Protocol):
    """Proposes continuations and may learn from what became of them.

    Attributes:
        max_width: most nodes of a tree, the root included; the cache is sized by it.
    """

    max_width: int

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Start a new text: forget what belongs to the last one."""

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return a tree rooted at the last token of ``context`` (prompt and everything emitted so far)."""

    def observe(self, verdict: Verdict) -> int:
        """Learn from a verification; return the forward passes of a draft model since the last call.

        Called after prefill too, with the verdict on a tree of the prompt's last token alone.
        """


@runtime_checkable
class Prepares(Protocol):
    """A drafter with a model of its own, which has a cache to allocate and graphs to capture before a text begins."""

    def prepare(self, num_tokens: int) -> None:
        """Make ready for a text of up to ``num_tokens``, prompt included: no time is counted yet."""


@runtime_checkable
class DrawsTokens(Protocol):
    """A drafter that draws its tokens: from the generator that verification draws from.

    Draws of its own that were a function of the text would draft the same for the same text, and skew what is emitted.
    """

    def draw_from(self, generator: torch.Generator | None) -> None:
        """Draw from ``generator``; from a generator of its own where it is None."""


class Verify(Protocol):
    """A rule of acceptance; :func:`decoding.verify.verify`, the lossless one, unless a method is lossy by name."""

    def __call__(
        self,
        tree: CandidateTree,
        logits: Tensor,
        sampling: Sampling,
        generator: torch.Generator | None,
        hidden: Tensor | None = None,
    ) -> Verdict:
        """Decide which path of ``tree`` is kept, given the target's ``logits`` ``[W, V]``."""


class SpeculativeDecoder:
    """Generates text with a target model and a drafter; what it emits is the target's own.

    Args:
        target: the model whose text is generated.
        drafter: the method.
        sampling: greedy by default.
        verify: the rule of acceptance; any other than the default makes the method lossy.
    """

    def __init__(
        self, target: TargetModel, drafter: Drafter, sampling: Sampling = GREEDY, verify: Verify = verify
    ) -> None:
        self.target, self.drafter, self.sampling, self.verify = target, drafter, sampling, verify
        self._reserved = 0
        self._caches = ReusedCache(target, on_new=lambda cache: target.prepare(cache, drafter.max_width))

    @property
    def drafter(self) -> Drafter:
        """The method."""
        return self._drafter

    @drafter.setter
    def drafter(self, drafter: Drafter) -> None:
        # Asked once, and not for each text: looking for a protocol's methods takes as long as a small model's step.
        self._prepare = drafter.prepare if isinstance(drafter, Prepares) else None
        self._draw_from = drafter.draw_from if isinstance(drafter, DrawsTokens) else None
        self._drafter = drafter

    def reserve(self, num_tokens: int) -> None:
        """Give every text room for ``num_tokens``, prompt included, on a device that captures graphs.

        One cache, captured once, then serves all texts. Not the largest so far: the length of the buffer is a part of
        how attention rounds, and a text's ids are not to depend on which texts came before.
        """
        self._reserved = num_tokens if self.target.captures else 0

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: StopStrings = NO_STRINGS,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Generation:
        """Generate until an end token, a stop string or the limit.

        ``on_step`` is told the tokens of prefill and of each step as they become text; no time is counted meanwhile.

        Raises:
            ValueError: the prompt is empty, or it and the limit do not fit the target's context.
        """
        check_request(prompt_ids, max_new_tokens, self.target.max_context)
        # Allocated before the clock starts, as a server's cache is before the request comes.
        num_tokens = max(len(prompt_ids) + max_new_tokens, self._reserved)
        cache = self._caches.empty(num_tokens, self.drafter.max_width)
        if self._prepare:
            self._prepare(num_tokens)
        started = time.perf_counter()
        if self._draw_from:
            self._draw_from(generator)
        self.drafter.begin(prompt_ids)
        root = CandidateTree((prompt_ids[-1],), (-1,))
        first = self.target.prefill(cache, prompt_ids)
        verdict = self.verify(root, first.logits, self.sampling, generator, first.hidden)
        ending = Ending(max_new_tokens, self.target.end_token_ids, stop)
        draft_forwards = self.drafter.observe(verdict)
        context, steps = [*prompt_ids, verdict.bonus], []
        cut = ending.check([verdict.bonus], start=0)
        ttft_s = time.perf_counter() - started
        if on_step:
            on_step([verdict.bonus])
        while not cut.ended and cut.kept < max_new_tokens:
            shown = len(prompt_ids) + cut.kept
            step, cut = self._step(cache, context, len(prompt_ids), ending, generator)
            steps.append(step)
            if on_step:
                on_step(context[shown : shown + step.emitted])
        output = tuple(context[len(prompt_ids) : len(prompt_ids) + cut.kept])
        return Generation(
            output,
            len(prompt_ids),
            truncated=not cut.ended,
            ttft_s=ttft_s,
            steps=tuple(steps),
            prefill_draft_forwards=draft_forwards,
        )

    def _step(
        self,
        cache: KVCache,
        context: list[int],
        prompt_length: int,
        ending: Ending,
        generator: torch.Generator | None,
    ) -> tuple[Step, Cut]:
        """Run one round; extend ``context`` by what it emits and return the step and how much of the text stays."""
        started = time.perf_counter()
        tree = self.drafter.propose(context)
        proposed = time.perf_counter()
        output = self.target.read(cache, tree)
        verdict = self.verify(tree, output.logits, self.sampling, generator, output.hidden)
        cache.keep(verdict.path)
        before = len(context) - prompt_length
        context.extend(verdict.emitted)
        verified = time.perf_counter()
        draft_forwards = self.drafter.observe(verdict)
        observed = time.perf_counter()
        cut = ending.check(context[prompt_length:], start=before)
        emitted = cut.kept - before
        step = Step(
            emitted=emitted,
            accepted=min(len(verdict.accepted), emitted),
            candidates=tree.width - 1,
            draft_forwards=draft_forwards,
            draft_s=(proposed - started) + (observed - verified),
            total_s=time.perf_counter() - started,
            verify_s=verified - proposed,
        )
        return step, cut
