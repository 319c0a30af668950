r"""Ouroboros: a draft model that drafts phrase by phrase, and whose draft is lengthened by phrases from a pool.

Speculative decoding is held up by its draft model: a draft of gamma tokens costs gamma forward passes, and a longer one
costs more of them. Ouroboros (Zhao et al. 2024, "Ouroboros: Generating Longer Drafts Phrase by Phrase for Faster
Speculative Decoding") saves on both sides with one pool of phrases:

    1  draft      the draft model drafts gamma tokens with lookahead decoding, several a forward pass
    2  lengthen   the pool's k newest phrases that follow the draft's last token are hung under it as k branches
    3  verify     the target reads the draft and all branches in one forward pass
    4  learn      what the target said feeds the pool

With d the draft, y_i the target's choice after d_i, and a the number of tokens accepted, step 4 is

    rejected drafts   d_i -> (y_i, ..., y_{i+N-2})   for i > a, where d_{i+1} = y_i, ..., d_{i+N-2} = y_{i+N-3}:
                      behind the first wrong token the draft still agreed with the target on a run of tokens
    suffixes          the phrase (p_1, ..., p_m) is replaced by (y_gamma, choice after p_1, ..., choice after p_{m-1}):
                      an accepted phrase is thereby refreshed, a wrong one corrected by one Jacobi step of the target

The draft model reads each of its trees (:mod:`baselines.lookahead`) greedily, also when the target samples. Draft and
suffixes are thus deterministic, ``draft_probabilities`` is None and verification is exact in both modes.

Unlike the authors' code: what the draft model's last forward pass drafts beyond gamma is kept as a part of the draft
(it is paid for), branches with the same beginning share nodes, and by default the pool also holds the phrases of prompt
and text (``pool_from_prompt``). With ``warm_start`` the pool is kept from prompt to prompt; the speed then depends on
the prompts that came before, so it is a method of its own in the tables.

Example::

    drafter = OuroborosDrafter.from_target(target, parts={"draft": folder}, sampling=Sampling(), num_draft_tokens=6)
    SpeculativeDecoder(target, drafter).generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

from baselines.draft_model import DraftModel
from baselines.lookahead import LookaheadDrafter
from baselines.phrases import Phrase, Trie
from decoding import CandidateTree, Sampling, TargetModel, Verdict
from decoding.options import at_least
from decoding.ranking import choices
from decoding.verify import greedy_path


class OuroborosDrafter:
    """Proposes a draft model's draft with the pool's phrases at its end.

    Args:
        draft: the draft model.
        end_token_ids: nothing is drafted behind one of these.
        num_draft_tokens: gamma, tokens that the draft model drafts at least; its last forward pass may add some.
        window: W, columns of the Jacobi window in the draft model's trees.
        ngram: N; a phrase is N - 1 tokens, looked up by the token before it.
        guesses: G, phrases that the pool keeps for a token; the draft model verifies those that fit in its tree.
        num_suffixes: k, phrases that are hung under the draft.
        num_alternatives: phrases that are tried in the draft's place; the paper has none.
        warm_start: keep the pool from prompt to prompt.
        pool_from_prompt: enter the phrases of the prompt and of the text into the pool, too.
        max_nodes: most nodes of a tree, the target's and the draft model's. 0 for no limit.
        seed: of the window's first guesses.

    Raises:
        ValueError: an option is out of range, or a draft of gamma tokens or the window exceeds ``max_nodes``.
    """

    def __init__(
        self,
        draft: DraftModel,
        end_token_ids: Collection[int] = (),
        *,
        num_draft_tokens: int = 6,
        window: int = 2,
        ngram: int = 4,
        guesses: int = 5,
        num_suffixes: int = 3,
        num_alternatives: int = 0,
        warm_start: bool = False,
        pool_from_prompt: bool = True,
        max_nodes: int = 16,
        seed: int = 0,
    ) -> None:
        at_least(1, num_draft_tokens=num_draft_tokens)
        if not 0 <= num_suffixes <= guesses:
            raise ValueError(f"num_suffixes must be between 0 and guesses={guesses}, not {num_suffixes}")
        if not 0 <= num_alternatives <= guesses:
            raise ValueError(f"num_alternatives must be between 0 and guesses={guesses}, not {num_alternatives}")
        if max_nodes and num_draft_tokens >= max_nodes:
            raise ValueError(f"num_draft_tokens={num_draft_tokens} must be less than max_nodes={max_nodes}")
        self.lookahead = LookaheadDrafter(window, ngram, guesses, False, max_nodes, seed)
        self.pool, self.phrase_length = self.lookahead.pool, ngram - 1
        self.draft, self.end_token_ids = draft, frozenset(end_token_ids)
        self.num_draft_tokens, self.num_suffixes = num_draft_tokens, num_suffixes
        self.num_alternatives = num_alternatives
        self.warm_start, self.pool_from_prompt = warm_start, pool_from_prompt
        self.max_width = max_nodes or 1 + num_draft_tokens + (1 + num_suffixes + num_alternatives) * self.phrase_length
        self._num_read, self._num_counted = 0, draft.num_forwards
        self._chain: list[int] = []  # nodes of the root and the draft
        self._suffixes: list[tuple[Phrase, list[int]]] = []  # each with its nodes, as many as fitted

    @property
    def part_bytes(self) -> int:
        """Bytes of the draft model that one of its forward passes reads."""
        return self.draft.model.weights.weight_bytes

    @classmethod
    def from_target(
        cls,
        target: TargetModel,
        *,
        parts: Mapping[str, Path],
        sampling: Sampling,
        use_shortlist: bool = True,
        num_draft_tokens: int = 6,
        window: int = 2,
        ngram: int = 4,
        guesses: int = 5,
        num_suffixes: int = 3,
        num_alternatives: int = 0,
        warm_start: bool = False,
        pool_from_prompt: bool = True,
        max_nodes: int = 16,
        seed: int = 0,
    ) -> Self:
        """Build the drafter with the draft model in ``parts["draft"]``; it drafts greedily whatever the ``sampling``.

        Raises:
            ValueError: the draft model does not go with the target, or an option is out of range.
        """
        if "draft" not in parts:
            raise ValueError("ouroboros needs a draft model (parts: draft)")
        return cls(
            DraftModel.from_pretrained(parts["draft"], target=target, use_shortlist=use_shortlist),
            target.end_token_ids,
            num_draft_tokens=num_draft_tokens,
            window=window,
            ngram=ngram,
            guesses=guesses,
            num_suffixes=num_suffixes,
            num_alternatives=num_alternatives,
            warm_start=warm_start,
            pool_from_prompt=pool_from_prompt,
            max_nodes=max_nodes,
            seed=seed,
        )

    def prepare(self, num_tokens: int) -> None:
        """Make the draft model ready for a text of up to ``num_tokens``: a draft may reach behind its end."""
        longest = self.num_draft_tokens + self.lookahead.max_width
        self.draft.prepare(num_tokens + longest, self.lookahead.max_width)

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Start a new text, with the last one's pool if warm; the draft model reads the prompt."""
        if self.warm_start:
            self.lookahead.begin_with_pool(prompt_ids)
        else:
            self.lookahead.begin(prompt_ids)
        self._num_read, self._num_counted = 0, self.draft.num_forwards
        self._chain, self._suffixes = [], []
        self._read(prompt_ids)
        self.draft.begin()
        if len(prompt_ids) < self.draft.max_context:
            self.draft.sync([*prompt_ids, 0])  # all of the prompt; the token behind it is not known yet

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return the draft with up to k phrases under its last token."""
        self._read(context)
        trie = Trie(context[-1], self.max_width)
        self._chain = [0, *trie.add(0, self._draft(context))]
        last = self._chain[-1]
        phrases = self.pool.look_up(trie.tokens[last])[: self.num_suffixes]
        self._suffixes = [(phrase, trie.add(last, phrase)) for phrase in phrases]
        for phrase in self.pool.look_up(context[-1])[: self.num_alternatives]:
            trie.add(0, phrase)
        return trie.tree()

    def observe(self, verdict: Verdict) -> int:
        """Feed the pool with the target's choices; return the draft model's forward passes since the last call."""
        if self._chain:  # nothing was proposed yet when prefill is observed
            self._learn_from_rejected(verdict)
            self._correct_suffixes(verdict)
            self._chain, self._suffixes = [], []
        forwards = self.draft.num_forwards - self._num_counted
        self._num_counted += forwards
        return forwards

    def _read(self, text: Sequence[int]) -> None:
        """Enter the phrases of what is new in the text."""
        if self.pool_from_prompt:
            self.pool.add_text(text, self.phrase_length, start=self._num_read)
            self._num_read = len(text)

    def _draft(self, context: Sequence[int]) -> list[int]:
        """Let the draft model continue the text greedily, by lookahead decoding on its own engine."""
        text = list(context)
        wanted = len(context) + self.num_draft_tokens
        if wanted > self.draft.max_context:
            return []  # the target may read on where its draft model cannot
        self.draft.sync(context)
        while len(text) < wanted and text[-1] not in self.end_token_ids:
            tree = self.lookahead.propose(text)
            logits = self.draft.read(tree).logits
            said = tuple(map(self.draft.token_of, choices(logits)))
            path, bonus = greedy_path(tree, said)
            self.draft.keep(path)
            verdict = Verdict(tree, path, bonus, said, logits)
            self.lookahead.observe(verdict)
            for token in verdict.emitted:
                text.append(token)
                if token in self.end_token_ids:
                    break
        return text[len(context) :]

    def _learn_from_rejected(self, verdict: Verdict) -> None:
        """Enter the runs over which the rejected rest of the draft agreed with what the target said."""
        tokens, choices = verdict.tree.tokens, verdict.choices
        accepted = sum(node in verdict.path for node in self._chain)
        rejected = self._chain[accepted:]
        for start in range(len(rejected) - self.phrase_length + 1):
            run = rejected[start : start + self.phrase_length]
            if all(tokens[after] == choices[node] for node, after in pairwise(run)):
                self.pool.add(tokens[run[0]], tuple(choices[node] for node in run))

    def _correct_suffixes(self, verdict: Verdict) -> None:
        """Replace each phrase that was verified by what the target said in its place, the newest phrase last."""
        last = self._chain[-1]
        for phrase, nodes in reversed(self._suffixes):
            said = [verdict.choices[node] for node in (last, *nodes)][: len(phrase)]
            if len(said) == len(phrase):  # not cut off by the tree's limit
                self.pool.discard(verdict.tree.tokens[last], phrase)
                self.pool.add(verdict.tree.tokens[last], tuple(said))
