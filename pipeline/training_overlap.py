r"""Rule: hold the training prompts against what a profile evaluates; an overlap ends the run.

``pipeline.training_prompts`` keeps away from the embedded tasks. A profile may evaluate data from files or a hub that
it knew nothing of; heads and drafts trained on one of those texts would be flattered on it. So before they are used,
every training prompt's material is compared with every evaluated document, by runs of 13 words. By hand::

    python -m pipeline.training_overlap --prompts results/parts/smollm2-135m/default/prompts.jsonl \
        --evaluated results/tasks/gsm8k/data.jsonl --output results/parts/smollm2-135m/default/overlap/lossless.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, command
from pipeline.files import atomic_write, json_lines
from pipeline.prepare import check_source
from pipeline.training_prompts import ngrams_of, overlaps


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return json_lines(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def check_overlap(prompts: Path, evaluated: list[Path]) -> dict[str, Any]:
    """Return what was compared with what.

    Raises:
        UserError: a prompt's material overlaps with an evaluated document; names the first.
    """
    # Where no prompts could be made there is nothing to compare: the parts' cells tell why.
    rows = [row for row in read_rows(prompts) if "material" in row]
    compared = {}
    for file in evaluated:
        try:
            check_source(file.parent)
        except UserError:
            continue  # no documents could be had, so none is evaluated
        documents = read_rows(file)
        known = ngrams_of(documents)
        if offending := [row for row in rows if overlaps(row["material"], known)]:
            text = " ".join(offending[0]["material"].split())[:80]
            raise UserError(
                f"{prompts}: {len(offending)} training prompts overlap with {file}, the first is {text!r}; "
                "give training another name and seed, or leave the task out"
            )
        compared[str(file)] = len(documents)
    return {"prompts": len(rows), "documents": compared, "overlapping": 0}


@command
def main() -> None:
    """Write what was compared, or end with an error."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.training_overlap", description="Look for overlaps.")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts.jsonl of pipeline.training_prompts")
    parser.add_argument("--evaluated", type=Path, nargs="+", required=True, help="data.jsonl of every evaluated task")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    record = check_overlap(given.prompts, given.evaluated)
    atomic_write(given.output, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
