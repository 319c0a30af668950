"""Requests: token for token what lm-eval's own ``hf`` model would feed; clear words where model and task do not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipeline import dataset, prepare
from pipeline.errors import UserError
from pipeline.registry import TASKS
from pipeline.tasks.loading import load_task

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT
DOCUMENTS = {
    "gsm8k": [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(5)],
    "multi30k": [{"source": "Ein Café, naïve ☕", "target": "x"}] * 5,
    "docstrings": [{"name": "m.f", "body": "def f():\n    return 1", "summary": "One."}] * 5,
    "humaneval": [
        {"task_id": "t", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": " return 1", "test": "-"}
    ]
    * 5,
}


def make_model(folder: Path, chat_template: str | None = CHAT, adds_bos: bool = True, context: int = 4096) -> Path:
    """A model folder without weights: bytes as tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": context}))
    return folder


def make_data(folder: Path, task: str) -> Path:
    dataset.write(task, DOCUMENTS[task], "path:x", "1", folder)
    return folder


def build(task: str, tmp_path: Path, model: Path, chat_template: bool, num_prompts: int = 3, max_new_tokens: int = 16):
    loaded = load_task(task, make_data(tmp_path / "data", task) / "data.jsonl", max_new_tokens)
    tokenizer, config = prepare.load_tokenizer(model)
    return prepare.build_requests(
        loaded, tokenizer, config, num_prompts, max_new_tokens, chat_template=chat_template, model=model.name
    )


def as_lm_eval(task: str, tmp_path: Path, model: Path, chat_template: bool) -> list[tuple[str, list[int]]]:
    """The reference: lm-eval's own code for templates and tokens, on its own requests."""
    from lm_eval.models.huggingface import HFLM

    tokenizer, _ = prepare.load_tokenizer(model)
    lm = SimpleNamespace(tokenizer=tokenizer, backend="causal", add_bos_token=None, chat_template_args={})
    loaded = load_task(task, tmp_path / "data" / "data.jsonl")
    loaded.set_fewshot_seed(1234)
    loaded.build_all_requests(
        limit=3,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=True,
        chat_template=lambda *args, **kwargs: HFLM.apply_chat_template(lm, *args, **kwargs),
    )
    prompts = [instance.args[0] for instance in loaded.instances]
    return [(prompt, HFLM.tok_batch_encode(lm, [prompt])[0][0].tolist()) for prompt in prompts]


@pytest.mark.parametrize("task", DOCUMENTS)
@pytest.mark.parametrize("chat_template", [True, False])
@pytest.mark.parametrize(("template", "adds_bos"), [(CHAT, True), (CHAT, False), (NO_SYSTEM, True)])
def test_prompts_and_ids_are_those_of_lm_eval(task, chat_template, template, adds_bos, tmp_path):
    model = make_model(tmp_path / "model", template, adds_bos)
    requests = build(task, tmp_path, model, chat_template)
    expected = as_lm_eval(task, tmp_path, model, chat_template)
    assert [(request["prompt"], request["prompt_ids"]) for request in requests] == expected
    assert all(request["prompt_ids"].count(0) == (chat_template or adds_bos) for request in requests)


def test_a_request_says_all_that_generation_needs(tmp_path):
    requests = build("humaneval", tmp_path, make_model(tmp_path / "model"), chat_template=False)
    assert [request["prompt_id"] for request in requests] == [0, 1, 2]
    assert [request["doc_id"] for request in requests] == [0, 1, 2]
    assert requests[0]["prompt"] == "def f():"
    assert requests[0]["until"] == ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "</s>"]
    assert requests[0]["max_new_tokens"] == 16


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if "embedded" in task.origins])
def test_no_example_in_the_prompt_is_evaluated(task, tmp_path):
    dataset.write(task, *dataset.from_embedded(task), tmp_path)
    loaded = load_task(task, tmp_path / "data.jsonl")
    evaluated = {loaded.doc_to_text(document) for document in loaded.eval_docs}
    examples = {loaded.doc_to_text(document) for document in loaded.config.fewshot_config.samples or []}
    assert len(examples) == loaded.config.num_fewshot
    assert not evaluated & examples


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, *more: str, prompts: str = "2", new: str = "8"):
    data = make_data(tmp_path / "data", "gsm8k")
    arguments = [f"--data={data}", f"--model={model}", f"--num-prompts={prompts}", f"--max-new-tokens={new}"]
    monkeypatch.setattr(sys, "argv", ["prepare", "--task=gsm8k", *arguments, f"--output={tmp_path / 'r.jsonl'}", *more])
    prepare.main()
    return [json.loads(line) for line in (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_command_writes_a_request_a_line(tmp_path, monkeypatch):
    model = make_model(tmp_path / "model")
    requests = run(monkeypatch, tmp_path, model, "--chat-template")
    assert len(requests) == 2
    assert requests[0]["prompt"].startswith("<s>[user]Question:")


BAD_PAIRS = {
    "no chat template": (
        {"chat_template": None},
        "chat_template: true, but the tokenizer of model 'model' has no chat template; use false",
    ),
    "a template that fails": (
        {"chat_template": "{{ raise_exception('no users\nplease') }}"},
        "chat_template: true, but the chat template of model 'model' fails: no users",
    ),
    "short context": ({"context": 64}, "that is more than the 64 that model 'model' can read"),
}


@pytest.mark.parametrize("kind", BAD_PAIRS)
def test_a_model_that_does_not_fit_the_task_is_told_or_becomes_a_row(kind, tmp_path, monkeypatch, capsys):
    options, message = BAD_PAIRS[kind]
    model = make_model(tmp_path / "model", **options)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path, model, "--chat-template")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.jsonl").exists()
    (row,) = run(monkeypatch, tmp_path, model, "--chat-template", "--errors-as-rows")
    assert set(row) == {"error"}
    assert message in row["error"]


def test_what_could_not_be_had_before_is_told_or_becomes_a_row(tmp_path, monkeypatch, capsys):
    model, data = make_model(tmp_path / "model"), make_data(tmp_path / "data", "gsm8k")
    arguments = ["--task=gsm8k", f"--data={data}", f"--model={model}", "--num-prompts=1", "--max-new-tokens=1"]
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments, f"--output={tmp_path / 'r.jsonl'}"])
    for folder, reason in ((data, "no documents"), (model, "no model")):
        (folder / "source.json").write_text(json.dumps({"error": reason}))
        with pytest.raises(SystemExit, match="2"):
            prepare.main()
        assert capsys.readouterr().err == f"error: {reason}\n"
    sys.argv.append("--errors-as-rows")
    prepare.main()
    assert json.loads((tmp_path / "r.jsonl").read_text()) == {"error": "no model"}


def test_too_few_documents_become_a_row(tmp_path, monkeypatch):
    (row,) = run(monkeypatch, tmp_path, make_model(tmp_path / "model"), "--errors-as-rows", prompts="6")
    assert row == {"error": "num_prompts: 6, but task 'gsm8k' has only 5 documents"}


def test_the_context_must_hold_prompt_and_answer(tmp_path):
    length = len(build("humaneval", tmp_path, make_model(tmp_path / "m"), chat_template=False)[0]["prompt_ids"])
    exact = make_model(tmp_path / "exact", context=length + 16)
    assert len(build("humaneval", tmp_path, exact, chat_template=False)) == 3
    short = make_model(tmp_path / "short", context=length + 15)
    with pytest.raises(UserError, match=f"prompt 0 of task 'humaneval' has {length} tokens"):
        build("humaneval", tmp_path, short, chat_template=False)


def test_bad_requests_are_told(tmp_path, monkeypatch, capsys):
    model = make_model(tmp_path / "model")
    for options, message in [
        ({"prompts": "6"}, "num_prompts: 6, but task 'gsm8k' has only 5 documents"),
        ({"prompts": "-1"}, "'-1' is not a whole number of at least 1"),
        ({"new": "0"}, "'0' is not a whole number of at least 1"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, tmp_path, model, **options)
        assert message in capsys.readouterr().err
    (model / "tokenizer.json").write_text("{")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path, model)
    assert f"error: {model}: cannot load the tokenizer or the configuration" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path, tmp_path / "nowhere")
    assert "nowhere: no such model folder" in capsys.readouterr().err
