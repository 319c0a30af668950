"""Self-generated text: resumable, and the same for the same seed."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline import batching, selfgen
from pipeline.errors import UserError
from pipeline.selfgen import Journal, batches, split_of
from tests.decoding.tiny import save_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "model")
    return tmp_path / "model"


def rows_of(source: str, count: int) -> list[dict]:
    return [{"source": source, "prompt_ids": [i, len(source)] + [1] * (i % 7)} for i in range(count)]


def test_batches_are_of_one_source_and_mixed_evenly() -> None:
    made = batches(rows_of("many", 80) + rows_of("few", 20), size=5, seed=0)
    assert sorted(row["prompt_ids"] for batch in made for row in batch) == sorted(
        row["prompt_ids"] for row in rows_of("many", 80) + rows_of("few", 20)
    )
    assert all(len({row["source"] for row in batch}) == 1 for batch in made)
    half = Counter(batch[0]["source"] for batch in made[: len(made) // 2])
    assert half["few"] == 2
    assert made == batches(rows_of("many", 80) + rows_of("few", 20), size=5, seed=0)


def test_one_prompt_in_twenty_is_held_out_whatever_else_there_is() -> None:
    splits = Counter(split_of([i, i + 1]) for i in range(4000))
    assert splits["validation"] / 4000 == pytest.approx(0.05, abs=0.012)


def test_a_journal_forgets_half_a_line_and_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, {"seed": 0}).append([{"prompt": "a", "output_ids": [1], "finished": True}])
    with path.open("a") as file:
        file.write('{"prompt": "b", "outp')
    again = Journal(path, {"seed": 0})
    assert set(again.answers) == {"a"}
    again.append([{"prompt": "c", "output_ids": [2], "finished": True}])
    assert set(Journal(path, {"seed": 0}).answers) == {"a", "c"}
    assert not Journal(path, {"seed": 1}).answers


def test_a_journal_that_a_power_cut_tore_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, {"seed": 0}).append([{"prompt": name, "output_ids": [1], "finished": True} for name in "abc"])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "\0" * 40, *lines[3:]]) + "\n")
    assert set(Journal(path, {"seed": 0}).answers) == {"a"}
    assert len(path.read_text().splitlines()) == 2


def given_of(folder: Path, output: Path, num_tokens: int, limit: int = 8, temperature: float = 0.0) -> SimpleNamespace:
    prompts = folder.parent / "prompts.jsonl"
    rows = [{"source": f"s{i % 2}", "prompt_ids": [1, 3 + i % 40, 5 + i // 40], "until": []} for i in range(60)]
    prompts.write_text("".join(json.dumps({**row, "max_new_tokens": limit}) + "\n" for row in rows))
    return SimpleNamespace(
        model=folder,
        prompts=prompts,
        num_tokens=num_tokens,
        temperature=temperature,
        batch_size=8,
        seed=0,
        output=output,
    )


@pytest.fixture
def without_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(eos_token_id=2)
    tokenizer = SimpleNamespace(decode=str)
    monkeypatch.setattr("pipeline.prepare.load_tokenizer", lambda folder: (tokenizer, config))
    batching.shared_model.cache_clear()


@pytest.mark.usefixtures("without_tokenizer")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_killed_run_goes_on_and_ends_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    whole, _ = selfgen.self_generate(given_of(folder, tmp_path / "whole" / "text.jsonl", 200, temperature=temperature))
    real = selfgen.save_states
    given = given_of(folder, tmp_path / "killed" / "text.jsonl", 200, temperature=temperature)
    kept: list[str] = []

    def killed(states: Path, key: str, found: torch.Tensor) -> None:
        if len(kept) == 13:
            raise KeyboardInterrupt
        kept.append(key)
        real(states, key, found)

    monkeypatch.setattr(selfgen, "save_states", killed)
    with pytest.raises(KeyboardInterrupt):
        selfgen.self_generate(given)
    monkeypatch.setattr(selfgen, "save_states", real)
    rows, record = selfgen.self_generate(given)
    assert rows == whole
    assert record["answers_from_journal"] == 13
    assert record["num_tokens"] == sum(len(row["output_ids"]) for row in rows) >= 200
    assert sum(counts["answers"] for counts in record["sources"].values()) == len(rows)


@pytest.mark.usefixtures("without_tokenizer")
def test_a_longer_text_starts_with_the_shorter_one(folder: Path, tmp_path: Path) -> None:
    """Also what had ended of the texts after it is not written again."""
    output = tmp_path / "text" / "text.jsonl"
    short, _ = selfgen.self_generate(given_of(folder, output, 60))
    journalled = len(output.with_name("answers.journal").read_text().splitlines()) - 1
    long, record = selfgen.self_generate(given_of(folder, output, 180))
    assert long[: len(short)] == short
    assert len(long) > record["answers_from_journal"] == journalled >= len(short)


@pytest.mark.usefixtures("without_tokenizer")
@pytest.mark.parametrize(("wanted", "told"), [(10, False), (10_000, True)])
def test_prompts_that_run_out_are_told_of(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wanted: int, told: bool
) -> None:
    _, record = selfgen.self_generate(given_of(folder, tmp_path / "text" / "text.jsonl", wanted))
    line = f"selfgen: the prompts ran out at {record['num_tokens']} of {wanted} tokens"
    assert (line in capsys.readouterr().err) is told


@pytest.mark.usefixtures("without_tokenizer")
def test_an_answer_under_another_limit_or_stop_string_is_not_reused(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "text" / "text.jsonl"
    selfgen.self_generate(given_of(folder, output, 100))
    short, record = selfgen.self_generate(given_of(folder, output, 100, limit=3))
    assert max(len(row["output_ids"]) for row in short) <= 3
    assert record["answers_from_journal"] == 0
    row = {"prompt_ids": [1, 2], "until": ["."], "max_new_tokens": 3}
    journal = Journal(tmp_path / "journal", {})
    journal.append([{"prompt": selfgen.prompt_hash([1, 2]), "until": ["."], "max_new_tokens": 3, "output_ids": [4]}])
    assert journal.answers_to(row)
    assert not journal.answers_to({**row, "until": [";"]})
    assert not journal.answers_to({**row, "prompt_ids": [1]})


@pytest.mark.usefixtures("without_tokenizer")
def test_answers_end_at_the_tokens_that_end_evaluated_texts(folder: Path, tmp_path: Path) -> None:
    """Those of the generation config, which may be more than the config's own."""
    rows, _ = selfgen.self_generate(given_of(folder, tmp_path / "one" / "text.jsonl", 200))
    likely = Counter(token for row in rows for token in row["output_ids"]).most_common(1)[0][0]
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [2, likely]}))
    batching.shared_model.cache_clear()
    rows, _ = selfgen.self_generate(given_of(folder, tmp_path / "two" / "text.jsonl", 200))
    assert any(row["output_ids"][-1] == likely for row in rows)
    assert not any(likely in row["output_ids"][:-1] for row in rows)


def test_the_reason_of_a_failure_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "text.jsonl"
    prompts.write_text('{"error": "no such model"}\n')
    with pytest.raises(UserError, match="no such model"):
        selfgen.read_prompts(prompts)
    arguments = ["--model", str(tmp_path), "--prompts", str(prompts), "--num-tokens", "9", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["selfgen", *arguments, "--errors-as-rows"])
    selfgen.main()
    assert json.loads(output.read_text()) == {"error": "no such model"}
    assert json.loads(output.with_suffix(".json").read_text())["error"] == "no such model"
