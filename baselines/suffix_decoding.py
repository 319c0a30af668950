r"""SuffixDecoding: draft what followed the same tokens earlier in the text, all places counted, as a tree.

Prompt lookup copies what followed the last place where an n-gram stood. SuffixDecoding (Oliaro, Jia, Campos and Qiao
2024) counts all of them: in a suffix tree of the prompt and of what is written so far, nodes are taken by how often
they were seen, and the draft is as large as the counts promise. No model, no training.

What differs from the paper:
- its drafts follow the longest match, whose length limits their size. Here counts of all runs of up to ``max_ngram``
  tokens are interpolated (:mod:`baselines.interpolated`), the tree is grown best-first by these probabilities, and
  ``row_cost`` limits it to what pays. Longer runs than four gained nothing on held-out text.
- it counts the text in one suffix tree and earlier outputs in another, and takes the more promising draft. Here both
  are counts that are added up; earlier outputs with ``warm_start`` alone, since speed then depends on the order of the
  prompts.

Example::

    drafter = SuffixDecodingDrafter(num_nodes=15)
    SpeculativeDecoder(target, drafter).generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from baselines.best_first import grow
from baselines.interpolated import guesses_after
from decoding import CandidateTree, Verdict
from decoding.options import at_least

Run = tuple[int, ...]


class Counts:
    """How often each token followed each run of up to ``max_ngram`` tokens, of a text that grows.

    Example::

        counts = Counts(max_ngram=2)
        counts.read([5, 6, 7, 5, 6])
        counts.after((5,))              # {6: 2}
    """

    def __init__(self, max_ngram: int) -> None:
        self.max_ngram = max_ngram
        self._follow: dict[Run, dict[int, int]] = {}
        self._read = 0

    def read(self, text: Sequence[int]) -> None:
        """Count what of ``text`` is not counted yet; it begins with what was counted before."""
        for end in range(max(1, self._read), len(text)):
            for n in range(1, min(self.max_ngram, end) + 1):
                counts = self._follow.setdefault(tuple(text[end - n : end]), {})
                counts[text[end]] = counts.get(text[end], 0) + 1
        self._read = max(self._read, len(text))

    def end_text(self) -> None:
        """The next text is another one; what was counted stays."""
        self._read = 0

    def after(self, run: Sequence[int]) -> Mapping[int, int]:
        """Return how often each token followed ``run``."""
        return self._follow.get(tuple(run), {})


class SuffixDecodingDrafter:
    """Proposes a tree grown best-first from what followed the end of the text earlier in it.

    Args:
        num_nodes: most draft tokens of a tree.
        max_ngram: the longest run of last tokens that is counted.
        warm_start: count the outputs of earlier prompts, too; speed then depends on the order of the prompts.
        row_cost: nodes that do not pay are left out, see :func:`decoding.rows.pays`.

    Attributes:
        node_probabilities: after ``propose``, each node's chance to be accepted if its parent is; the root's is 1.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self, num_nodes: int = 15, max_ngram: int = 4, warm_start: bool = False, row_cost: float = 0.0
    ) -> None:
        at_least(1, num_nodes=num_nodes, max_ngram=max_ngram)
        at_least(0, row_cost=row_cost)
        self.num_nodes, self.max_ngram, self.warm_start, self.row_cost = num_nodes, max_ngram, warm_start, row_cost
        self.max_width = num_nodes + 1
        self.node_probabilities: Sequence[float] | None = None
        self._text, self._earlier = Counts(max_ngram), Counts(max_ngram)
        self._output: list[int] = []

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Count the prompt; forget the last text, or keep what was written in it."""
        if self.warm_start:
            self._earlier.end_text()
            self._earlier.read(self._output)
        self._text = Counts(self.max_ngram)
        self._text.read(prompt_ids)
        self._output = []

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return the tree of the ``num_nodes`` nodes that are most likely to be accepted."""
        self._text.read(context)
        end = tuple(context[-self.max_ngram :])
        tree, self.node_probabilities = grow(context[-1], end, self._expand, self.num_nodes, self.row_cost)
        return tree

    def observe(self, verdict: Verdict) -> int:
        """Remember what was written, for later texts if they are to know it: for this one the context is counted.

        What a last step accepted behind the text's end is remembered as well.
        """
        self._output.extend(verdict.emitted)
        return 0

    def _expand(self, end: Run) -> Iterator[tuple[int, float, Run]]:
        """Give what may follow an end of the text, each with the end that it makes."""
        for following, each in guesses_after(end, self._followers).items():
            yield following, each, (*end, following)[-self.max_ngram :]

    def _followers(self, run: Sequence[int]) -> Mapping[int, int]:
        """Return how often each token followed ``run``, in this text and in those kept."""
        here, earlier = self._text.after(run), self._earlier.after(run)
        if not earlier:
            return here
        return {token: here.get(token, 0) + earlier.get(token, 0) for token in (*here, *earlier)}
