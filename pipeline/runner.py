"""A model folder and the methods that run on it, outside of any cell: for the command line and for lm-eval.

Cells are for figures: they time a method against the baseline, in a process of their own. Here a text is wanted, or a
log-likelihood, and every mistake on the way is one line.

Example::

    runner = Runner(Path("results/models/smollm2-135m"), dtype="bfloat16")
    decoder = runner.method("prompt_lookup", {"max_ngram": 3}, parts={}, sampling=Sampling())
    decoder.generate(runner.encode("Hello"), max_new_tokens=64, stop=runner.stop([]), generator=None)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.utils import logging as transformers_logging

from decoding import CandidateTree, Generation, Sampling, StopStrings, TargetModel
from decoding.requests import ReusedCache
from pipeline.cell import choose_device
from pipeline.errors import UserError, nearest
from pipeline.generate import DTYPES
from pipeline.machine import available_cores
from pipeline.methods import Generates, build_decoder, build_generator, build_peer
from pipeline.parts import error_of
from pipeline.precision import precision_of
from pipeline.prepare import encode, load_tokenizer
from pipeline.registry import METHODS, find

DEVICES = ("auto", "cpu", "cuda")
BLOCK = 256  # rows that are read at once where the logits of all are wanted


class Runner:
    """A model folder, with its weights loaded when they are first needed.

    Args:
        model_dir: a folder in the Hugging Face layout.
        dtype: of ``pipeline.generate.DTYPES``, or ``auto``: what the checkpoint says of itself.
        device: auto, cpu or cuda, a number behind it: cuda:1.
        num_threads: 0 for all cores.
        decode_width: rows that a decode forward is padded to; None: as is the default on the device.

    Raises:
        UserError: one of them is not valid.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        num_threads: int = 0,
        decode_width: int | None = None,
    ) -> None:
        self.model_dir, self.decode_width = model_dir, decode_width
        self.tokenizer, self.config = load_tokenizer(model_dir)
        if dtype == "auto":
            dtype = str(getattr(self.config, "dtype", None) or "float32").removeprefix("torch.")
        if dtype not in DTYPES:
            raise UserError(f"dtype: unknown {dtype!r}; {nearest(dtype, DTYPES)}")
        if num_threads < 0:
            raise UserError(f"num_threads: must be 0 (all cores) or more, not {num_threads}")
        self.dtype, self.precision = dtype, precision_of(dtype)
        self.device = device_named(device)
        torch.set_num_threads(num_threads or available_cores())
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    @cached_property
    def target(self) -> TargetModel:
        """The model on our engine."""
        try:
            return TargetModel.from_pretrained(
                self.model_dir,
                dtype=self.precision.arithmetic,
                device=self.device,
                weights=self.precision.weights,
                decode_width=self.decode_width or "default",
            )
        except ValueError as error:
            raise UserError(f"{self.model_dir}: {error}") from error
        except FileNotFoundError as error:
            raise UserError(str(error)) from error

    def method(self, name: str, options: Mapping[str, Any], parts: Mapping[str, Path], sampling: Sampling) -> Generates:
        """Return what generates by the method ``name``: a drafter on our engine, a peer or a parallel generator.

        Raises:
            UserError: an option or a part does not fit, or the part could not be made.
        """
        for folder in parts.values():
            if reason := error_of(folder):
                raise UserError(reason)
        where: dict[str, Any] = {"precision": self.precision, "device": self.device, "sampling": sampling}
        entry = find(name, METHODS, "method")
        try:
            if entry.kind == "drafter":
                return build_decoder(name, options, self.target, parts, sampling)
            if entry.kind == "peer":
                return build_peer(name, options, self.model_dir, parts, **where)
            return build_generator(name, options, parts, **where, twin=self.target if entry.twin_chooses else None)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error

    def encode(self, prompt: str, chat: bool = False) -> list[int]:
        """Return the ids of a prompt, as a user's message where ``chat``; tokenised as the cells' prompts are.

        Raises:
            UserError: the prompt is empty, or there is no chat template, or it fails.
        """
        if not prompt:
            raise UserError("prompt: is empty")
        return encode(self.tokenizer, self._as_message(prompt) if chat else prompt)

    def _as_message(self, prompt: str) -> str:
        from jinja2.exceptions import TemplateError

        if not self.tokenizer.chat_template:
            raise UserError(f"chat: the tokenizer in {self.model_dir} has no chat template; use --no-chat")
        message = [{"role": "user", "content": prompt}]
        try:
            return str(self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise UserError(f"chat: the chat template in {self.model_dir} fails: {error}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special tokens and all, as stop strings are looked for in it."""
        return str(self.tokenizer.decode(list(ids)))

    def stop(self, strings: Sequence[str]) -> StopStrings:
        """Return what finds the end of a text by stop strings."""
        return StopStrings(self.decode, strings)

    def logits(self, ids: Sequence[int]) -> Float[Tensor, "l v"]:
        """Return the target's logits after every token of ``ids``.

        Read as one candidate chain, a block at a time: the rows of the widest mask are then few, however long the text.
        """
        cache = self._cache.empty(len(ids), BLOCK)
        found = []
        for start in range(0, len(ids), BLOCK):
            block = ids[start : start + BLOCK]
            found.append(self.target.read(cache, CandidateTree.chain(block[0], block[1:])).logits)
            cache.keep(range(len(block)))
        return torch.cat(found)

    @cached_property
    def _cache(self) -> ReusedCache:
        return ReusedCache(self.target)


def counted(method: str, runs: Sequence[Generation]) -> tuple[int, float]:
    """Return the steps of generations and the tokens per step, as the benchmark's table counts them.

    Prefill and the token that it gives are no step; but of a parallel generator every pass is one, since none only
    reads the prompt. Without a step, 0.
    """
    if find(method, METHODS, "method").kind == "generator":
        steps, tokens = sum(run.target_forwards for run in runs), sum(run.num_new_tokens for run in runs)
    else:
        steps = sum(len(run.steps) for run in runs)
        tokens = sum(step.emitted for run in runs for step in run.steps)
    return steps, tokens / steps if steps else 0.0


def device_named(name: str) -> torch.device:
    """Return the device called ``name``.

    Raises:
        UserError: there is no such device, or none here.
    """
    kind, _, number = name.partition(":")
    if kind not in DEVICES or not (name == kind or (kind == "cuda" and number.isdecimal())):
        raise UserError(f"device: unknown {name!r}; {nearest(kind, DEVICES)}")
    try:
        choose_device(kind)
    except ValueError as error:
        raise UserError(str(error)) from error
    if number and int(number) >= (cards := torch.cuda.device_count()):
        raise UserError(f"device: {name!r} is not here; did you mean 'cuda:{cards - 1}'?")
    return choose_device(name)
