"""Images in the DAG: what is made, once, and what a change costs (as ``test_dag``)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.pipeline.dag import METHODS, TASKS, copy_project, plan, short_profile, snakemake

IMAGES = {"windows": [1, 2], "guidances": ["none", "linear"]}
MADE = {"image_digits": 1, "image_photographs": 1, "image_train": 2, "image_generate": 4, "image_score": 1}
MADE |= dict.fromkeys(("image_timing", "image_cost", "image_collect", "image_figures", "image_sheet", "image_table"), 1)
RUN = ("--configfile", "mine.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of a small profile with a section of images."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    file = short_profile(project)
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"images": IMAGES}))
    counts = plan(project, *RUN)
    assert {rule: counts[rule] for rule in MADE} == MADE
    snakemake(project, *RUN)
    return project


def test_everything_is_made_and_a_second_run_does_nothing(finished: Path) -> None:
    figures = [f"figures/image_{name}.png" for name in ("sheet", "quality", "cost")]
    for name in (
        "image.csv",
        "tables/token_shuffle.md",
        "tables/token_shuffle.tex",
        "pages/token_shuffle.html",
        *figures,
    ):
        assert (finished / "results" / name).is_file(), name
    assert plan(finished, *RUN)["total"] == 0


def test_photographs_are_not_digits(finished: Path) -> None:
    words = ("--dry-run", "--printshellcmds", "--forceall", *RUN)
    printed = snakemake(finished, *words)
    for said in ("--data digits --patch-size 2 --codebook-size 64 --seed 0", "--data photographs --patch-size 16"):
        assert said in printed
    assert "--codebook-size 512 --sides 256 512 1024 2048" in printed


def test_the_report_shows_them(finished: Path) -> None:
    snakemake(finished, "--report", "report.html", *RUN)
    page = (finished / "report.html").read_text(encoding="utf-8")
    for word in ("image_sheet.png", "image_cost.png", "token_shuffle.html", "Dashed: real digits"):
        assert word in page


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (
            "images={guidance_scale: 3.0}",
            {"image_generate": 4, "image_timing": 1, "image_score": 1, "image_collect": 1},
        ),
        ("images={guidances: [none]}", {"image_score": 1, "image_timing": 1, "image_sheet": 1}),
        ("images={steps: 9}", {"image_train": 2, "image_generate": 4, "image_timing": 1}),
        ("images={codebook_size: 32}", {"image_digits": 1, "image_train": 2, "image_generate": 4}),
        ("images={cost: {sides: [256]}}", {"image_photographs": 1, "image_cost": 1, "image_collect": 1}),
    ],
)
def test_a_changed_setting_costs_what_depends_on_it(finished: Path, change: str, again: dict[str, int]) -> None:
    counts = plan(finished, *RUN, "--config", change)
    assert {rule: counts[rule] for rule in again} == again
    untouched = {"image_train", "image_digits", "image_cost"} - set(again)
    assert not any(counts[rule] for rule in (*untouched, "generate", "fetch", "collect"))


@pytest.mark.parametrize(
    ("file", "again", "untouched"),
    [
        ("pipeline/images/score.py", {"image_score": 1}, ("image_train", "image_generate", "image_timing")),
        ("shuffle/tokenshuffle/guidance.py", {"image_generate": 4, "image_timing": 1}, ("image_train", "image_cost")),
        ("pipeline/images/figures.py", {"image_figures": 1, "total": 2}, ("image_collect",)),
        ("pipeline/images/published.yaml", {"image_table": 1}, ("image_collect",)),
    ],
)
def test_changed_code_costs_what_it_made(
    finished: Path, file: str, again: dict[str, int], untouched: tuple[str, ...]
) -> None:
    path = finished / file
    before, times = path.read_text(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_text(before + "\n# changed\n")
    try:
        counts = plan(finished, *RUN)
    finally:
        path.write_text(before)
        os.utime(path, ns=times)  # as old as it was: nothing is to be made again
    assert {rule: counts[rule] for rule in again} == again
    assert not any(counts[rule] for rule in untouched)


def test_a_profile_without_the_section_makes_no_images(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    short_profile(project)
    assert not any(rule.startswith("image_") for rule in plan(project, *RUN))
    assert plan(project, "--config", "profile=smoke")["generate"] == len(METHODS) * len(TASKS)
    assert plan(project, "results/image.csv", *RUN)["image_cost"] == 1  # asked for by name it is made all the same


def test_the_default_profile_makes_them_and_can_do_without(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    values = yaml.safe_load((Path(__file__).resolve().parents[2] / "config/laptop.yaml").read_text())
    file = project / "config" / "laptop.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"images": values["images"]}))
    assert plan(project)["image_generate"] == 8
    assert "image_generate" not in plan(project, "--config", "images=null")
