r"""Union: the trees of several drafters, merged under one node budget by estimated chance of acceptance.

Drafters know different things: prompt lookup what was said before, recycling what the target thought before, the slots
of FasterDecodeMixer (or Medusa's heads) what it thinks now. Their trees are laid over each other as one trie, in which
a token that several propose under the same parent is one candidate, and the ``num_nodes`` candidates whose product of
chances along the path is greatest are read. With P the chance of a candidate given its parent, that maximises the
expected number of accepted tokens, sum over nodes of the product of P along the node's path.

A drafter's proposal is of a kind (:mod:`baselines.chances`): the step of the probability that the drafter itself gives
it (``node_probabilities``, where there are any), else its depth and its rank among its siblings, with how many of the
drafter's last guesses in a row were right. The chance of each kind is counted. For a candidate that several propose the
chances of its kinds are combined as if they were independent (noisy-or),

    P = 1 - prod_d (1 - P_d),

and this in turn is only the prior of what is counted for the combination of kinds itself: where two drafters always
agree because they read the same text, that is learned.

With ``warm_start`` the counts (and what the drafters keep) go from prompt to prompt. By default they do not: speed then
does not depend on which prompts came before.

Example::

    drafter = UnionDrafter.from_target(target, parts={"mixer": folder}, sampling=Sampling(), num_nodes=15)
    drafter = UnionDrafter({"prompt_lookup": PromptLookupDrafter(), "recycling": RecyclingDrafter()}, num_nodes=15)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from baselines.best_first import grow
from baselines.chances import Chances, probability_step
from decoding import CandidateTree, Drafter, Sampling, TargetModel, Verdict
from decoding.options import at_least

Kind = tuple[object, ...]

# Where each drafter is, and its option for the size of its draft.
DRAFTERS: Mapping[str, tuple[str, str]] = {
    "prompt_lookup": ("baselines.prompt_lookup:PromptLookupDrafter", "num_draft_tokens"),
    "suffix_decoding": ("baselines.suffix_decoding:SuffixDecodingDrafter", "num_nodes"),
    "recycling": ("baselines.recycling:RecyclingDrafter", "num_nodes"),
    "rest": ("baselines.rest:RestDrafter", "num_nodes"),
    "medusa": ("baselines.medusa:MedusaDrafter", "num_nodes"),
    "fasterdecodemixer": ("shuffle.fasterdecodemixer.drafter:MixerDrafter", "num_nodes"),
}
DEFAULT_DRAFTERS = ("prompt_lookup", "recycling", "fasterdecodemixer")
WARM_DRAFTERS = ("suffix_decoding", "recycling")  # those that have the option warm_start themselves

# Chance of a proposal without a probability, before any is counted, by how many of its drafter's last guesses in a row
# were right; halved for each rank among siblings. Set by hand; what is counted soon outweighs them.
STREAK_PRIORS = (0.3, 0.5, 0.65, 0.75, 0.85)
STREAK_STEPS = (1, 2, 4, 8)
MAX_DEPTH, MAX_RANK = 3, 3


@dataclass
class _Candidate:
    """A node of the trie: which kinds of proposals there are for it."""

    token: int
    kinds: list[tuple[Kind, float]] = field(default_factory=list)
    children: dict[int, _Candidate] = field(default_factory=dict)


class UnionDrafter:
    """Merges the trees of several deterministic drafters.

    Args:
        drafters: by name; they all learn from every verdict, which is one on the merged tree.
        num_nodes: most draft tokens of the merged tree.
        warm_start: keep the counts from prompt to prompt.
        row_cost: nodes that do not pay are left out, see :func:`decoding.rows.pays`.

    Attributes:
        node_probabilities: after ``propose``, each node's chance to be accepted if its parent is; the root's is 1.

    Raises:
        ValueError: an option is out of range, or there are no drafters.
    """

    def __init__(
        self, drafters: Mapping[str, Drafter], num_nodes: int = 15, warm_start: bool = False, row_cost: float = 0.0
    ) -> None:
        if not drafters:
            raise ValueError("drafters: a union needs at least one")
        at_least(1, num_nodes=num_nodes)
        at_least(0, row_cost=row_cost)
        self.row_cost = row_cost
        self.drafters, self.num_nodes, self.warm_start = dict(drafters), num_nodes, warm_start
        self.max_width = num_nodes + 1
        self.node_probabilities: Sequence[float] | None = None
        self._chances = Chances()
        self._streaks = dict.fromkeys(self.drafters, 0)
        self._root: _Candidate | None = None
        self._proposed: dict[str, CandidateTree] = {}

    @property
    def part_bytes(self) -> int:
        """Bytes of the trained parts of all drafters."""
        return sum(getattr(drafter, "part_bytes", 0) for drafter in self.drafters.values())

    @classmethod
    def from_target(
        cls,
        target: TargetModel,
        *,
        parts: Mapping[str, Path],
        sampling: Sampling,
        drafters: Sequence[str] = DEFAULT_DRAFTERS,
        num_nodes: int = 15,
        warm_start: bool = False,
        row_cost: float = 0.0,
    ) -> Self:
        """Build the named drafters for ``target``, each with a draft of its own of up to ``num_nodes`` tokens.

        Raises:
            ValueError: a drafter is unknown or named twice, or one of them cannot be built.
        """
        built: dict[str, Drafter] = {}
        for name in drafters:
            if name not in DRAFTERS:
                raise ValueError(f"drafters: unknown {name!r}; known: {', '.join(DRAFTERS)}")
            if name in built:
                raise ValueError(f"drafters: {name!r} is named twice")
            path, size = DRAFTERS[name]
            module, _, class_name = path.partition(":")
            drafter = getattr(importlib.import_module(module), class_name)
            options: dict[str, Any] = {size: num_nodes}
            if name in WARM_DRAFTERS:
                options["warm_start"] = warm_start
            if hasattr(drafter, "from_target"):
                built[name] = drafter.from_target(target, parts=parts, sampling=sampling, **options)
            else:
                built[name] = drafter(**options)
        return cls(built, num_nodes, warm_start, row_cost)

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Start a new text in every drafter; forget the counts unless they are kept."""
        for drafter in self.drafters.values():
            drafter.begin(prompt_ids)
        if not self.warm_start:
            self._chances.clear()
        self._streaks = dict.fromkeys(self.drafters, 0)
        self._root, self._proposed = None, {}

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return the ``num_nodes`` most promising candidates of all drafters."""
        root = self._root = _Candidate(context[-1])
        for name, drafter in self.drafters.items():
            tree = self._proposed[name] = drafter.propose(context)
            if tree.draft_probabilities is not None:
                raise ValueError(f"drafters: {name!r} samples its draft; a union takes deterministic drafters only")
            self._lay(name, tree, getattr(drafter, "node_probabilities", None), root)
        merged, self.node_probabilities = grow(root.token, root, self._expand, self.num_nodes, self.row_cost)
        return merged

    def observe(self, verdict: Verdict) -> int:
        """Count which proposals were right and let every drafter learn; return their draft forwards."""
        emitted = verdict.emitted
        candidate = self._root
        for following in emitted:
            if candidate is None:
                break
            for token, child in candidate.children.items():
                self._count(child.kinds, token == following)
            candidate = candidate.children.get(following)
        for name, tree in self._proposed.items():
            right = agreement(tree, emitted)
            ended = right == len(emitted) or (right > 0 and not tree.children[_node_at(tree, emitted[:right])])
            self._streaks[name] = self._streaks[name] + right if ended else 0
        return sum(drafter.observe(verdict) for drafter in self.drafters.values())

    def _lay(self, name: str, tree: CandidateTree, probabilities: Sequence[float] | None, root: _Candidate) -> None:
        """Lay one drafter's tree over the trie."""
        streak = sum(self._streaks[name] >= step for step in STREAK_STEPS)
        ranks = [0] * tree.width
        places = [root]
        for node in range(1, tree.width):
            token, parent = tree.tokens[node], tree.parents[node]
            place = places[parent].children.get(token)
            if place is None:
                place = places[parent].children[token] = _Candidate(token)
            places.append(place)
            if probabilities is not None:
                chance = probabilities[node]
                place.kinds.append(((name, probability_step(chance)), chance))
            else:
                rank, depth = min(ranks[parent], MAX_RANK), min(tree.depths[node], MAX_DEPTH)
                ranks[parent] += 1
                place.kinds.append(((name, depth, rank, streak), STREAK_PRIORS[streak] * 0.5**rank))

    def _expand(self, candidate: _Candidate) -> Iterator[tuple[int, float, _Candidate]]:
        """Give what is proposed after a candidate."""
        for child in candidate.children.values():
            yield child.token, self._chance(child.kinds), child

    def _chance(self, kinds: Sequence[tuple[Kind, float]]) -> float:
        """Return the chance of a candidate for which there are proposals of these kinds."""
        wrong = 1.0
        for kind, prior in kinds:
            wrong *= 1.0 - self._chances.of(kind, prior)
        if len(kinds) == 1:
            return 1.0 - wrong
        return self._chances.of(tuple(kind for kind, _ in kinds), 1.0 - wrong)

    def _count(self, kinds: Sequence[tuple[Kind, float]], accepted: bool) -> None:
        for kind, _ in kinds:
            self._chances.count(kind, accepted)
        if len(kinds) > 1:
            self._chances.count(tuple(kind for kind, _ in kinds), accepted)


def agreement(tree: CandidateTree, emitted: Sequence[int]) -> int:
    """Return how many of the tokens that came a tree had foreseen, one after the other."""
    right, node = 0, 0
    for token in emitted:
        below = [child for child in tree.children[node] if tree.tokens[child] == token]
        if not below:
            break
        right, node = right + 1, below[0]
    return right


def _node_at(tree: CandidateTree, tokens: Sequence[int]) -> int:
    """Return the node that a path of tokens leads to."""
    node = 0
    for token in tokens:
        node = next(child for child in tree.children[node] if tree.tokens[child] == token)
    return node
