"""Cells of methods that need trained parts, and of those that learn from prompt to prompt."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.parts import checked_parts
from tests.pipeline import standins
from tests.pipeline.test_generate import cell, command, deterministic, run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.save_target(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return standins.save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("requests") / "toy.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in standins.requests(6)))
    return path


@pytest.mark.parametrize(
    ("method", "part"), [("speculative", "draft"), ("hf_assisted", "draft"), ("medusa_typical", "heads")]
)
def test_a_cell_runs_with_its_part_and_says_which(
    model: Path, requests: Path, parts: dict[str, Path], tmp_path: Path, method: str, part: str
) -> None:
    done = run(model, requests, tmp_path / "cell", method, part=f"{part}={parts[part]}")
    assert done.returncode == 0, done.stderr
    summary = cell(tmp_path / "cell")
    assert summary["status"] == "ok", summary["reason"]
    (weights,) = parts[part].glob("*.safetensors")
    assert summary["parts"] == {part: sha256_of(weights)}
    assert summary["lossless"] == (summary["lossless_match"] == 1.0) == (part == "draft")
    assert (summary["draft_forwards"] > 0) == (part == "draft")
    assert summary["candidate_tokens"] > 0
    assert summary["draft_s"] > 0
    assert (summary["engine"] == "transformers") == method.startswith("hf_")
    assert summary["part_bytes"] > 0  # of every such part, a peer's too, each of whose passes reads it


@pytest.mark.slow
def test_a_warm_start_is_as_warm_after_a_kill_and_no_trial_knows_its_own_prompt(model: Path, tmp_path: Path) -> None:
    """Of six prompts the last three are the first three again, so that there is something to remember."""
    half, requests = standins.requests(3), tmp_path / "toy.jsonl"
    twice = [request | {"prompt_id": number} for number, request in enumerate([*half, *half])]
    requests.write_text("".join(json.dumps(request) + "\n" for request in twice))
    warm = ("recycling",)
    options: dict[str, Any] = {"options": '{"warm_start": true}'}
    assert run(model, requests, tmp_path / "whole", *warm, **options).returncode == 0
    assert run(model, requests, tmp_path / "thrice", *warm, **options, repeats=3).returncode == 0
    # A limit on the size of files stands in for the kill, as in test_generate.
    words = command(model, requests, tmp_path / "killed", *warm, **options)
    full = ["bash", "-c", 'trap "" XFSZ; ulimit -f 3; exec "$@"', "bash", *words]
    assert subprocess.run(full, capture_output=True, check=False).returncode == 2
    assert run(model, requests, tmp_path / "killed", *warm, **options).returncode == 0
    assert 0 < cell(tmp_path / "killed")["resumed_prompts"] < 6
    whole = deterministic(tmp_path / "whole")
    assert deterministic(tmp_path / "killed") == whole
    assert deterministic(tmp_path / "thrice") == whole
    assert run(model, requests, tmp_path / "cold", "recycling").returncode == 0
    assert cell(tmp_path / "cold")["target_forwards"] > whole["target_forwards"]


@pytest.mark.parametrize("record", ["draft.json", "source.json"])
def test_a_part_that_could_not_be_made_is_the_cells_reason(
    model: Path, requests: Path, tmp_path: Path, record: str
) -> None:
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / record).write_text('{"error": "the loss is\\nnot a number"}')
    done = run(model, requests, tmp_path / "cell", "speculative", part=f"draft={tmp_path / 'draft'}")
    assert done.returncode == 0, done.stderr
    summary = cell(tmp_path / "cell")
    assert (summary["status"], summary["reason"]) == ("failed", "the loss is not a number")


def test_a_draft_of_another_vocabulary_is_the_cells_reason(model: Path, requests: Path, tmp_path: Path) -> None:
    draft = standins.save_target(tmp_path / "draft", prefix="v")
    done = run(model, requests, tmp_path / "cell", "speculative", part=f"draft={draft}")
    assert done.returncode == 0, done.stderr
    assert "the tokenizer of the draft model" in cell(tmp_path / "cell")["reason"]


@pytest.mark.parametrize(
    ("method", "options", "given", "message"),
    [
        ("speculative", {}, [], "method 'speculative' needs --part draft=FOLDER"),
        ("speculative", {}, [("heads", Path("h"))], "method 'speculative' takes no 'heads'; known: draft"),
        ("lookahead", {}, [("draft", Path("d"))], "method 'lookahead' takes no 'draft'; it takes none"),
        ("union", {}, [], "method 'union' needs --part mixer=FOLDER"),
        ("speculativ", {}, [], "did you mean 'speculative'?"),
    ],
)
def test_what_a_method_needs_is_what_it_is_given(
    method: str, options: dict[str, Any], given: list[tuple[str, Path]], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        checked_parts(method, options, given)
    assert message in str(caught.value)


def test_a_part_that_is_not_there_is_told_in_one_line(model: Path, requests: Path, tmp_path: Path) -> None:
    done = run(model, requests, tmp_path / "cell", "speculative", part="draft=nowhere")
    assert done.returncode == 2
    assert "'nowhere' is no folder" in done.stderr.splitlines()[-1]
    done = run(model, requests, tmp_path / "cell", "speculative", part="nowhere")
    assert done.returncode == 2
    assert "'nowhere' is not NAME=FOLDER" in done.stderr.splitlines()[-1]
