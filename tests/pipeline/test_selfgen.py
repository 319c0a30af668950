"""Self-generated text: greedy as one at a time, resumable, and the same for the same seed."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from decoding import TargetModel
from decoding.stopping import Ending, StopStrings
from pipeline import batching, selfgen
from pipeline.batching import Draw, Job, answer, choose, common, places_for
from pipeline.errors import UserError
from pipeline.selfgen import Journal, batches, split_of
from tests.decoding.tiny import greedy_of, save_model

PROMPTS = [(1, 5, 6, 7), (1, 5, 9), (1, 5, 6, 7, 8, 9, 10, 11), (1, 5, 40, 3, 3), (1, 5, 6, 7, 12)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "model")
    return tmp_path / "model"


def jobs_of(prompts, limit: int = 12) -> list[Job]:
    return [Job(tuple(prompt), Ending(limit, (2,))) for prompt in prompts]


@pytest.mark.parametrize("most", [batching.TOGETHER, 0])
@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("member", ["llama", "llama-untied-scaled", "qwen3"])
def test_a_batch_answers_as_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str, engine: str, most: int
) -> None:
    """Whether their prompts are read together, as on torch's engine, or one after the other."""
    monkeypatch.setattr(batching, "TOGETHER", most)
    reference = save_model(tmp_path / "model", member)
    model = TargetModel.from_pretrained(tmp_path / "model", dtype=torch.float32, engine=engine)
    together = len(
        list(batching._begun_together(model, places_for(model, jobs_of(PROMPTS)), jobs_of(PROMPTS), Draw(), None))
    )
    assert together == (len(PROMPTS) if most and model.native is None else 0)
    found = answer(model, jobs_of(PROMPTS))
    assert [text.ids for text in found] == [greedy_of(reference, prompt, 12) for prompt in PROMPTS]
    assert [text.finished for text in found] == [text.ids[-1] == 2 for text in found]


def test_rows_that_end_leave_the_others_alone(folder: Path) -> None:
    model = TargetModel.from_pretrained(folder, dtype=torch.float32)
    limits = [1, 9, 3, 12, 2]
    jobs = [Job(p, Ending(n, (2,))) for p, n in zip(PROMPTS, limits, strict=True)]
    found = answer(model, jobs, with_states=True)
    alone = [answer(model, [job], with_states=True)[0] for job in jobs]
    assert [text.ids for text in found] == [text.ids for text in alone]
    assert [len(text.states) for text in found] == [len(text.ids) for text in alone]


def test_a_stop_string_ends_an_answer(folder: Path) -> None:
    model = TargetModel.from_pretrained(folder, dtype=torch.float32)
    (free,) = answer(model, jobs_of(PROMPTS[:1]))
    stop = StopStrings(lambda ids: " ".join(map(str, ids)), [f"{free.ids[3]}"])
    (cut,) = answer(model, [Job(PROMPTS[0], Ending(12, (2,), stop))])
    assert cut.finished
    assert cut.ids == free.ids[: len(cut.ids)]
    assert str(free.ids[3]) in " ".join(map(str, cut.ids))
    assert len(cut.ids) <= 4


def test_more_prompts_than_places_are_answered_in_turn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TargetModel.from_pretrained(folder, dtype=torch.float32)
    whole = answer(model, jobs_of(PROMPTS), with_states=True)
    monkeypatch.setattr(batching, "MOST_ROWS", 2)
    in_turn = answer(model, jobs_of(PROMPTS), with_states=True)
    assert [text.ids for text in in_turn] == [text.ids for text in whole]
    assert all(torch.equal(one.states, other.states) for one, other in zip(in_turn, whole, strict=True))


def test_a_model_on_several_devices_answers_as_on_one(folder: Path) -> None:
    whole, apart = (TargetModel.from_pretrained(folder, dtype=torch.float32, engine="eager") for _ in range(2))
    apart.places = [torch.device("cpu"), torch.device("cpu", 0)]  # of its two layers
    assert len(apart.new_cache(8).buffers) == 2
    for one, other in zip(answer(whole, jobs_of(PROMPTS)), answer(apart, jobs_of(PROMPTS)), strict=True):
        assert one.ids == other.ids
        torch.testing.assert_close(one.states, other.states)


@pytest.mark.parametrize(("cards", "memory", "expected"), [(2, 10**9, 1), (2, 10**4, 2), (1, 10**4, 1), (0, 0, 0)])
def test_a_model_that_one_card_cannot_hold_is_spread_over_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cards: int, memory: int, expected: int
) -> None:
    asked: list[dict] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda card: SimpleNamespace(total_memory=memory))
    monkeypatch.setattr(TargetModel, "from_pretrained", lambda folder, **options: asked.append(options))
    batching.shared_model.cache_clear()
    batching.shared_model(folder)
    batching.shared_model.cache_clear()
    all_cards = [torch.device("cuda", index) for index in range(cards)]
    assert asked[0]["devices"] == all_cards[:expected]
    assert asked[0]["device"] == (all_cards[0] if cards else "cpu")


def test_places_of_an_earlier_call_are_used_again_and_nothing_that_they_hold(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TargetModel.from_pretrained(folder, dtype=torch.float32)
    jobs = jobs_of(PROMPTS)
    places = places_for(model, jobs)
    read: list[int] = []
    prefill = model.prefill
    monkeypatch.setattr(model, "prefill", lambda cache, ids: read.append(len(ids)) or prefill(cache, ids))
    monkeypatch.setattr(model, "new_cache", None)  # none is made any more
    first, second = (answer(model, jobs, places=places) for _ in range(2))
    assert first == second  # no states among them
    assert [text.states for text in first] == [None] * len(jobs)
    assert read[: len(read) // 2] == read[len(read) // 2 :] != []


def test_common_beginnings() -> None:
    assert common((1, 2, 3), (1, 2, 4)) == 2
    assert common((1, 2), (1, 2, 3)) == 2
    assert common((), (1,)) == 0


def test_the_nucleus_is_what_is_drawn_from() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, 4)
    drawn = Counter(choose(logits, Draw(1.0, 0.7), torch.Generator().manual_seed(0)))
    assert set(drawn) == {0, 1}  # 0.5 alone is less than 0.7, 0.5 + 0.3 is not
    assert drawn[0] / 4000 == pytest.approx(0.625, abs=0.03)
    assert choose(logits[:1], Draw(0.0), None) == [0]


def test_without_a_nucleus_every_token_may_be_drawn() -> None:
    """Also those beyond the likeliest 256: a vocabulary of equal ones is drawn from evenly."""
    drawn = choose(torch.zeros(2000, 1024), Draw(1.0), torch.Generator().manual_seed(0))
    assert min(drawn) < 64
    assert max(drawn) > 960
    assert len(set(drawn)) == pytest.approx(1024 * (1 - (1 - 1 / 1024) ** 2000), rel=0.05)


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


def given_of(folder: Path, output: Path, num_tokens: int, limit: int = 8) -> SimpleNamespace:
    prompts = folder.parent / "prompts.jsonl"
    rows = [{"source": f"s{i % 2}", "prompt_ids": [1, 3 + i % 40, 5 + i // 40], "until": []} for i in range(60)]
    prompts.write_text("".join(json.dumps({**row, "max_new_tokens": limit}) + "\n" for row in rows))
    return SimpleNamespace(
        model=folder, prompts=prompts, num_tokens=num_tokens, temperature=0.0, batch_size=8, seed=0, output=output
    )


@pytest.fixture
def without_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(eos_token_id=2)
    tokenizer = SimpleNamespace(decode=str)
    monkeypatch.setattr("pipeline.prepare.load_tokenizer", lambda folder: (tokenizer, config))
    batching.shared_model.cache_clear()


@pytest.mark.usefixtures("without_tokenizer")
def test_a_killed_run_goes_on_and_ends_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = selfgen.self_generate(given_of(folder, tmp_path / "whole" / "text.jsonl", 200))
    real, calls = batching.answer, []

    def killed(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    given = given_of(folder, tmp_path / "killed" / "text.jsonl", 200)
    monkeypatch.setattr(batching, "answer", killed)
    with pytest.raises(KeyboardInterrupt):
        selfgen.self_generate(given)
    calls[:] = [1] * 10
    rows, record = selfgen.self_generate(given)
    assert rows == whole
    assert record["answers_from_journal"] == 16
    assert record["num_tokens"] == sum(len(row["output_ids"]) for row in rows) >= 200
    assert sum(counts["answers"] for counts in record["sources"].values()) == len(rows)


@pytest.mark.usefixtures("without_tokenizer")
def test_a_longer_text_starts_with_the_shorter_one(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "text" / "text.jsonl"
    short, _ = selfgen.self_generate(given_of(folder, output, 60))
    long, record = selfgen.self_generate(given_of(folder, output, 180))
    assert long[: len(short)] == short
    assert len(long) > len(short) == record["answers_from_journal"]


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
