"""The DAG plans and runs what it should, no more and no less.

The tests run the real Snakefile and rules in a copy of the project. Its ``pipeline/__init__.py`` is replaced by a
stand-in that writes empty outputs instead of doing the work: all other files, and so what depends on what, are real.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("autoregressive", "hf_greedy", "hf_prompt_lookup", "prompt_lookup")
TASKS = ("docstrings", "gsm_symbolic", "humaneval", "verbalized")
Edit = Callable[[str, str, str], None]
STAND_IN = """
import os, pathlib, sys, time
if sys.argv[0] == "-m":  # run as python -m pipeline.<rule>
    rule, words = sys.orig_argv[2].rpartition(".")[2], sys.argv[1:]
    option = lambda name: pathlib.Path(words[words.index(name) + 1])
    outputs = {
        "fetch": lambda: [option("--output") / "source.json"],
        "dataset": lambda: [option("--output") / "data.jsonl", option("--output") / "source.json"],
        "generate": lambda: [option("--output") / name for name in ("journal.jsonl", "records.jsonl", "cell.json")],
        "score": lambda: [option("--cell") / "score.json", option("--cell") / "samples.jsonl"],
        "collect": lambda: [option("--output"), option("--provenance")],
    }.get(rule, lambda: [option("--output")])()
    with open("calls.log", "a") as log:
        print(rule, "begin", outputs[0], file=log, flush=True)
        for output in outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text("{}")
            time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
        print(rule, "end", outputs[0], file=log, flush=True)
    sys.exit()
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--cores", "4", *arguments]


def snakemake(project: Path, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(command(*arguments), cwd=project, capture_output=True, text=True, timeout=300)
    output = done.stdout + done.stderr
    assert done.returncode == status, output
    return output


def plan(project: Path, *arguments: str) -> Counter[str]:
    """Count the jobs of each rule, and of each cell to be generated or scored, that a run would start."""
    output = snakemake(project, "--dry-run", *arguments)
    counts = Counter(re.findall(r"Job \d+: (\w+ \w+ on \w+)", output))
    jobs = re.search(r"^job +count\n-.*?\n(.*?)\n\n", output, re.MULTILINE | re.DOTALL)
    for line in jobs[1].splitlines() if jobs else ():
        rule, count = line.split()
        counts[rule] = int(count)
    return counts


def cells_of(counts: Counter[str], verb: str) -> set[tuple[str, str]]:
    """The (method, task) pairs of the jobs whose message begins with ``verb``."""
    words = (key.split() for key in counts if key.startswith(verb))
    return {(method, task) for _, method, _, task in words}


def calls(project: Path) -> list[list[str]]:
    return [line.split() for line in (project / "calls.log").read_text().splitlines()]


def copy_project(folder: Path) -> Path:
    for name in ("config", "profiles", "pipeline", "decoding", "baselines", "shuffle"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "pipeline" / "__init__.py").write_text(STAND_IN)
    return folder


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
    expected = {"fetch": 1, "dataset": 4, "prepare": 4, "generate": 16, "score": 16, "collect": 1, "total": 42}
    assert {rule: counts[rule] for rule in expected} == expected
    assert not (tmp_path / "results").exists()


def test_every_output_is_made_and_a_second_run_does_nothing(finished: Path) -> None:
    for name in ("benchmark.csv", "provenance.json", "tables/benchmark.md", "figures/speed_quality.png"):
        assert (finished / "results" / name).is_file()
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
    assert counts["collect"] == 1
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
    assert cells_of(plan(finished), "Timing") == {(method, "verbalized") for method in METHODS}


def test_a_new_line_in_the_registry_runs_nothing_again(finished: Path, edited: Edit) -> None:
    edited("pipeline/registry.py", '"""', '"""Changed. ')
    assert "Nothing to be done" in snakemake(finished, "--dry-run")


def test_changed_limit_runs_its_tasks_cells_again(finished: Path) -> None:
    counts = plan(finished, "--config", "tasks={humaneval: {num_prompts: 2}}")
    assert counts["prepare"] == 1
    assert cells_of(counts, "Timing") == {(method, "humaneval") for method in METHODS}


def test_configfile_replaces_the_profile(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    text = (ROOT / "config" / "smoke.yaml").read_text()
    (project / "mine.yaml").write_text(
        text.partition("tasks:")[0] + "tasks:\n  verbalized: {num_prompts: 1, max_new_tokens: 2, chat_template: true}\n"
    )
    assert plan(project, "--configfile", "mine.yaml")["generate"] == len(METHODS)
    assert plan(project, "--config", "profile=smoke")["generate"] == len(METHODS) * len(TASKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profile=smok"], "error: config: no file 'config/smok.yaml'; did you mean 'smoke.yaml'?"),
        (["device=gpu"], "error: config: device = 'gpu': did you mean 'cpu'?"),
        (["methods={prompt_lokup: {}}"], "error: config: unknown method 'prompt_lokup'; did you mean 'prompt_lookup'?"),
    ],
)
def test_bad_configuration_ends_before_any_job(tmp_path: Path, arguments: list[str], message: str) -> None:
    project = copy_project(tmp_path)
    output = snakemake(project, "--config", *arguments, status=1)
    assert output.splitlines()[-1] == message
    assert len(output.splitlines()) == 2  # the first says which profile Snakemake uses
    assert not (project / "results").exists()


def test_killed_run_goes_on_and_a_second_run_is_refused(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    slow = os.environ | {"STAND_IN_SECONDS": "0.3"}
    with subprocess.Popen(command(), cwd=project, env=slow, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        while not list(project.glob("results/cells/**/cell.json")):
            time.sleep(0.1)
        refused = snakemake(project, status=1)
        assert refused.splitlines()[-1].startswith("error: another run is at work in this folder")
        # The next cell is under way: its journal is written, its other outputs are not.
        while len(list(project.glob("results/cells/**/journal.jsonl"))) == len(
            list(project.glob("results/cells/**/cell.json"))
        ):
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGKILL)
    begun = [output for rule, event, output in calls(project) if rule == "generate" and event == "begin"]
    ended = {output for rule, event, output in calls(project) if rule == "generate" and event == "end"}
    (killed,) = set(begun) - ended
    assert (project / killed).is_file()
    snakemake(project)
    again = [output for rule, event, output in calls(project) if rule == "generate" and event == "begin"]
    assert len(again) == len(set(again)) + 1
    assert again.count(killed) == 2


def test_dag_picture_and_lint(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    assert "digraph snakemake_dag" in snakemake(project, "--dag")
    complaints = re.findall(r"^ {4}\* (.*):$", snakemake(project, "--lint", status=1), re.MULTILINE)
    assert set(complaints) == {"Specify a conda environment or container for each rule."}  # why: see the Snakefile
