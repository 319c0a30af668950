r"""The forms of training prompts, one origin after the other, and what the target itself writes into them.

A form is a task's prompt, with everything that ``pipeline.prepare`` puts around a document. Broken off where the
document would begin, and sampled from, it makes the target invent one (Magpie: Xu et al. 2024)::

    forms = Forms(tokenizer, config, max_new_tokens=192)
    german = ORIGINS[5]
    texts = written_material(forms, model_dir, {german: 100}, seed=0)[german]
    requests = forms.of_task(german, texts)
"""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from decoding.stopping import Ending, StopStrings
from pipeline.batching import Draw, Job, answer, shared_model
from pipeline.prepare import _render_chat, build_requests, encode
from pipeline.tasks.loading import load_task
from pipeline.tasks.source import Document, to_jsonl

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Stands where a task's material stands, to find out what the form has before and after it.
MARK = "MATERIAL"
# How the target writes material: at temperature 1 a model of this size loses the thread within a sentence.
WRITING = Draw(temperature=0.8, top_p=0.95)
# What the target writes is material if it has this many words.
MIN_WORDS = 4
# Not all that is written is usable, or new: the rest is asked for again, so often and so many at least.
MOST_ROUNDS, FEWEST_ASKED = 6, 8


@dataclass(frozen=True)
class Origin:
    """How much of a task's training text comes from one origin.

    Attributes:
        share: part of all output tokens.
        answer_tokens: how many SmolLM2-135M-Instruct's answers have on the mean, to know how many prompts are needed.
        key: the document's key that the material is under.
        written_tokens: 0 if the material is found; else the target writes it, with at most this many tokens.
        stops: where what the target writes is cut.
    """

    task: str
    share: float
    answer_tokens: int
    key: str
    written_tokens: int = 0
    stops: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the text calls its source: the task, and who wrote the material where a task has both."""
        both = self.task in ("humaneval", "cnn_dailymail")
        return f"{self.task}_written" if both and self.written_tokens else self.task


ORIGINS = (
    Origin("humaneval", 0.12, 116, "prompt"),
    Origin("humaneval", 0.16, 45, "prompt", written_tokens=64, stops=('"""',)),
    Origin("gsm8k", 0.21, 53, "question", written_tokens=90, stops=("\nAnswer", "\n")),
    Origin("cnn_dailymail", 0.09, 70, "article"),
    Origin("cnn_dailymail", 0.09, 70, "article", written_tokens=160, stops=("\n\nSumm",)),
    Origin("wmt14", 0.13, 14, "source", written_tokens=48, stops=("\n",)),
    Origin("multi30k", 0.02, 20, "source", written_tokens=32, stops=("\n",)),
    Origin("docstrings", 0.04, 17, "body"),
    Origin("verbalized", 0.04, 25, "source"),
    Origin("chat", 0.10, 132, "", written_tokens=128),
)
# What a document needs beside its material to be one of the task: read by nothing that makes a prompt.
OTHER_KEYS = ("target", "summary", "highlights", "answer", "task_id", "entry_point", "canonical_solution", "test")
# First words of the material that the target goes on with, so that no two prompts are alike for want of temperature.
BEGINNINGS: Mapping[str, tuple[str, ...]] = {
    "gsm8k": ("", "A farmer", "Anna", "Ben has", "There are", "A store sells", "Each", "If", "Maria", "A train", "In"),
    "cnn_dailymail": ("", "(CNN) --", "A man", "The president", "Police in", "Scientists", "The company", "By ."),
    "wmt14": ("", "Der", "Die", "Das", "Ein", "Nach", "Im", "In", "Wir", "Es", "Am", "Sie", "Für", "Mit", "Auch"),
    "multi30k": ("", "A man", "Two", "A woman", "People", "A group of", "A young", "Three", "The", "A dog", "A little"),
    "chat": ("", "", "Summarize:", "Translate German to English:", "Question:", "Write a Python function", "Explain"),
}
VERBS = ("count", "find", "get", "is", "remove", "sort", "sum", "check", "make", "split", "max", "filter", "has")
NOUNS = ("words", "numbers", "digits", "vowels", "pairs", "elements", "prefix", "primes", "list", "string", "even")
ARGUMENTS = ("numbers: List[int]", "text: str", "n: int", "s", "lst", "words: List[str]", "a, b", "x: float, y: float")
RESULTS = ("", " -> int", " -> bool", " -> str", " -> List[int]")


class Forms:
    """Puts material into the tasks' forms for one model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, max_new_tokens: int) -> None:
        self.tokenizer, self.config, self.max_new_tokens = tokenizer, config, max_new_tokens
        self.has_chat = bool(tokenizer.chat_template)

    def of_task(self, origin: Origin, material: Sequence[str]) -> list[dict[str, Any]]:
        """Return a request for each of ``material``, as ``pipeline.prepare`` makes them of evaluated documents."""
        if origin.task == "chat":
            return [self.of_chat(text) for text in material]
        documents: list[Document] = [dict.fromkeys(OTHER_KEYS, "") | {origin.key: text} for text in material]
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder, "data.jsonl")
            data.write_text(to_jsonl(documents), encoding="utf-8")
            task = load_task(origin.task, data)
            own_limit = int(task.config.generation_kwargs["max_gen_toks"])
            return build_requests(
                task,
                self.tokenizer,
                self.config,
                num_prompts=len(documents),
                max_new_tokens=min(own_limit, self.max_new_tokens),
                chat_template=self.has_chat and origin.task != "humaneval",
                model="",
            )

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids."""
        return str(self.tokenizer.decode(ids))

    def ending(self, origin: Origin) -> Ending:
        """Return what ends material that the target writes."""
        end = self.tokenizer.eos_token_id
        return Ending(origin.written_tokens, () if end is None else (end,), StopStrings(self.decode, origin.stops))

    def of_chat(self, text: str) -> dict[str, Any]:
        """Return a request with ``text`` as the user's message."""
        prompt = _render_chat(self.tokenizer, [{"role": "user", "content": text}])
        limits = {"until": [self.tokenizer.eos_token], "max_new_tokens": self.max_new_tokens}
        return {"prompt": prompt, "prompt_ids": encode(self.tokenizer, prompt), **limits}

    def beginnings(self, origin: Origin, count: int, rng: random.Random) -> list[tuple[str, str]]:
        """Return ``count`` pairs: a prompt broken off in its material, and the part of it that is material already."""
        if origin.task == "humaneval":
            starts = [code_beginning(rng) for _ in range(count)]
            return [(start, start) for start in starts]
        (request,) = self.of_task(origin, [MARK])
        before = request["prompt"].rpartition(MARK)[0]
        # A space before a word belongs to the word, so it is not left at the end of the prompt.
        starts = [rng.choice(BEGINNINGS[origin.task]) for _ in range(count)]
        return [(before + start if start else before.removesuffix(" "), start) for start in starts]


def code_beginning(rng: random.Random) -> str:
    """Return a signature in HumanEval's form, up to where its docstring begins."""
    name = f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
    imports = rng.choice(("from typing import List\n\n\n", "", "\n"))
    return f'{imports}def {name}({rng.choice(ARGUMENTS)}){rng.choice(RESULTS)}:\n    """'


def cut_written(origin: Origin, text: str, end: str) -> str | None:
    """Return the material in what the target wrote, its beginning included; None if it is none."""
    if origin.task == "humaneval":
        found = re.match(r'.*?"""(?:(?!""").){25,400}"""', text, re.DOTALL)
        return found[0] if found and end not in found[0] else None
    for stop in (*origin.stops, end):
        text = text.partition(stop)[0] if stop else text
    text = text.strip()
    return text if len(text.split()) >= MIN_WORDS else None


def written_material(forms: Forms, model_dir: Path, wanted: Mapping[Origin, int], seed: int) -> dict[Origin, list[str]]:
    """Let the target write material for as many prompts of each form as are ``wanted``, or as much of it as is usable.

    All forms at once, so that there is one end at which only the longest texts are left to be written, not one a form.
    """
    tokenizer, end = forms.tokenizer, str(forms.tokenizer.eos_token or "\0")
    rngs = {origin: random.Random(f"{seed} {origin.task} written") for origin in wanted}
    found: dict[Origin, dict[str, None]] = {origin: {} for origin in wanted}
    for _ in range(MOST_ROUNDS):
        asked = [
            (origin, *beginning)
            for origin, texts in found.items()
            if (missing := wanted[origin] - len(texts)) > 0
            for beginning in forms.beginnings(origin, max(FEWEST_ASKED, missing), rngs[origin])
        ]
        if not asked:
            break
        jobs = [
            Job(tuple(encode(tokenizer, prompt)), forms.ending(origin), drawing(rngs[origin]))
            for origin, prompt, _ in asked
        ]
        written = answer(shared_model(model_dir), jobs, WRITING)
        for (origin, _, start), tokens in zip(asked, written, strict=True):
            if text := cut_written(origin, start + forms.decode(tokens.ids), end):
                found[origin].setdefault(text)
    return {origin: list(texts) for origin, texts in found.items()}


def drawing(rng: random.Random) -> torch.Generator:
    """Return what draws one text's tokens."""
    return torch.Generator().manual_seed(rng.randrange(2**31))
