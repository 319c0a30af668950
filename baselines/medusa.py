"""Medusa: heads on the target's own last hidden state guess several tokens ahead; their guesses make a tree.

No draft model runs. After each verification the heads (:mod:`baselines.medusa_heads`) read the hidden state of the last
accepted node, the one from which the target itself chose the bonus token; head k guesses the token k + 1 places after
the bonus. The top choices of all heads span a tree far too wide to read; ``tree`` says which nodes of it are taken
(:mod:`baselines.medusa_tree`; Cai et al. 2024):

    "dynamic"        those of greatest probability by the heads' own softmax, chosen anew at each step
    "fitted"         those that were right most often on held-out text when the heads were trained: always one shape
    [[0], [0, 0]]    those given, as paths of choice ranks

The tree depends on the context alone and not on a draw, so sampled decoding is exact as it is.

Example::

    drafter = MedusaDrafter.from_target(target, parts={"heads": folder}, sampling=Sampling(), num_nodes=15)
    SpeculativeDecoder(target, drafter).generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from baselines.medusa_heads import DecodingHeads, HeadsRecord, check_fits, load_heads
from baselines.medusa_tree import Shape, fit_paths, grow, shape_of
from decoding import CandidateTree, Sampling, TargetModel, Verdict
from decoding.options import at_least
from decoding.ranking import Top, most_likely
from decoding.replay import Replayed

TOP_CHOICES = 10  # choices of a head that a dynamic tree may take, as in Medusa


class MedusaDrafter:
    """Proposes a tree spread from the heads' top choices.

    Args:
        heads: laid out for decoding.
        shortlist: token id of each of their output rows.
        num_nodes: most draft tokens of a tree.
        shape: the tree at every step; None grows one anew at each.
        row_cost: a tree that is grown anew has no nodes that do not pay, see :func:`decoding.rows.pays`.

    Raises:
        ValueError: an option is out of range, or the tree needs heads or choices that there are not.
    """

    def __init__(
        self,
        heads: DecodingHeads,
        shortlist: Sequence[int],
        num_nodes: int = 15,
        shape: Shape | None = None,
        row_cost: float = 0.0,
    ) -> None:
        at_least(1, num_nodes=num_nodes)
        at_least(0, row_cost=row_cost)
        self.row_cost = row_cost
        self.heads, self.shortlist, self.shape = heads, list(shortlist), shape
        self.num_nodes = num_nodes if shape is None else len(shape.heads)
        self.num_choices = min(TOP_CHOICES, num_nodes, len(shortlist))
        if shape is not None:
            self.num_choices = max(shape.ranks) + 1
            if max(shape.heads) >= heads.num_heads:
                raise ValueError(f"tree: has depth {max(shape.heads) + 1}, but there are {heads.num_heads} heads")
            if self.num_choices > len(shortlist):
                raise ValueError(f"tree: names choice {max(shape.ranks)} of a shortlist of {len(shortlist)} tokens")
        self.max_width = self.num_nodes + 1
        self.node_probabilities: Sequence[float] | None = None
        self._hidden: Float[Tensor, " d"] | None = None
        self._read = Replayed(self._top, heads.device)

    @property
    def part_bytes(self) -> int:
        """Bytes of the heads, which each draft reads."""
        return self.heads.weight_bytes

    @classmethod
    def from_target(
        cls,
        target: TargetModel,
        *,
        parts: Mapping[str, Path],
        sampling: Sampling,
        num_nodes: int = 15,
        num_heads: int | None = None,
        tree: str | list[list[int]] = "dynamic",
        row_cost: float = 0.0,
    ) -> Self:
        """Load the heads in ``parts["heads"]`` for ``target``.

        Args:
            target: the model that they were trained for.
            parts: where the trained parts are.
            sampling: of no consequence here: the same tree serves greedy and sampled decoding.
            num_nodes: most draft tokens of a tree; a tree given as paths has as many as there are paths.
            num_heads: use only the first ones; None uses all.
            tree: ``"dynamic"``, ``"fitted"`` or the paths.
            row_cost: what a row of the target's forward pass costs, for the dynamic tree.

        Raises:
            ValueError: there are no such heads, they are another target's, or an option is out of range.
        """
        if "heads" not in parts:
            raise ValueError("medusa needs trained heads (parts: heads)")
        heads, record = load_heads(Path(parts["heads"]))
        check_fits(record, int(target.weights.config.hidden_size), target.vocab_size)
        decoding_heads = DecodingHeads(heads, target.dtype, target.device, num_heads)
        shape = choose_shape(tree, record, decoding_heads.num_heads, num_nodes)
        return cls(decoding_heads, record.shortlist, num_nodes, shape, row_cost)

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Forget the last text's hidden state; prefill brings the new one."""
        self._hidden = None

    def observe(self, verdict: Verdict) -> int:
        """Remember the hidden state from which the target chose the bonus token."""
        if verdict.hidden is None:
            raise ValueError("Medusa needs the target's hidden states in the verdict")
        self._hidden = verdict.hidden[verdict.path[-1]]
        return 0

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return the tree of the heads' choices; the root alone if no hidden state has been seen."""
        self.node_probabilities = None
        if self._hidden is None:
            return CandidateTree((context[-1],), (-1,))
        choices, chances = self._choices(self._hidden)
        shape = grow(chances, self.num_nodes, self.row_cost) if self.shape is None else self.shape
        if self.shape is None:
            self.node_probabilities = (1.0, *(chances[h][r] for h, r in zip(shape.heads, shape.ranks, strict=True)))
        tokens = [self.shortlist[choices[head][rank]] for head, rank in zip(shape.heads, shape.ranks, strict=True)]
        return CandidateTree((context[-1], *tokens), shape.parents)

    @torch.inference_mode()
    def _choices(self, hidden: Float[Tensor, " d"]) -> tuple[list[list[int]], list[list[float]]]:
        """Return the rows of each head's top choices and, for a dynamic tree, their probabilities."""
        ids, log_probabilities = self._read(hidden)
        return ids.tolist(), [] if self.shape is not None else log_probabilities.exp().tolist()

    def _top(self, hidden: Float[Tensor, " d"]) -> Top:
        return most_likely(self.heads(hidden).float(), self.num_choices)


def choose_shape(tree: str | list[list[int]], record: HeadsRecord, num_heads: int, num_nodes: int) -> Shape | None:
    """Return the shape that the option ``tree`` asks for; None for a dynamic tree.

    Raises:
        ValueError: the option is unknown, or the heads have no fitted tree.
    """
    if not isinstance(tree, str):
        if not tree:
            raise ValueError("tree: [] has no nodes; use the method autoregressive")
        return shape_of(tree)
    if tree == "dynamic":
        return None
    if tree != "fitted":
        raise ValueError(f"tree must be 'dynamic', 'fitted' or a list of paths, not {tree!r}")
    at_least(1, num_nodes=num_nodes)
    if record.top_accuracies:
        return shape_of(fit_paths(record.top_accuracies[:num_heads], num_nodes))
    paths = [path for path in record.tree if len(path) <= num_heads][:num_nodes]
    if not paths:
        raise ValueError("the heads bring neither a fitted tree nor the accuracies to fit one; use tree: dynamic")
    return shape_of(paths)
