"""What a text is generated from and how: the prompt, its limits and its sampling, as a command line gives them.

Example::

    request = Request(max_new_tokens=64, chat=True)
    request.generate(runner, decoder, "Why is the sky blue?")
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from decoding import Generation, Sampling, SpeculativeDecoder
from decoding.decoder import OnStep
from pipeline.errors import UserError
from pipeline.methods import Generates
from pipeline.runner import Runner


@dataclass(frozen=True)
class Request:
    """How a text is generated.

    Attributes:
        max_new_tokens: the limit.
        sampling: greedy by default.
        seed: of the draws.
        stop: strings that end the text.
        chat: put the prompt as a user's message; None: where the tokenizer has a chat template.
    """

    max_new_tokens: int
    sampling: Sampling = Sampling()
    seed: int = 0
    stop: tuple[str, ...] = ()
    chat: bool | None = None

    def encode(self, runner: Runner, prompt: str) -> list[int]:
        """Return the prompt's ids.

        Raises:
            UserError: the prompt is empty or, with the limit, longer than the model can read.
        """
        ids = runner.encode(prompt, bool(runner.tokenizer.chat_template) if self.chat is None else self.chat)
        most = int(runner.config.max_position_embeddings)
        if len(ids) + self.max_new_tokens > most:
            told = f"prompt: has {len(ids)} tokens; with max-new-tokens {self.max_new_tokens}"
            raise UserError(f"{told} that is more than the {most} that the model can read")
        return ids

    def generate(
        self,
        runner: Runner,
        generates: Generates,
        ids: Sequence[int],
        *,
        limit: int | None = None,
        on_step: OnStep | None = None,
    ) -> Generation:
        """Generate from ``ids``, at most ``limit`` tokens; the same draws each time."""
        more: dict[str, Any] = {"on_step": on_step} if isinstance(generates, SpeculativeDecoder) else {}
        try:
            return generates.generate(
                ids,
                max_new_tokens=self.max_new_tokens if limit is None else min(limit, self.max_new_tokens),
                stop=runner.stop(self.stop),
                generator=torch.Generator().manual_seed(self.seed),
                **more,
            )
        except ValueError as error:
            raise UserError(str(error)) from error


def request_of(*, temperature: float, top_k: int, top_p: float, **others: Any) -> Request:
    """Return the request.

    Raises:
        UserError: a value is out of range.
    """
    try:
        return Request(sampling=Sampling(temperature, top_k, top_p), **others)
    except ValueError as error:
        raise UserError(str(error)) from error


def read_prompts(prompt: str | None, file: Path | None) -> list[str]:
    """Return the prompt; that of standard input for ``-``; or those of a file.

    A ``.jsonl`` file has a prompt a line, under ``prompt``, as what ``pipeline.prepare`` writes has; any other is one.

    Raises:
        UserError: neither or both are given, or the file holds no prompts.
    """
    if (prompt is None) == (file is None):
        both = "" if prompt is None else ", not both"
        raise UserError(f"prompt: give a text, - for standard input, or --file{both}")
    if file is None:
        return [sys.stdin.read() if prompt == "-" else str(prompt)]
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix != ".jsonl":
            return [text]
        prompts = [json.loads(line)["prompt"] for line in text.split("\n") if line]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"file: {file} is no text, or a line has no 'prompt': {reason}") from error
    if not prompts:
        raise UserError(f"file: {file} holds no prompts")
    return [str(each) for each in prompts]
