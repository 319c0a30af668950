r"""Rule: the target answers the training prompts; its answers are what a draft model and Medusa heads are trained on.

A draft is only as good as its agreement with what the target would say at evaluation, so the text is the target's own
(sequence-level distillation: Kim and Rush 2016; for drafting: Zhou et al. 2024), decoded as evaluation decodes, so
greedily by default. Prompts are answered in batches of one source and like length until there are ``num_tokens``.
Each answer is appended to a journal as it ends, so that a killed run goes on from there, and a longer one after a
shorter one. A prompt whose hash says so (5 %) is for validation. By hand::

    python -m pipeline.selfgen --model results/models/smollm2-135m \
        --prompts results/parts/smollm2-135m/default/prompts.jsonl --num-tokens 200000 --seed 0 \
        --output results/parts/smollm2-135m/default/text.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, command, written_down
from pipeline.files import atomic_path, atomic_write, json_lines, sha256_of, whole_lines
from pipeline.tasks.source import to_jsonl
from pipeline.training_device import add_device, claim_device

if TYPE_CHECKING:
    from torch import Tensor

VALIDATION_PER_MILLE = 50
# How many batches' worth of prompts are sorted by length together.
WINDOW = 4

Row = dict[str, Any]


def prompt_hash(ids: Sequence[int]) -> str:
    """Return a hash of a prompt's tokens: its name in the journal."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


def split_of(ids: Sequence[int]) -> str:
    """Return the split that a prompt belongs to, from its hash alone."""
    return "validation" if int(prompt_hash(ids), 16) % 1000 < VALIDATION_PER_MILLE else "train"


def batches(prompts: Iterable[Row], size: int, seed: int) -> list[list[Row]]:
    """Return batches of one source, of like lengths; the sources mixed as evenly as they are in ``prompts``."""
    by_source: dict[str, list[Row]] = {}
    for prompt in prompts:
        by_source.setdefault(prompt["source"], []).append(prompt)
    placed: list[tuple[float, str, list[Row]]] = []
    for source, rows in by_source.items():
        random.Random(f"{seed} {source}").shuffle(rows)
        window = size * WINDOW
        groups = [rows[i : i + window] for i in range(0, len(rows), window)]
        near = [sorted(group, key=lambda row: len(row["prompt_ids"])) for group in groups]
        cut = [group[i : i + size] for group in near for i in range(0, len(group), size)]
        # Batch i of n is due when the share (i + 1/2) / n of all is done.
        placed += [((number + 0.5) / len(cut), source, batch) for number, batch in enumerate(cut)]
    return [batch for _, _, batch in sorted(placed, key=lambda item: item[:2])]


def most_frequent(tokens: Iterable[int], size: int) -> list[int]:
    """Return the ``size`` ids that there are most of (all, if there are fewer), in ascending order."""
    counts = Counter(tokens)
    return sorted(sorted(counts, key=lambda token: (-counts[token], token))[:size])


def states_file(folder: Path, key: str) -> Path:
    """Return where the hidden states of an answer are kept."""
    return folder / f"{key}.safetensors"


def save_states(folder: Path, key: str, states: Tensor | None) -> None:
    """Keep the hidden states of an answer, ``[n, d]``: heads learn from them without reading the text again."""
    assert states is not None  # asked for
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    with atomic_path(states_file(folder, key)) as temporary:
        save_file({"states": states}, temporary)


def load_states(folder: Path, prompt_ids: Sequence[int]) -> Tensor | None:
    """Return the hidden states at which an answer's tokens were chosen, ``[n, d]``, or None if they were not kept."""
    from safetensors.torch import load_file

    file = states_file(folder, prompt_hash(prompt_ids))
    return load_file(file)["states"] if file.is_file() else None


def limits_of(row: Mapping[str, Any]) -> Row:
    """Return what ends an answer beside the model: the text depends on it as on the prompt."""
    return {name: row.get(name) for name in ("until", "max_new_tokens")}


def _key(row: Row) -> str:
    return prompt_hash(row["prompt_ids"])


class Journal:
    """Answers by prompt, a line each, under a first line that says what they were generated with."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        header, *rows = whole_lines(path) or [{}]
        self.answers: dict[str, Row] = {row["prompt"]: row for row in rows} if header == settings else {}
        # Written anew, so that half a line of a killed run is gone.
        atomic_write(path, to_jsonl([settings, *self.answers.values()]))

    def answers_to(self, prompt: Row) -> bool:
        """Return whether this prompt was answered under the stop strings and the limit that it has now."""
        answer = self.answers.get(_key(prompt))
        return answer is not None and limits_of(answer) == limits_of(prompt)

    def append(self, rows: Sequence[Row]) -> None:
        """Add answers, and have them on disk before going on."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_jsonl(rows))
            file.flush()
            os.fsync(file.fileno())
        self.answers |= {row["prompt"]: row for row in rows}


def answered(
    model_dir: Path, todo: list[list[Row]], journal: Journal, temperature: float, seed: int
) -> Iterator[list[Row]]:
    """Answer batch after batch, those in the journal from there.

    The first texts of a batch are begun while the last ones of the batch before are written: else most of the time
    would go into passes over the few longest texts of each batch.
    """
    states = journal.path.parent / "states"
    missing = [
        row
        for batch in todo
        for row in batch
        if not (journal.answers_to(row) and states_file(states, _key(row)).is_file())
    ]
    ended = written(model_dir, missing, journal, temperature, seed)
    left = {_key(row) for row in missing}
    for batch in todo:
        keys = {_key(row) for row in batch}
        while left & keys:
            left.remove(next(ended))
        yield [
            {"source": row["source"], "split": split_of(row["prompt_ids"]), "prompt_ids": row["prompt_ids"]}
            | {name: journal.answers[_key(row)][name] for name in ("output_ids", "finished")}
            for row in batch
        ]


def written(model_dir: Path, prompts: Sequence[Row], journal: Journal, temperature: float, seed: int) -> Iterator[str]:
    """Answer ``prompts``, many at a time; yield the key of each as soon as its answer is in the journal."""
    import torch

    from decoding.loading import end_tokens
    from decoding.stopping import Ending, StopStrings
    from pipeline.batching import Draw, Job, answers_as_they_end, shared_model
    from pipeline.prepare import load_tokenizer

    tokenizer, config = load_tokenizer(model_dir)
    ends = end_tokens(model_dir, config)  # as in evaluation

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids))

    def job_of(row: Row) -> Job:
        ending = Ending(row["max_new_tokens"], ends, StopStrings(decode, row["until"]))
        # Its own generator: what is drawn depends on the prompt, and not on where a killed run goes on.
        own_seed = int(hashlib.sha256(f"{seed} {_key(row)}".encode()).hexdigest()[:15], 16)
        return Job(tuple(row["prompt_ids"]), ending, torch.Generator().manual_seed(own_seed))

    jobs = [job_of(row) for row in prompts]
    for number, text in answers_as_they_end(shared_model(model_dir), jobs, Draw(temperature), with_states=True):
        row, key = prompts[number], _key(prompts[number])
        save_states(journal.path.parent / "states", key, text.states)
        journal.append([{"prompt": key, **limits_of(row), "output_ids": text.ids, "finished": text.finished}])
        yield key


def read_prompts(path: Path) -> list[Row]:
    """Return the prompts of a file, each once.

    Raises:
        UserError: the file is missing, damaged or empty.
    """
    try:
        rows = json_lines(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run python -m pipeline.training_prompts first") from None
    if not rows:
        raise UserError(f"{path}: no prompts")
    if "error" in rows[0]:
        raise UserError(rows[0]["error"])
    return list({prompt_hash(row["prompt_ids"]): row for row in rows}.values())


def self_generate(given: argparse.Namespace) -> tuple[list[Row], Row]:
    """Return at least ``num_tokens`` of answers (fewer if the prompts run out), and how they came about."""
    from tqdm import tqdm

    todo = batches(read_prompts(given.prompts), given.batch_size, given.seed)
    source = given.model / "source.json"
    weights = json.loads(source.read_text(encoding="utf-8")).get("weights_sha256") if source.is_file() else None
    settings = {"weights_sha256": weights, "temperature": given.temperature, "seed": given.seed, "dtype": "bfloat16"}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(given.output.with_name("answers.journal"), settings)
    rows: list[Row] = []
    known = sum(journal.answers_to(row) for batch in todo for row in batch)
    tokens, started = 0, time.perf_counter()
    with tqdm(total=given.num_tokens, unit="token", desc="self-generation", mininterval=5) as bar:
        for batch in answered(given.model, todo, journal, given.temperature, given.seed):
            rows += batch
            new = sum(len(row["output_ids"]) for row in batch)
            tokens += new
            bar.update(new)
            if tokens >= given.num_tokens:
                break
    seconds = time.perf_counter() - started
    if tokens < given.num_tokens:
        print(f"selfgen: the prompts ran out at {tokens} of {given.num_tokens} tokens", file=sys.stderr)
    return rows, settings | {
        "model": given.model.name,
        "num_tokens": tokens,
        "batch_size": given.batch_size,
        "seconds": round(seconds, 1),
        "answers_from_journal": known,
        "sources": counts_of(rows),
    }


def counts_of(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Return, for each source, how many answers, tokens, finished answers and validation answers there are."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row["source"], Counter()).update(
            answers=1,
            tokens=len(row["output_ids"]),
            finished=int(row["finished"]),
            validation=int(row["split"] == "validation"),
        )
    return {source: dict(counts[source]) for source in sorted(counts)}


@command
def main() -> None:
    """Write the text, and beside it where it comes from."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.selfgen", description="Let the target answer prompts.")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts.jsonl of pipeline.training_prompts")
    parser.add_argument("--num-tokens", type=int, required=True, help="output tokens to generate")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)
    parser.add_argument("--output", type=Path, required=True, help="text.jsonl; the journal is kept beside it")
    parser.add_argument(
        "--errors-as-rows", action="store_true", help='where there is nothing to write, write {"error": reason} instead'
    )
    given = parser.parse_args()

    def write(rows: list[Row], record: Row) -> None:
        atomic_write(given.output, to_jsonl(rows))
        hashes = {"sha256": sha256_of(given.output), "prompts_sha256": sha256_of(given.prompts)}
        atomic_write(given.output.with_suffix(".json"), json.dumps(record | hashes, indent=2) + "\n")

    with written_down(given.errors_as_rows, lambda reason: write([{"error": reason}], {"error": reason})):
        claim_device(given.device)
        write(*self_generate(given))


if __name__ == "__main__":
    main()
