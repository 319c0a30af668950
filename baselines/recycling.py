r"""Token recycling: draft from the target's own second thoughts, which other methods throw away.

Every forward pass tells for each token that it reads, accepted or not, what the target thinks comes next. The k most
likely successors of each token read are kept in a table, the latest replacing the earlier ones, and the next draft is a
tree grown from it: the last token's successors, theirs, and so on (Luo et al. 2024, "Turning Trash into Treasure:
Accelerating Inference of Large Language Models with Token Recycling"). No draft model, no training.

What differs from the paper:
- its tree has one fixed shape; ours is grown best-first, anew at each step. The target gave a successor the probability
  p somewhere else; how often such a guess is right here is counted (:mod:`baselines.chances`), and the tree takes the
  nodes whose product of chances along the path is greatest. That maximises the expected number of accepted tokens.
- its key is the last token; ours the last two (``key_length``), and then, with less trust, the last one.
- tokens that were never read take what followed them in the prompt as their successors: without it a table that starts
  empty finds little.

With ``warm_start`` the table and the counts are kept from prompt to prompt, as in the paper. The default forgets them:
speed then does not depend on which prompts came before.

Example::

    drafter = RecyclingDrafter(num_nodes=15, top_k=8)
    SpeculativeDecoder(target, drafter).generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from baselines.best_first import grow
from baselines.chances import PROBABILITY_STEPS, Chances
from decoding import CandidateTree, Verdict
from decoding.options import at_least
from decoding.ranking import Top, most_likely
from decoding.replay import ReplayedRows

Key = tuple[int, ...]
# Of a guess: length of the key, worth of the entry, and where a longer key had other guesses from.
Kind = tuple[int, int, int]
NOWHERE, PROMPT, TARGET = 0, 1, 2
# Successors with what each is worth: the step of its probability or, below 0, -1 - its rank in the prompt.
Entry = list[tuple[int, int]]

# Chance of a guess before any is counted: by the step of its probability, and by its rank where it is the prompt's.
# Set by hand; what is counted soon outweighs them.
STEP_PRIORS = (0.015, 0.02, 0.04, 0.06, 0.13, 0.25, 0.38, 0.5, 0.5, 0.55, 0.78)
PROMPT_PRIORS = {1: (0.28, 0.1, 0.06, 0.04), 2: (0.55, 0.17, 0.1, 0.06)}  # by length of the key, then rank
PROMPT_RANKS = 4
BACK_OFF = (1.0, 0.5, 0.25)  # by where a longer key had guesses from


class RecyclingDrafter:
    """Proposes a tree grown best-first from the table of each token's last seen successors.

    Args:
        num_nodes: most draft tokens of a tree.
        top_k: successors kept of each token that the target read.
        key_length: how many last tokens the table is looked up by: 1 (the paper's) or 2.
        warm_start: keep the table from prompt to prompt; speed then depends on the order of the prompts.
        row_cost: nodes that do not pay are left out, see :func:`decoding.rows.pays`.

    Attributes:
        node_probabilities: after ``propose``, each node's chance to be accepted if its parent is; the root's is 1.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        num_nodes: int = 15,
        top_k: int = 8,
        key_length: int = 2,
        warm_start: bool = False,
        row_cost: float = 0.0,
    ) -> None:
        at_least(1, num_nodes=num_nodes, top_k=top_k)
        if key_length not in (1, 2):
            raise ValueError(f"key_length must be 1 or 2, not {key_length}")
        at_least(0, row_cost=row_cost)
        self.row_cost = row_cost
        self.num_nodes, self.top_k, self.key_length, self.warm_start = num_nodes, top_k, key_length, warm_start
        self.max_width = num_nodes + 1
        self.node_probabilities: Sequence[float] | None = None
        self._rank = ReplayedRows(partial(most_likely, k=top_k), self.max_width)
        self._table: dict[Key, Entry] = {}
        self._chances = Chances()
        self._last: Key = ()

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Forget the last text's table unless it is kept; enter what follows what in the prompt."""
        if not self.warm_start:
            self._table = {}
            self._chances.clear()
        for key, followers in followers_in(prompt_ids, self.key_length).items():
            if key not in self._table:
                latest_first = followers[: -PROMPT_RANKS - 1 : -1]
                self._table[key] = [(token, -1 - rank) for rank, token in enumerate(latest_first)]
        self._last = tuple(prompt_ids[-self.key_length :])

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return the tree of the ``num_nodes`` nodes that are most likely to be accepted."""
        known: dict[Kind, float] = {}

        def expand(key: Key) -> Iterator[tuple[int, float, Key]]:
            for successor, kind in self._guesses(key):
                if (each := known.get(kind)) is None:
                    each = known[kind] = self._chances.of(kind, prior_of(kind))
                yield successor, each, (*key, successor)[-self.key_length :]

        key = tuple(context[-self.key_length :])
        tree, self.node_probabilities = grow(context[-1], key, expand, self.num_nodes, self.row_cost)
        return tree

    def observe(self, verdict: Verdict) -> int:
        """Count which guesses were right, then replace the successors of every token that was read."""
        tree, path = verdict.tree, verdict.path
        keys = [self._last]
        for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
            keys.append((*keys[parent], token)[-self.key_length :])
        for node, following in zip(path, verdict.emitted, strict=True):
            for successor, kind in self._guesses(keys[node]):
                self._chances.count(kind, successor == following)
        entries = successors_of(Top(*self._rank(verdict.logits)))
        on_path = set(path)
        # What was accepted comes last: of two readings of a token, the one in the text itself is the better guide.
        for node in sorted(range(tree.width), key=on_path.__contains__):
            key = keys[node]
            for length in range(1, len(key) + 1):
                self._table[key[-length:]] = entries[node]
        self._last = (*keys[path[-1]], verdict.bonus)[-self.key_length :]
        return 0

    def _guesses(self, key: Key) -> list[tuple[int, Kind]]:
        """Return what may follow ``key`` and the kind of each guess: first what its longest end in the table says."""
        guesses: dict[int, Kind] = {}
        source = NOWHERE
        for start in range(len(key)):
            entry = self._table.get(key[start:])
            if entry is not None:
                for token, worth in entry:
                    if token not in guesses:
                        guesses[token] = (len(key) - start, worth, source)
                source = PROMPT if entry[0][1] < 0 else TARGET
        return list(guesses.items())


def followers_in(ids: Sequence[int], key_length: int) -> dict[Key, list[int]]:
    """Return which tokens followed each run of up to ``key_length`` tokens, the most recent last, each once."""
    found: dict[Key, list[int]] = {}
    for end in range(1, len(ids)):
        following = ids[end]
        for start in range(max(0, end - key_length), end):
            followers = found.setdefault(tuple(ids[start:end]), [])
            if following in followers:
                followers.remove(following)
            followers.append(following)
    return found


def prior_of(kind: Kind) -> float:
    """Return the chance of a guess of which none like it has been counted."""
    length, worth, longer = kind
    chance = STEP_PRIORS[worth] if worth >= 0 else PROMPT_PRIORS[length][-1 - worth]
    return chance * BACK_OFF[longer]


def successors_of(top: Top) -> list[Entry]:
    """Return each row's most likely tokens, the first first, with the step of their probability."""
    steps = torch.bucketize(top.log_probabilities.cpu().exp(), torch.tensor(PROBABILITY_STEPS), right=True)
    return [list(zip(*row, strict=True)) for row in zip(top.ids.tolist(), steps.tolist(), strict=True)]
