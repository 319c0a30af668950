"""Making REST's datastore: what goes in, what is said of it, and what is left where there is no text."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import pipeline.build_datastore as rule
from baselines.datastore import Datastore
from pipeline.build_datastore import build_datastore
from pipeline.errors import UserError
from pipeline.parts import error_of

PROMPT = list(range(20, 32))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Three texts to look up, and one of the same beginning to try it on."""
    outputs = {"train": [[5, 6, 7, 8], [5, 6, 7, 9], [4, 4]], "validation": [[5, 6, 7, 8, 3]]}
    lines = [
        {"prompt_ids": PROMPT, "output_ids": output, "source": "made", "split": split, "finished": True}
        for split, rows in outputs.items()
        for output in rows
    ]
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_holds_what_was_written_for_training_behind_the_end_of_its_prompt(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "datastore"
    build_datastore(text, folder)
    store = Datastore.load(folder)
    assert store.followers([5, 6, 7]) == (2, {8: 1, 9: 1})  # and not the third, of validation
    assert store.followers([31]) == (3, {4: 1, 5: 2})
    assert store.followers([24]) == (3, {25: 3})
    assert store.followers([23]) == (0, {})  # further from the end than eight tokens
    record = json.loads((folder / "datastore.json").read_text())
    assert (record["num_texts"], record["num_tokens"], record["validation_tokens"]) == (3, 3 * 8 + 10, 4)
    # After the bonus token 5 come 6, 7 and 8 at once, and 3 as what the target says after them: 4 tokens, one step.
    assert record["tree_tokens_per_step"] == 4 / 1
    assert error_of(folder) is None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_older_datastore_is_replaced_whole(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "datastore"
    build_datastore(text, folder)
    lines = text.read_text().splitlines()
    text.write_text("\n".join([lines[2], lines[3]]) + "\n")
    build_datastore(text, folder)
    assert Datastore.load(folder).followers([4]) == (1, {4: 1})
    assert sorted(path.name for path in folder.iterdir()) == ["datastore.json", "datastore.safetensors"]


def test_a_text_that_is_not_there_ends_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        build_datastore(tmp_path / "text.jsonl", tmp_path / "datastore")
    assert list(tmp_path.iterdir()) == []


def test_in_the_dag_what_could_not_be_made_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, folder = tmp_path / "text.jsonl", tmp_path / "datastore"
    text.write_text(json.dumps({"error": "the model could not be fetched"}) + "\n")
    arguments = ["build_datastore", "--text", str(text), "--output", str(folder), "--errors-as-rows"]
    monkeypatch.setattr(sys, "argv", arguments)
    rule.main()
    assert error_of(folder) == "the model could not be fetched"
