"""Every method as a model of lm-evaluation-harness, so that any of its tasks runs on any of them.

lm-eval 0.4.13 finds models in its own table and in what was registered before it looks; it reads no entry points. So
its command line is started by ours, which registers ``shufflebench`` first and passes all arguments on::

    python -m pipeline lm-eval --model shufflebench --tasks gsm8k --apply_chat_template \
        --model_args pretrained=results/models/smollm2-135m,method=prompt_lookup,max_ngram=3,dtype=bfloat16

In Python, importing this module is enough: ``lm_eval.simple_evaluate(model="shufflebench", model_args={...})``.

``model_args`` are ``pretrained`` (a folder), ``method``, the method's options by name, its trained parts
(``draft=FOLDER``, ``heads=FOLDER``, ``mixer=FOLDER``), ``dtype``, ``device``, ``num_threads``, and those of lm-eval's
``hf`` model that do not concern its way to load weights: ``INHERITED``.

The model *is* lm-eval's ``hf`` with its two forward passes replaced. Prompts, left truncation, chat templates, stop
strings and windows are thus its own code, and so is what sampling means where a task is silent (top-k 50, which
transformers takes where a checkpoint's generation config says nothing). Log-likelihoods are the target model's, which
no drafter changes. A checkpoint's repetition penalty is the one thing that ``hf`` applies and this does not; a warning
says so. After each run the speed is logged; it is also in ``config`` of lm-eval's results.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig

from decoding import Generation, Sampling
from pipeline.config_options import checked_methods
from pipeline.errors import UserError, nearest
from pipeline.methods import Generates, unlearned
from pipeline.parts import checked_parts
from pipeline.registry import METHODS, find
from pipeline.runner import Runner, counted

# Below lm-eval's own logger, so that what is said here is seen.
logger = logging.getLogger("lm_eval.models.shufflebench")

INHERITED = (
    *("tokenizer", "use_fast_tokenizer", "add_bos_token", "prefix_token_id", "truncation", "max_length"),
    *("softmax_dtype", "logits_cache", "chat_template_args", "enable_thinking", "think_end_token"),
)
OWN = ("pretrained", "method", "dtype", "device", "num_threads", "batch_size")
# What a task may say of how to generate that changes nothing here.
NEUTRAL: Mapping[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "use_cache": True}
SAMPLED = ("do_sample", "temperature", "top_k", "top_p")
TRANSFORMERS_TOP_K = 50


class _Loaded:
    """All that lm-eval's ``hf`` looks at in a model: its configuration."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config

    def to(self, device: torch.device) -> _Loaded:
        return self


@register_model("shufflebench")
class ShuffleBenchLM(HFLM):  # type: ignore[misc]
    """A method of the registry on a model folder, one text at a time.

    Raises:
        UserError: an argument is unknown or not valid.
    """

    def __init__(
        self,
        pretrained: str | Path | None = None,
        method: str = "autoregressive",
        dtype: str = "auto",
        device: str = "auto",
        num_threads: int = 0,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        trust_remote_code: bool = False,
        **more: Any,
    ) -> None:
        inherited, self.parts, self.options = sort_out(method, more)
        if pretrained is None:
            raise UserError("model_args: needs pretrained=FOLDER")
        self.method, self.generations = method, list[Generation]()
        self._generates: dict[Sampling, Generates] = {}
        if str(batch_size) != "1":
            logger.warning("batch_size %s: every method here generates one text at a time; taken as 1", batch_size)
        if trust_remote_code:
            logger.warning("trust_remote_code concerns the data sets alone; models run without code of their own")
        if device.startswith("cuda") and not torch.cuda.is_available():
            # lm-eval's command line asks for cuda:0 where nobody asked for anything.
            logger.info("device %s: torch finds no GPU; this runs on the CPU", device)
            device = "cpu"
        self.runner = Runner(Path(pretrained), dtype=dtype, device=device, num_threads=num_threads)
        super().__init__(str(pretrained), backend="causal", device=str(self.runner.device), batch_size=1, **inherited)

    def _create_model(self, pretrained: str, **kwargs: Any) -> None:
        """Load the method where lm-eval loads a model of transformers."""
        self._model = _Loaded(self.runner.config)
        self._defaults = generation_config(Path(pretrained))
        penalty = self._defaults.repetition_penalty
        if penalty not in (None, 1.0):
            logger.warning("the checkpoint asks for repetition_penalty %s, which is not applied here", penalty)
        self._built(Sampling())

    def _built(self, sampling: Sampling) -> Generates:
        """Return the method for one way to sample; a drafter that draws its tokens is made for one alone."""
        if sampling not in self._generates:
            self._generates[sampling] = self.runner.method(self.method, self.options, self.parts, sampling)
        return self._generates[sampling]

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return the target's logits ``[B, L, V]``."""
        if METHODS[self.method].kind == "generator":
            raise NotImplementedError(
                f"loglikelihood: {self.method!r} writes tokens in parallel, in no fixed order; it gives a text no "
                "likelihood of its own that could be compared; use method=autoregressive"
            )
        return torch.stack([self.runner.logits(row.tolist()) for row in inps])

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        """Return prompt and output ``[1, L]``; lm-eval cuts and decodes them."""
        sampling = sampling_of(kwargs, self._defaults)
        (prompt_ids,) = context.tolist()
        limit = max_length - len(prompt_ids)
        # One draw from the generator that lm-eval seeds for each text: its --seed decides, and repeats differ.
        seed = int(torch.randint(2**31, ()))
        generates = self._built(sampling)
        if not self.generations:
            with unlearned(generates):  # what happens once a process is not to be timed
                self._run(generates, prompt_ids, min(2, limit), stop, seed)
        generation = self._run(generates, prompt_ids, limit, stop, seed)
        self.generations.append(generation)
        return torch.tensor([[*prompt_ids, *generation.output_ids]])

    def _run(
        self, generates: Generates, prompt_ids: list[int], limit: int, stop: Sequence[str], seed: int
    ) -> Generation:
        generator = torch.Generator().manual_seed(seed)
        try:
            return generates.generate(
                prompt_ids, max_new_tokens=limit, stop=self.runner.stop(stop), generator=generator
            )
        except ValueError as error:
            raise UserError(f"{self.method}: {error}") from error

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate the requests' texts, then log how fast that was."""
        texts: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        if self.generations:
            speed = "{num_new_tokens} tokens in {num_steps} steps: {tokens_per_step:.2f} tokens/step, "
            speed += "{tokens_per_second:.1f} tokens/s"
            logger.info("%s", f"{self.method}: " + speed.format(**self.speed()))
        return texts

    def speed(self) -> dict[str, float]:
        """Return how fast all texts so far were generated, prefill included in tokens/s and no step of it."""
        runs = self.generations
        num_steps, tokens_per_step = counted(self.method, runs)
        tokens, seconds = sum(run.num_new_tokens for run in runs), sum(run.total_s for run in runs)
        return {
            "num_new_tokens": tokens,
            "num_steps": num_steps,
            "tokens_per_second": tokens / seconds if seconds else 0.0,
            "tokens_per_step": tokens_per_step,
        }

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes beside its results: what ran, and how fast."""
        about = {"method": self.method, "method_options": self.options, "model_dtype": self.runner.dtype}
        parts = {name: str(folder) for name, folder in self.parts.items()}
        return about | {"method_parts": parts, **(self.speed() if self.generations else {})}


def sort_out(method: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Path], dict[str, Any]]:
    """Return which of the further ``model_args`` are lm-eval's, which the method's trained parts, which its options.

    Raises:
        UserError: one is none of them, a value is not valid, or a part is missing.
    """
    entry = find(method, METHODS, "method")
    options = {name: value for name, value in given.items() if name in entry.all_options}
    checked = checked_methods({method: options}, "model_args: ")[method]
    own_parts = {*entry.parts, *entry.parts_with(checked)}
    for name, value in given.items():
        if name not in {*INHERITED, *own_parts, *entry.all_options}:
            known = nearest(name, {*OWN, *INHERITED, *own_parts, *entry.all_options})
            raise UserError(f"model_args: {name} = {value!r}: {method} has no such option; {known}")
    for part in entry.parts_with(checked):
        if part not in given:
            raise UserError(f"model_args: method {method!r} needs {part}=FOLDER")
    parts = checked_parts(method, checked, [(part, Path(str(given[part]))) for part in own_parts if part in given])
    return {name: value for name, value in given.items() if name in INHERITED}, parts, checked


def generation_config(folder: Path) -> GenerationConfig:
    """Return what the checkpoint says of how to generate; nothing, if it says nothing."""
    if not (folder / "generation_config.json").is_file():
        return GenerationConfig()  # type: ignore[no-untyped-call]
    return GenerationConfig.from_pretrained(folder, local_files_only=True)


def sampling_of(asked: Mapping[str, Any], defaults: GenerationConfig) -> Sampling:
    """Return how tokens are drawn where lm-eval asks transformers' ``generate`` for ``asked``.

    Raises:
        UserError: something is asked for that is not known here, or a value is out of range.
    """
    for name, value in asked.items():
        if name not in {*SAMPLED, "attention_mask"} and NEUTRAL.get(name) != value:
            known = nearest(name, {*SAMPLED, "max_gen_toks", "until"})
            raise UserError(f"gen_kwargs: {name} = {value!r}: no method here does that; {known}")
    temperature = float(asked.get("temperature") or 0.0)
    if not asked.get("do_sample") or not temperature:
        return Sampling()
    top_k, top_p = (asked.get(name, getattr(defaults, name)) for name in ("top_k", "top_p"))
    try:
        return Sampling(temperature, TRANSFORMERS_TOP_K if top_k is None else top_k, 1.0 if top_p is None else top_p)
    except ValueError as error:
        raise UserError(f"gen_kwargs: {error}") from error


def run_command(arguments: Sequence[str]) -> None:
    """Run lm-eval's own command line, which knows ``shufflebench`` now that this module is imported.

    Raises:
        UserError: there is no such task; what else is wrong with its own arguments it tells in its own way.
    """
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", *arguments]  # where it looks for them
    try:
        cli_evaluate()
    except ValueError as error:
        if not str(error).startswith("Tasks not found"):
            raise
        raise UserError(f"{error}; see: python -m pipeline lm-eval ls tasks, or give --include_path") from None
