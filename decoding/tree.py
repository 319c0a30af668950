"""Candidate trees: continuations that share their beginnings, laid flat so that one forward pass reads them all.

Node 0, the root, is the last committed token, whose own key and value are not yet cached; every other node is a draft
token that follows its parent. A chain is a tree in which each node has one child; the root alone is plain
autoregression. A node sees the committed prefix, its ancestors and itself; its position is the prefix length plus its
depth (SpecInfer, Miao et al. 2024).

Example::

    tree = CandidateTree.chain(root=7, draft=[11, 12])
    tree = CandidateTree(tokens=(7, 11, 12, 11), parents=(-1, 0, 0, 2))   # 7 -> 11, 7 -> 12 -> 11
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class CandidateTree:
    """A flat tree of ``W`` nodes; parents come before their children.

    Attributes:
        tokens: token id of each node, the root's being the last committed token.
        parents: index of each node's parent, -1 for the root.
        draft_probabilities: ``[W, V]``; row ``i`` is the distribution from which the children of node ``i`` were drawn,
            independently. None if the drafter is deterministic: each child then was certain to be proposed.

    Raises:
        ValueError: the lengths differ, or a parent does not come before its child.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    draft_probabilities: Float[Tensor, "w v"] | None = None

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents) or not self.tokens or self.parents[0] != -1:
            raise ValueError(f"a tree of {len(self.tokens)} tokens and {len(self.parents)} parents has no root")
        if any(not 0 <= parent < node for node, parent in enumerate(self.parents[1:], start=1)):
            raise ValueError(f"parents must come before their children: {self.parents}")

    @classmethod
    def chain(
        cls, root: int, draft: Sequence[int], draft_probabilities: Float[Tensor, "w v"] | None = None
    ) -> CandidateTree:
        """Build the tree in which each draft token follows the one before it."""
        return cls((root, *draft), tuple(range(-1, len(draft))), draft_probabilities)

    @property
    def width(self) -> int:
        """Number of nodes, the root included: the rows of the forward pass that verifies the tree."""
        return len(self.tokens)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Distance of each node from the root."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Children of each node, in the order in which verification tries them."""
        lists: list[list[int]] = [[] for _ in self.tokens]
        for node, parent in enumerate(self.parents[1:], start=1):
            lists[parent].append(node)
        return tuple(map(tuple, lists))

    @cached_property
    def is_chain(self) -> bool:
        """Whether each node follows the one before it."""
        return self.parents == tuple(range(-1, self.width - 1))

    def attention_mask(self) -> Bool[Tensor, "w w"]:
        """True where the row's node may see the column's node: itself and its ancestors."""
        if self.is_chain:
            return torch.ones(self.width, self.width, dtype=torch.bool).tril_()
        # Rows of bytes, a parent's copied at once: an operation of torch for each node would take longer than all this.
        width = self.width
        rows = bytearray(width * width)
        rows[0] = 1
        for node, parent in enumerate(self.parents[1:], start=1):
            rows[node * width : node * width + node] = rows[parent * width : parent * width + node]
            rows[node * width + node] = 1
        return torch.frombuffer(rows, dtype=torch.bool).view(width, width)

    def visible(self, length: int, capacity: int, padding: int) -> Bool[Tensor, "w_and_padding capacity"]:
        """True where a node, or a padding row behind them all, sees a cache row: ``length`` committed, then the tree.

        A padding row sees the root, so that it sees something: a fully masked row would be NaN.
        """
        visible = torch.zeros(self.width + padding, capacity, dtype=torch.bool)
        visible[:, :length] = True
        visible[: self.width, length : length + self.width] = self.attention_mask()
        visible[self.width :, length] = True
        return visible
