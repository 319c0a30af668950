"""The mixer together with the language model whose hidden states it reads: verified, or raw.

*Verified*, the slots are a candidate tree, of which the model keeps what it would have said itself: lossless.

*Raw*, the slots that think themselves right are the text: each step emits the model's own next token and, in order, the
tokens of the positions whose keep chance is at least ``keep_threshold``. The model reads them all in one pass, for its
cache and its next hidden state, and refuses none. That is one more rule of acceptance in the loop that every method
runs in, and a lossy one. A threshold above 1 keeps nothing: plain autoregression.

Example::

    generator = MixerGenerator.from_pretrained(folder, dtype=torch.bfloat16, mode="raw", keep_threshold=0.8)
    generator.generate(prompt_ids, max_new_tokens=64)

    SpeculativeDecoder(target, KeptSlotsDrafter.from_target(target, parts=parts, sampling=GREEDY), verify=AcceptAll())
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from decoding import CandidateTree, Generation, Sampling, SpeculativeDecoder, StopStrings, TargetModel, Verdict
from decoding.options import at_least
from decoding.ranking import choices
from decoding.sampling import GREEDY, draw
from decoding.stopping import NO_STRINGS
from decoding.verify import verify
from shuffle.fasterdecodemixer.drafter import MixerDrafter, grow, mixer_for
from shuffle.fasterdecodemixer.guesses import DecodingMixer, load_mixer


@dataclass(frozen=True)
class AcceptAll:
    """The rule of acceptance that accepts a chain whole; the token after it is the target's own."""

    def __call__(
        self,
        tree: CandidateTree,
        logits: Float[Tensor, "w v"],
        sampling: Sampling,
        generator: torch.Generator | None,
        hidden: Float[Tensor, "w d"] | None = None,
    ) -> Verdict:
        """Keep all of ``tree``.

        Raises:
            ValueError: it is no chain, so not all of it can be kept.
        """
        if not tree.is_chain:
            raise ValueError("only a chain can be accepted whole")
        likeliest = choices(logits)
        bonus = likeliest[-1] if sampling.is_greedy else draw(sampling.probabilities(logits[-1].cpu()), generator)
        return Verdict(tree, tuple(range(tree.width)), bonus, likeliest, logits, hidden)


class KeptSlotsDrafter(MixerDrafter):
    """Proposes the most likely chain, up to the first position that no slot keeps.

    Args:
        mixer: laid out for decoding.
        keep_threshold: chance of being right from which a slot is kept.

    Raises:
        ValueError: the threshold is negative.
    """

    def __init__(self, mixer: DecodingMixer, keep_threshold: float = 0.8) -> None:
        at_least(0, keep_threshold=keep_threshold)
        super().__init__(mixer, num_nodes=mixer.config.num_positions, max_children=1)
        self.keep_threshold = keep_threshold

    @classmethod
    def from_target(  # type: ignore[override]
        cls, target: TargetModel, *, parts: Mapping[str, Path], sampling: Sampling, keep_threshold: float = 0.8
    ) -> Self:
        """Load the mixer in ``parts["mixer"]`` for ``target``, see :meth:`MixerDrafter.from_target`."""
        return cls(mixer_for(target, parts), keep_threshold)

    def propose(self, context: Sequence[int]) -> CandidateTree:
        """Return the kept slots as a chain."""
        if self._hidden is None:
            return CandidateTree((context[-1],), (-1,))
        guesses = self.mixer(self._hidden, context)
        dropped = (j for j, chance in enumerate(guesses.keep) if chance < self.keep_threshold)
        kept = next(dropped, len(guesses.keep))
        grown = grow(guesses, kept, max_children=1)
        return CandidateTree.chain(context[-1], [guesses.tokens[j][c] for j, c in enumerate(grown.candidates)])


class MixerGenerator:
    """A language model and its mixer, as a :class:`shuffle.passes.ParallelGenerator`.

    Args:
        decoder: the loop that they run in.
    """

    def __init__(self, decoder: SpeculativeDecoder) -> None:
        self.decoder = decoder

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        backbone: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        mode: str = "verified",
        sampling: Sampling = GREEDY,
        **options: Any,
    ) -> Self:
        """Load a mixer and the model that it was trained for.

        Args:
            folder: of the mixer.
            backbone: the model's folder; None: the one that the mixer names.
            dtype: of both.
            device: of both.
            mode: ``"verified"`` (options of :class:`MixerDrafter`) or ``"raw"`` (of :class:`KeptSlotsDrafter`).
            sampling: greedy by default.
            options: of the drafter.

        Raises:
            ValueError: a folder does not hold what it should, the mixer names no model, or an option is out of range.
            TypeError: the drafter has no such option.
        """
        drafters: dict[str, type[MixerDrafter]] = {"verified": MixerDrafter, "raw": KeptSlotsDrafter}
        if mode not in drafters:
            raise ValueError(f"mode must be 'verified' or 'raw', not {mode!r}")
        named = backbone or load_mixer(Path(folder)).config.backbone
        if not named:
            raise ValueError(f"{folder} does not say which model it is for: give backbone=")
        target = TargetModel.from_pretrained(named, dtype=dtype, device=device)
        drafter = drafters[mode].from_target(target, parts={"mixer": Path(folder)}, sampling=sampling, **options)
        rule = AcceptAll() if mode == "raw" else verify
        return cls(SpeculativeDecoder(target, drafter, sampling, rule))

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: StopStrings = NO_STRINGS,
        generator: torch.Generator | None = None,
    ) -> Generation:
        """Generate from one prompt until an end token, a stop string or the limit."""
        return self.decoder.generate(prompt_ids, max_new_tokens=max_new_tokens, stop=stop, generator=generator)

    def generate_batch(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, generator: torch.Generator | None = None
    ) -> list[tuple[int, ...]]:
        """Generate from many prompts, one after the other: each step's tree is of one text's making."""
        return [
            tuple(self.generate(prompt, max_new_tokens=max_new_tokens, generator=generator).output_ids)
            for prompt in prompts
        ]
