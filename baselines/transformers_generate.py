"""The peers: transformers' own ``generate``, called as a user would call it.

They answer the question that every table of speed-ups raises: against what? ``hf_greedy`` is plain ``generate``,
``hf_prompt_lookup`` is ``generate(prompt_lookup_num_tokens=...)``. They run their own loop and their own cache; only
the stop strings are ours, since every method is to be cut at the same token, and the clock, which reads the time each
time that transformers asks whether to stop: once after prefill, which in prompt lookup may already emit several tokens,
and once after every later step.

A checkpoint's own generation config may ask for penalties and filters that no other method here applies; only its end
tokens are kept.

Example::

    peer = TransformersGreedy.from_pretrained(folder, dtype=torch.bfloat16, device="cpu")
    generation = peer.generate(prompt_ids, max_new_tokens=64)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from decoding import Generation, Sampling, Step, StopStrings
from decoding.loading import end_tokens
from decoding.sampling import GREEDY
from decoding.stopping import NO_STRINGS, Cut, Ending


class _StepClock(StoppingCriteria):
    """Asked once after every step: notes the time and the length, and stops where every other method stops too."""

    def __init__(self, prompt_length: int, ending: Ending) -> None:
        self.prompt_length, self.ending = prompt_length, ending
        self.times: list[float] = []
        self.grown: list[int] = [0]  # tokens generated, those behind the cut included
        self.kept: list[int] = [0]
        self.cut = Cut(0, ended=False)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        generated = input_ids[0, self.prompt_length :].tolist()
        self.cut = self.ending.check(generated, start=self.kept[-1])
        self.grown.append(len(generated))
        self.kept.append(self.cut.kept)
        self.times.append(time.perf_counter())
        return torch.tensor([self.cut.ended], device=input_ids.device)


def load_model(
    folder: str | Path, dtype: torch.dtype, device: str | torch.device, device_map: str | None = None
) -> PreTrainedModel:
    """Load a local folder with safetensors weights; ``device_map`` is transformers' own, in place of ``device``."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        device_map=device_map,
    )
    if device_map is None:
        model.to(torch.device(device))  # type: ignore[arg-type]
    return model


@contextmanager
def drawing_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Let transformers, which draws from the global generators alone, draw what ``generator`` says next.

    ``generator`` moves on, so that the next text is another one; the global ones are left as they were.
    """
    if generator is None:
        yield
        return
    cards = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    with torch.random.fork_rng(devices=cards):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


class TransformersGreedy:
    """``model.generate(...)`` on one prompt at a time, timed step by step.

    Args:
        model: any causal language model of transformers.
        sampling: greedy by default.
        end_token_ids: tokens that end a text.
        attention: transformers' back end; flash_attention_2 where the package flash-attn is installed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: Sampling = GREEDY,
        end_token_ids: Sequence[int] = (),
        attention: str = "sdpa",
    ) -> None:
        self.model, self.sampling, self.end_token_ids = model, sampling, frozenset(end_token_ids)
        if attention != "sdpa":  # what it is loaded with
            model.set_attn_implementation(attention)
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            eos_token_id=list(self.end_token_ids) or None, pad_token_id=min(self.end_token_ids, default=0)
        )
        self._rows: list[int] = []
        self.model.register_forward_pre_hook(self._count_rows, with_kwargs=True)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        device_map: str | None = None,
        sampling: Sampling = GREEDY,
        **options: Any,
    ) -> Self:
        """Load a local folder with safetensors weights; ``options`` go to the constructor."""
        model = load_model(folder, dtype, device, device_map)
        return cls(model, sampling, end_tokens(Path(folder), model.config), **options)

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``generate`` is called with, beyond the prompt and the limits."""
        if self.sampling.is_greedy:
            return {"do_sample": False}
        sampling = self.sampling
        return {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: StopStrings = NO_STRINGS,
        generator: torch.Generator | None = None,
    ) -> Generation:
        """Generate until an end token, a stop string or the limit, as :meth:`SpeculativeDecoder.generate` does."""
        clock = _StepClock(len(prompt_ids), Ending(max_new_tokens, self.end_token_ids, stop))
        self._rows = []
        started = time.perf_counter()
        inputs = torch.tensor([prompt_ids], device=self.model.device)
        with drawing_from(generator, inputs.device):
            output: Tensor = self.model.generate(  # type: ignore[operator]
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=max_new_tokens,
                stopping_criteria=StoppingCriteriaList([clock]),
                **self.arguments,
            )
        output_ids = output[0, len(prompt_ids) :].tolist()[: clock.cut.kept]
        prefill, *steps = self._steps(clock, started, len(prompt_ids))
        return Generation(
            tuple(output_ids),
            len(prompt_ids),
            truncated=not clock.cut.ended,
            ttft_s=prefill.total_s,
            steps=tuple(steps),
            prefill_accepted=prefill.accepted,
            prefill_candidates=prefill.candidates,
            prefill_draft_forwards=prefill.draft_forwards,
        )

    def _count_rows(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        self._rows.append(int(kwargs["input_ids"].shape[1]))

    def _steps(self, clock: _StepClock, started: float, prompt_length: int) -> list[Step]:
        """One step for each question, prefill the first; the rows of its forward pass tell how much was verified."""
        rows = [self._rows[0] - prompt_length + 1, *self._rows[1:]]
        times = [started, *clock.times]
        steps = []
        for i in range(len(clock.times)):
            emitted = clock.kept[i + 1] - clock.kept[i]
            steps.append(
                Step(
                    emitted=emitted,
                    accepted=min(clock.grown[i + 1] - clock.grown[i] - 1, emitted),
                    candidates=rows[i] - 1,
                    draft_forwards=0,
                    draft_s=0.0,
                    total_s=times[i + 1] - times[i],
                )
            )
        return steps


class TransformersPromptLookup(TransformersGreedy):
    """``model.generate(prompt_lookup_num_tokens=...)``: transformers' own prompt lookup.

    Args:
        prompt_lookup_num_tokens: most draft tokens a step.
        max_matching_ngram_size: longest n-gram that is looked up.
        attention: see :class:`TransformersGreedy`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: Sampling = GREEDY,
        end_token_ids: Sequence[int] = (),
        prompt_lookup_num_tokens: int = 10,
        max_matching_ngram_size: int = 2,
        attention: str = "sdpa",
    ) -> None:
        super().__init__(model, sampling, end_token_ids, attention)
        self.prompt_lookup_num_tokens = prompt_lookup_num_tokens
        self.max_matching_ngram_size = max_matching_ngram_size

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``generate`` is called with, beyond the prompt and the limits."""
        return super().arguments | {
            "prompt_lookup_num_tokens": self.prompt_lookup_num_tokens,
            "max_matching_ngram_size": self.max_matching_ngram_size,
        }
