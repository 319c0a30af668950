"""Plain autoregression: nothing is drafted, so each forward pass of the target yields one token.

It is the baseline of every comparison, and it runs on the same loop and the same forward pass as the methods that are
measured against it: a weak baseline would make every method look good.

Example::

    SpeculativeDecoder(target, AutoregressiveDrafter()).generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

from collections.abc import Sequence

from decoding import CandidateTree, Verdict


class AutoregressiveDrafter:
    """Proposes the root alone."""

    max_width = 1

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Nothing to forget."""

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return a tree of the last token alone."""
        return CandidateTree((context[-1],), (-1,))

    def observe(self, verdict: Verdict) -> int:
        """Nothing to learn."""
        return 0
