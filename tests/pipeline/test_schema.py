from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.schemas import benchmark
from tests.pipeline.benchmark_rows import failed, row, table

# Section 5 of the design names these; a reader of the table may count on them.
PROMISED = """
    profile hardware device dtype model method lossless task data_source data_sha256 metric quality quality_stderr
    num_prompts num_new_tokens truncated tokens_per_second ttft_s tpot_s speedup speedup_low speedup_high
    tokens_per_step accepted_draft_tokens target_forwards draft_forwards peak_memory_bytes weight_bytes mbu
    lossless_match output_sha256 seed status reason
    bleu chrf rouge1 rouge2 rougeL pass_at_1 exact_match exact_match_flexible
"""


def test_every_promised_column_is_there() -> None:
    assert set(PROMISED.split()) <= set(benchmark.COLUMNS)


def test_every_column_has_a_unit_and_a_meaning() -> None:
    for name, column in benchmark.COLUMNS.items():
        assert column.metadata["unit"], name
        assert column.description, name


def test_good_rows_pass() -> None:
    skipped = row(method="b", status="skipped", reason="code execution is off", quality=None, pass_at_1=None, metric="")
    assert len(table(row(), failed("a"), skipped, row(method="c", lossless=None, mfu=0.1), row(seed=1))) == 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(speedup_low=1.2), "speedup_low is above speedup"),
        (row(speedup_high=0.9), "speedup is above speedup_high"),
        (row(quality=120.0, pass_at_1=0.2), "quality is '120.0', must be at most 100"),
        (row(pass_at_1=25.0), "pass_at_1 is '25.0', must be at most 1"),
        (row(lossless_match=1.2), "lossless_match is '1.2', must be at most 1"),
        (row(truncated=7), "truncated is above num_prompts"),
        (row(truncated_tokens=1153), "truncated_tokens is above num_new_tokens"),
        (row(accepted_draft_tokens=401), "accepted_draft_tokens is above candidate_tokens"),
        (row(status="odd"), "odd"),
        (row(mbu=-0.1), "mbu is '-0.1', must be at least 0"),
        (row(num_new_tokens="many"), "num_new_tokens is 'many', not of type Int64"),
        (row(data_sha256="abc"), "data_sha256 is 'abc', must be 64 hex digits or empty"),
        (row(method=""), "method is ''"),
        (row(quality=None), "ok, and yet without quality"),
        (row(status="failed", reason="out of memory"), "failed, with figures"),
        (failed("a", reason=""), "no reason is given"),
        (row(reason="odd"), "ok, and yet a reason is given"),
        (row(status="skipped", reason="off"), "not ok, with a quality"),
    ],
)
def test_a_bad_row_is_refused_in_one_line(bad: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        table(row(task="verbalized"), bad)
    line = str(caught.value)
    assert line.startswith("benchmark.csv: row 1 (smollm2-135m, humaneval, ")
    assert "\n" not in line
    if message != "odd":
        assert message in line


def test_half_a_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"num_new_tokens is .*, not of type Int64"):
        table(row(num_new_tokens=1.5))


def test_the_same_cell_twice_is_refused() -> None:
    with pytest.raises(UserError, match="another row of the same cell"):
        table(row(), row(quality=0.5))


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    written = table(
        row(reason=""),
        failed("NA", reason='None, "quoted", é\u0301'),
        row(method="null", lossless=False, mfu=None, seed=3, peak_memory_bytes=80_000_000_001, speedup=1 / 3),
    )
    benchmark.write(written, tmp_path / "benchmark.csv")
    read = benchmark.read(tmp_path / "benchmark.csv")
    pd.testing.assert_frame_equal(read, written, rtol=1e-5)
    benchmark.write(read, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "benchmark.csv").read_bytes()
    text = (tmp_path / "benchmark.csv").read_text(encoding="utf-8")
    assert ",true," in text
    assert ",0.333333," in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ttft_s", "ttfts", "unknown column 'ttfts'; did you mean 'ttft_s'?"),
        (",reason\n", "\n", "'reason' is missing|out of range|tokenizing"),
        ("0.0731", "soon", "ttft_s is 'soon', not of type float64"),
        (",true,", ",maybe,", "lossless is 'maybe', not of type boolean"),
    ],
)
def test_a_spoilt_file_is_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "benchmark.csv"
    benchmark.write(table(row()), path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        benchmark.read(path)


def test_no_file_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        benchmark.read(tmp_path / "benchmark.csv")
    (tmp_path / "benchmark.csv").touch()
    with pytest.raises(UserError, match="is not a table"):
        benchmark.read(tmp_path / "benchmark.csv")


def test_a_table_that_does_not_pass_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.csv"
    good = table(row())
    benchmark.write(good, path)
    before = path.read_bytes()
    with pytest.raises(UserError):
        benchmark.write(good.assign(speedup_low=9.0), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_document_of_the_columns_is_up_to_date() -> None:
    root = Path(__file__).parents[2]
    made = subprocess.run(
        [sys.executable, "-m", "pipeline.schemas.benchmark"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert (root / "docs" / "columns.md").read_text(encoding="utf-8") == made, (
        "run python -m pipeline.schemas.benchmark > docs/columns.md"
    )


def test_the_committed_reference_tables_follow_the_schema() -> None:
    references = sorted((Path(__file__).resolve().parents[2] / "results/reference").glob("*.csv"))
    references = [path for path in references if path.name != "image.csv"]  # has a schema of its own
    assert "laptop.csv" in [path.name for path in references]
    for path in references:
        table = benchmark.read(path)
        assert set(table["status"]) == {"ok"}
        assert (table.loc[table["method"].isin(["autoregressive", "prompt_lookup"]), "lossless_match"] == 1).all()
