from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.schemas import benchmark
from pipeline.tables import as_markdown
from tests.pipeline.benchmark_rows import failed, row, table


def ran_with(*states: tuple[str | None, bool | None]) -> dict[str, Any]:
    """Return the provenance of cells that ran with these commits, clean or with changes."""
    listed = [{"commit": {"commit": commit, "dirty": dirty}, "cells": 1} for commit, dirty in states]
    return {"cells_ran_with": {"commit": listed}, "collected_with": {"commit": {"commit": "c" * 40, "dirty": False}}}


def lines_of(page: str, method: str) -> list[list[str]]:
    """Return the cells of each line of a method."""
    lines = [line.strip("|").split("|") for line in page.splitlines() if line.startswith(f"| {method} ")]
    return [[cell.strip() for cell in line] for line in lines]


def test_a_line_says_quality_speed_and_cost() -> None:
    page = as_markdown(table(row(), row("prompt_lookup", speedup=1.31)), {})
    assert lines_of(page, "prompt_lookup") == [
        [
            "prompt_lookup",
            "0.250 ± 0.050",
            "34.1",
            "1.31 [1.18, 1.45]",
            "1.44",
            "73 ms",
            "700 MB",
            "37 %",
            "100 %",
            "2 of 6",
        ]
    ]


def test_the_header_says_what_ran_where() -> None:
    page = as_markdown(table(row(), row(task="verbalized", num_prompts=12)), ran_with(("f" * 40, True)))
    assert page.splitlines()[2] == (
        "Test CPU @ 2 GHz · 2 threads, 1.9 times as fast as one · bfloat16 · 6 to 12 prompts a cell"
        " · commit ffffffffffff with changes · profile laptop"
    )


@pytest.mark.parametrize(
    ("scalings", "told"),
    [
        ([None, None], "2 threads"),
        ([1.94, None], "2 threads, 1.9 times as fast as one"),
        ([1.94, 0.87], "2 threads, 0.9 to 1.9 times as fast as one"),
    ],
)
def test_the_header_says_whether_threads_had_cores_of_their_own(scalings: list[float | None], told: str) -> None:
    rows = [row(thread_scaling=scaling, seed=seed) for seed, scaling in enumerate(scalings)]
    assert f" · {told} · " in as_markdown(table(*rows), ran_with(("f" * 40, True)))


@pytest.mark.parametrize(
    ("states", "told"),
    [
        ([("a" * 40, False), ("a" * 40, True)], "commit aaaaaaaaaaaa with changes"),
        ([("a" * 40, False), ("b" * 40, True)], "several commits"),
        ([(None, None)], "commit unknown"),
        ([], "commit unknown"),
    ],
)
def test_the_commit_is_the_one_that_the_cells_ran_with(states: list, told: str) -> None:
    assert f" · {told} · " in as_markdown(table(row()), ran_with(*states))


def test_there_is_a_section_for_each_task_and_dtype() -> None:
    page = as_markdown(table(row(), row(dtype="float32"), row(task="verbalized")), {})
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## humaneval · smollm2-135m · bfloat16",
        "## humaneval · smollm2-135m · float32",
        "## verbalized · smollm2-135m · bfloat16",
        "## Notes",
    ]


def test_the_baseline_comes_first_and_then_the_fastest() -> None:
    page = as_markdown(table(row("a", speedup=1.2), row("b", speedup=2.0), row()), {})
    order = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ") and "[" in line][1:]
    assert order == ["autoregressive", "b", "a"]


def test_failed_and_skipped_cells_are_named_with_their_reason() -> None:
    skipped = row("b", status="skipped", reason="code execution is off", quality=None, pass_at_1=None, metric="")
    page = as_markdown(table(row(), failed("a"), skipped, failed("a", task="verbalized")), {})
    assert page.count("- `a` failed: out of memory") == 2
    assert "- `b` skipped: code execution is off" in page
    assert lines_of(page, "b")[0][:3] == ["b", "skipped", "26.0"]
    assert not lines_of(page, "a")


def test_what_is_not_known_is_a_dash_and_never_nan() -> None:
    page = as_markdown(table(row(quality_stderr=None, mbu=None, lossless_match=None, ttft_s=None, truncated=None)), {})
    assert lines_of(page, "autoregressive")[0][1] == "0.250"
    assert lines_of(page, "autoregressive")[0][5:] == ["-", "700 MB", "-", "-", "-"]
    assert "nan" not in page.lower().replace("alternan", "")


def test_what_a_method_gains_without_the_texts_that_were_cut_off_stands_beside_how_many_they_are() -> None:
    def cell(**changes: Any) -> str:
        return lines_of(as_markdown(table(row(), row("a", speedup=2.0, **changes)), {}), "a")[0][-1]

    assert cell() == "2 of 6"  # a table from before it was known
    assert cell(speedup_ended=1.25) == "2 of 6 (1.25 where both ended)"
    assert cell(speedup_ended=2.0, truncated=0) == "0 of 6"
    assert cell(speedup_ended=1.25, truncated=0, lossless=False) == "0 of 6 (1.25 where both ended)"


def test_lossy_methods_are_marked() -> None:
    page = as_markdown(table(row(), row("raw", lossless=False)), {})
    assert "| raw *(lossy)* " in page
    assert "| autoregressive " in page


def test_several_seeds_and_further_metrics_get_columns_of_their_own() -> None:
    page = as_markdown(table(row(task="verbalized", chrf=50.2), row(task="verbalized", seed=1, chrf=51.0)), {})
    assert [line[1] for line in lines_of(page, "autoregressive")] == ["0", "1"]
    assert "chrf 50.2" in page
    assert "seed" not in as_markdown(table(row()), {})


def test_the_command_takes_the_commit_from_the_provenance_beside_the_table(tmp_path: Path) -> None:
    benchmark.write(table(row()), tmp_path / "benchmark.csv")
    (tmp_path / "provenance.json").write_text(json.dumps(ran_with(("abcdef0123456789", False))))
    command = [sys.executable, "-m", "pipeline.tables", "--benchmark", str(tmp_path / "benchmark.csv")]
    root = Path(__file__).parents[2]
    subprocess.run([*command, "--output", str(tmp_path / "tables" / "benchmark.md")], cwd=root, check=True)
    assert "commit abcdef012345 · profile laptop" in (tmp_path / "tables" / "benchmark.md").read_text(encoding="utf-8")
