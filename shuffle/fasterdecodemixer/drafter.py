r"""The mixer as a drafter: what its slots say of the next J positions becomes a candidate tree. Lossless.

In one go the slots give, for each position, the distribution p_j of :mod:`shuffle.fasterdecodemixer.model`; the most
likely tokens of a position are its candidates, whichever slots they come from. The candidates of neighbouring
positions are then linked: p_j(child | parent) for each pair, which takes no further pass over the slots or the
shortlist. From the root the tree is grown best-first, by the product of the chances along a path.

The tree depends on the context alone and not on a draw, so sampled decoding is exact as it is.

Example::

    drafter = MixerDrafter.from_target(target, parts={"mixer": folder}, sampling=Sampling(), num_nodes=15)
    SpeculativeDecoder(target, drafter).generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from jaxtyping import Float
from torch import Tensor

from decoding import CandidateTree, Sampling, TargetModel, Verdict
from decoding.options import at_least
from decoding.rows import pays
from shuffle.fasterdecodemixer.guesses import CANDIDATES, DecodingMixer, Guesses, load_mixer


class Growth(NamedTuple):
    """A tree without its root: each node's parent (the root is 0), position, candidate, and chance after its parent."""

    parents: list[int]
    positions: list[int]
    candidates: list[int]
    chances: list[float]


def grow(guesses: Guesses, num_nodes: int, max_children: int = CANDIDATES, row_cost: float = 0.0) -> Growth:
    """Grow the tree of ``num_nodes`` nodes whose chances of being accepted sum to the most.

    Args:
        guesses: what there is to choose from; fewer nodes are returned if there are no more, or no more that pay.
        num_nodes: the root not counted.
        max_children: of a node; 1 makes a chain.
        row_cost: what one more row of a forward pass costs, as a share of one of one row (Sequoia: Chen et al. 2024).
    """
    grown = Growth([], [], [], [])
    expected, depth = 1.0, len(guesses.tokens)
    orders: dict[tuple[int, int], list[int]] = {}

    def rival(parent: int, product: float, position: int, before: int, rank: int) -> tuple[float, int, int, int, int]:
        """Return the entry of the child that is ``rank``-th after the candidate ``before``."""
        row = guesses.links[position - 1][before] if position else guesses.chances[0]
        if (position, before) not in orders:
            orders[position, before] = sorted(range(len(row)), key=lambda i: -row[i])
        return -product * row[orders[position, before][rank]], parent, position, before, rank

    # A node's rivals enter when it is taken: its next sibling and its first child. No other can be greater.
    frontier, products = [rival(0, 1.0, 0, 0, 0)], [1.0]
    while frontier and len(grown.parents) < num_nodes:
        negative, parent, position, before, rank = heapq.heappop(frontier)
        if not pays(-negative, expected, len(grown.parents), row_cost):
            break
        expected -= negative
        chosen = orders[position, before][rank]
        products.append(-negative)
        grown.parents.append(parent)
        grown.positions.append(position)
        grown.candidates.append(chosen)
        grown.chances.append(-negative / products[parent] if products[parent] else 0.0)
        if rank + 1 < min(max_children, len(orders[position, before])):
            heapq.heappush(frontier, rival(parent, products[parent], position, before, rank + 1))
        if position + 1 < depth:
            heapq.heappush(frontier, rival(len(grown.parents), -negative, position + 1, chosen, 0))
    return grown


class MixerDrafter:
    """Proposes the tree that the slots' guesses make.

    Args:
        mixer: laid out for decoding.
        num_nodes: most draft tokens of a tree.
        max_children: of a node; 1 makes a chain.
        row_cost: what a row of the target's forward pass costs: no nodes that do not pay, see :func:`grow`.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self, mixer: DecodingMixer, num_nodes: int = 15, max_children: int = CANDIDATES, row_cost: float = 0.0
    ) -> None:
        at_least(1, num_nodes=num_nodes, max_children=max_children)
        at_least(0, row_cost=row_cost)
        self.mixer, self.num_nodes, self.max_children, self.row_cost = mixer, num_nodes, max_children, row_cost
        self.max_width = num_nodes + 1
        self.node_probabilities: Sequence[float] | None = None
        self._hidden: Float[Tensor, " d"] | None = None

    @property
    def part_bytes(self) -> int:
        """Bytes of the mixer's weights, which each draft reads."""
        return self.mixer.weight_bytes

    @classmethod
    def from_target(
        cls,
        target: TargetModel,
        *,
        parts: Mapping[str, Path],
        sampling: Sampling,
        num_nodes: int = 15,
        max_children: int = CANDIDATES,
        row_cost: float = 0.0,
    ) -> Self:
        """Load the mixer in ``parts["mixer"]`` for ``target``.

        Args:
            target: the model that it was trained for.
            parts: where the trained parts are.
            sampling: of no consequence here: the same tree serves greedy and sampled decoding.
            num_nodes: most draft tokens of a tree.
            max_children: of a node; 1 makes a chain.
            row_cost: what a row of the target's forward pass costs.

        Raises:
            ValueError: there is no such mixer, it is another target's, or an option is out of range.
        """
        return cls(mixer_for(target, parts), num_nodes, max_children, row_cost)

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Forget the last text's hidden state; prefill brings the new one."""
        self._hidden = None

    def observe(self, verdict: Verdict) -> int:
        """Remember the hidden state from which the target chose the bonus token."""
        if verdict.hidden is None:
            raise ValueError("the mixer needs the target's hidden states in the verdict")
        self._hidden = verdict.hidden[verdict.path[-1]]
        return 0

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return the tree of the slots' guesses; the root alone if no hidden state has been seen."""
        self.node_probabilities = None
        if self._hidden is None:
            return CandidateTree((context[-1],), (-1,))
        guesses = self.mixer(self._hidden, context)
        grown = grow(guesses, self.num_nodes, self.max_children, self.row_cost)
        self.node_probabilities = (1.0, *grown.chances)
        tokens = [guesses.tokens[j][c] for j, c in zip(grown.positions, grown.candidates, strict=True)]
        return CandidateTree((context[-1], *tokens), (-1, *grown.parents))


def mixer_for(target: TargetModel, parts: Mapping[str, Path]) -> DecodingMixer:
    """Load the mixer in ``parts["mixer"]`` and lay it out as ``target`` is.

    Raises:
        ValueError: there is none, it is damaged, or it is another target's.
    """
    if "mixer" not in parts:
        raise ValueError("fasterdecodemixer needs a trained mixer (parts: mixer)")
    mixer = load_mixer(Path(parts["mixer"]))
    width, vocab_size = int(target.weights.config.hidden_size), target.vocab_size
    if mixer.config.hidden_size != width:
        raise ValueError(f"the mixer was trained for hidden size {mixer.config.hidden_size}, the target has {width}")
    if mixer.config.vocab_size != vocab_size:
        raise ValueError(f"the mixer was trained for {mixer.config.vocab_size} tokens, the target has {vocab_size}")
    last = int(mixer.shortlist.max())
    if last >= vocab_size:
        raise ValueError(f"the mixer guesses token {last}, the target's vocabulary has {vocab_size}")
    return DecodingMixer(mixer, target.dtype, target.device)
