"""Ids are compared with the baseline's: all of them, once, and every difference is told."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.exactness import Comparison, compare, lossless_drafters, numbered
from pipeline.exactness_table import gather, write
from tests.pipeline.standins import requests, save_parts, save_target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The requests of two tasks, three prompts each."""
    found = []
    for seed, task in enumerate(("humaneval", "wmt14")):
        found.append(tmp_path / f"{task}.jsonl")
        found[-1].write_text("".join(json.dumps(request) + "\n" for request in requests(3, seed)))
    return found


def comparison(model: Path, parts: dict[str, Path], **options: Any) -> Comparison:
    return Comparison(model, "float32", "cpu", options, parts, num_threads=1)


def test_every_lossless_drafter_has_the_baselines_ids_and_a_row_a_task(
    model: Path, parts: dict[str, Path], files: list[Path], tmp_path: Path
) -> None:
    methods = lossless_drafters(parts, {})
    assert {"lookahead", "speculative", "ouroboros_warm_start", "medusa", "union"} <= set(methods)
    assert not {"autoregressive", "medusa_typical", "hf_greedy"} & set(methods)
    records = compare(comparison(model, parts), methods, numbered(files, None), tmp_path)
    write(records, "tiny", "float32", tmp_path)
    table = pd.read_csv(tmp_path / "exactness.csv")
    assert list(table.columns) == ["model", "dtype", "method", "task", "prompts", "equal", "reason"]
    assert set(zip(table["method"], table["task"], strict=True)) == {
        (method, task) for method in methods for task in ("humaneval", "wmt14")
    }
    assert table["prompts"].eq(3).all()
    assert table["equal"].eq(3).all()
    assert (tmp_path / "divergences.jsonl").read_text() == ""
    assert {len(record["output_ids"]) for record in records} != {0}


def test_a_method_whose_part_could_not_be_made_is_a_row_with_the_reason(
    model: Path, parts: dict[str, Path], files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "draft.json").write_text('{"error": "layers: 29, but the target has layers 0 to 27"}')
    records = compare(
        comparison(model, parts | {"draft": broken}), ["recycling", "speculative"], numbered(files, None), tmp_path
    )
    write(records, "tiny", "float32", tmp_path / "float32")
    gather([tmp_path / "float32"], tmp_path)
    table = pd.read_csv(tmp_path / "exactness.csv", keep_default_na=False).set_index(["method", "task"])
    assert table.loc["recycling", "prompts"].eq(3).all()
    assert table.loc["recycling", "reason"].eq("").all()
    assert table.loc["speculative", "prompts"].eq(0).all()
    assert table.loc["speculative", "reason"].str.startswith("layers: 29").all()
    assert "float32: 6 of 6 texts" in (told := capsys.readouterr().err)
    assert "speculative was not compared: layers: 29" in told


def test_a_task_that_cannot_be_asked_is_a_row_with_the_reason_for_every_method(
    model: Path, parts: dict[str, Path], files: list[Path], tmp_path: Path
) -> None:
    files[1].write_text('{"error": "path: no such folder: nowhere"}\n')
    records = compare(comparison(model, parts), ["recycling", "lookahead"], numbered(files, None), tmp_path)
    write(records, "tiny", "float32", tmp_path)
    table = pd.read_csv(tmp_path / "exactness.csv", keep_default_na=False).set_index(["method", "task"])
    for method in ("recycling", "lookahead"):
        assert table.loc[(method, "humaneval"), ["prompts", "equal", "reason"]].tolist() == [3, 3, ""]
        assert table.loc[(method, "wmt14"), ["prompts", "reason"]].tolist() == [0, "path: no such folder: nowhere"]


def test_a_model_that_cannot_be_had_is_rows_with_the_reason(files: list[Path], tmp_path: Path) -> None:
    for file in files:
        file.write_text('{"error": "hub: no such model"}\n')
    missing = tmp_path / "model"
    missing.mkdir()
    (missing / "source.json").write_text('{"error": "hub: no such model"}')
    command = [sys.executable, "-m", "pipeline.exactness", "--model-dir", str(missing), "--methods", "recycling"]
    told = subprocess.run(
        [*command, "--requests", *map(str, files), "--output", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert told.returncode == 0
    assert "recycling was not compared: hub: no such model" in told.stderr
    table = pd.read_csv(tmp_path / "out" / "exactness.csv")
    assert table["prompts"].eq(0).all()
    assert table["reason"].eq("hub: no such model").all()


def test_each_difference_is_told_with_its_place_and_margin(
    model: Path, parts: dict[str, Path], files: list[Path], tmp_path: Path
) -> None:
    """A lossy method stands in for a mistake."""
    lax = {"epsilon": 1e-6, "temperature": 5.0}
    records = compare(comparison(model, parts, medusa_typical=lax), ["medusa_typical"], numbered(files, None), tmp_path)
    write(records, "tiny", "float32", tmp_path)
    told = [json.loads(line) for line in (tmp_path / "divergences.jsonl").read_text().splitlines()]
    table = pd.read_csv(tmp_path / "exactness.csv")
    assert len(told) == table["prompts"].sum() - table["equal"].sum() > 0
    lines = (tmp_path / "journals/autoregressive.jsonl").read_text().splitlines()[1:]
    theirs = {record["prompt_id"]: record["output_ids"] for record in map(json.loads, lines)}
    ours = {record["prompt_id"]: record["output_ids"] for record in records}
    for line in told:
        token, prompt = line["token"], line["prompt_id"]
        assert ours[prompt][:token] == theirs[prompt][:token]
        assert ours[prompt][token:][:1] == line["ours"] != line["theirs"] == theirs[prompt][token:][:1]
        assert line["top2_margin"] > 0
        assert line["task"] in ("humaneval", "wmt14")


def test_ids_of_another_layout_are_not_taken_for_this_ones(model: Path, parts: dict[str, Path]) -> None:
    known = {
        replace(comparison(model, parts), **layout).fingerprint("lookahead")
        for layout in ({}, {"decode_width": 1}, {"device_map": "auto"}, {"num_threads": 7})
    }
    assert len(known) == 4


def test_only_what_is_new_is_run(
    model: Path, parts: dict[str, Path], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    from pipeline.exactness import Runner

    real = Runner.run

    def counted(self: Runner, generates: Any, request: dict[str, Any]) -> list[int]:
        ran.append(request["prompt_id"])
        return real(self, generates, request)

    monkeypatch.setattr(Runner, "run", counted)
    runs = [
        ({}, ["lookahead"], 1, 4),  # the baseline and the method, on the first prompt of two tasks
        ({}, ["lookahead"], 1, 0),
        ({}, ["lookahead"], 2, 4),  # one prompt more
        ({}, ["lookahead", "prompt_lookup"], 2, 4),  # one method more
        ({"lookahead": {"guesses": 2}}, ["lookahead", "prompt_lookup"], 2, 4),  # another option: that method alone
    ]
    for options, methods, prompts, expected in runs:
        ran.clear()
        found = compare(comparison(model, parts, **options), methods, numbered(files, prompts), tmp_path)
        assert len(ran) == expected
        assert len(found) == len(methods) * 2 * prompts


def test_killed_it_goes_on_at_its_prompt(
    model: Path, parts: dict[str, Path], files: list[Path], tmp_path: Path
) -> None:
    asked = numbered(files, None)
    whole = compare(comparison(model, parts), ["recycling"], asked, tmp_path / "whole")
    compare(comparison(model, parts), ["recycling"], asked[:2], tmp_path / "killed")
    for name in ("autoregressive", "recycling"):
        with (tmp_path / "killed/journals" / f"{name}.jsonl").open("a") as journal:
            journal.write('{"prompt_id": 3, "output')
    assert compare(comparison(model, parts), ["recycling"], asked, tmp_path / "killed") == whole


def test_a_changed_prompt_is_another_prompt(files: list[Path]) -> None:
    before = {request["prompt_id"] for request in numbered(files, None)}
    assert len(before) == 6
    files[0].write_text(files[0].read_text().replace('"max_new_tokens": 30', '"max_new_tokens": 31'))
    assert len(before & {request["prompt_id"] for request in numbered(files, None)}) == 3


def test_tables_of_several_folders_are_put_together(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        record = {"method": "lookahead", "task": "wmt14", "token": 3, "top2_margin": 0.1, "output_ids": [1]}
        write([record], "tiny", dtype, tmp_path / dtype)
    gather([tmp_path / "float32", tmp_path / "bfloat16"], tmp_path)
    assert pd.read_csv(tmp_path / "exactness.csv")["dtype"].tolist() == ["float32", "bfloat16"]
    assert len((tmp_path / "divergences.jsonl").read_text().splitlines()) == 2
    with pytest.raises(UserError, match=r"holds no exactness\.csv"):
        gather([tmp_path / "float16"], tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "lokahead"], "unknown method 'lokahead'; did you mean 'lookahead'?"),
        (["--methods", "speculative"], "method 'speculative' needs --part draft=FOLDER"),
        (["--methods", "lookahead", "--options", '{"lookahead": {"window": 0}}'], "window must be 1 or more, not 0"),
        (["--dtype", "float23"], "did you mean 'float32'?"),
        (["--methods"], "methods: nothing to compare: the profile has no model with a lossless method of ours"),
        (["--gather"], "gather: nothing to compare: the profile has no model with a lossless method of ours"),
    ],
)
def test_a_bad_command_line_is_told_in_one_line(
    model: Path, files: list[Path], tmp_path: Path, words: list[str], message: str
) -> None:
    command = [sys.executable, "-m", "pipeline.exactness", f"--model-dir={model}", f"--output={tmp_path}"]
    command += ["--device=cpu", "--requests", *map(str, files), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "exactness.csv").exists()
