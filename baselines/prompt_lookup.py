"""Prompt lookup: draft what followed the last n-gram earlier in the context.

Texts repeat themselves and their prompts: names, quoted sentences, variables. The longest n-gram at the end of the
context that occurs earlier is looked up and what followed it is the draft (Saxena 2023, "Prompt Lookup Decoding";
Yang et al. 2023, "Inference with Reference"). No model, no training.

What followed may reach the end of the context; the copy then goes on over the draft itself, so that a text that goes
round in a loop, however short, is drafted as far as the draft may go.

Unlike Saxena's code, which copies the earliest occurrence with a whole draft behind it: the latest one is copied, as
far as the draft may go.

An index from each n-gram to where it last ended is kept as the context grows, so a look-up costs the n-gram's hash and
not a scan of the context.

Example::

    drafter = PromptLookupDrafter(max_ngram=3, num_draft_tokens=15)
    drafter.begin([5, 6, 7, 8, 5, 6])
    drafter.propose([5, 6, 7, 8, 5, 6]).tokens[:6]    # (6, 7, 8, 5, 6, 7): the root, then what followed "5 6"
"""

from __future__ import annotations

from collections.abc import Sequence

from decoding import CandidateTree, Verdict
from decoding.options import at_least


class PromptLookupDrafter:
    """Proposes the chain that followed the last n-gram's most recent earlier occurrence.

    Args:
        max_ngram: longest n-gram that is looked up; the longest that occurs is taken.
        min_ngram: shortest.
        num_draft_tokens: most tokens of a draft.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(self, max_ngram: int = 3, min_ngram: int = 1, num_draft_tokens: int = 15) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"min_ngram must be between 1 and max_ngram={max_ngram}, not {min_ngram}")
        at_least(1, num_draft_tokens=num_draft_tokens)
        self.max_ngram, self.min_ngram, self.num_draft_tokens = max_ngram, min_ngram, num_draft_tokens
        self.max_width = num_draft_tokens + 1
        self.begin(())

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Forget the last text's n-grams."""
        self._follows: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return the root and ``num_draft_tokens`` tokens after it; the root alone where no n-gram came before."""
        self._index(context)
        for n in range(min(self.max_ngram, len(context)), self.min_ngram - 1, -1):
            start = self._follows.get(tuple(context[-n:]))
            if start is not None:
                period = len(context) - start  # what is copied is as far behind what it is copied from
                draft = [context[start + i % period] for i in range(self.num_draft_tokens)]
                return CandidateTree.chain(context[-1], draft)
        return CandidateTree.chain(context[-1], ())

    def observe(self, verdict: Verdict) -> int:
        """Nothing to learn: the context itself is the memory."""
        return 0

    def _index(self, context: Sequence[int]) -> None:
        """Enter every n-gram that has something behind it; a later occurrence replaces an earlier one."""
        for end in range(self._indexed + 1, len(context)):
            for n in range(self.min_ngram, min(self.max_ngram, end) + 1):
                self._follows[tuple(context[end - n : end])] = end
        self._indexed = max(self._indexed, len(context) - 1)
