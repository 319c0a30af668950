"""The peer of ``speculative``: transformers' own assisted generation with the same draft model.

``generate(assistant_model=...)`` drafts up to ``num_assistant_tokens`` tokens with the assistant's own ``generate``,
reads them with the target and keeps what agrees. A draft ends early behind a token that the assistant gave less
probability than ``assistant_confidence_threshold``; where scikit-learn is installed, transformers moves that threshold
within a text. Both are transformers' own defaults unless they are given (of the version pinned here: 20 tokens, always
as many, and 0.4). What transformers carries from prompt to prompt it writes into the assistant's config, under another
schedule than the default one; that config is written anew for each prompt.

transformers drafts before prefill: the first forward pass of the target reads the prompt and the first draft.

Example::

    peer = TransformersAssisted.from_pretrained(folder, dtype=torch.bfloat16, draft=draft_folder)
    generation = peer.generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from baselines.draft_model import check_same_vocabulary
from baselines.transformers_generate import TransformersGreedy, _StepClock, load_model
from decoding import Generation, Sampling, Step, StopStrings
from decoding.sampling import GREEDY
from decoding.stopping import NO_STRINGS


class TransformersAssisted(TransformersGreedy):
    """``model.generate(assistant_model=...)``: transformers' own speculative decoding.

    Args:
        model: any causal language model of transformers.
        assistant: the draft model.
        sampling: greedy by default.
        end_token_ids: tokens that end a text.
        num_assistant_tokens: most draft tokens a step; None for transformers' default.
        assistant_confidence_threshold: a draft ends behind a token with less probability; 0 is off, None the default.
        attention: of both models; see :class:`TransformersGreedy`.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: Sampling = GREEDY,
        end_token_ids: Sequence[int] = (),
        *,
        assistant: PreTrainedModel,
        num_assistant_tokens: int | None = None,
        assistant_confidence_threshold: float | None = None,
        attention: str = "sdpa",
    ) -> None:
        if num_assistant_tokens is not None and num_assistant_tokens < 1:
            raise ValueError(f"num_assistant_tokens must be 1 or more, not {num_assistant_tokens}")
        if assistant_confidence_threshold is not None and not 0 <= assistant_confidence_threshold <= 1:
            raise ValueError(
                f"assistant_confidence_threshold must be between 0 and 1, not {assistant_confidence_threshold}"
            )
        # transformers imports it when it first moves its threshold, which would be in the middle of a timed text.
        with suppress(ImportError):
            import_module("sklearn.metrics")
        super().__init__(model, sampling, end_token_ids, attention)
        self.assistant = assistant
        if attention != "sdpa":
            assistant.set_attn_implementation(attention)
        self.num_assistant_tokens = num_assistant_tokens
        self.assistant_confidence_threshold = assistant_confidence_threshold
        self._num_draft_forwards = 0
        self._reads: list[tuple[float, int]] = []  # when the target began to read, after how many draft forwards
        assistant.register_forward_pre_hook(self._count_draft_forward)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        sampling: Sampling = GREEDY,
        draft: str | Path = "",
        **options: Any,
    ) -> Self:
        """Load the target in ``folder`` and the draft model in ``draft``; ``options`` go to the constructor.

        Raises:
            ValueError: no draft was given, or its vocabulary is not the target's.
        """
        if not draft:
            raise ValueError("assisted generation needs the folder of a draft model: draft")
        size = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).vocab_size
        check_same_vocabulary(Path(draft), target_folder=Path(folder), vocab_size=size, padding=False)
        options["assistant"] = load_model(draft, dtype, device)
        return super().from_pretrained(folder, dtype=dtype, device=device, sampling=sampling, **options)

    @property
    def part_bytes(self) -> int:
        """Bytes of the draft model that one of its forward passes reads: all but untied input embeddings."""
        sizes = {name: parameter.nbytes for name, parameter in self.assistant.named_parameters()}
        untied = [size for name, size in sizes.items() if "embed_tokens" in name and "lm_head.weight" in sizes]
        return sum(sizes.values()) - sum(untied)

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``generate`` is called with, beyond the prompt and the limits."""
        return super().arguments | {"assistant_model": self.assistant}

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: StopStrings = NO_STRINGS,
        generator: torch.Generator | None = None,
    ) -> Generation:
        """Generate until an end token, a stop string or the limit, with the settings that the object was made with."""
        self.assistant.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            eos_token_id=list(self.end_token_ids) or None,
            pad_token_id=min(self.end_token_ids, default=0),
            num_assistant_tokens=self.num_assistant_tokens,
            assistant_confidence_threshold=self.assistant_confidence_threshold,
        )
        self._num_draft_forwards, self._reads = 0, []
        return super().generate(prompt_ids, max_new_tokens=max_new_tokens, stop=stop, generator=generator)

    def _count_draft_forward(self, module: torch.nn.Module, args: Any) -> None:
        self._num_draft_forwards += 1

    def _count_rows(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        super()._count_rows(module, args, kwargs)
        self._reads.append((time.perf_counter(), self._num_draft_forwards))

    def _steps(self, clock: _StepClock, started: float, prompt_length: int) -> list[Step]:
        """One step for each question; what went before the target's forward pass was drafting."""
        steps = super()._steps(clock, started, prompt_length)
        begins = [started, *clock.times]
        counts = [0, *(count for _, count in self._reads)]
        return [
            replace(step, draft_forwards=counts[i + 1] - counts[i], draft_s=self._reads[i][0] - begins[i])
            for i, step in enumerate(steps)
        ]
