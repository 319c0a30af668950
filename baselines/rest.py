r"""REST: draft what followed the same tokens in a datastore of texts.

Retrieval-based speculative decoding (He, Zhong, Cai, Lee and He 2024) looks up the longest end of the context that a
datastore holds, merges what followed it there into a trie, and verifies the most frequent branches as a tree. No draft
model and no weights; the datastore is made in seconds (:mod:`baselines.datastore`).

What differs from the paper:
- its datastore is a corpus that others wrote (code, conversations). Ours is what the target itself wrote for the
  training of the other parts: a draft is to agree with the target, and not with the world.
- its trie is of what followed the longest match alone, weighted by frequency. Ours is grown best-first by a probability
  that takes in all matches, down to those of the last token alone (:mod:`baselines.interpolated`).

Example::

    drafter = RestDrafter(Datastore.load(folder), num_nodes=15)
    SpeculativeDecoder(target, drafter).generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from baselines.best_first import grow
from baselines.datastore import SORTED_BY, Datastore
from baselines.interpolated import guesses_after
from decoding import CandidateTree, Sampling, TargetModel, Verdict
from decoding.options import at_least

Run = tuple[int, ...]


class RestDrafter:
    """Proposes a tree grown best-first from what followed the end of the context in a datastore.

    Args:
        datastore: of texts with the target's tokens.
        num_nodes: most draft tokens of a tree.
        max_ngram: the longest run of last tokens that is looked up.
        row_cost: nodes that do not pay are left out, see :func:`decoding.rows.pays`.

    Attributes:
        node_probabilities: after ``propose``, each node's chance to be accepted if its parent is; the root's is 1.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(self, datastore: Datastore, num_nodes: int = 15, max_ngram: int = 4, row_cost: float = 0.0) -> None:
        at_least(1, num_nodes=num_nodes)
        if not 1 <= max_ngram < SORTED_BY:
            raise ValueError(f"max_ngram must be 1 to {SORTED_BY - 1}, not {max_ngram}")
        at_least(0, row_cost=row_cost)
        self.datastore, self.num_nodes, self.max_ngram, self.row_cost = datastore, num_nodes, max_ngram, row_cost
        self.max_width = num_nodes + 1
        self.node_probabilities: Sequence[float] | None = None
        self._known: dict[Run, dict[int, float]] = {}

    @classmethod
    def from_target(
        cls,
        target: TargetModel,
        *,
        parts: Mapping[str, Path],
        sampling: Sampling,
        num_nodes: int = 15,
        max_ngram: int = 4,
        row_cost: float = 0.0,
    ) -> Self:
        """Load the datastore in ``parts["datastore"]``.

        Raises:
            ValueError: there is none, it is damaged, or it holds tokens that the target does not have.
        """
        if "datastore" not in parts:
            raise ValueError("rest needs a part 'datastore'")
        datastore = Datastore.load(Path(parts["datastore"]))
        if len(datastore.tokens) and int(datastore.tokens.max()) >= target.vocab_size:
            raise ValueError(f"{parts['datastore']}: its token {datastore.tokens.max()} is none of the target's")
        return cls(datastore, num_nodes, max_ngram, row_cost)

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Start a new text."""
        self._known = {}

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return the tree of the ``num_nodes`` nodes that are most likely to be accepted."""
        end = tuple(context[-self.max_ngram :])
        tree, self.node_probabilities = grow(context[-1], end, self._expand, self.num_nodes, self.row_cost)
        return tree

    def observe(self, verdict: Verdict) -> int:
        """Nothing to learn: the datastore stays as it is."""
        return 0

    def _expand(self, end: Run) -> Iterator[tuple[int, float, Run]]:
        """Give what may follow an end of the context, each with the end that it makes."""
        # The ends of one step's tree are for the most part those of the next step's.
        if (known := self._known.get(end)) is None:
            known = self._known[end] = guesses_after(end, self._followers)
        for following, each in known.items():
            yield following, each, (*end, following)[-self.max_ngram :]

    def _followers(self, run: Sequence[int]) -> Mapping[int, int]:
        """Return how often each token followed ``run`` in the datastore."""
        return self.datastore.followers(run)[1]
