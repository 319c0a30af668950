"""The gate's command: what it prints, what it ends with, and which reference it reads and writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.schemas import benchmark
from tests.pipeline.benchmark_rows import failed, row, table
from tests.pipeline.test_gate import run_of

ROOT = Path(__file__).resolve().parents[2]


def gate(
    folder: Path, now: pd.DataFrame, reference: pd.DataFrame | None, *flags: str
) -> subprocess.CompletedProcess[str]:
    benchmark.write(now, folder / "benchmark.csv")
    if reference is not None:
        benchmark.write(reference, folder / "reference.csv")
    files = ["--benchmark", str(folder / "benchmark.csv"), "--reference", str(folder / "reference.csv")]
    words = [sys.executable, "-m", "pipeline.gate", *files, *flags]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_tells_and_ends_with_its_verdict(tmp_path: Path) -> None:
    same = gate(tmp_path, run_of(), run_of())
    assert (same.returncode, same.stderr) == (0, "")
    assert "0 regressions, 0 improvements" in same.stdout
    worse = gate(tmp_path, run_of(lossless_match=0.5, engine="native"), run_of())
    assert worse.returncode == 1
    assert "| regression" in worse.stdout
    assert "must be 100 %" in worse.stdout
    better = gate(tmp_path, run_of(target_forwards=900), run_of())
    assert better.returncode == 0
    assert "| improvement" in better.stdout


def test_the_reference_is_made_when_asked_for_alone(tmp_path: Path) -> None:
    none = gate(tmp_path, run_of(), None)
    assert none.returncode == 2
    assert none.stderr.count("\n") == 1
    assert "there is no reference" in none.stderr
    assert "update_reference=true" in none.stderr
    assert gate(tmp_path, run_of(), None, "--update").returncode == 0
    assert gate(tmp_path, run_of(), None).returncode == 0


@pytest.mark.parametrize("bad", [failed("prompt_lookup"), row("prompt_lookup", lossless_match=0.5, engine="native")])
def test_a_table_that_cannot_be_held_to_is_no_reference(tmp_path: Path, bad: dict[str, Any]) -> None:
    done = gate(tmp_path, table(row(), bad), run_of(), "--update")
    assert done.returncode == 2
    assert "can be no reference" in done.stderr
    pd.testing.assert_frame_equal(benchmark.read(tmp_path / "reference.csv"), run_of())


def test_profiles_are_not_mixed(tmp_path: Path) -> None:
    done = gate(tmp_path, run_of(profile="smoke"), run_of())
    assert done.returncode == 2
    assert "smoke" in done.stderr


def test_an_update_leaves_the_reference_of_another_dtype_as_it_is(tmp_path: Path) -> None:
    in_bfloat16 = run_of().assign(dtype="bfloat16")
    assert gate(tmp_path, in_bfloat16, run_of().assign(dtype="float32"), "--update").returncode == 0
    assert set(benchmark.read(tmp_path / "reference.csv")["dtype"]) == {"float32"}
    pd.testing.assert_frame_equal(benchmark.read(tmp_path / "reference_bfloat16.csv"), in_bfloat16)


def test_a_run_is_held_against_the_reference_in_its_own_dtype(tmp_path: Path) -> None:
    benchmark.write(run_of().assign(dtype="bfloat16"), tmp_path / "reference_bfloat16.csv")
    slower = run_of(target_forwards=1100).assign(dtype="bfloat16")
    in_bfloat16 = gate(tmp_path, slower, run_of().assign(dtype="float32"))
    assert in_bfloat16.returncode == 1
    assert "reference_bfloat16.csv, which is in this run's dtype" in in_bfloat16.stdout
    in_float32 = gate(tmp_path, run_of().assign(dtype="float32"), run_of().assign(dtype="float32"))
    assert in_float32.returncode == 0
    assert "in this run's dtype" not in in_float32.stdout
    # What is made the reference is the one in the run's dtype, too.
    assert gate(tmp_path, slower, None, "--update").returncode == 0
    pd.testing.assert_frame_equal(benchmark.read(tmp_path / "reference_bfloat16.csv"), slower)
    assert set(benchmark.read(tmp_path / "reference.csv")["dtype"]) == {"float32"}
