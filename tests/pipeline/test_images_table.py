"""``results/image.csv``, and what is made of it: its document, the figures, Token-Shuffle's table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd

from pipeline.errors import UserError
from pipeline.images import figures
from pipeline.images import table as token_shuffle
from pipeline.paper_tables import read_published
from pipeline.schemas import image
from tests.pipeline.image_rows import Run, digits, photograph, real, table, whole_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_a_table_is_written_and_read(tmp_path: Path) -> None:
    image.write(whole_table(), tmp_path / "image.csv")
    read = image.read(tmp_path / "image.csv")
    pd.testing.assert_frame_equal(read, whole_table(), rtol=1e-5)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (digits(accuracy=1.2), "image.csv: accuracy is '1.2', must be at most 1"),
        (digits(guidance="cubic"), "image.csv: guidance is 'cubic', must be `none` or"),
        (photograph(weights="made up"), "image.csv: weights is 'made up', must be"),
        (photograph(rows="many"), "image.csv: rows is 'many', not of type Int64"),
        (real(profile=""), "image.csv: profile is '', must be not empty"),
    ],
)
def test_a_wrong_value_is_named(row: dict, said: str) -> None:
    with pytest.raises(UserError) as error:
        table(row)
    assert str(error.value).startswith(said)


def test_two_rows_of_the_same_and_wrong_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two rows of the same profile, hardware"):
        table(digits(), digits())
    with pytest.raises(UserError, match="unknown column 'acuracy'; did you mean 'accuracy'"):
        image.validate(whole_table().rename(columns={"accuracy": "acuracy"}))
    with pytest.raises(UserError, match="column 'frechet' is missing"):
        image.validate(whole_table().drop(columns="frechet"))
    with pytest.raises(UserError, match=r"there is no .*collect makes it"):
        image.read(tmp_path / "image.csv")


def test_the_document_is_what_is_checked() -> None:
    document = (ROOT / "docs" / "image_columns.md").read_text(encoding="utf-8")
    assert document == image.as_markdown(), "python -m pipeline.schemas.image > docs/image_columns.md"


def test_the_reference_is_a_table_of_images() -> None:
    reference = image.read(ROOT / "results" / "reference" / "image.csv")
    assert set(reference["subject"]) == {"digits", "photograph"}


def test_quality_is_drawn_over_speed_with_the_real_digits_as_a_line() -> None:
    accuracy, frechet = figures.quality(whole_table()).axes
    assert accuracy.get_legend_handles_labels()[1] == ["real digits", "window_1", "window_2"]
    speeds = [container.lines[0].get_xdata()[0] for container in accuracy.containers]
    assert speeds == pytest.approx([50.0] * 4 + [200.0] * 4)
    assert [line.get_ydata()[0] for line in frechet.lines if line.get_label() == "real digits"] == [0.14]
    assert sorted(text.get_text() for text in accuracy.texts) == sorted(
        ["none", "constant", "linear", "half_linear"] * 2
    )


def test_cost_is_drawn_beside_the_formula() -> None:
    rows, flops, seconds, memory = figures.cost(whole_table()).axes
    for panel, lines in ((rows, 6 + 1), (flops, 6), (seconds, 3), (memory, 3)):
        assert len(panel.lines) == lines
    measured, formula = flops.lines[2:4]
    assert measured.get_ydata().tolist() == formula.get_ydata().tolist()


def test_a_table_without_rows_says_so() -> None:
    assert "no digits were generated" in figures.quality(table(photograph())).texts[0].get_text()
    assert "was not measured" in figures.cost(table(digits())).texts[0].get_text()


def test_published_figures_stand_beside_ours(tmp_path: Path, run_rule: Run) -> None:
    image.write(whole_table(), tmp_path / "image.csv")
    assert run_rule(token_shuffle, "--images", str(tmp_path / "image.csv"), "--output", str(tmp_path)) == 0
    page = (tmp_path / "token_shuffle.md").read_text(encoding="utf-8")
    for words in (
        "| LDM ",
        " 0.62 ",
        " 0.77 ",
        "Ma et al.",
        "What differs:",
        "2 x 2 tokens a row, guidance half_linear",
    ):
        assert words in page
    rows = pd.read_csv(tmp_path / "token_shuffle.csv").set_index("system")
    assert rows.loc["LDM", "from"] == "published"
    ours = rows.loc["4 x 4 tokens a row, reading 2048 x 2048 pixels"]
    assert (ours["from"], ours["times_fewer_rows"]) == ("this run", 16)
    assert ours["times_less_attention"] == pytest.approx(256, rel=1e-3)
    assert (ours["prefill_speedup"], ours["times_less_memory"]) == pytest.approx((64, 1 / 0.3), rel=1e-3)
    assert (tmp_path / "token_shuffle.tex").read_text(encoding="utf-8").count(r"\midrule") == 1


def test_what_is_published_names_its_source() -> None:
    (published,) = read_published(token_shuffle.PUBLISHED).values()
    assert "2025" in published.source
    assert dict(published.rows)["Token-Shuffle 2.7B"] - dict(published.rows)["LDM"] == pytest.approx(0.15)


@pytest.mark.parametrize("module", ["collect", "figures", "sheet", "table", "score", "tokenise"])
def test_stays_without_torch(module: str) -> None:
    code = f"import sys, pipeline.images.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
