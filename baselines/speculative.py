"""Speculative decoding: a small model drafts a chain, the target verifies it (Leviathan et al. 2023; Chen et al. 2023).

    x_i ~ q(. | context, x_1 ... x_{i-1}),  i = 1 ... k;      x_i is kept with probability min(1, p(x_i) / q(x_i))

Greedy decoding drafts the draft model's most likely tokens. With alpha the chance that one is accepted, a step emits
(1 - alpha^(k+1)) / (1 - alpha) tokens on average and costs k forward passes of the draft and one of the target.

How long to draft is a bet on alpha, and there are two ways not to lose it: ``adaptive`` drafts two tokens more after a
step in which all were accepted and one fewer after any other (transformers' heuristic schedule), and
``confidence_threshold`` ends a draft behind a token of which the draft model itself was not sure.

Both keep sampled decoding exact. What verification needs is that, given everything before it, each proposed token is
a draw from the q that it is compared with. So whether x_i is proposed may depend on the past (the length chosen before
the step, x_1 ... x_{i-1}, their q), but not on x_i itself: an unlikely token ends the draft *behind* it and is never
dropped, for what is left of a draw that is thrown away when unlikely is no draw from q. The draws must not be a
function of the text either: drafting the same tokens for the same prompt again and again would make some texts more
frequent than they are. So the generator is the one that verification draws from (:meth:`SpeculativeDrafter.draw_from`)
or, where none is given, the drafter's own, which runs on from text to text.

Example::

    drafter = SpeculativeDrafter.from_target(target, parts={"draft": folder}, sampling=Sampling(), num_draft_tokens=5)
    SpeculativeDecoder(target, drafter).generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from baselines.draft_model import DraftModel
from decoding import CandidateTree, Sampling, TargetModel, Verdict
from decoding.options import at_least
from decoding.sampling import GREEDY, draw


class SpeculativeDrafter:
    """Proposes a chain from a draft model.

    Args:
        draft: the draft model.
        sampling: how the target's tokens are chosen; the draft's are chosen alike.
        end_token_ids: nothing is drafted behind one of these.
        num_draft_tokens: tokens of a draft; with ``adaptive``, of the first one of each text.
        adaptive: let the length follow what is accepted.
        max_draft_tokens: the longest that ``adaptive`` makes a draft.
        confidence_threshold: a token that the draft gives less probability than this ends the draft; 0 is off.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        draft: DraftModel,
        sampling: Sampling = GREEDY,
        end_token_ids: Collection[int] = (),
        *,
        num_draft_tokens: int = 5,
        adaptive: bool = False,
        max_draft_tokens: int = 15,
        confidence_threshold: float = 0.0,
    ) -> None:
        at_least(1, num_draft_tokens=num_draft_tokens)
        if adaptive and max_draft_tokens < num_draft_tokens:
            raise ValueError(f"max_draft_tokens must be at least {num_draft_tokens=}, not {max_draft_tokens}")
        if not 0 <= confidence_threshold <= 1:
            raise ValueError(f"confidence_threshold must be between 0 and 1, not {confidence_threshold}")
        self.draft, self.sampling, self.end_token_ids = draft, sampling, frozenset(end_token_ids)
        self.num_draft_tokens, self.adaptive = num_draft_tokens, adaptive
        self.confidence_threshold = confidence_threshold
        self._longest = max_draft_tokens if adaptive else num_draft_tokens
        self.max_width = self._longest + 1
        self._length = num_draft_tokens
        self._counted = 0
        self._own_generator = torch.Generator().manual_seed(0)
        self._generator = self._own_generator

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
        num_draft_tokens: int = 5,
        adaptive: bool = False,
        max_draft_tokens: int = 15,
        confidence_threshold: float = 0.0,
    ) -> Self:
        """Build the drafter with the draft model in ``parts["draft"]``.

        Raises:
            ValueError: the draft model does not go with the target, or an option is out of range.
        """
        if "draft" not in parts:
            raise ValueError("speculative decoding needs a draft model (parts: draft)")
        return cls(
            DraftModel.from_pretrained(parts["draft"], target=target, use_shortlist=use_shortlist),
            sampling,
            target.end_token_ids,
            num_draft_tokens=num_draft_tokens,
            adaptive=adaptive,
            max_draft_tokens=max_draft_tokens,
            confidence_threshold=confidence_threshold,
        )

    def draw_from(self, generator: torch.Generator | None) -> None:
        """Draw from ``generator`` from now on, from the drafter's own where there is none."""
        self._generator = self._own_generator if generator is None else generator

    def prepare(self, num_tokens: int) -> None:
        """Make the draft model ready for a text of up to ``num_tokens``: a draft may reach behind its end."""
        self.draft.prepare(num_tokens + self._longest, tree_width=1)

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Read the prompt; the length of drafts starts anew, since a text's speed is not to depend on the last one."""
        self._length = self.num_draft_tokens
        self.draft.begin()
        if len(prompt_ids) < self.draft.max_context:
            self.draft.sync([*prompt_ids, 0])  # all of the prompt; the token behind it is not known yet

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return the root and the draft behind it."""
        length = min(self._length, self.draft.max_context - len(context))
        if length < 1:  # a draft model may have a shorter context than its target
            return CandidateTree.chain(context[-1], ())
        self.draft.sync(context)
        tokens, rows = [context[-1]], []
        while len(tokens) <= length:
            logits = self.draft.read(CandidateTree.chain(tokens[-1], ())).logits[0]
            self.draft.keep([0])
            token, confidence, probabilities = self._choose(logits)
            tokens.append(token)
            rows.append(probabilities)
            if token in self.end_token_ids or confidence < self.confidence_threshold:
                break
        return CandidateTree.chain(tokens[0], tokens[1:], self._draft_probabilities(rows))

    def observe(self, verdict: Verdict) -> int:
        """Lengthen or shorten the next draft; return the draft model's forward passes since the last call."""
        drafted = verdict.tree.width - 1
        if self.adaptive and drafted:
            all_accepted = len(verdict.path) - 1 == drafted
            self._length = min(self._length + 2, self._longest) if all_accepted else max(1, self._length - 1)
        forwards = self.draft.num_forwards - self._counted
        self._counted = self.draft.num_forwards
        return forwards

    def _choose(self, logits: Float[Tensor, " s"]) -> tuple[int, float, Float[Tensor, " s"] | None]:
        """Return the next token, the probability that it had, and the distribution that it was drawn from, if any."""
        if not self.sampling.is_greedy:
            probabilities = self.sampling.probabilities(logits.cpu())
            row = draw(probabilities, self._generator)
            return self.draft.token_of(row), float(probabilities[row]), probabilities
        row = int(logits.argmax())
        confidence = 1.0
        if self.confidence_threshold:  # not asked for, not computed: it costs as much as the choice
            scores = logits.float()
            confidence = float((scores[row] - scores.logsumexp(0)).exp())
        return self.draft.token_of(row), confidence, None

    def _draft_probabilities(self, rows: Sequence[Float[Tensor, " s"] | None]) -> Float[Tensor, "w v"] | None:
        """Stack what the tokens were drawn from, over the vocabulary; the last node has no child: its row is empty."""
        drawn_from = [row for row in rows if row is not None]
        if not drawn_from:
            return None
        return self.draft.over_vocabulary(torch.stack([*drawn_from, torch.zeros_like(drawn_from[0])]))
