"""Our greedy float32 answers and scores equal those of ``lm_eval --model hf`` on the same prompts, sample by sample.

A small model's answers to hard tasks are mostly wrong, so equal scores may be equal noughts. Therefore the scores of
right and of wrong answers to every task are compared too, lm-eval's model being one that says what it is told to.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import dataset, prepare, score
from pipeline.registry import TASKS
from pipeline.schemas.benchmark import PERCENT_METRICS

ROOT = Path(__file__).resolve().parents[2]
MAX_NEW_TOKENS = 32
NUM_PROMPTS = 2
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
# One task of each group, and whether its prompt is put as a chat.
CHAT_TEMPLATE = {"humaneval": False, "gsm_symbolic": True, "docstrings": True, "verbalized": True}


def ours(task: str, model: Path, folder: Path, patch: pytest.MonkeyPatch) -> tuple[list[dict], dict]:
    """Run our rules by hand; return the samples and the score."""
    data, requests, cell = folder / "data", folder / "requests.jsonl", folder / "cell"
    limits = [f"--num-prompts={NUM_PROMPTS}", f"--max-new-tokens={MAX_NEW_TOKENS}"]
    chat = ["--chat-template"] if CHAT_TEMPLATE[task] else []
    how = ["--dtype=float32", "--method=autoregressive", "--options={}", "--sampling=" + json.dumps(GREEDY), "--seed=0"]
    measure = ["--repeats=1", "--warmup-prompts=0", "--device=cpu", "--num-threads=0"]

    def here(rule: ModuleType, *options: str) -> None:
        patch.setattr(sys, "argv", [rule.__name__, f"--task={task}", *options])
        rule.main()

    here(dataset, f"--output={data}")
    here(prepare, f"--data={data}", f"--model={model}", *limits, *chat, f"--output={requests}")
    # A process of its own: it counts the threads, and its memory is the cell's.
    cell_of = [f"--task={task}", f"--model-dir={model}", *how, *measure, f"--requests={requests}", f"--output={cell}"]
    subprocess.run([sys.executable, "-m", "pipeline.generate", *cell_of], cwd=ROOT, check=True)
    here(score, f"--data={data}", f"--cell={cell}", "--allow-code-execution")
    samples = [json.loads(line) for line in (cell / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    return samples, json.loads((cell / "score.json").read_text(encoding="utf-8"))


def theirs(task: str, model: object, data_file: Path, num_prompts: int, chat_template: bool) -> dict:
    """Run lm-eval as its command line would, on the same YAML and documents."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    yamls = str((ROOT / TASKS[task].yaml).parent)
    return simple_evaluate(
        model=model,
        tasks=[task],
        task_manager=TaskManager(include_path=yamls, include_defaults=False, metadata={"data_file": str(data_file)}),
        limit=num_prompts,
        gen_kwargs={"max_gen_toks": MAX_NEW_TOKENS},
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
        confirm_run_unsafe_code=True,
    )


@pytest.fixture(scope="module")
def hf_model(smollm2: Path) -> object:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(smollm2), dtype="float32", device="cpu", batch_size=1)


def check_equal(task: str, samples: list[dict], score: dict, reference: dict) -> None:
    """Compare texts, metrics of each sample, aggregates and standard errors."""
    # With several filters lm-eval lists each sample once a filter, in the order of the filters.
    listed = reference["samples"][task]
    filters = list(dict.fromkeys(sample["filter"] for sample in listed))
    by_filter = {name: [sample for sample in listed if sample["filter"] == name] for name in filters}
    assert [sample["text"] for sample in samples] == [sample["resps"][0][0] for sample in by_filter[filters[0]]]

    results = reference["results"][task]
    for column, value in score["metrics"].items():
        metric = column.removesuffix("_flexible")
        name = filters[0] if column == metric else "flexible-extract"
        assert value == pytest.approx(results[f"{metric},{name}"]), column
        for mine, theirs_ in zip(samples, by_filter[name], strict=True):
            # lm-eval keeps a pair of texts for BLEU and chrF, and a number for the others.
            if not isinstance(theirs_[metric], list | tuple):
                assert mine[column] == pytest.approx(theirs_[metric]), column
    assert score["quality_stderr"] == pytest.approx(results[f"{score['metric']}_stderr,{filters[0]}"])


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("task", CHAT_TEMPLATE)
def test_answers_and_scores_are_those_of_lm_eval(task, smollm2, hf_model, tmp_path, monkeypatch):
    samples, score = ours(task, smollm2, tmp_path, monkeypatch)
    assert any(sample["text"].strip() for sample in samples)
    reference = theirs(task, hf_model, tmp_path / "data/data.jsonl", NUM_PROMPTS, CHAT_TEMPLATE[task])
    check_equal(task, samples, score, reference)


# Documents of the tasks that no package embeds.
PAIRS = [
    {"source": "Ein Mann liest eine Zeitung im Park.", "target": "A man reads a newspaper in the park."},
    {"source": "Zwei Hunde laufen über die Wiese.", "target": "Two dogs are running across the meadow."},
    {"source": "Das Haus am See ist sehr alt.", "target": "The house by the lake is very old."},
]
DOCUMENTS = {
    "gsm8k": [
        {"question": f"{n} dollars and {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n:,}"} for n in (7, 600, -12)
    ],
    "cnn_dailymail": [{"article": pair["source"], "highlights": pair["target"]} for pair in PAIRS],
    "multi30k": [{"source": pair["target"], "target": pair["source"]} for pair in PAIRS],
    "wmt14": PAIRS,
    "wmt16": PAIRS,
    "mbpp": [
        {
            "task_id": f"MBPP/{n}",
            "text": f"Write a function that adds {n}.",
            "code": f"def add_{n}(x):\n    return x + {n}",
            "tests": f"assert add_{n}(1) == {n + 1}",
            "prompt": "",
            "entry_point": f"add_{n}",
            "test": f"def check(add_{n}):\n    assert add_{n}(1) == {n + 1}",
        }
        for n in (2, 3, 4)
    ],
}
DOCUMENTS["multi30k_plain"] = DOCUMENTS["multi30k"]
# The key of a document that holds its right answer; a wrong answer to each.
RIGHT = dict.fromkeys(("gsm8k", "gsm_symbolic"), "answer") | dict.fromkeys(
    ("multi30k", "multi30k_plain", "wmt14", "wmt16", "verbalized", "verbalized_plain"), "target"
)
RIGHT |= {"cnn_dailymail": "highlights", "docstrings": "summary", "humaneval": "canonical_solution", "mbpp": "code"}
WRONG = dict.fromkeys(TASKS, "Something else.") | {"gsm8k": "1\n#### 1", "humaneval": "    return None\n"}


def saying(texts: list[str]) -> object:
    """What lm-eval takes for a model: it answers document i with ``texts[i]``."""
    from lm_eval.api.model import LM

    class Saying(LM):
        loglikelihood = loglikelihood_rolling = None

        def generate_until(self, requests, disable_tqdm=False):
            return [texts[request.doc_id] for request in requests]

    return Saying()


@pytest.mark.parametrize("task", TASKS)
def test_right_and_wrong_answers_score_as_in_lm_eval(task, tmp_path, monkeypatch):
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")  # lm-eval would resample in a pool of processes
    documents = DOCUMENTS.get(task) or dataset.from_embedded(task)[0][:3]
    dataset.write(task, documents, "path:x", "1", tmp_path)
    right = [document[RIGHT[task]] for document in documents]
    qualities = []
    for texts in (right, [WRONG[task], *right[1:]], [WRONG[task]] * len(right)):
        cell = tmp_path / f"cell{len(qualities)}"
        cell.mkdir()
        records = [{"doc_id": number, "text": text} for number, text in enumerate(texts)]
        (cell / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (cell / "cell.json").write_text('{"status": "ok"}')
        result, samples = score.score_cell(task, tmp_path, cell, allow_code_execution=True)
        check_equal(task, samples, result, theirs(task, saying(texts), tmp_path / "data.jsonl", 3, False))
        qualities.append(result["metrics"])
    best, middle, worst = qualities
    for metric, value in best.items():
        assert value == pytest.approx(100.0 if metric in PERCENT_METRICS else 1.0), metric
        assert value > middle[metric] > worst[metric], metric
