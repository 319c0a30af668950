"""Quality by kind of document: which kind a pair is of, what a score says of each, and the table."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import sacrebleu
from num2words import num2words

from pipeline import dataset, score
from pipeline.strata import as_markdown, rows_of
from pipeline.tasks.verbalized import order_of

PAIRS = [
    {"source": "twenty-one euros and two cents", "target": "einundzwanzig Euro und zwei Cent"},
    {"source": "two hundred euros and five cents", "target": "zweihundert Euro und fünf Cent"},
    {"source": "four euros and forty-two cents", "target": "vier Euro und zweiundvierzig Cent"},
    {"source": "fifteen euros and three cents", "target": "fünfzehn Euro und drei Cent"},
]
TEXTS = [
    "einundzwanzig Euro und zwei Cents",
    "zweihundert Euro und fünf Cent",
    "vier Euro vierzig Cent",
    "fünfzehn Euro und drei Cent",
]


def test_units_come_before_tens_in_german_from_twenty_one_on_but_for_whole_tens() -> None:
    for number in range(1, 1000):
        reordered = number % 100 > 20 and number % 10 > 0
        pair = {"source": num2words(number), "target": num2words(number, lang="de")}
        assert (order_of(pair) == "units before tens") == reordered, pair


def cell_of(folder: Path, method: str, texts: list[str], seed: int = 0) -> Path:
    """A cell on the pairs, and its score."""
    data, cell = folder / "data", folder / method / str(seed)
    dataset.write("verbalized_plain", PAIRS, "path:x", "1", data)
    cell.mkdir(parents=True)
    records = [{"prompt_id": n, "doc_id": n, "text": text} for n, text in enumerate(texts)]
    (cell / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run = {"status": "ok", "reason": "", "task": "verbalized_plain", "model": "twin", "dtype": "float32", "seed": seed}
    (cell / "cell.json").write_text(json.dumps({**run, "method": method}))
    found, _ = score.score_cell("verbalized_plain", data, cell, False)
    (cell / "score.json").write_text(json.dumps(found))
    return cell


def test_each_kind_is_scored_as_if_there_were_no_other(tmp_path: Path) -> None:
    strata = json.loads((cell_of(tmp_path, "shufflelm", TEXTS) / "score.json").read_text())["strata"]
    for kind, members in {"units before tens": [0, 2], "in order": [1, 3]}.items():
        references = [[PAIRS[n]["target"] for n in members]]
        expected = sacrebleu.corpus_bleu([TEXTS[n] for n in members], references).score
        assert strata[kind]["quality"] == pytest.approx(expected)
        assert strata[kind]["num_prompts"] == 2
    assert strata["in order"]["quality"] > strata["units before tens"]["quality"]


def test_a_task_that_tells_no_kinds_apart_has_none(tmp_path: Path) -> None:
    dataset.write("verbalized", PAIRS, "path:x", "1", tmp_path / "data")
    cell = cell_of(tmp_path / "plain", "shufflelm", TEXTS)
    found, _ = score.score_cell("verbalized", tmp_path / "data", cell, False)
    assert found["strata"] == {}


def test_the_table_has_a_row_a_kind_and_the_page_a_line_a_method(tmp_path: Path) -> None:
    cells = [cell_of(tmp_path, "shufflelm", TEXTS), cell_of(tmp_path, "autoregressive", [p["target"] for p in PAIRS])]
    failed = tmp_path / "diffusion" / "0"
    failed.mkdir(parents=True)
    run = {"task": "verbalized_plain", "model": "twin", "dtype": "float32", "method": "diffusion", "seed": 0}
    (failed / "cell.json").write_text(json.dumps({**run, "status": "failed", "reason": "no"}))
    (failed / "score.json").write_text(json.dumps({"status": "failed", "reason": "no"}))
    command = [sys.executable, "-m", "pipeline.strata", "--cells", *map(str, [*cells, failed])]
    subprocess.run([*command, "--output", str(tmp_path / "tables")], check=True)
    table = pd.read_csv(tmp_path / "tables/strata.csv")
    assert table["method"].tolist() == ["autoregressive"] * 2 + ["shufflelm"] * 2
    assert table["kind"].tolist() == ["in order", "units before tens"] * 2
    assert table.loc[table["method"] == "autoregressive", "quality"].tolist() == pytest.approx([100, 100])
    page = (tmp_path / "tables/strata.md").read_text()
    assert "## verbalized_plain · twin · float32" in page
    assert "in order: bleu" in page
    assert re.search(r"\| autoregressive +\| 100\.0 ± 0\.0 \(2\) +\| 100\.0 ± 0\.0 \(2\) +\|", page)


def test_seeds_are_told_where_there_are_several_and_no_score_is_said(tmp_path: Path) -> None:
    rows = rows_of([cell_of(tmp_path, "shufflelm", TEXTS, seed) for seed in (0, 1)])
    assert "| shufflelm, seed 1 " in as_markdown(rows)
    assert "No cell has a score." in as_markdown(rows.head(0))
