"""A parallel generator as a drafter: what it makes of the prompt is a draft that the autoregressive twin verifies.

The generator writes its whole text once, in its few forward passes; the twin reads it as a chain. Where the two part,
the twin's token counts, and the draft goes on behind the place nearest to it that it has the same token at, since a
text that is wrong in one place is often right behind it. Lossless, as every drafter: the draft is a function of the
prompt alone. The gain over the generator is exactness, its price the twin's passes.

Example::

    drafter = OutputDrafter(ShuffleGenerator.from_pretrained(folder))
    SpeculativeDecoder(twin, drafter).generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from decoding import CandidateTree, Sampling, TargetModel, Verdict
from decoding.options import at_least
from decoding.requests import NoRoomError
from shuffle.passes import ParallelGenerator, weight_bytes_of
from shuffle.scoring import check_twin

REACH = 3  # places that a draft may be ahead of the text, or behind it, after the two have parted


class OutputDrafter:
    """Proposes the rest of a generator's own text.

    Args:
        generator: laid out for decoding, greedy.
        max_context: of the generator's model, in tokens.
        num_draft_tokens: most draft tokens of a chain.
        max_text: tokens that the generator writes at most.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(
        self, generator: ParallelGenerator, max_context: int, num_draft_tokens: int = 31, max_text: int = 64
    ) -> None:
        at_least(1, num_draft_tokens=num_draft_tokens, max_text=max_text)
        self.generator, self.max_context = generator, max_context
        self.num_draft_tokens, self.max_text = num_draft_tokens, max_text
        self.max_width = num_draft_tokens + 1
        self._prompt: tuple[int, ...] = ()
        self._draft: tuple[int, ...] | None = None
        self._passes = 0

    @classmethod
    def from_target(
        cls,
        target: TargetModel,
        *,
        parts: Mapping[str, Path],
        sampling: Sampling,
        generator: str,
        num_draft_tokens: int = 31,
        max_text: int = 64,
    ) -> Self:
        """Load the generator whose weights are the one part given.

        Args:
            target: the twin that verifies; the generator runs in its precision.
            parts: the generator's weights, under their name.
            sampling: of no consequence: the draft is greedy.
            generator: ``module:name`` of the class that loads them.
            num_draft_tokens: most draft tokens of a chain.
            max_text: tokens that the generator writes at most.

        Raises:
            ValueError: not one part is given, or the generator has other tokens than the twin.
        """
        if len(parts) != 1:
            raise ValueError(f"a draft comes from one generator, not from {', '.join(parts) or 'none'}")
        module, _, name = generator.partition(":")
        loaded: Any = getattr(importlib.import_module(module), name).from_pretrained(
            *parts.values(), dtype=target.dtype, device=target.device
        )
        check_twin(loaded.model, target.vocab_size)
        return cls(loaded, loaded.target.max_context, num_draft_tokens, max_text)

    @property
    def part_bytes(self) -> int:
        """Bytes of weights that one of the generator's forward passes reads."""
        return weight_bytes_of(self.generator)

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Forget the last prompt's draft."""
        self._prompt, self._draft, self._passes = tuple(prompt_ids), None, 0

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return the draft behind what of it has become text."""
        if self._draft is None:
            limit = min(self.max_text, self.max_context - len(self._prompt))
            self._draft = ()
            # A prompt that leaves the generator no room for its slots has no draft; the target needs none.
            with suppress(NoRoomError):
                if limit > 0:
                    generation = self.generator.generate(self._prompt, max_new_tokens=limit)
                    self._draft, self._passes = generation.output_ids, generation.target_forwards
        start = resumed(self._draft, context[len(self._prompt) :])
        return CandidateTree.chain(context[-1], self._draft[start : start + self.num_draft_tokens])

    def observe(self, verdict: Verdict) -> int:
        """Return the generator's forward passes since the last call."""
        passes, self._passes = self._passes, 0
        return passes


def resumed(draft: Sequence[int], text: Sequence[int]) -> int:
    """Return where ``draft`` goes on behind ``text``: at its length, or nearby, behind the text's last token."""
    length = len(text)
    if tuple(draft[:length]) == tuple(text) or not text:
        return length
    near = sorted(range(length - REACH, length + REACH + 1), key=lambda place: abs(place - length))
    return next((place for place in near if 0 < place <= len(draft) and draft[place - 1] == text[-1]), length)
