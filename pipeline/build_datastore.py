r"""Rule: make the datastore that REST looks up, of text that the target itself generated.

The text is that which heads and mixer learn from (:mod:`pipeline.selfgen`), its training part; of each prompt the last
eight tokens are taken as well, so that the beginning of an answer can be found. By hand::

    python -m pipeline.build_datastore --text results/parts/smollm2-135m/default/text.jsonl \
        --output results/parts/smollm2-135m/default/datastore

The folder appears whole or not at all: ``datastore.safetensors`` (:mod:`baselines.datastore`) and ``datastore.json``
with how much there is, and the tokens a step of a tree of 15 nodes on the validation part, as of heads and mixer.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from baselines.datastore import Datastore
from baselines.rest import RestDrafter
from pipeline.errors import command, written_down
from pipeline.files import atomic_write, sha256_of, write_reason
from pipeline.heads_states import Pair, read_text
from pipeline.mixer_data import TREE_NODES, replay
from pipeline.training_work import prepared_work, publish

PROMPT_TOKENS = 8


def measure(store: Datastore, pairs: list[Pair]) -> dict[str, Any]:
    """Return what ``datastore.json`` says of how well the validation part is foreseen."""
    positions = sum(len(output) - 1 for _, output in pairs)
    no_states = torch.empty(positions, 0)  # what a drafter that looks up does not read
    return {
        "tree_tokens_per_step": round(replay(RestDrafter(store, TREE_NODES), pairs, no_states), 4),
        "validation_tokens": positions,
    }


def build_datastore(text: Path, output: Path) -> None:
    """Write the folder of the datastore.

    Raises:
        UserError: the text is missing or damaged.
    """
    pairs = read_text(text)
    work = prepared_work(output.with_name(f".{output.name}.partial"), {"text_sha256": sha256_of(text)})
    folder = work / "datastore"
    folder.mkdir(exist_ok=True)
    store = Datastore.of([*prompt[-PROMPT_TOKENS:], *answer] for prompt, answer in pairs["train"])
    store.save(folder)
    record = {"num_texts": len(pairs["train"]), "num_tokens": len(store.tokens) - len(pairs["train"])}
    record |= measure(store, pairs["validation"])
    atomic_write(folder / "datastore.json", json.dumps(record, indent=2) + "\n")
    publish(work, folder, output)
    found = f"{record['num_tokens']} tokens, {record['tree_tokens_per_step']} tokens a step as a tree"
    print(f"build_datastore: {found}; the datastore is in {output}", file=sys.stderr, flush=True)


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.build_datastore", description="Make REST's datastore.")
    parser.add_argument("--text", type=Path, required=True, help="text.jsonl of pipeline.selfgen")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--errors-as-rows",
        action="store_true",
        help="if there is no text, write datastore.json with the reason alone, for the cells to tell as a row",
    )
    given = parser.parse_args()
    with written_down(given.errors_as_rows, lambda reason: write_reason(given.output / "datastore.json", reason)):
        build_datastore(given.text, given.output)


if __name__ == "__main__":
    main()
