"""What ShuffleLM's slots may mean, reranked by its autoregressive twin: noisy parallel decoding (Gu et al. 2018).

A slot says nothing or a token, independently of the others: ``p(nothing) = 1 - keep`` and ``p(v) = keep p(v)``, as
connectionist temporal classification has it (:mod:`shuffle.shufflelm.ctc`). So the choices of all slots that are
likeliest together are those that differ least from each slot's best, and no draw is needed to find them. Each is put in
order as any set of slots is; several may make the same text. The twin reads the texts in one pass, in which those that
begin alike share the rows of their beginnings, and the one of least energy, nats a token, is kept. Lossy, as ShuffleLM
is: the twin chooses among texts, it does not write one.

Example::

    generator = RerankedGenerator.from_pretrained(folder, twin=TargetModel.from_pretrained(twin_folder))
    generator.generate(prompt_ids, max_new_tokens=64).output_ids            # two passes a block of slots
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from decoding import TargetModel
from decoding.options import at_least
from decoding.target import TreeOutput
from shuffle.passes import PassClock
from shuffle.scoring import check_twin, engine_scorer, least_energy
from shuffle.shufflelm.blocks import ends_last
from shuffle.shufflelm.compiled import CompiledHeads, Said
from shuffle.shufflelm.ctc import log_probabilities
from shuffle.shufflelm.generator import ShuffleGenerator
from shuffle.shufflelm.model import ShuffleLM
from shuffle.shufflelm.ordering import Ordering

NEXT_TO_NEVER = 1e-9  # a slot that is kept with less than this has no part in any candidate


class RerankedGenerator(ShuffleGenerator):
    """A :class:`shuffle.shufflelm.generator.ShuffleGenerator` that lets its twin choose.

    Args:
        model: trained; it is moved to ``device`` and ``dtype``.
        twin: reads the candidates.
        num_candidates: as many texts at most, of the likeliest choices of the slots and their own, which comes first.
        shuffle_strategy: rotary, assignment or none; None for rotary, where the model has it.
        keep_threshold: least probability at which a slot is kept for that text.

    Raises:
        ValueError: an option is out of range, the model cannot do it, or the twin has other tokens or less context.
    """

    goes_abreast = False  # candidates are of one text

    def __init__(
        self,
        model: ShuffleLM,
        *,
        twin: TargetModel,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        num_candidates: int = 8,
        shuffle_strategy: str | None = None,
        keep_threshold: float = 0.5,
    ) -> None:
        at_least(1, num_candidates=num_candidates)
        check_twin(model, twin.vocab_size)
        super().__init__(
            model, dtype=dtype, device=device, shuffle_strategy=shuffle_strategy, keep_threshold=keep_threshold
        )
        if twin.max_context < self.target.max_context:
            raise ValueError(f"the twin reads {twin.max_context} tokens, the generator {self.target.max_context}")
        self.num_candidates, self.part_bytes = num_candidates, twin.weights.weight_bytes
        self._score, self._first_end = engine_scorer(twin), list(model.config.end_token_ids[:1])

    def generate_abreast(self, *arguments: Any, **others: Any) -> list[tuple[int, ...]]:
        """Refuse: see ``goes_abreast``."""
        raise NotImplementedError("the twin chooses for one text at a time: use generate_batch")

    def _compiled_heads(self, rows: Float[Tensor, "v d"]) -> CompiledHeads:
        least = min(NEXT_TO_NEVER, self.ordering.keep_threshold)
        return CompiledHeads(self.model, replace(self.ordering, keep_threshold=least), rows, with_logits=True)

    def _chosen(
        self, context: list[int], output: TreeOutput, generator: torch.Generator | None, clock: PassClock
    ) -> list[int]:
        ends, most = self.target.end_token_ids, self._num_slots(len(context))
        blocks: dict[tuple[int, ...], list[int]] = {}  # by what the twin is asked of each
        for text in candidates(self._all(output), self.ordering, self.num_candidates):
            block = ends_last(text, ends)
            blocks.setdefault(as_judged(block, ends, self._first_end, most), block)
        judged = list(blocks)[: self.num_candidates]
        clock.tick(0, first_is_known=False)
        return blocks[judged[least_energy(self._score(context, judged))]]

    def _all(self, output: TreeOutput) -> Said:
        """Return what the slots say, those too that would be dropped, if there is any chance of their being kept."""
        if self._compiled is not None:
            return self._compiled(output.hidden)
        states, scores, keep = self.model.heads(output.hidden.to(self.target.dtype))
        logits = self._head.in_float32(states) if self._head else output.logits[:, : self._vocab_size]
        return Said([*range(len(keep))], [], logits, scores, [], keep)


def candidates(said: Said, ordering: Ordering, count: int) -> list[list[int]]:
    """Return the text that the slots say by themselves, then those of their ``count`` likeliest choices.

    Args:
        said: by the slots, with logits.
        ordering: puts them in order, and says which of them make up the first text.
        count: of choices; several may make the same text, and one that makes none is left out.
    """
    assert said.logits is not None
    plain, tokens = [0] * len(said.kept), said.logits.argmax(-1).tolist()
    for row in ordering.kept(said.keep):
        plain[row] = 1 + tokens[row]
    choices = likeliest(log_probabilities(said.logits, said.keep), count)
    return [text for choice in (plain, *choices) if (text := text_of(choice, said, ordering))]


def text_of(choice: Sequence[int], said: Said, ordering: Ordering) -> list[int]:
    """Return the text in which row i of ``said`` says nothing, where ``choice[i]`` is 0, or token ``choice[i] - 1``."""
    rows = [row for row, option in enumerate(choice) if option]
    if not rows:
        return []
    scores = None if said.scores is None else said.scores[rows]
    expected = [said.expected[row] for row in rows] if said.expected else None
    order = [rows[place] for place in ordering.arranged(len(rows), scores, expected)]
    tokens = [choice[row] - 1 for row in order]
    return [tokens[place] for place in ordering.spoken([said.kept[row] for row in order], tokens)]


def likeliest(log_probs: Float[Tensor, "k o"], count: int) -> list[list[int]]:
    """Return the ``count`` choices of an option for each of k slots with the greatest sums, the greatest first.

    A choice that takes an option in place of a slot's best is behind all those that lose less by a single such step:
    the ``count - 1`` smallest losses are all that can have a part in what is asked for.
    """
    most, best = log_probs.max(-1)
    losses = (most[:, None] - log_probs).scatter(1, best[:, None], torch.inf).flatten()
    smallest = losses.topk(min(count - 1, losses.numel() - len(best)), largest=False)
    found: list[tuple[float, dict[int, int]]] = [(0.0, {})]
    for loss, place in zip(smallest.values.tolist(), smallest.indices.tolist(), strict=True):
        slot, option = divmod(place, log_probs.shape[1])
        others = [(lost + loss, {**changed, slot: option}) for lost, changed in found if slot not in changed]
        found = heapq.nsmallest(count, [*found, *others], key=itemgetter(0))
    return [[changed.get(slot, option) for slot, option in enumerate(best.tolist())] for _, changed in found]


def as_judged(
    block: Sequence[int], end_token_ids: Collection[int], first_end: Sequence[int], most: int
) -> tuple[int, ...]:
    """Return a candidate for a block of at most ``most`` tokens as the twin is asked of it.

    One that does not fill the block ends there, whether or not a slot says so: unless that too is judged, a text would
    be the better the sooner it stops.
    """
    said = [token for token in block if token not in end_token_ids]
    ends = [token for token in block if token in end_token_ids]
    return tuple(said) if len(said) == most else (*said, *(ends or first_end)[:1])
