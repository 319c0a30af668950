"""Verification: which path of a candidate tree the target model itself would have taken.

Greedy: walk from the root along the children that equal the target's most likely token; the token at which no child
agrees is the *bonus*, so every step emits at least one token and the emitted ids are those of plain greedy decoding.

Sampled: the children of a node are tried one after the other (Leviathan et al. 2023; Chen et al. 2023; for siblings,
the multi-round scheme of SpecInfer, Miao et al. 2024). With p the target's distribution at the node and q the one that
the child x was drawn from, x is accepted with probability min(1, p(x)/q(x)); if it is rejected,

    p <- normalise(max(p - q, 0))

and the next sibling is tried against the new p. When none is left, the bonus is drawn from p. The emitted tokens then
follow the target's distribution exactly, whatever was drafted. A deterministic drafter has q = 1 at x.

Example::

    verdict = verify(tree, logits, Sampling(), generator=None)
    verdict.emitted          # accepted draft tokens, then the bonus token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from decoding.ranking import choices
from decoding.sampling import Sampling, draw
from decoding.tree import CandidateTree


@dataclass(frozen=True)
class Verdict:
    """What one verification decided, and what a drafter may learn from it.

    Attributes:
        tree: the candidates.
        path: accepted nodes, the root first.
        bonus: the token that the target itself chose after the path.
        choices: ``[W]``, the target's most likely token after each node.
        logits: ``[W, V]`` of the target, one row a node.
        hidden: ``[W, d]`` last hidden states of the target, one row a node.
    """

    tree: CandidateTree
    path: tuple[int, ...]
    bonus: int
    choices: tuple[int, ...]
    logits: Float[Tensor, "w v"]
    hidden: Float[Tensor, "w d"] | None = None

    @property
    def accepted(self) -> tuple[int, ...]:
        """Accepted draft tokens, the bonus excluded."""
        return tuple(self.tree.tokens[node] for node in self.path[1:])

    @property
    def emitted(self) -> tuple[int, ...]:
        """Everything that the step adds to the text."""
        return (*self.accepted, self.bonus)


def greedy_path(tree: CandidateTree, choices: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Follow the target's own choices ``[W]`` from the root; return the accepted nodes and the bonus token."""
    path = [0]
    while True:
        chosen = choices[path[-1]]
        agreeing = [child for child in tree.children[path[-1]] if tree.tokens[child] == chosen]
        if not agreeing:
            return tuple(path), chosen
        path.append(agreeing[0])


def sampled_path(
    tree: CandidateTree, logits: Float[Tensor, "w v"], sampling: Sampling, generator: torch.Generator | None
) -> tuple[tuple[int, ...], int]:
    """Multi-round rejection sampling along the tree; return the accepted nodes and the bonus token."""
    path = [0]
    while True:
        node = path[-1]
        # On the CPU, where the generator is: the same draws on every device, and float64 is slow on most GPUs.
        target = sampling.probabilities(logits[node].cpu())
        proposal = None if tree.draft_probabilities is None else tree.draft_probabilities[node].to(target)
        for child in tree.children[node]:
            token = tree.tokens[child]
            drafted_with = 1.0 if proposal is None else float(proposal[token])
            if float(torch.rand((), generator=generator, dtype=torch.float64)) * drafted_with < float(target[token]):
                path.append(child)
                break
            target = residual(target, proposal, token)
        else:
            return tuple(path), draw(target, generator)


def residual(target: Float[Tensor, " v"], proposal: Float[Tensor, " v"] | None, token: int) -> Float[Tensor, " v"]:
    """Return normalise(max(p - q, 0)), what is left of the target's distribution once ``token`` is rejected."""
    if proposal is None:
        left = target.clone()
        left[token] = 0.0
    else:
        left = (target - proposal).clamp_(min=0.0)
    mass = left.sum()
    # Nothing left means p <= q everywhere, so p = q and a rejection has probability 0: only rounding comes here.
    return left / mass if mass > 0 else target


def verify(
    tree: CandidateTree,
    logits: Float[Tensor, "w v"],
    sampling: Sampling,
    generator: torch.Generator | None,
    hidden: Float[Tensor, "w d"] | None = None,
) -> Verdict:
    """Decide which path of ``tree`` is kept, given the target's ``logits`` at its nodes."""
    likeliest = choices(logits)
    if sampling.is_greedy:
        path, bonus = greedy_path(tree, likeliest)
    else:
        path, bonus = sampled_path(tree, logits, sampling, generator)
    return Verdict(tree, path, bonus, likeliest, logits, hidden)
