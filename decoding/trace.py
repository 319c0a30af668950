"""What happened in one generation, step by step: the record from which every counter and time is derived.

Prefill and decode are told apart: prefill ends when the first new token is known (TTFT); what follows is decode, in
steps, each one forward pass of the target model.

Example::

    generation.tokens_per_step, generation.ttft_s, generation.decode_s
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One draft-and-verify round.

    Attributes:
        emitted: tokens that the step added to the text, after cutting at its end.
        accepted: draft tokens among them.
        candidates: draft tokens that the target verified.
        draft_forwards: forward passes of a draft model.
        draft_s: seconds in the drafter.
        total_s: seconds of the whole step.
        verify_s: seconds of the target's forward pass and of the verdict on it; 0 where that is not known.
    """

    emitted: int
    accepted: int
    candidates: int
    draft_forwards: int
    draft_s: float
    total_s: float
    verify_s: float = 0.0


@dataclass(frozen=True)
class Generation:
    """New tokens of one prompt and how they came about.

    Attributes:
        output_ids: new token ids; the prompt is excluded, an end token included.
        prompt_length: tokens of the prompt.
        truncated: ended by the limit, not by the model.
        ttft_s: seconds from the call to the first new token (prefill).
        steps: the decode steps, in order; what is not in one of them belongs to prefill: the first token and, where a
            method drafts before it, what of the draft was accepted.
        prefill_accepted: draft tokens that prefill added to the text.
        prefill_candidates: draft tokens that prefill verified.
        prefill_draft_forwards: forward passes of a draft model before the first token.
        prefill_forwards: forward passes of the model before the first token; more than one where tokens are settled in
            another order than the text's.
        prefill_emitted: tokens that they settled.
    """

    output_ids: tuple[int, ...]
    prompt_length: int
    truncated: bool
    ttft_s: float
    steps: tuple[Step, ...]
    prefill_accepted: int = 0
    prefill_candidates: int = 0
    prefill_draft_forwards: int = 0
    prefill_forwards: int = 1
    prefill_emitted: int = 1

    @property
    def num_new_tokens(self) -> int:
        """Tokens generated, the end token included."""
        return len(self.output_ids)

    @property
    def decode_s(self) -> float:
        """Seconds after the first token."""
        return sum(step.total_s for step in self.steps)

    @property
    def total_s(self) -> float:
        """Seconds from the call to the last token."""
        return self.ttft_s + self.decode_s

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a decode step emits; 1 for plain autoregression, 0 if there was no decode step."""
        return sum(step.emitted for step in self.steps) / len(self.steps) if self.steps else 0.0

    @property
    def target_forwards(self) -> int:
        """Forward passes of the target model, prefill included."""
        return self.prefill_forwards + len(self.steps)

    @property
    def draft_forwards(self) -> int:
        """Forward passes of a draft model."""
        return self.prefill_draft_forwards + sum(step.draft_forwards for step in self.steps)

    @property
    def accepted_draft_tokens(self) -> int:
        """Draft tokens that became text; bonus tokens are excluded."""
        return self.prefill_accepted + sum(step.accepted for step in self.steps)

    @property
    def candidate_tokens(self) -> int:
        """Draft tokens that the target verified."""
        return self.prefill_candidates + sum(step.candidates for step in self.steps)
