"""Records and the journal: what is written survives a kill, what is torn or of another cell does not count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from decoding.trace import Generation, Step
from pipeline.clock import Limits
from pipeline.record import Journal, run_record
from pipeline.summary import bytes_read, first_divergences, operations, summarise

REQUESTS = [{"prompt_id": i} for i in range(4)]


def test_a_journal_goes_on_behind_what_a_killed_run_left(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, "cell") as journal:
        journal.add({"prompt_id": 0, "text": "a"})
        journal.add({"prompt_id": 2, "text": "é"})
        on_disk = path.read_text(encoding="utf-8")
        assert on_disk.count("\n") == 3
    path.write_text(on_disk + '{"prompt_id": 3, "te', encoding="utf-8")
    with Journal(path, "cell") as journal:
        assert journal.num_resumed == 2
        assert [request["prompt_id"] for request in journal.missing(REQUESTS)] == [1, 3]
        journal.add({"prompt_id": 1})
    with Journal(path, "cell") as journal:
        assert sorted(journal.records) == [0, 1, 2]
        assert journal.records[2]["text"] == "é"


def test_a_journal_of_another_cell_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, "cell") as journal:
        journal.add({"prompt_id": 0})
    with Journal(path, "the cell with another option") as journal:
        assert journal.missing(REQUESTS) == REQUESTS
    with Journal(path, "cell") as journal:
        assert journal.num_resumed == 0


@pytest.mark.parametrize("content", ["", "not json\n", '["a list"]\n', '{"fingerprint": "ce'])
def test_a_damaged_journal_is_begun_anew(tmp_path: Path, content: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(content, encoding="utf-8")
    with Journal(path, "cell") as journal:
        assert journal.num_resumed == 0
        journal.add({"prompt_id": 0})
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][1] == {"prompt_id": 0}


def generation(total_s: float) -> Generation:
    """Seven tokens: one from prefill, then steps of 3, 2 and 1."""
    steps = tuple(Step(emitted, emitted - 1, 4, 0, 0.01, (total_s - 0.1) / 3) for emitted in (3, 2, 1))
    return Generation((11, 12, 13, 14, 15, 16, 2), 20, False, 0.1, steps)


def test_a_record_holds_the_trial_of_median_time() -> None:
    run = run_record([generation(0.9), generation(0.4), generation(0.5)])
    assert run["total_s"] == pytest.approx(0.5)
    assert run["ttft_s"] + run["decode_s"] == pytest.approx(0.5)
    assert run["total_s_repeats"] == pytest.approx([0.9, 0.4, 0.5])
    assert run["tokens_by_step"] == [3, 2, 1]
    assert (run["accepted_draft_tokens"], run["candidate_tokens"], run["target_forwards"]) == (3, 12, 4)


def test_figures_equal_those_computed_by_hand() -> None:
    run, slow = run_record([generation(0.5)]), run_record([generation(1.0)])
    other = {**slow, "output_ids": [11, 12, 99, 14, 15, 16, 2]}
    records = [
        {"prompt_id": 0, "method": run, "baseline": slow},
        {"prompt_id": 1, "method": run, "baseline": other},
    ]
    figures = summarise(
        records, weight_bytes=1000, parameter_bytes=2, cache_bytes_per_token=10, limits=Limits(20_000.0, 1e6)
    )
    assert figures["num_prompts"] == 2
    assert figures["num_new_tokens"] == 14
    assert figures["tokens_per_second"] == pytest.approx(7 / 0.5)
    assert figures["speedup"] == pytest.approx(2.0)
    assert figures["decode_tokens_per_second"] == pytest.approx(6 / 0.4)
    assert figures["tpot_s"] == pytest.approx(0.4 / 6)
    assert figures["tokens_per_step"] == pytest.approx(2.0)
    assert figures["decode_steps"] == 6
    assert figures["lossless_match"] == 0.5
    # Three steps, at 21, 24 and 26 tokens of context.
    assert bytes_read(run, 1000, 10) == 3000 + 10 * (21 + 24 + 26)
    assert figures["mbu"] == pytest.approx(2 * 3710 / (0.8 * 20_000))
    # Three roots and four candidates each, two operations a parameter and row.
    assert operations(run, 500) == 2 * 500 * 15
    assert first_divergences(records) == [{"prompt_id": 1, "token": 2}]


@pytest.mark.parametrize(("cache", "told"), [(None, True), (999, True), (1000, False)])
def test_weights_that_stay_in_the_cache_have_no_share_of_the_memorys_speed(cache: int | None, told: bool) -> None:
    records = [{"prompt_id": 0, "method": run_record([generation(0.5)]), "baseline": run_record([generation(1.0)])}]
    sizes = {"weight_bytes": 900, "part_bytes": 100, "parameter_bytes": 2, "cache_bytes_per_token": 10}
    figures = summarise(records, **sizes, limits=Limits(20_000.0, 1e6), processor_cache_bytes=cache)
    assert (figures["mbu"] is not None) is told
    assert figures["bytes_read"] > 0


def test_a_text_of_one_token_has_no_decode_figures() -> None:
    run = run_record([Generation((2,), 20, False, 0.1, ())])
    records = [{"prompt_id": 0, "method": run, "baseline": run}]
    figures = summarise(records, weight_bytes=10, parameter_bytes=2, cache_bytes_per_token=1, limits=Limits(1.0, 1.0))
    assert figures["tokens_per_second"] == pytest.approx(10.0)
    assert [figures[name] for name in ("tpot_s", "tokens_per_step", "mbu", "speedup_low")] == [None] * 4


def test_a_pass_that_settles_no_text_is_no_time_per_token() -> None:
    idle = Generation((5, 2), 20, False, 0.1, (Step(0, 0, 0, 0, 0.0, 0.3),), prefill_forwards=1, prefill_emitted=2)
    records = [{"prompt_id": 0, "method": run_record([idle]), "baseline": run_record([generation(0.5)])}]
    figures = summarise(
        records,
        weight_bytes=10,
        parameter_bytes=2,
        cache_bytes_per_token=1,
        limits=Limits(1.0, 1.0),
        is_parallel=True,
    )
    assert figures["tpot_s"] is None
    assert figures["tokens_per_second"] == pytest.approx(2 / 0.4)
    assert figures["tokens_per_step"] == pytest.approx(2 / 2)  # two tokens, two passes
    assert figures["flops"] is None


def test_a_shorter_text_diverges_where_it_ends() -> None:
    records = [{"prompt_id": 5, "method": {"output_ids": [1, 2]}, "baseline": {"output_ids": [1, 2, 3]}}]
    assert first_divergences(records) == [{"prompt_id": 5, "token": 2}]
