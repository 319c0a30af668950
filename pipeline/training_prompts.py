r"""Rule: prompts for training text, in the evaluated tasks' own form but outside every evaluated set; no network.

A draft model is to agree with the target on the texts that are timed, so its training text answers prompts of the same
form: chat template, few-shot examples and instructions come through the same task YAMLs and ``pipeline.prepare``. Only
the material in the form is ours: verbalised pairs of the train split, functions and prose of installed packages, and
what the target itself writes when the form is broken off where its material would begin (Magpie: Xu et al. 2024): an
article, a sentence, a word problem, a function's signature and docstring. GSM-Symbolic with another seed would not do:
its templates are the evaluated problems of GSM8K.

Material that shares 13 words in a row with a document of an embedded task (Brown et al. 2020, appendix C; here all
numbers count as the same word), or that is the whole of a shorter one, is dropped and counted. The tasks that a profile
reads from files are held against the prompts by ``pipeline.training_overlap``. By hand::

    python -m pipeline.training_prompts --model results/models/smollm2-135m --num-tokens 100000 --max-new-tokens 192 \
        --seed 0 --output results/parts/smollm2-135m/default/prompts.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.dataset import from_embedded
from pipeline.errors import command, written_down
from pipeline.files import atomic_write
from pipeline.prepare import load_tokenizer
from pipeline.registry import TASKS
from pipeline.tasks.source import to_jsonl
from pipeline.training_device import add_device, claim_device
from pipeline.training_forms import ORIGINS, Forms, Origin, written_material
from pipeline.training_sources import code_documents, docstring_documents, prose_documents

NGRAM = 13


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, every number as 0: a problem with other numbers is still the same."""
    return ["0" if word[0].isdigit() else word for word in re.findall(r"\w+", text.lower())]


def ngrams(text: str) -> set[tuple[str, ...]]:
    """Return all runs of ``NGRAM`` words, or the whole of a shorter text."""
    found = words(text)
    return {tuple(found[i : i + NGRAM]) for i in range(max(1, len(found) - NGRAM + 1))} if found else set()


def ngrams_of(documents: Iterable[Mapping[str, Any]]) -> set[tuple[str, ...]]:
    """Return the n-grams of every text of every document."""
    return {ngram for document in documents for text in document.values() for ngram in ngrams(str(text))}


def embedded_ngrams() -> set[tuple[str, ...]]:
    """Return the n-grams of the documents of every task that needs no file and no hub."""
    embedded = [task for task, entry in TASKS.items() if "embedded" in entry.origins]
    return set().union(*(ngrams_of(from_embedded(task)[0]) for task in embedded))


def overlaps(material: str, evaluated: Collection[tuple[str, ...]]) -> bool:
    """Whether ``material`` shares a run of words with an evaluated document."""
    return any(ngram in evaluated for ngram in ngrams(material))


def found_material(task: str, count: int, seed: int) -> list[str]:
    """Return more than enough material for ``count`` prompts of a task, in a shuffled order."""
    from pipeline.tasks import verbalized

    rng = random.Random(f"{seed} {task}")
    if task == "verbalized":
        material = [document["source"] for document in verbalized.documents("train", count, rng.randrange(2**31))]
    else:
        find = {"docstrings": docstring_documents, "humaneval": code_documents, "cnn_dailymail": prose_documents}[task]
        material = find(2 * count)
    rng.shuffle(material)
    return material


def counted(origin: Origin, num_tokens: int) -> int:
    """Return how many prompts of an origin are needed, some of them to spare."""
    return max(2, round(1.15 * num_tokens * origin.share / origin.answer_tokens))


def training_prompts(
    model_dir: Path,
    evaluated: Collection[tuple[str, ...]],
    num_tokens: int,
    max_new_tokens: int,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the prompts of all origins, and how many of each there are and were dropped."""
    tokenizer, config = load_tokenizer(model_dir)
    forms = Forms(tokenizer, config, max_new_tokens)
    rows, counts = [], {}
    number = {origin: counted(origin, num_tokens) for origin in ORIGINS if forms.has_chat or origin.task != "chat"}
    to_write = {origin: wanted for origin, wanted in number.items() if origin.written_tokens}
    written = written_material(forms, model_dir, to_write, seed)
    for origin, wanted in number.items():
        material = written[origin] if origin in written else found_material(origin.task, wanted, seed)
        clean = [text for text in material if not overlaps(text, evaluated)]
        name = origin.name
        counts[name] = {"prompts": len(clean[:wanted]), "dropped": len(material) - len(clean)}
        print(f"training_prompts: {name}: {counts[name]}", flush=True)
        for text, request in zip(clean, forms.of_task(origin, clean[:wanted]) if clean else [], strict=False):
            row = {key: request[key] for key in ("prompt", "prompt_ids", "until", "max_new_tokens")}
            rows.append({"source": name, "material": text, **row})
    return rows, counts


@command
def main() -> None:
    """Write the prompts, and beside them how many there are."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.training_prompts", description="Write training prompts.")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--num-tokens", type=int, required=True, help="output tokens that the prompts suffice for")
    parser.add_argument("--max-new-tokens", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--errors-as-rows", action="store_true", help='where there is nothing to write, write {"error": reason} instead'
    )
    given = parser.parse_args()

    def write(rows: list[dict[str, Any]], record: dict[str, Any]) -> None:
        atomic_write(given.output.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
        atomic_write(given.output, to_jsonl(rows))

    with written_down(given.errors_as_rows, lambda reason: write([{"error": reason}], {"error": reason})):
        claim_device(given.device)
        rows, counts = training_prompts(
            given.model,
            embedded_ngrams(),
            num_tokens=given.num_tokens,
            max_new_tokens=given.max_new_tokens,
            seed=given.seed,
        )
        write(rows, {"seed": given.seed, "sources": counts})


if __name__ == "__main__":
    main()
