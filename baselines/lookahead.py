r"""Lookahead decoding: the target's own forward passes grow n-grams by Jacobi iteration, and verify them later.

Jacobi iteration guesses many future tokens at once and replaces each by what the model says after its predecessors.
Single guesses are rarely right, but the *trajectory* of guesses holds n-grams that turn up in the text a little later
(Fu et al. 2024, "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding"). No draft, no training.

The window has W columns and N - 1 levels, one level for each of the last N - 1 iterations. Level 0 begins with the
last token. Every step appends a level, and each column, read from top to bottom with the new token, is an n-gram:

    column j, level i:   position t + j + i     token w[i][j]          (w[0][0] is the last token, at position t)
    new token:           w[N-1][j] = argmax p(. | text, w[0][1..j], w[1][j], ..., w[N-2][j])
    pool:                w[0][j] -> (w[1][j], ..., w[N-1][j])
    next window:         level i takes the place of level i - 1; the new w[0][0] is the new last token

**The window is a part of the candidate tree.** In the paper's attention mask a token of level 0 sees the text and level
0 up to itself, and a token of level i sees the text, level 0 up to its column, and its own column above it; its
position is that of the token above plus one. So level 0 is a chain from the root, and the token at level i, column j is
a child of the one at level i - 1, column j: mask and positions are exactly those of a tree of candidates. Candidate
n-grams hang under the root (the verification branch). One tree, one forward pass, and no special case in the engine:
the new level is read off ``verdict.choices``. That the engine may accept a token of the window when it happens to be
right is a gain without a cost; tokens with the same ancestors are one node, which changes no prediction.

As in the authors' code: the window starts with random tokens of the prompt and fills one level a step, and it moves on
by one position a step however many tokens were accepted, so after a good step it lags behind the text. That makes its
n-grams slightly stale and not wrong; moving it by the accepted length would throw away the columns that were already
iterated on. Unlike theirs: a whole n-gram and the token after it can be accepted in one step (theirs stops before an
n-gram's last token), n-grams from the prompt are tried during the filling too, and by default the pool also holds the
n-grams of prompt and text (``pool_from_prompt``; an option of theirs that is off by default), as prompt lookup does.

In sampled decoding the proposals are still deterministic (argmax trajectories), so ``draft_probabilities`` is None and
verification is exact.

Example::

    drafter = LookaheadDrafter(window=2, ngram=5, guesses=5)
    SpeculativeDecoder(target, drafter).generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from baselines.phrases import PhrasePool, Trie
from decoding import CandidateTree, Verdict
from decoding.options import at_least


class JacobiWindow:
    """The lookahead branch: W columns of N - 1 levels of guesses, filled level by level at first.

    The authors' way of filling is kept: level 0 starts with N - 2 columns more than W, and until all levels are there,
    each step appends a level and drops every level's first column, since the text has moved past it.

    Args:
        window: W, the number of columns.
        ngram: N, the length of the n-grams.
        guesses: the first guesses, W + N - 3 tokens.
    """

    def __init__(self, window: int, ngram: int, guesses: Sequence[int]) -> None:
        self.num_levels = ngram - 1
        self.levels: list[list[int]] = [[guesses[0] if guesses else 0, *guesses]]  # column 0 is the last token's place

    @property
    def is_filled(self) -> bool:
        """Whether the columns are as long as an n-gram less one, so that the next token completes it."""
        return len(self.levels) == self.num_levels

    def attach(self, trie: Trie) -> list[int]:
        """Add the window to a trie of the root alone; return the last level's nodes, whose choices :meth:`advance`."""
        self.levels[0][0] = trie.tokens[0]
        chain = [0, *trie.add(0, self.levels[0][1:])]
        columns = zip(*self.levels[1:], strict=True) if len(self.levels) > 1 else [()] * len(chain)
        return [(trie.add(node, column) or [node])[-1] for node, column in zip(chain, columns, strict=True)]

    def advance(self, choices: Sequence[int]) -> list[tuple[int, ...]]:
        """Take the target's choices after the last level as the new level; return the n-grams that they complete."""
        if not self.is_filled:
            self.levels = [level[1:] for level in [*self.levels, list(choices)]]
            return []
        ngrams = list(zip(*self.levels, choices, strict=True))
        self.levels = [*self.levels[1:], list(choices)]
        return ngrams


def window_rows(window: int, ngram: int) -> int:
    """Return the most nodes that a window ever has, the root included: while it fills it may be wider than filled."""
    return max((level + 1) * (window + ngram - 2 - level) for level in range(ngram - 1))


class LookaheadDrafter:
    """Proposes the lookahead branch and up to G n-grams from the pool that follow the last token.

    Args:
        window: W, columns of the Jacobi window.
        ngram: N, length of the n-grams, the token by which they are looked up included.
        guesses: G, n-grams that the pool keeps for a token, all of them verified if they fit.
        pool_from_prompt: enter the n-grams of the prompt and of the text into the pool, too.
        max_nodes: most nodes of a tree: the newest n-grams that fit beside the window are verified. 0 for no limit.
        seed: of the first guesses, the same for every prompt.

    Raises:
        ValueError: an option is out of range, or the window alone exceeds ``max_nodes``.
    """

    def __init__(
        self,
        window: int = 2,
        ngram: int = 5,
        guesses: int = 5,
        pool_from_prompt: bool = True,
        max_nodes: int = 16,
        seed: int = 0,
    ) -> None:
        at_least(1, window=window, guesses=guesses)
        at_least(2, ngram=ngram)
        widest = window_rows(window, ngram)
        if max_nodes and widest > max_nodes:
            raise ValueError(f"window={window} and ngram={ngram} need {widest} nodes, more than max_nodes={max_nodes}")
        self.window, self.ngram, self.guesses = window, ngram, guesses
        self.pool_from_prompt, self.seed = pool_from_prompt, seed
        most = max(widest, window * (ngram - 1)) + guesses * (ngram - 1)
        self.max_width = min(most, max_nodes) if max_nodes else most
        self.pool = PhrasePool(guesses)
        self.begin(())

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Start a new text with an empty pool."""
        self.pool.clear()
        self.begin_with_pool(prompt_ids)

    def begin_with_pool(self, prompt_ids: Sequence[int]) -> None:
        """Start a new text with a new window and the pool as it is."""
        size = self.window + self.ngram - 3
        guesses = random.Random(self.seed).choices(prompt_ids, k=size) if prompt_ids else [0] * size
        self._window = JacobiWindow(self.window, self.ngram, guesses)
        self._last_level: list[int] = []
        self._num_read = 0
        self._read(prompt_ids)

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return the window and what the pool knows of the last token, as one tree."""
        self._read(context)
        trie = Trie(context[-1], self.max_width)
        self._last_level = self._window.attach(trie)
        for phrase in self.pool.look_up(context[-1]):
            trie.add(0, phrase)
        return trie.tree()

    def observe(self, verdict: Verdict) -> int:
        """Advance the window by the target's choices after its last level and collect the n-grams."""
        if self._last_level:  # nothing was proposed yet when prefill is observed
            for first, *phrase in self._window.advance([verdict.choices[node] for node in self._last_level]):
                self.pool.add(first, tuple(phrase))
            self._last_level = []
        return 0

    def _read(self, text: Sequence[int]) -> None:
        """Enter the n-grams of what is new in the text into the pool."""
        if self.pool_from_prompt:
            self.pool.add_text(text, self.ngram - 1, start=self._num_read)
            self._num_read = len(text)
