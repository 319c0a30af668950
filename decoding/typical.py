"""Typical acceptance: keep what the target finds plausible, rather than what it would have drawn. Lossy.

Medusa's rule (Cai et al. 2024, section 2.3.1, after the truncation sampling of Hewitt et al. 2022): a draft token x
after a node at which the target's distribution is p, with entropy H(p), is accepted if

    p(x) > min(epsilon, delta * exp(-H(p))),

a floor that sinks where the target itself is undecided. The longest accepted path is kept; of several, the most likely
by the target. The token after it is the target's own choice, so each step has at least one (the paper's first token,
which is always accepted). The most likely token always passes where delta <= 1, since p_max >= exp(-H(p)).

The defaults epsilon 0.09 and delta 0.3 are those of the authors' code (``posterior_threshold`` and ``posterior_alpha``
of ``medusa_generate`` in FasterDecoding/Medusa, medusa/model/medusa_model.py). The temperature 0.7 is ours: theirs is
0, which leaves p a point.

The text is not the target's: a method that accepts like this is named for it and never called lossless. Example::

    decoder = SpeculativeDecoder(target, drafter, verify=TypicalAcceptance(epsilon=0.09, delta=0.3))
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from decoding.ranking import choices
from decoding.sampling import Sampling, draw
from decoding.tree import CandidateTree
from decoding.verify import Verdict


@dataclass(frozen=True)
class TypicalAcceptance:
    """A rule of acceptance for :class:`decoding.decoder.SpeculativeDecoder`.

    Attributes:
        epsilon: floor where the target is certain.
        delta: scale of the floor where it is not.
        temperature: of p where decoding is greedy, which has none of its own; sampled decoding brings its own p.

    Raises:
        ValueError: a value is out of range.
    """

    epsilon: float = 0.09
    delta: float = 0.3
    temperature: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon must be above 0 and at most 1, not {self.epsilon}")
        if not self.delta > 0:  # so that NaN is refused, too
            raise ValueError(f"delta must be above 0, not {self.delta}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    def __call__(
        self,
        tree: CandidateTree,
        logits: Float[Tensor, "w v"],
        sampling: Sampling,
        generator: torch.Generator | None,
        hidden: Float[Tensor, "w d"] | None = None,
    ) -> Verdict:
        """Decide which path of ``tree`` is kept, given the target's ``logits`` at its nodes."""
        likeliest = choices(logits)
        path = self._longest_path(tree, logits, sampling)
        if sampling.is_greedy:
            bonus = likeliest[path[-1]]
        else:
            bonus = draw(sampling.probabilities(logits[path[-1]].cpu()), generator)
        return Verdict(tree, path, bonus, likeliest, logits, hidden)

    def _longest_path(self, tree: CandidateTree, logits: Float[Tensor, "w v"], sampling: Sampling) -> tuple[int, ...]:
        """Return the longest path of accepted nodes, the likeliest of several."""
        log_likelihood = {0: 0.0}  # of the accepted nodes; parents come before their children
        for node, log in enumerate(self._judged(tree, logits, sampling), start=1):
            if log > -math.inf and tree.parents[node] in log_likelihood:
                log_likelihood[node] = log_likelihood[tree.parents[node]] + log
        node = max(log_likelihood, key=lambda node: (tree.depths[node], log_likelihood[node]))
        path = [node]
        while path[-1]:
            path.append(tree.parents[path[-1]])
        return tuple(reversed(path))

    def _judged(self, tree: CandidateTree, logits: Float[Tensor, "w v"], sampling: Sampling) -> list[float]:
        """Return the log probability of each node's token after its parent, without the root; -inf for a rejected one.

        All nodes at once, in float32 where ``sampling`` does not bring a distribution of its own: it is a rule of thumb
        that is asked, and a pass waits for the answer.
        """
        parents, tokens = list(tree.parents[1:]), list(tree.tokens[1:])
        if not parents:
            return []
        inner = sorted(set(parents))
        rows = [inner.index(parent) for parent in parents]
        if sampling.is_greedy:
            logs = (logits[inner].float() / self.temperature).log_softmax(-1)
        else:
            logs = sampling.probabilities(logits[inner]).log()
        finite = logs.clamp(min=torch.finfo(logs.dtype).min)  # what cannot be said adds nothing
        entropy = -(logs.exp() * finite).sum(-1)
        floor = torch.clamp(self.delta * torch.exp(-entropy), max=self.epsilon)[rows]
        said = logs[rows, tokens]
        return [float(log) for log in torch.where(said.exp() > floor, said, -torch.inf).tolist()]
