"""What every parallel generator offers, and the clock that tells of its forward passes as of any other method's steps.

A pass may settle several tokens, in any order. The time to first token ends with the pass that settles the first token
of the text; the passes after it are the steps.

Example::

    clock = PassClock(len(prompt_ids))
    while unsettled:
        ...                                    # one forward pass
        clock.tick(num_settled, first_is_known)
    return clock.generation(output_ids, truncated=False)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch

from decoding import Generation, Step, StopStrings, TargetModel
from decoding.stopping import NO_STRINGS

BatchWay = Callable[..., list[tuple[int, ...]]]  # called as ParallelGenerator.generate_batch


class ParallelGenerator(Protocol):
    """A model that generates in parallel, laid out for decoding; built by ``from_pretrained(folder, ...)``."""

    @property
    def target(self) -> TargetModel:
        """Its backbone on the decoding engine."""

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: StopStrings = NO_STRINGS,
        generator: torch.Generator | None = None,
    ) -> Generation:
        """Generate from one prompt until an end token, a stop string or the limit."""

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
    ) -> list[tuple[int, ...]]:
        """Generate from many prompts; the new ids of each, an end token included."""


def weight_bytes_of(generator: ParallelGenerator) -> int:
    """Return the bytes of weights that one forward pass reads: the engine's, and of what mixes its states behind it."""
    return generator.target.weights.weight_bytes + int(getattr(generator, "head_bytes", 0))


@runtime_checkable
class GoesAbreast(ParallelGenerator, Protocol):
    """A generator that can also read all texts of a batch in one forward pass of the torch module."""

    @property
    def goes_abreast(self) -> bool:
        """Whether its options allow it."""

    @property
    def generate_abreast(self) -> BatchWay:
        """As :meth:`generate_batch`, all texts in each forward pass."""


def reads_one_by_one(target: TargetModel) -> bool:
    """Whether ``generate_batch`` goes through many texts one after the other, and not abreast.

    The compiled engine's arithmetic, not its reading of weights, is what a pass over a text and its slots waits for: a
    wider pass gains it little, and what pads a batch, or belongs to texts that are at their end, costs it. On captions
    that was up to 1.7 times as fast as abreast, with a smaller model and shorter texts 1.5 times. Where a pass is
    mostly the starting of it, abreast is faster. So whoever is after speed tries both (``ways_through``).
    """
    return target.native is not None


def ways_through(generator: ParallelGenerator) -> list[BatchWay]:
    """Return the ways in which a generator can go through a batch, the default first."""
    ways: list[BatchWay] = [generator.generate_batch]
    if isinstance(generator, GoesAbreast) and generator.goes_abreast and reads_one_by_one(generator.target):
        ways.append(generator.generate_abreast)
    return ways


class PassClock:
    """Times the forward passes of one generation, from its own making on."""

    def __init__(self, prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self._settled: list[int] = []
        self._seconds: list[float] = []
        self._first: int | None = None  # passes until the first token was known
        self._last = time.perf_counter()

    def tick(self, settled: int, first_is_known: bool) -> None:
        """End a pass that settled ``settled`` tokens; ``first_is_known`` once the text's first token is among them."""
        now = time.perf_counter()
        self._settled.append(settled)
        self._seconds.append(now - self._last)
        self._last = now
        if first_is_known and self._first is None:
            self._first = len(self._settled)

    @property
    def num_passes(self) -> int:
        """Passes so far."""
        return len(self._settled)

    def generation(self, output_ids: Sequence[int], truncated: bool) -> Generation:
        """Return the record; what follows the last pass counts to it.

        The tokens of the passes are cut to those of the text, from the last pass back: what was settled behind an end
        token is no text.
        """
        self._seconds[-1] += time.perf_counter() - self._last
        excess = sum(self._settled) - len(output_ids)
        for i in reversed(range(len(self._settled))):
            taken = min(self._settled[i], max(excess, 0))
            self._settled[i] -= taken
            excess -= taken
        first = self._first or len(self._settled)
        steps = zip(self._settled[first:], self._seconds[first:], strict=True)
        return Generation(
            output_ids=tuple(output_ids),
            prompt_length=self.prompt_length,
            truncated=truncated,
            ttft_s=sum(self._seconds[:first]),
            steps=tuple(Step(n, 0, 0, draft_forwards=0, draft_s=0.0, total_s=seconds) for n, seconds in steps),
            prefill_forwards=first,
            prefill_emitted=sum(self._settled[:first]),
        )
