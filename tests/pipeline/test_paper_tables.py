"""Published figures stand as published, ours beside them, and what does not add up is marked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.paper_pages import MARK, as_markdown, as_text
from pipeline.paper_tables import FORMS, Published, doubts, paper_table, read_published
from pipeline.schemas import benchmark
from tests.pipeline.benchmark_rows import METRIC, failed, row, table

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = read_published()
SPEEDUPS = {"autoregressive": 1.0, "prompt_lookup": 1.4, "speculative": 1.1, "lookahead": 1.2, "ouroboros": 1.3}
SPEEDUPS |= {"ouroboros_warm_start": 1.5, "medusa": 1.6, "fasterdecodemixer": 1.7, "hf_greedy": 0.25}


def generator(method: str, **changes: Any) -> dict[str, Any]:
    batch = {"batch_size": 32, "batch_tokens_per_second": 9.0, "batch_baseline_tokens_per_second": 3.0}
    own = {"model": "twin", "lossless": False, "batch_speedup": 3.0, "target_forwards": 12, "num_prompts": 6}
    return row(method, "verbalized", **(batch | own | changes))


def cells() -> pd.DataFrame:
    rows = [row(method, task, speedup=speedup) for task in METRIC for method, speedup in SPEEDUPS.items()]
    twin = [row(task="verbalized", model="twin", seed=0), generator("shufflelm", quality=97.0, speedup=5.0)]
    return table(*rows, *twin, failed("union"))


def ours(name: str) -> pd.DataFrame:
    rows = paper_table(name, PUBLISHED[name], cells())
    return rows[rows["from"] == "this run"]


def test_every_published_table_has_a_form() -> None:
    assert PUBLISHED.keys() == FORMS.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures_stand_first_and_unchanged(name: str) -> None:
    published = PUBLISHED[name]
    rows = paper_table(name, published, cells())
    theirs = rows[rows["from"] != "this run"][[*FORMS[name].names, *published.columns]]
    pd.testing.assert_frame_equal(theirs.astype(object), published.frame(FORMS[name].names).astype(object))
    assert rows["from"].tolist() == sorted(rows["from"], key=["published", "this run"].index)
    assert published.source
    assert published.differs


def test_a_table_needs_no_run() -> None:
    nothing = cells().iloc[:0]
    assert all((paper_table(name, PUBLISHED[name], nothing)["from"] == "published").all() for name in PUBLISHED)


def test_ouroboros_is_laid_out_by_task_and_algorithm() -> None:
    rows = ours("ouroboros")
    assert rows["task"].unique().tolist() == sorted(METRIC)
    assert rows["algorithm"].tolist()[:5] == ["Greedy", "Speculative", "Lookahead", "Ouroboros", "Ouroboros†"]
    assert rows["our_speedup"].tolist()[:5] == [1.0, 1.1, 1.2, 1.3, 1.5]


def test_a_task_that_was_published_has_ours_in_its_line() -> None:
    rows = table(*(row(method, "gsm8k", speedup=SPEEDUPS[method]) for method in ("autoregressive", "lookahead")))
    joined = paper_table("ouroboros", PUBLISHED["ouroboros"], rows).set_index(["task", "algorithm"])
    line = joined.loc[("GSM8K", "Lookahead")]
    assert line[["from", "yi_tokens_per_second", "llama2_speedup", "our_speedup"]].tolist() == [
        "both",
        25.14,
        1.54,
        1.2,
    ]
    assert joined.loc[("GSM8K", "Ouroboros"), "from"] == "published"
    assert len(joined) == len(PUBLISHED["ouroboros"].rows)


@pytest.mark.parametrize("tasks", [("wmt14",), ("wmt16",), ("wmt14", "wmt16")])
def test_wmt14_stands_in_for_wmt16_where_that_is_not_run(tasks: tuple[str, ...]) -> None:
    speedups = {"wmt14": 1.1, "wmt16": 1.3}
    rows = table(*(row("lookahead", task, speedup=speedups[task]) for task in tasks))
    joined = paper_table("ouroboros", PUBLISHED["ouroboros"], rows).set_index(["task", "algorithm"])
    assert joined.loc[("WMT16", "Lookahead"), "our_speedup"] == speedups[tasks[-1]]


def test_spec_bench_goes_by_category_and_leaves_peers_out() -> None:
    rows = ours("spec_bench").set_index("system")
    lookup = rows.loc["prompt_lookup on smollm2-135m (bfloat16)"]
    assert lookup["translation"] == lookup["code"] == pytest.approx(1.4)
    assert lookup["mean_accepted_tokens"] == pytest.approx(1.54)
    assert not any(system.startswith(("hf_", "shufflelm", "union")) for system in rows.index)
    assert "twin" not in " ".join(rows.index)


@pytest.mark.parametrize("name", ["spec_bench", "parallel_llm", "medusa"])
def test_a_mean_over_other_tasks_than_the_others_is_empty(name: str) -> None:
    column = {"spec_bench": "overall", "parallel_llm": "tokens_per_second", "medusa": "speedup"}[name]
    rows = [row(method, task, speedup=1.5) for task in METRIC for method in ("medusa", "fasterdecodemixer")]
    broken = table(*rows[:-1], failed("fasterdecodemixer", "verbalized"))
    found = paper_table(name, PUBLISHED[name], broken).set_index("system")[column]
    assert found["medusa on smollm2-135m (bfloat16)"] > 0
    assert pd.isna(found["fasterdecodemixer on smollm2-135m (bfloat16)"])
    assert "did not end well on all of them" in PUBLISHED[name].differs


def test_a_parallel_generator_stands_beside_its_twin() -> None:
    rows = ours("parallel_generators").set_index("system")
    assert rows.loc["shufflelm on twin (bfloat16)", ["passes", "bleu", "speedup"]].tolist() == [2.0, 97.0, 5.0]
    assert "autoregressive on twin (bfloat16)" in rows.index
    assert len(rows) == 2


def test_several_models_stand_in_lines_that_name_them() -> None:
    """In the published lines they could not be told apart."""
    both = [
        row(method, "gsm8k", model=model) for model in ("small", "large") for method in ("autoregressive", "ouroboros")
    ]
    rows = paper_table("ouroboros", PUBLISHED["ouroboros"], table(*both))
    ours = rows[rows["from"] == "this run"]
    assert sorted(ours["algorithm"]) == [
        f"{name} on {model} (bfloat16)" for name in ("Greedy", "Ouroboros") for model in ("large", "small")
    ]
    assert set(ours["task"]) == {"GSM8K"}
    assert not (rows["from"] == "both").any()
    assert len(rows) == len(PUBLISHED["ouroboros"].rows) + 4


def test_latency_is_the_time_to_ten_tokens() -> None:
    rows = ours("parallel_llm").set_index("system")
    latency = rows.loc["hf_greedy on smollm2-135m (bfloat16)", "latency_ms"]
    assert latency == pytest.approx(1000 * (0.0731 + 9 * 0.0357))


def test_a_speed_up_that_its_own_figures_contradict_is_marked() -> None:
    rows = [["GSM8K", "Greedy", 10.0, 1.0], ["GSM8K", "Fast", 20.0, 2.0], ["GSM8K", "Faster", 25.0, 3.0]]
    published = Published("T", "S", "D", ["tokens_per_second", "speedup"], rows, baseline="Greedy")
    marked = doubts("ouroboros", published)
    assert marked == [(2, "speedup", "25.0 by 10.0 is 2.50")]
    texts = as_text(paper_table("ouroboros", published, cells()), published, marked)
    assert texts["speedup"].tolist()[:3] == ["1", "2", f"3{MARK}"]
    rows[1][3] = 2.05  # all figures of a column have as many decimals
    texts = as_text(paper_table("ouroboros", published, cells()), published, marked)
    assert texts["speedup"].tolist()[:3] == ["1.00", "2.05", f"3.00{MARK}"]
    assert "25.0 by 10.0 is 2.50" in as_markdown(published, texts, marked)


@pytest.mark.parametrize(("name", "order"), [("parallel_llm", 1), ("shufflelm", -1)])
def test_ours_are_sorted_by_their_paired_speed_up(name: str, order: int) -> None:
    """However many tokens/s a cell had in the machine's good hour."""
    fast = {"tokens_per_second": 900.0, "baseline_tokens_per_second": 900.0}
    rows = table(
        row("fasterdecodemixer", speedup=0.9, **fast), row(), row("fasterdecodemixer_raw", speedup=1.6, lossless=False)
    )
    found = paper_table(name, PUBLISHED[name], rows)
    assert found.loc[found["from"] == "this run", "speedup"].tolist() == [0.9, 1.0, 1.6][::order]


def test_what_is_doubted_is_marked_where_it_stands() -> None:
    marked = doubts("shufflelm", PUBLISHED["shufflelm"])
    texts = as_text(paper_table("shufflelm", PUBLISHED["shufflelm"], cells()), PUBLISHED["shufflelm"], marked)
    assert texts["system"].tolist()[:3] == ["Llama3-8B", "Qwen2.5-7B", "FasterDecodeMixer"]
    assert texts["memory_gb"].tolist()[:3] == [f"2.1{MARK}", f"1.9{MARK}", f"1.1{MARK}"]
    names = {name: FORMS[name].names for name in PUBLISHED}
    for name, published in PUBLISHED.items():
        found = {
            (published.frame(names[name]).iloc[index][names[name][-1]], column)
            for index, column, _ in doubts(name, published)
        }
        assert {(system, column) for system, column, _ in published.doubted} <= found


def test_what_was_not_found_where_it_should_stand_says_so() -> None:
    page = {}
    for name in ("parallel_llm", "parallel_llm_training"):
        published, marked = PUBLISHED[name], doubts(name, PUBLISHED[name])
        page[name] = as_markdown(published, as_text(paper_table(name, published, cells()), published, marked), marked)
        assert "not found" in published.source
    assert page["parallel_llm"].count("not found in the package's description") == 3
    assert page["parallel_llm_training"].count("not found in the package's description") == 8 + 1  # figures, source
    assert f"1,200,000{MARK}" in page["parallel_llm_training"]
    assert f"-{MARK}" not in page["parallel_llm_training"]
    assert f"130{MARK}" in page["parallel_llm"]


def test_all_files_are_written_without_torch(tmp_path: Path) -> None:
    benchmark.write(cells(), tmp_path / "benchmark.csv")
    code = (
        "import sys; from pipeline.paper_tables import main; main();"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    words = ["--benchmark", str(tmp_path / "benchmark.csv"), "--output", str(tmp_path / "tables")]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert written == sorted(f"{name}.{form}" for name in PUBLISHED for form in ("csv", "md", "tex"))
    latex = (tmp_path / "tables" / "spec_bench.tex").read_text()
    assert latex.count(r"\begin{tabular}") == 1
    assert not re.search(r"(?<!\\)[%&_](?![^\n]*\\\\)", re.sub(r"\\(label|begin|end)\{[^}]*\}", "", latex))
