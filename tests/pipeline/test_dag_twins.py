"""Twins and what is held against them in the DAG: what is trained, once, and what a change costs (as ``test_dag``)."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.dag import cells_of, copy_project, plan, snakemake

METHODS = (
    *("autoregressive", "diffusion_2_passes", "diffusion_4_passes", "shufflelm", "shufflelm_distilled"),
    "twostream_from_twin",
)
RUN = ("--configfile", "twins.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of two twins, one of which has generators that learn from its answers, or start from it as well."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    limits = {"num_prompts": 1, "max_new_tokens": 2}
    one = {"task": "verbalized_plain", "methods": {name: {} for name in METHODS}}
    other = {"task": "multi30k_plain", "path": "config", "methods": {"autoregressive": {}, "twostream": {}}}
    values = {"profile": "twins", "twins": {"one": one | limits, "other": other | limits}}
    (project / "twins.yaml").write_text(yaml.safe_dump(values))
    counts = plan(project, *RUN)
    expected = {"pairs": 2, "train_twin": 2, "train_generator": 5, "distill": 1, "generate": 8, "score": 8, "curves": 1}
    expected["strata"] = 1
    assert {rule: counts[rule] for rule in expected} == expected
    assert "Exception" not in snakemake(project, *RUN)  # no rule is asked for what is not its own
    return project


def changed(project: Path, file: str) -> Counter[str]:
    """What a run would do after a change in ``file``, which is undone."""
    path = project / file
    before, times = path.read_text(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_text(before + "\n# changed\n")
    try:
        return plan(project, *RUN)
    finally:
        path.write_text(before)
        os.utime(path, ns=times)  # as old as it was: nothing is to be made again


def test_a_finished_run_has_nothing_to_do(finished: Path) -> None:
    assert (finished / "results" / "figures" / "passes.png").is_file()
    assert (finished / "results" / "tables" / "strata.md").is_file()
    assert (finished / "results" / "pages" / "strata.html").is_file()
    assert plan(finished, *RUN)["total"] == 0


def test_a_changed_sampler_trains_nothing(finished: Path) -> None:
    counts = changed(finished, "shuffle/diffusion/sampler.py")
    assert counts["train_generator"] == counts["train_twin"] == 0
    assert cells_of(counts, "Timing") == {(name, "verbalized_plain") for name in METHODS if "diffusion" in name}


def test_a_changed_model_is_trained_again_and_no_other(finished: Path) -> None:
    counts = changed(finished, "shuffle/twostream/model.py")
    assert counts["train_generator"] == 2
    both = {("twostream", "multi30k_plain"), ("twostream_from_twin", "verbalized_plain")}
    assert cells_of(counts, "Timing") == both


def test_a_changed_distillation_concerns_who_learns_from_it(finished: Path) -> None:
    counts = changed(finished, "pipeline/distill.py")
    assert (counts["distill"], counts["train_generator"]) == (1, 2)
    learners = {("shufflelm_distilled", "verbalized_plain"), ("twostream_from_twin", "verbalized_plain")}
    assert cells_of(counts, "Timing") == learners


def test_a_changed_figure_costs_a_figure(finished: Path) -> None:
    counts = changed(finished, "pipeline/curves.py")
    assert (counts["curves"], counts["collect"], counts["generate"]) == (1, 0, 0)


def test_another_way_to_tell_kinds_apart_scores_the_task_that_has_kinds_again(finished: Path) -> None:
    counts = changed(finished, "pipeline/tasks/verbalized.py")
    assert cells_of(counts, "Scoring") >= {(name, "verbalized_plain") for name in METHODS}
    assert counts["strata"] == 1
    table_alone = changed(finished, "pipeline/strata.py")
    assert (table_alone["strata"], table_alone["score"], table_alone["collect"]) == (1, 0, 0)


def test_a_setting_of_one_generator_trains_it_alone(finished: Path) -> None:
    path = finished / "twins.yaml"
    before = path.read_text()
    values = yaml.safe_load(before)
    values["twins"]["one"]["generators"] = {"diffusion": {"block_length": 4}}
    path.write_text(yaml.safe_dump(values))
    try:
        counts = plan(finished, *RUN)
    finally:
        path.write_text(before)
    assert counts["train_generator"] == 1
    assert cells_of(counts, "Timing") == {(name, "verbalized_plain") for name in METHODS if "diffusion" in name}


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"fine_tuning": {"steps": 7, "learning_rate": 0.001}}, "--steps 7 --batch-size 64 --learning-rate 0.001 "),
        (
            {"fine_tuning": {"steps": 7, "learning_rate": 0.001}, "recipes": {"twostream_from_twin": {"steps": 9}}},
            "--steps 9 --batch-size 64 --learning-rate 0.001 ",
        ),
    ],
)
def test_who_starts_from_the_twin_and_any_single_generator_may_have_a_recipe_of_its_own(
    own: dict[str, Any], told: str, finished: Path
) -> None:
    path = finished / "twins.yaml"
    before = path.read_text()
    values = yaml.safe_load(before)
    values["twins"]["one"] |= own
    path.write_text(yaml.safe_dump(values))
    try:
        counts, plans = plan(finished, *RUN), snakemake(finished, "--dry-run", "--printshellcmds", *RUN)
    finally:
        path.write_text(before)
    assert counts["train_generator"] == 1
    assert cells_of(counts, "Timing") == {("twostream_from_twin", "verbalized_plain")}
    (command,) = (line for line in plans.splitlines() if "-m pipeline.train " in line)
    assert "--start-from results/models/one " in command
    assert told in command
