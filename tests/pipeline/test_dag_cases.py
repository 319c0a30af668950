"""What can come between a run and its end: other profiles, mistakes, failures, kills (as ``test_dag``, in a copy)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.pipeline.dag import (
    METHODS,
    ROOT,
    TASKS,
    calls,
    cells_of,
    command,
    copy_project,
    plan,
    short_profile,
    snakemake,
)


def test_configfile_replaces_the_profile(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    file = short_profile(project)
    assert plan(project, "--configfile", file.name)["generate"] == 4
    assert plan(project, "--config", "profile=smoke")["generate"] == len(METHODS) * len(TASKS)
    refused = snakemake(project, "--configfile", file.name, "--config", "profile=smoke", status=1)
    assert refused.splitlines()[-1].startswith("error: config: profile = 'smoke' beside --configfile")
    file.write_text(file.read_text() + "methods: {}\n")
    line = len(file.read_text().splitlines())
    refused = snakemake(project, "--configfile", file.name, status=1)
    assert refused.splitlines()[-1].endswith(f"the key 'methods' is given twice, again in line {line}")


def test_going_back_to_a_profile_costs_no_generation(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    first = short_profile(project, "first", hub="org/tiny")
    second = short_profile(project, "second", hub="org/tiny")
    second.write_text(second.read_text().replace("num_prompts: 1", "num_prompts: 2"))
    for file in (first, second):
        snakemake(project, "--configfile", file.name)
    counts = plan(project, "--configfile", first.name)
    drawn = ("benchmark_table", "paper_tables", "answers", "figures", "overview", "traces", "pages")
    expected = dict.fromkeys(("collect", *drawn, "all"), 1)
    assert {rule: count for rule, count in counts.items() if count} == expected | {"total": len(expected)}


def test_a_failed_fetch_or_dataset_does_not_hold_up_the_rest_and_is_tried_again(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    run = ["--configfile", short_profile(project).name]
    for _ in range(2):
        snakemake(project, *run, fails="tiny verbalized")
        assert (project / "results" / "benchmark.csv").is_file()
        counts = plan(project, *run)
        assert counts["fetch"] == counts["dataset"] == 1
    snakemake(project, *run)
    assert "Nothing to be done" in snakemake(project, *run)


def test_a_changed_file_in_a_models_folder_is_seen_also_behind_a_link(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    (tmp_path / "blobs").mkdir()
    (project / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "blobs" / name).write_text(name)
        (project / "model" / name).symlink_to(tmp_path / "blobs" / name)
    run = ["--configfile", short_profile(project, path="model").name]
    snakemake(project, *run)
    assert "Nothing to be done" in snakemake(project, *run)
    (tmp_path / "blobs" / "model.safetensors").write_text("other weights")
    assert plan(project, *run)["fetch"] == 1


def test_only_the_methods_that_need_a_draft_wait_for_it_and_its_failure_holds_up_nothing(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    methods = ("autoregressive", "speculative", "hf_assisted")
    run = ["--configfile", short_profile(project, methods=methods, hub="org/tiny", draft={"hub": "org/small"}).name]
    assert plan(project, *run)["fetch"] == 2
    for _ in range(2):
        snakemake(project, *run, fails="tiny.draft")
        assert (project / "results" / "benchmark.csv").is_file()
        assert plan(project, *run)["fetch"] == 1
    snakemake(project, *run)
    counts = plan(project, *run, "--forcerun", "fetch", "--until", "generate")
    assert len(cells_of(counts, "Timing")) == 6
    (project / "results/models/tiny.draft/source.json").write_text('{"weights": "others"}')
    expected = {(method, task) for method in methods[1:] for task in ("docstrings", "verbalized")}
    assert cells_of(plan(project, *run), "Timing") == expected


def test_a_cell_is_given_the_parts_of_its_method(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    methods = ("autoregressive", "speculative")
    run = ["--configfile", short_profile(project, methods=methods, hub="org/tiny", draft={"hub": "org/small"}).name]
    commands = snakemake(project, "--dry-run", "--printshellcmds", *run)
    for line in commands.splitlines():
        if "pipeline.generate" in line:
            assert ("--part draft=results/models/tiny.draft" in line) == ("--method speculative" in line)


def test_who_loads_a_model_is_told_how_it_is_laid_out(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    model = {"hub": "org/tiny", "decode_width": 8}
    run = ["--configfile", short_profile(project, methods=("autoregressive", "prompt_lookup"), **model).name]
    commands = snakemake(project, "results/benchmark.csv", "exactness", "--dry-run", "--printshellcmds", *run)
    loading = [line for line in commands.splitlines() if "pipeline.generate" in line or "pipeline.exactness -" in line]
    told = [line for line in loading if "--gather" not in line]
    assert len(told) > 2
    assert all("--decode-width 8" in line for line in told)


def test_ids_are_compared_on_request_only(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    methods = ("autoregressive", "prompt_lookup", "lookahead", "hf_greedy")
    run = ["--configfile", short_profile(project, methods=methods, hub="org/tiny").name]
    assert plan(project, *run)["compare"] == 0
    commands = snakemake(project, "exactness", "--printshellcmds", *run)
    assert commands.count("--methods lookahead prompt_lookup --options") == 2  # in two dtypes; no peers
    assert commands.count("--num-prompts 26 --max-new-tokens 256") == 2
    assert (project / "results" / "exactness.csv").is_file()
    assert "Nothing to be done" in snakemake(project, "exactness", *run)


@pytest.mark.parametrize("arguments", ["results/benchmark.csv", "--configfile mine.yaml", "--dry-run"])
def test_make_puts_the_profile_behind_other_arguments(arguments: str) -> None:
    # These tests are themselves run by make, whose flags would pass to this one.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    make = ["make", "--dry-run", "--old-file=.venv/complete", "benchmark", "PROFILE=smoke"]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "env": environment}
    done = subprocess.run([*make, f"ARGS={arguments}"], **options, check=True)
    assert done.stdout.splitlines()[-1].endswith(f"snakemake --cores all {arguments} --config profile=smoke")
    gate = [word if word != "benchmark" else "gate" for word in make]
    told = subprocess.run([*gate, f"ARGS={arguments}"], **options, check=True).stdout.splitlines()[-1]
    assert told.endswith(f"snakemake --cores all gate {arguments} --config profile=smoke")
    for given in ("--config repeats=3", "--config=repeats=3", "-C repeats=3"):
        refused = subprocess.run([make[0], *make[2:], f"ARGS={given}"], **options, check=False)
        assert refused.returncode == 2
        assert "name the profile there" in refused.stderr


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
        while run.poll() is None and not list(project.glob("results/cells/**/0/cell.json")):
            time.sleep(0.1)
        refused = snakemake(project, status=1)
        assert refused.splitlines()[-1].startswith("error: another run is at work in this folder")
        # The next cell is under way: its journal is written, its other outputs are not.
        while len(list(project.glob("results/cells/**/journal.jsonl"))) == len(
            list(project.glob("results/cells/**/0/cell.json"))
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


def test_snakemake_looks_for_jobs_when_one_has_ended_and_else_rests(tmp_path: Path) -> None:
    """What it takes while a job runs is taken from the cores that a cell is timed on."""
    project = copy_project(tmp_path)
    run = command("--configfile", short_profile(project).name, "--verbose")
    slow = os.environ | {"STAND_IN_SECONDS": "0.7"}
    done = subprocess.run(run, cwd=project, env=slow, capture_output=True, text=True, timeout=300, check=True)
    told = done.stdout + done.stderr
    ended, looks = told.count("Finished jobid"), told.count("Ready jobs:")
    assert ended > 10
    assert 0 < looks <= ended + 1


def test_a_file_system_without_locks_and_links_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, tools = copy_project(tmp_path / "project"), tmp_path / "tools"
    tools.mkdir()
    (tools / "ln").write_text("#!/bin/sh\nexit 1\n")
    (tools / "ln").chmod(0o755)
    refuse = "import fcntl\ndef flock(*_):\n    raise OSError(38, 'Function not implemented')\nfcntl.flock = flock\n"
    (tools / "sitecustomize.py").write_text(refuse)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(tools))
    file = short_profile(project, methods=("autoregressive",))
    told = snakemake(project, "results/benchmark.csv", "--configfile", file.name)
    assert "this folder cannot be locked (Function not implemented)" in told
    assert len(list(project.glob("results/cells/**/0/cell.json"))) == 2
