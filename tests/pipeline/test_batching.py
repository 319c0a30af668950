"""Many texts at once: each as it is written alone, whatever else is in the batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from decoding import TargetModel
from decoding.pool import prefill_together
from decoding.stopping import Ending, StopStrings
from pipeline import batching
from pipeline.batching import Draw, Job, answer, answers_as_they_end, choose, common, places_for
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
    jobs = jobs_of(PROMPTS)
    places = places_for(model, jobs)
    together = batching._read_now(model, places, places, [], jobs)
    assert together == (len(PROMPTS) if most and model.native is None else 1)
    found = answer(model, jobs_of(PROMPTS))
    assert [text.ids for text in found] == [greedy_of(reference, prompt, 12) for prompt in PROMPTS]
    assert [text.finished for text in found] == [text.ids[-1] == 2 for text in found]


@pytest.mark.parametrize("longest", [9, 40])
def test_prompts_that_follow_are_read_in_groups_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    """Six places, a third of which is waited for, and passes of up to ``longest`` tokens: each text as it is alone."""
    monkeypatch.setattr(batching, "MOST_ROWS", 6)
    monkeypatch.setattr(batching, "REFILL", 3)
    monkeypatch.setattr(batching, "TOGETHER", longest)
    read: list[int] = []

    def counted(caches, prompts):
        read.append(len(prompts))
        return prefill_together(caches, prompts)

    monkeypatch.setattr(batching, "prefill_together", counted)
    model = TargetModel.from_pretrained(folder, dtype=torch.float32, engine="eager")
    jobs = [Job((1, 5, n, *range(3, 3 + n % 4)), Ending(2 + n % 5, ())) for n in range(3, 26)]
    found = answer(model, jobs, with_states=True)
    alone = [answer(model, [job], with_states=True)[0] for job in jobs]
    assert [text.ids for text in found] == [text.ids for text in alone]
    for text, other in zip(found, alone, strict=True):
        torch.testing.assert_close(text.states, other.states, atol=1e-4, rtol=1e-4)
    assert read
    assert max(read) <= longest // 3
    assert max(read) == (6 if longest == 40 else 2)


def test_with_fewer_places_free_than_are_waited_for_the_texts_go_on(folder: Path) -> None:
    model = TargetModel.from_pretrained(folder, dtype=torch.float32, engine="eager")
    jobs = jobs_of(PROMPTS)
    places = places_for(model, jobs * 3)  # fifteen: two are waited for
    assert batching._read_now(model, places, places[:1], places[1:], jobs) == 0
    assert batching._read_now(model, places, places[:2], places[2:], jobs) == 2
    assert batching._read_now(model, places, places[:1], places[1:], jobs[:1]) == 1  # the last one waits for nothing
    assert batching._read_now(model, places, [], places, jobs) == 0


def test_rows_that_end_leave_the_others_alone(folder: Path) -> None:
    model = TargetModel.from_pretrained(folder, dtype=torch.float32)
    limits = [1, 9, 3, 12, 2]
    jobs = [Job(p, Ending(n, (2,))) for p, n in zip(PROMPTS, limits, strict=True)]
    found = answer(model, jobs, with_states=True)
    alone = [answer(model, [job], with_states=True)[0] for job in jobs]
    assert [text.ids for text in found] == [text.ids for text in alone]
    assert [len(text.states) for text in found] == [len(text.ids) for text in alone]


def test_answers_come_as_they_end_and_make_room_for_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TargetModel.from_pretrained(folder, dtype=torch.float32)
    monkeypatch.setattr(batching, "MOST_ROWS", 2)
    jobs = [Job(p, Ending(n, ())) for p, n in zip(PROMPTS, [9, 2, 3, 1, 12], strict=True)]
    coming = answers_as_they_end(model, jobs)
    # The second ends at token 2, the third, in its place, after 2 more passes, the fourth as soon as it is read.
    assert [number for number, _ in coming] == [1, 2, 3, 0, 4]


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
    drawn = Counter(choose(logits, Draw(1.0, 0.7), 4000 * [torch.Generator().manual_seed(0)]))
    assert set(drawn) == {0, 1}  # 0.5 alone is less than 0.7, 0.5 + 0.3 is not
    assert drawn[0] / 4000 == pytest.approx(0.625, abs=0.03)
    assert choose(logits[:1], Draw(0.0), [None]) == [0]


def test_without_a_nucleus_every_token_may_be_drawn() -> None:
    """Also those beyond the likeliest 256: a vocabulary of equal ones is drawn from evenly."""
    drawn = choose(torch.zeros(2000, 1024), Draw(1.0), 2000 * [torch.Generator().manual_seed(0)])
    assert min(drawn) < 64
    assert max(drawn) > 960
    assert len(set(drawn)) == pytest.approx(1024 * (1 - (1 - 1 / 1024) ** 2000), rel=0.05)


@pytest.mark.parametrize("draw", [Draw(1.0), Draw(0.8, 0.9)])
def test_what_a_generator_of_its_own_draws_does_not_depend_on_the_other_texts(folder: Path, draw: Draw) -> None:
    model = TargetModel.from_pretrained(folder, dtype=torch.float32)

    def drawn(prompts) -> list[list[int]]:
        own = [torch.Generator().manual_seed(sum(prompt)) for prompt in prompts]
        jobs = [Job(prompt, Ending(12, (2,)), each) for prompt, each in zip(prompts, own, strict=True)]
        return [text.ids for text in answer(model, jobs, draw)]

    together = drawn(PROMPTS)
    assert together == [drawn([prompt])[0] for prompt in PROMPTS]
    assert together[::-1] == drawn(PROMPTS[::-1])
    assert together != [text.ids for text in answer(model, jobs_of(PROMPTS))]
