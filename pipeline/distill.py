r"""Rule: the twin answers its own training sources; a distilled generator learns from what it says.

One source has many right translations, and a model whose slots choose independently mixes them. The twin's answers are
more alike than the references, so they are easier to learn in parallel (Kim and Rush 2016; Zhou et al. 2020). Greedy,
on the engine, many sources at once. By hand::

    python -m pipeline.distill --model results/models/verbalized --pairs results/twins/verbalized/pairs \
        --output results/twins/verbalized/distilled.jsonl
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.errors import command, written_down
from pipeline.files import atomic_write
from pipeline.prepare import check_source
from pipeline.tasks.source import Document, keep, read_jsonl, to_jsonl
from pipeline.training_examples import check


def distilled(model_dir: Path, pairs: Path) -> list[Document]:
    """Return the twin's answer to each source of the train split, once a source.

    One that is no answer, longer than the longest reference, is replaced by its own reference: cut off it would teach a
    generator to stop in mid-sentence, and whole it would need slots that nothing else needs.

    Raises:
        UserError: the twin or the pairs are missing.
    """
    import torch
    from transformers import AutoTokenizer

    from decoding import TargetModel
    from decoding.stopping import Ending
    from pipeline.batching import Job, answer

    check_source(model_dir)
    check(pairs)
    tokenizer = AutoTokenizer.from_pretrained(pairs, local_files_only=True, trust_remote_code=False)
    rows = read_jsonl(pairs / "pairs.jsonl", keep("split", "source", "target"))
    train = {row["source"]: row["target"] for row in rows if row["split"] == "train"}
    prompts = tokenizer(list(train))["input_ids"]
    longest = max(map(len, tokenizer(list(train.values()), add_special_tokens=False)["input_ids"]))
    twin = TargetModel.from_pretrained(model_dir, dtype=torch.float32)
    ends = list(twin.end_token_ids)
    limits = [min(longest + 1, twin.max_context - len(prompt)) for prompt in prompts]  # with the end token
    asked = [
        (source, Job(tuple(prompt), Ending(limit, ends)))
        for source, prompt, limit in zip(train, prompts, limits, strict=True)
        if limit > 0
    ]
    found = answer(twin, [job for _, job in asked])
    said = {
        source: str(tokenizer.decode(one.ids, skip_special_tokens=True))
        for (source, _), one in zip(asked, found, strict=True)
        if one.finished
    }
    if unfinished := len(train) - len(said):
        print(f"distill: {unfinished} of {len(train)} answers came to no end: their references stay", file=sys.stderr)
    return [{"source": source, "target": said.get(source, target)} for source, target in train.items()]


@command
def main() -> None:
    """Write the answers, whole or not at all; or, as a row, why there are none."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.distill", description="Let a twin answer its sources.")
    parser.add_argument("--model", type=Path, required=True, help="the twin's folder")
    parser.add_argument("--pairs", type=Path, required=True, help="the folder that pipeline.pairs wrote")
    parser.add_argument("--output", type=Path, required=True, help="distilled.jsonl")
    parser.add_argument("--errors-as-rows", action="store_true", help='write {"error": reason} if there are none')
    given = parser.parse_args()
    with written_down(given.errors_as_rows, lambda reason: atomic_write(given.output, to_jsonl([{"error": reason}]))):
        atomic_write(given.output, to_jsonl(distilled(given.model, given.pairs)))


if __name__ == "__main__":
    main()
