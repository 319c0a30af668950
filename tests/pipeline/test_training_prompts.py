"""Training prompts: in the evaluated form, and never of evaluated material."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from pipeline import training_forms
from pipeline.batching import Answer, Draw, Job
from pipeline.errors import UserError
from pipeline.prepare import build_requests, load_tokenizer
from pipeline.tasks.loading import load_task
from pipeline.tasks.source import to_jsonl
from pipeline.training_forms import MOST_ROUNDS, ORIGINS, Forms, cut_written, written_material
from pipeline.training_overlap import check_overlap
from pipeline.training_prompts import embedded_ngrams, found_material, ngrams, ngrams_of, overlaps, words
from pipeline.training_sources import code_documents, docstring_documents, prose_documents

ALPHABET = [chr(ord("a") + i) * 3 for i in range(26)]


def origin_of(name: str):
    return next(origin for origin in ORIGINS if origin.name == name)


def write(folder: Path, documents: list[dict[str, str]]) -> Path:
    folder.mkdir()
    file = folder / "data.jsonl"
    file.write_text(to_jsonl(documents), encoding="utf-8")
    return file


def test_thirteen_words_in_a_row_overlap_and_twelve_do_not() -> None:
    evaluated = ngrams_of([{"text": " ".join(ALPHABET)}])
    assert overlaps("new words, " + ", ".join(ALPHABET[3:16]).upper() + "!", evaluated)
    assert not overlaps("new words, " + ", ".join(ALPHABET[3:15]) + " end", evaluated)


def test_a_short_document_overlaps_as_a_whole_only() -> None:
    evaluated = ngrams_of([{"source": "one hundred and two"}])
    assert overlaps("One hundred and two.", evaluated)
    assert not overlaps("one hundred and two euros", evaluated)


def test_other_numbers_are_the_same_problem() -> None:
    problem = "Tom has {} apples and buys {} more, then he gives half of them to his sister"
    evaluated = ngrams_of([{"question": problem.format(3, 4)}])
    assert overlaps(problem.format(17, 250), evaluated)


def test_ngrams_are_all_windows() -> None:
    text = " ".join(random.Random(0).choices(ALPHABET, k=40))
    assert ngrams(text) == {tuple(text.split()[i : i + 13]) for i in range(28)}
    assert words("It's 3.5!") == ["it", "s", "0", "0"]
    assert ngrams("...") == set()


def test_a_profile_that_evaluates_a_training_prompt_is_refused(tmp_path: Path) -> None:
    text = " ".join(ALPHABET)
    rows = [{"source": "chat", "material": material} for material in (text, "other")]
    prompts = write(tmp_path / "prompts", rows)
    apart, same = write(tmp_path / "apart", [{"text": "x"}]), write(tmp_path / "same", [{"text": f"now {text}"}])
    record = check_overlap(prompts, [apart])
    assert record == {"prompts": 2, "documents": {str(apart): 1}, "overlapping": 0}
    with pytest.raises(UserError, match=r"1 training prompts overlap with .*same.data\.jsonl, the first is 'aaa bbb"):
        check_overlap(prompts, [apart, same])


def test_what_could_not_be_had_is_not_evaluated_and_damage_is_told(tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts", [{"source": "chat", "material": " ".join(ALPHABET)}])
    file = write(tmp_path / "failed", [{"text": " ".join(ALPHABET)}])
    (tmp_path / "failed" / "source.json").write_text(json.dumps({"error": "no network"}))
    assert check_overlap(prompts, [file])["documents"] == {}
    damaged = write(tmp_path / "damaged", [])
    damaged.write_text("{")
    with pytest.raises(UserError, match=r"damaged.*data\.jsonl"):
        check_overlap(prompts, [damaged])


def test_no_found_material_is_evaluated() -> None:
    """The sources themselves keep apart from the embedded tasks, before anything is dropped."""
    evaluated = embedded_ngrams()
    material = {
        "code": code_documents(40),
        "docstrings": docstring_documents(40),
        "prose": prose_documents(40),
        "verbalized": found_material("verbalized", 200, seed=0),
    }
    for name, texts in material.items():
        offending = sum(overlaps(text, evaluated) for text in texts)
        assert offending <= len(texts) // 20, f"{name}: {offending} of {len(texts)}"
    assert not any(overlaps(text, evaluated) for text in material["verbalized"])


def test_material_is_the_same_for_the_same_seed() -> None:
    assert found_material("verbalized", 30, seed=3) == found_material("verbalized", 30, seed=3)
    assert found_material("verbalized", 30, seed=3) != found_material("verbalized", 30, seed=4)


def test_code_is_in_humanevals_form() -> None:
    for prompt in code_documents(20):
        assert prompt.startswith("def ")
        assert prompt.endswith('"""')
        compile(prompt + "\n    pass\n", "prompt", "exec")


def test_written_material_is_cut_where_the_form_goes_on() -> None:
    problem = cut_written(origin_of("gsm8k"), "Tom has 3 apples, how many?\nAnswer: 3", "<end>")
    assert problem == "Tom has 3 apples, how many?"
    assert cut_written(origin_of("wmt14"), "Das ist ein Satz.<end>mehr", "<end>") == "Das ist ein Satz."
    assert cut_written(origin_of("wmt14"), "Satz.\n", "<end>") is None
    code = 'def f(x):\n    """Return the smallest of the given numbers."""'
    assert cut_written(origin_of("humaneval_written"), code + "\n    return min(x)", "<end>") == code
    assert cut_written(origin_of("humaneval_written"), 'def f(x):\n    """Never ends', "<end>") is None


@pytest.mark.model
@pytest.mark.parametrize("name", ["gsm8k", "cnn_dailymail", "wmt14", "multi30k", "humaneval", "docstrings"])
def test_prompts_are_those_of_evaluation(smollm2: Path, tmp_path: Path, name: str) -> None:
    tokenizer, config = load_tokenizer(smollm2)
    origin, material = origin_of(name), "def f(x):\n    return x + 1 # a short text"
    (request,) = Forms(tokenizer, config, max_new_tokens=16).of_task(origin, [material])
    keys = {"target": "t", "summary": "s", "highlights": "h", "answer": "a", "canonical_solution": "c", "test": "t"}
    data = write(tmp_path / "task", [{**keys, "task_id": "1", "entry_point": "f", origin.key: material}])
    chat = name != "humaneval"
    (wanted,) = build_requests(load_task(origin.task, data, 16), tokenizer, config, 1, 16, chat, "smollm2")
    assert request["prompt_ids"] == wanted["prompt_ids"]
    assert request["until"] == wanted["until"]


@pytest.mark.model
def test_a_form_broken_off_is_the_beginning_of_the_prompt(smollm2: Path) -> None:
    tokenizer, config = load_tokenizer(smollm2)
    forms = Forms(tokenizer, config, max_new_tokens=16)
    for name in ("cnn_dailymail_written", "wmt14", "gsm8k", "chat"):
        origin = origin_of(name)
        ((prompt, start),) = forms.beginnings(origin, 1, random.Random(0))
        (whole,) = forms.of_task(origin, [f"{start} and so on"])
        assert whole["prompt"].startswith(prompt)
        assert not prompt.endswith(" ")


@pytest.mark.model
@pytest.mark.parametrize("usable", [True, False])
def test_what_is_not_usable_is_asked_for_again_and_not_for_ever(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch, usable: bool
) -> None:
    tokenizer, config = load_tokenizer(smollm2)
    forms = Forms(tokenizer, config, max_new_tokens=16)
    rounds: list[list[Job]] = []

    def every_other(target: None, jobs: list[Job], draw: Draw) -> list[Answer]:
        rounds.append(jobs)
        texts = [f"of this there are {len(rounds)} and {i}\nAnswer: no" if i % 2 else "no" for i in range(len(jobs))]
        return [Answer(tokenizer(text if usable else "no")["input_ids"], True, None) for text in texts]

    monkeypatch.setattr(training_forms, "shared_model", lambda folder: None)
    monkeypatch.setattr(training_forms, "answer", every_other)
    problems, sentences = origin_of("gsm8k"), origin_of("wmt14")
    found = written_material(forms, smollm2, {problems: 40, sentences: 10}, seed=0)
    assert len(rounds[0]) == 50  # both forms at once
    assert len({job.prompt_ids for job in rounds[0]}) > 2
    assert len({job.generator.initial_seed() for job in rounds[0] if job.generator}) == 50
    if usable:
        # Half are usable: 20 and 5 are missing after the first round, then 10 and 1, 5, 1; 8 at least are asked for.
        assert [len(jobs) for jobs in rounds[1:]] == [20 + 8, 10 + 8, 8, 8]
        assert len(found[problems]) >= 40
        assert len(found[sentences]) >= 10
        assert all(text.endswith(tuple("0123456789")) for text in found[problems])  # cut where the form goes on
    else:
        assert [len(jobs) for jobs in rounds] == [50] * MOST_ROUNDS
        assert found == {problems: [], sentences: []}
