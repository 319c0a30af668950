"""Our greedy float32 answers and scores equal those of ``lm_eval --model hf`` on the same prompts, sample by sample."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.registry import TASKS

ROOT = Path(__file__).resolve().parents[2]
MAX_NEW_TOKENS = 32
NUM_PROMPTS = 2
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
# One task of each group, and whether its prompt is put as a chat.
CHAT_TEMPLATE = {"humaneval": False, "gsm_symbolic": True, "docstrings": True, "verbalized": True}


def ours(task: str, model: Path, folder: Path) -> tuple[list[dict], dict]:
    """Run our rules by hand; return the samples and the score."""
    data, requests, cell = folder / "data", folder / "requests.jsonl", folder / "cell"
    limits = [f"--num-prompts={NUM_PROMPTS}", f"--max-new-tokens={MAX_NEW_TOKENS}"]
    chat = ["--chat-template"] if CHAT_TEMPLATE[task] else []
    how = ["--dtype=float32", "--method=autoregressive", "--options={}", "--sampling=" + json.dumps(GREEDY), "--seed=0"]
    measure = ["--repeats=1", "--warmup-prompts=0", "--device=cpu", "--num-threads=0"]
    for command in (
        ["dataset", f"--output={data}"],
        ["prepare", f"--data={data}", f"--model={model}", *limits, *chat, f"--output={requests}"],
        ["generate", f"--model-dir={model}", *how, *measure, f"--requests={requests}", f"--output={cell}"],
        ["score", f"--data={data}", f"--cell={cell}", "--allow-code-execution"],
    ):
        module, *options = command
        subprocess.run([sys.executable, "-m", f"pipeline.{module}", f"--task={task}", *options], cwd=ROOT, check=True)
    samples = [json.loads(line) for line in (cell / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    return samples, json.loads((cell / "score.json").read_text(encoding="utf-8"))


def theirs(task: str, model: object, data_file: Path) -> dict:
    """Run lm-eval as its command line would, on the same YAML and documents."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    yamls = str((ROOT / TASKS[task].yaml).parent)
    return simple_evaluate(
        model=model,
        tasks=[task],
        task_manager=TaskManager(include_path=yamls, include_defaults=False, metadata={"data_file": str(data_file)}),
        limit=NUM_PROMPTS,
        gen_kwargs={"max_gen_toks": MAX_NEW_TOKENS},
        apply_chat_template=CHAT_TEMPLATE[task],
        fewshot_as_multiturn=CHAT_TEMPLATE[task],
        confirm_run_unsafe_code=True,
    )


@pytest.fixture(scope="module")
def hf_model(smollm2: Path) -> object:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(smollm2), dtype="float32", device="cpu", batch_size=1)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("task", CHAT_TEMPLATE)
def test_answers_and_scores_are_those_of_lm_eval(task, smollm2, hf_model, tmp_path):
    samples, score = ours(task, smollm2, tmp_path)
    reference = theirs(task, hf_model, tmp_path / "data/data.jsonl")

    # With several filters lm-eval lists each sample once a filter, in the order of the filters.
    listed = reference["samples"][task]
    filters = list(dict.fromkeys(sample["filter"] for sample in listed))
    by_filter = {name: [sample for sample in listed if sample["filter"] == name] for name in filters}
    assert [sample["text"] for sample in samples] == [sample["resps"][0][0] for sample in by_filter[filters[0]]]
    assert any(sample["text"].strip() for sample in samples)

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
