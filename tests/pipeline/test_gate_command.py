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


def two_models(model: str, twin: str, **changes: Any) -> pd.DataFrame:
    """A run of a model and of a twin, each in a dtype."""
    rows = [row("diffusion", dtype=twin, model="twin", model_source="trained: here", **changes)]
    return table(row(dtype=model), row(dtype=twin, model="twin", model_source="trained: here"), *rows)


def test_each_model_of_a_run_is_held_against_the_reference_in_its_own_dtype(tmp_path: Path) -> None:
    benchmark.write(two_models("bfloat16", "bfloat16", target_forwards=900), tmp_path / "reference_bfloat16.csv")
    mixed = two_models("float32", "bfloat16", target_forwards=950)
    done = gate(tmp_path, mixed, two_models("float32", "float32", target_forwards=990))
    assert "twin against " in done.stdout
    assert "reference_bfloat16.csv, where it is in this run's dtype" in done.stdout
    assert done.returncode == 1
    assert "| 900" in done.stdout
    assert "950" in done.stdout
    assert "990" not in done.stdout


def test_a_run_in_the_dtypes_of_no_reference_overwrites_none(tmp_path: Path) -> None:
    theirs = two_models("bfloat16", "bfloat16")
    benchmark.write(theirs, tmp_path / "reference_bfloat16.csv")
    done = gate(tmp_path, two_models("float32", "bfloat16"), two_models("float32", "float32"), "--update")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "smollm2-135m in float32, twin in bfloat16" in done.stderr
    pd.testing.assert_frame_equal(benchmark.read(tmp_path / "reference_bfloat16.csv"), theirs)
    assert set(benchmark.read(tmp_path / "reference.csv")["dtype"]) == {"float32"}


def test_all_models_in_other_dtypes_are_named_in_one_line(tmp_path: Path) -> None:
    done = gate(tmp_path, two_models("float32", "float32"), two_models("bfloat16", "bfloat16"))
    assert done.returncode == 2
    wanted = "--config 'models={smollm2-135m: {dtypes: [bfloat16]}}' 'twins={twin: {dtypes: [bfloat16]}}' runs it so"
    assert wanted in done.stderr
