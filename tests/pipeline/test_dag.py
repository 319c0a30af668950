"""The DAG plans and runs what it should, no more and no less (in a copy of the project: ``tests.pipeline.dag``)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pipeline.dag import METHODS, TASKS, calls, cells_of, copy_project, plan, snakemake

Edit = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose benchmark has been run to its end. Tests that change a file put it back (``edited``)."""
    project = copy_project(tmp_path_factory.mktemp("finished"))
    assert plan(project)["generate"] == len(METHODS) * len(TASKS)
    snakemake(project)
    return project


@pytest.fixture
def edited(finished: Path) -> Iterator[Edit]:
    """Return a function that replaces text in a file of the finished project for the length of a test."""
    kept: dict[Path, tuple[str, os.stat_result]] = {}

    def edit(name: str, old: str, new: str) -> None:
        path = finished / name
        text = path.read_text()
        assert old in text
        kept.setdefault(path, (text, path.stat()))
        path.write_text(text.replace(old, new, 1))

    yield edit
    for path, (text, status) in kept.items():
        path.write_text(text)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_fresh_plan_is_one_job_a_step(tmp_path: Path) -> None:
    counts = plan(copy_project(tmp_path), "results/benchmark.csv")
    expected = {"fetch": 1, "dataset": 4, "prepare": 4, "generate": 24, "score": 24, "list_cells": 1, "collect": 1}
    expected["total"] = 64
    expected |= dict.fromkeys(("training_prompts", "training_overlap", "selfgen", "train_draft", "train_heads"), 1)
    assert {rule: counts[rule] for rule in expected} == expected
    assert not (tmp_path / "results").exists()


def test_every_output_is_made_and_a_second_run_does_nothing(finished: Path) -> None:
    made = ["benchmark.csv", "provenance.json", "report.md", "tables/benchmark.md", "tables/ouroboros.tex"]
    figures = ["speed_quality", "speedup_by_task", "tokens_per_step", "time_per_step", "mbu", "memory", "training"]
    for name in made + [f"figures/{figure}.png" for figure in figures]:
        assert (finished / "results" / name).is_file(), name
    before = calls(finished)
    assert "Nothing to be done" in snakemake(finished)
    assert calls(finished) == before


def test_a_timed_job_runs_alone(finished: Path) -> None:
    running: list[str] = []
    for rule, event, output in calls(finished):
        if event == "end":
            running.remove(output)
            continue
        assert not any(other.endswith("journal.jsonl") for other in running), "a job was started beside a timed one"
        assert not (rule == "generate" and running), "a timed job was started beside another"
        running.append(output)


def test_changed_option_runs_that_methods_cells_again(finished: Path) -> None:
    counts = plan(finished, "--config", "methods={prompt_lookup: {num_draft_tokens: 4}}")
    expected = {("prompt_lookup", task) for task in TASKS}
    assert cells_of(counts, "Timing") == cells_of(counts, "Scoring") == expected
    assert all(counts[rule] == 1 for rule in ("collect", "benchmark_table", "paper_tables", "answers", "overview"))
    assert counts["prepare"] == counts["fetch"] == counts["dataset"] == 0


@pytest.mark.parametrize(
    ("file", "methods"),
    [
        ("baselines/prompt_lookup.py", {"prompt_lookup"}),
        ("baselines/transformers_generate.py", {"hf_greedy", "hf_prompt_lookup"}),
        ("baselines/autoregressive.py", set(METHODS)),  # every cell runs it in turn with its own method
        ("decoding/verify.py", set(METHODS)),
    ],
)
def test_changed_code_runs_the_cells_that_use_it_again(
    finished: Path, edited: Edit, file: str, methods: set[str]
) -> None:
    edited(file, '"""', '"""Changed. ')
    counts = plan(finished)
    assert cells_of(counts, "Timing") == {(method, task) for method in methods for task in TASKS}
    assert counts["prepare"] == counts["fetch"] == 0


def test_changed_metric_costs_no_generation(finished: Path, edited: Edit) -> None:
    edited("pipeline/tasks/_summarization.yaml", "{metric: rouge2, aggregation: mean, higher_is_better: true}", "{}")
    edited("pipeline/sandbox.py", '"""', '"""Changed. ')
    counts = plan(finished)
    assert counts["generate"] == counts["prepare"] == counts["dataset"] == 0
    tasks = {task for _, task in cells_of(counts, "Scoring")}
    assert "docstrings" in tasks
    assert "verbalized" not in tasks


def test_changed_prompt_runs_its_tasks_cells_again(finished: Path, edited: Edit) -> None:
    edited("pipeline/tasks/_translation.yaml", "test_split: test", "test_split: tests")
    # Drafts and heads are trained on prompts of every task's form, so what uses them is run again on all of them.
    trained = {(method, task) for method in ("medusa", "speculative") for task in TASKS}
    assert cells_of(plan(finished), "Timing") == {(method, "verbalized") for method in METHODS} | trained


def test_a_new_line_in_the_registry_runs_nothing_again(finished: Path, edited: Edit) -> None:
    edited("pipeline/registry.py", '"""', '"""Changed. ')
    assert "Nothing to be done" in snakemake(finished, "--dry-run")


def test_changed_limit_runs_its_tasks_cells_again(finished: Path) -> None:
    counts = plan(finished, "--config", "tasks={humaneval: {num_prompts: 2}}")
    assert counts["prepare"] == 1
    assert cells_of(counts, "Timing") == {(method, "humaneval") for method in METHODS}


def test_null_removes_a_method_and_a_task(finished: Path) -> None:
    one_less = ["--config", "methods={hf_greedy: null}", "tasks={humaneval: null}", "--forcerun", "generate"]
    counts = plan(finished, *one_less)
    assert cells_of(counts, "Timing") == {
        (method, task) for method in set(METHODS) - {"hf_greedy"} for task in set(TASKS) - {"humaneval"}
    }


def test_leave_to_run_code_concerns_only_the_tasks_that_run_it(finished: Path) -> None:
    counts = plan(finished, "--config", "allow_code_execution=false")
    assert cells_of(counts, "Scoring") == {(method, "humaneval") for method in METHODS}


def test_the_gate_runs_whenever_it_is_asked_for_and_makes_a_reference_only_then(finished: Path) -> None:
    for _ in range(2):
        before = len(calls(finished))
        assert "Comparing with results/reference/laptop.csv" in snakemake(finished, "gate")
        assert [call[:2] for call in calls(finished)[before:]] == [["gate", "begin"], ["gate", "end"]]
    assert "gate" not in plan(finished, "--forceall")
    words = ("gate", "--dry-run", "--printshellcmds")
    assert "--update" not in snakemake(finished, *words)
    assert "--update" in snakemake(finished, *words, "--config", "update_reference=true")


def test_the_report_is_one_page_with_every_figure_and_its_caption(finished: Path) -> None:
    snakemake(finished, "--report", "report.html")
    page = (finished / "report.html").read_text(encoding="utf-8")
    for word in ("1 Summary", "2 Tables", "3 Figures", "speedup_by_task.png", "memory.png", "ouroboros.html"):
        assert word in page
    assert "timed in turn in one process" in page  # of a caption
    assert not re.search(r"""<(?:script|link|img)[^>]+(?:src|href)=["']https?:""", page)


def test_dag_picture_and_lint(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    assert "digraph snakemake_dag" in snakemake(project, "--dag")
    complaints = re.findall(r"^ {4}\* (.*):$", snakemake(project, "--lint", status=1), re.MULTILINE)
    assert set(complaints) == {"Specify a conda environment or container for each rule."}  # why: see the Snakefile
