"""Our methods as lm-eval's model ``shufflebench``: in float32 its answers and likelihoods are those of its ``hf``."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

from decoding import TargetModel
from pipeline import dataset
from pipeline.generators import GENERATORS
from pipeline.lm_eval_model import ShuffleBenchLM
from pipeline.registry import METHODS, TASKS
from pipeline.runner import BLOCK
from shuffle.diffusion.config import DiffusionConfig
from shuffle.diffusion.model import DiffusionTransformer
from tests.decoding.tiny import SHAPE
from tests.pipeline.standins import save_parts, save_target

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = SHAPE["max_position_embeddings"]
LOSSLESS = [
    name
    for name, method in METHODS.items()
    if method.lossless and method.kind != "generator" and not set(method.parts) & set(GENERATORS)
]
TEMPLATE = (
    "{% for message in messages %}{{ 'w7 ' if message.role == 'user' else 'w8 ' }}{{ message.content }} {% endfor %}"
    "{{ 'w9' if add_generation_prompt else '' }}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    saved = save_target(tmp_path_factory.mktemp("lm") / "tiny")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(saved)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(saved)
    return saved


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)


def ours(folder: Path, method: str = "autoregressive", **more: Any) -> Any:
    return ShuffleBenchLM(pretrained=str(folder), method=method, dtype="float32", num_threads=1, **more)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return ours(folder)


def words(count: int, seed: int = 0) -> str:
    generator = random.Random(seed)
    return " ".join(f"w{generator.randint(3, 12)}" for _ in range(count))


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


GREEDY = {"until": ["w5 w5", "w40"], "max_gen_toks": 24, "do_sample": False, "temperature": 0.0}
PROMPTS = [words(20, seed) for seed in range(4)]


@pytest.mark.parametrize("method", LOSSLESS)
def test_every_lossless_method_answers_as_lm_evals_hf_does(
    folder: Path, parts: dict[str, Path], theirs: Any, method: str
) -> None:
    needed = {part: str(parts[part]) for part in METHODS[method].parts_with({})}
    requests = asked("generate_until", *((prompt, dict(GREEDY)) for prompt in PROMPTS))
    expected = theirs.generate_until(requests, disable_tqdm=True)
    assert len(set(expected)) > 1
    assert ours(folder, method, **needed).generate_until(requests, disable_tqdm=True) == expected


def test_requests_of_several_kinds_are_answered_in_their_order(plain: Any, theirs: Any) -> None:
    """Stop strings cut, limits of their own, the end token in no answer, a prompt cut at its left to fit."""
    kinds = [{"until": []}, {"until": "w11", "max_gen_toks": 3}, {"until": ["w30"], "max_gen_toks": 60}]
    too_long = (words(CONTEXT + 40), {"until": ["w5"], "max_gen_toks": 30})
    pairs = [(prompt, dict(kind)) for prompt in PROMPTS for kind in kinds]
    requests = asked("generate_until", *pairs, too_long)
    answers = plain.generate_until(requests, disable_tqdm=True)
    assert answers == theirs.generate_until(requests, disable_tqdm=True)
    assert not any("w11" in answer for answer in answers[1::3])
    assert answers[-1]


@pytest.mark.parametrize("length", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, CONTEXT + 9])
def test_likelihoods_are_those_of_lm_evals_hf(plain: Any, theirs: Any, length: int) -> None:
    pairs = [(words(length), f" {words(3, seed)}") for seed in range(3)] + [("", words(4))]
    pairs += [(words(length), f" w{word}") for word in (3, 4, 5)]  # one token each: one reading for all
    mine, hf = (lm.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True) for lm in (plain, theirs))
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in hf]
    assert [value for value, _ in mine] == pytest.approx([value for value, _ in hf], rel=1e-4)


def test_likelihoods_are_the_same_where_there_is_no_compiler(folder: Path, plain: Any) -> None:
    eager = ours(folder)
    eager.runner.target = TargetModel.from_pretrained(folder, engine="eager")
    requests = asked("loglikelihood", (words(2 * BLOCK - 20), f" {words(30)}"), (words(4), " w3"))
    mine, native = (lm.loglikelihood(requests, disable_tqdm=True) for lm in (eager, plain))
    assert [value for value, _ in mine] == pytest.approx([value for value, _ in native], rel=1e-4)


@pytest.mark.parametrize("length", [1, 30, 2 * CONTEXT + 7])
def test_rolling_likelihoods_are_those_of_lm_evals_hf(plain: Any, theirs: Any, length: int) -> None:
    requests = asked("loglikelihood_rolling", (words(length),))
    mine, hf = (lm.loglikelihood_rolling(requests, disable_tqdm=True) for lm in (plain, theirs))
    assert mine == pytest.approx(hf, rel=1e-4)


def test_a_method_changes_no_likelihood(folder: Path, plain: Any) -> None:
    requests = asked("loglikelihood", (PROMPTS[0], " w4 w5"))
    lossy_or_not = [ours(folder, name) for name in ("recycling", "hf_greedy")]
    expected = plain.loglikelihood(requests, disable_tqdm=True)
    assert [lm.loglikelihood(requests, disable_tqdm=True) for lm in lossy_or_not] == [expected, expected]


def test_a_parallel_generator_generates_but_has_no_likelihood_and_says_so(folder: Path, tmp_path: Path) -> None:
    shape = {name: SHAPE[name] for name in ("vocab_size", "hidden_size", "eos_token_id")}
    DiffusionTransformer(DiffusionConfig(**shape, num_layers=2, num_heads=4)).save_pretrained(tmp_path)
    (tmp_path / "generator.json").write_text("{}")
    lm = ours(folder, "diffusion", diffusion=str(tmp_path), num_refinement_steps=2)
    (answer,) = lm.generate_until(asked("generate_until", (PROMPTS[0], {"until": [], "max_gen_toks": 8})), True)
    assert lm.speed()["tokens_per_step"] == lm.generations[0].num_new_tokens / lm.generations[0].target_forwards
    text = lm.tokenizer.decode(lm.generations[0].output_ids, skip_special_tokens=True)
    assert answer == text.split("w2")[0]  # the end token's text stops a text wherever it stands, as in hf
    for kind, arguments in (("loglikelihood", ("w3", " w4")), ("loglikelihood_rolling", ("w3 w4",))):
        with pytest.raises(NotImplementedError, match=r"^loglikelihood: 'diffusion' writes tokens in parallel[^\n]*$"):
            getattr(lm, kind)(asked(kind, arguments))


def test_chats_are_rendered_as_by_lm_evals_hf(plain: Any, theirs: Any) -> None:
    chat = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": "w5"}]
    for more in (True, False):
        assert plain.apply_chat_template(chat, more) == theirs.apply_chat_template(chat, more)
    assert plain.chat_template(True) == theirs.chat_template(True) == TEMPLATE
    assert plain.tokenizer_name == theirs.tokenizer_name


def test_drawn_texts_follow_lm_evals_seed_and_differ_from_repeat_to_repeat(folder: Path) -> None:
    requests = asked("generate_until", *[(PROMPTS[0], {"until": [], "temperature": 1.0, "max_gen_toks": 12})] * 3)
    answers = []
    for method, seed in (("prompt_lookup", 1), ("prompt_lookup", 1), ("prompt_lookup", 2), ("hf_greedy", 1)):
        lm = ours(folder, method)
        torch.manual_seed(seed)
        answers.append(lm.generate_until(requests, disable_tqdm=True))
    assert answers[0] == answers[1] != answers[2]
    assert all(len(set(texts)) == 3 for texts in answers)


def test_the_speed_of_a_run_is_in_the_results(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = ours(folder, "recycling")
    assert "tokens_per_step" not in lm.get_model_info()
    with caplog.at_level("INFO", logger="lm_eval"):
        logger_of_lm_eval = logging.getLogger("lm_eval")  # which hands nothing on once it has a handler of its own
        logger_of_lm_eval.addHandler(caplog.handler)
        try:
            lm.generate_until(asked("generate_until", *((prompt, dict(GREEDY)) for prompt in PROMPTS)), True)
        finally:
            logger_of_lm_eval.removeHandler(caplog.handler)
    info = lm.get_model_info()
    assert info["method"] == "recycling"
    assert info["num_new_tokens"] == sum(run.num_new_tokens for run in lm.generations)
    assert info["num_new_tokens"] == len(PROMPTS) + sum(step.emitted for run in lm.generations for step in run.steps)
    assert info["tokens_per_second"] > 0
    assert f"{info['tokens_per_step']:.2f} tokens/step" in caplog.text


def test_lm_eval_finds_the_model_by_its_name_beside_its_own() -> None:
    assert get_model("shufflebench") is ShuffleBenchLM
    assert get_model("hf") is HFLM


@pytest.mark.slow
def test_lm_evals_own_command_line_runs_a_method(folder: Path, tmp_path: Path) -> None:
    dataset.write("docstrings", dataset.from_embedded("docstrings")[0][:3], "path:x", "1", tmp_path)
    task = [f"--include_path={ROOT / Path(TASKS['docstrings'].yaml).parent}", "--tasks=docstrings", "--limit=2"]
    task += [f"--metadata=data_file={tmp_path / 'data.jsonl'}", "--gen_kwargs=max_gen_toks=8"]
    model = ["--model=shufflebench", "--model_args", f"pretrained={folder},method=prompt_lookup", "max_ngram=2"]
    command = [sys.executable, "-m", "pipeline", "lm-eval", *model, *task]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "|docstrings|" in done.stdout
    assert "tokens/step" in done.stderr
    wrong = [word.replace("max_ngram", "max_ngrm") for word in command]
    done = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("did you mean 'max_ngram'?")


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize(("task", "chat"), [("docstrings", True), ("gsm_symbolic", False)])
def test_the_real_models_answers_to_a_task_are_those_of_hf(
    smollm2: Path, tmp_path: Path, task: str, chat: bool
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    dataset.write(task, dataset.from_embedded(task)[0][:3], "path:x", "1", tmp_path)
    manager = TaskManager(
        include_path=str((ROOT / TASKS[task].yaml).parent),
        include_defaults=False,
        metadata={"data_file": str(tmp_path / "data.jsonl")},
    )
    shared = {"pretrained": str(smollm2), "dtype": "float32", "device": "cpu"}
    answers = [
        [
            sample["resps"]
            for sample in simple_evaluate(
                model=model,
                model_args=shared | more,
                tasks=[task],
                task_manager=manager,
                limit=2,
                gen_kwargs={"max_gen_toks": 32},
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )["samples"][task]
        ]
        for model, more in (("hf", {}), ("shufflebench", {"method": "prompt_lookup", "max_ngram": 2}))
    ]
    assert answers[0] == answers[1]
