"""The page in words says what the table says, and nothing that its intervals do not carry."""

from __future__ import annotations

import re
from typing import Any

from pipeline.answers import as_markdown
from pipeline.pages import as_html
from tests.pipeline.benchmark_rows import METRIC, failed, row, table

LOSSY = {"lossless": False, "lossless_match": 0.25}


def generator(method: str, **changes: Any) -> dict[str, Any]:
    batch = {"batch_size": 32, "batch_tokens_per_second": 9.0, "batch_baseline_tokens_per_second": 3.0}
    own = {"model": "twin", "lossless": False, "batch_speedup": 3.0, "target_forwards": 6, "num_prompts": 6}
    return row(method, "verbalized", quality_stderr=0.5, **(batch | own | changes))


def test_the_fastest_lossless_method_is_named_for_each_task_and_on_the_mean() -> None:
    page = as_markdown(
        table(
            *(row(task=task) for task in METRIC),
            *(row("medusa", task, speedup=1.5) for task in METRIC),
            *(row("prompt_lookup", task, speedup=2.6 if task == "humaneval" else 1.1) for task in METRIC),
            row("union", "humaneval", speedup=9.0),
            *(row("hf_assisted", task, speedup=3.0, engine="transformers") for task in METRIC),
        )
    )
    fastest = "`medusa` is fastest over all tasks together: 1.50 times the baseline [1.39, 1.62], at 95 %"
    then = re.search(re.escape(f"{fastest} (then `prompt_lookup` ") + r"(\S+) \[(\S+), (\S+)\]\)", page)
    assert then
    assert float(then[2]) < 1 < float(then[1]) < float(then[3])  # 2.6 on one task, 1.1 on the others
    assert "- humaneval: `union`, 9.00 [8.13, 9.96], 9.90 tokens a step." in page
    assert "- gsm_symbolic: `medusa`, 1.50 [1.36, 1.66], 1.65 tokens a step." in page


def test_what_the_intervals_do_not_tell_apart_is_said() -> None:
    page = as_markdown(
        table(
            row(),
            row("medusa", speedup=1.5),
            row("recycling", speedup=1.47),
            row("lookahead", task="docstrings", speedup=1.03),
            row(task="docstrings"),
        )
    )
    assert "- humaneval: `medusa`, 1.50 [1.36, 1.66], 1.65 tokens a step; not told apart from `recycling`." in page
    assert "- docstrings: `lookahead`, 1.03 [0.93, 1.14], 1.13 tokens a step; no interval is above 1" in page


def test_a_winner_whose_own_interval_holds_1_is_no_winner() -> None:
    wide = {"speedup_low": 0.8, "speedup_high": 6.0}
    page = as_markdown(table(row(), row("medusa", speedup=2.2, **wide), row("recycling", speedup=1.4)))
    assert "- humaneval: `medusa`, 2.20 [0.80, 6.00], 2.42 tokens a step; its own interval is not above 1" in page
    assert "as were `recycling` 1.40 [1.26, 1.55]." in page


def test_a_best_one_that_is_slower_than_the_baseline_is_called_so() -> None:
    page = as_markdown(table(*(row(method, task, speedup=0.8) for task in METRIC for method in ("medusa", "union"))))
    assert "times the baseline [0.74, 0.87], at 95 %: it is slower than the baseline" in page
    assert "holds 1" not in page


def test_how_many_intervals_were_looked_at_is_said() -> None:
    methods = ("medusa", "recycling", "union", "lookahead", "prompt_lookup")
    page = as_markdown(table(row(), *(row(method, speedup=1.0) for method in methods)))
    assert "5 intervals were looked at here" in page
    assert "0.1 of them would be expected above 1 by chance" in page


def test_a_cell_of_one_prompt_is_no_certainty() -> None:
    """It has no error, which is not an error of 0: it weighs nothing, and nothing is called more than chance."""
    one = {"speedup_low": None, "speedup_high": None, "num_prompts": 1, "truncated": 0, "quality_stderr": None}
    page = as_markdown(
        table(
            *(row(task=task) for task in METRIC),
            *(row("medusa", task, speedup=1.5) for task in METRIC if task != "humaneval"),
            row("medusa", speedup=9.0, **one),
            row("medusa_typical", speedup=2.0, quality=0.1, **one | LOSSY),
        )
    )
    assert "`medusa` is fastest over all tasks together: 1.50 times" in page
    assert "- humaneval: `medusa`, 9.00, 9.90 tokens a step; without intervals nothing is shown." in page
    assert "pass_at_1 0.100 (-0.150; of unknown error)" in page
    alone = as_markdown(table(row(), row("medusa", speedup=9.0, **one)))
    assert "nothing can be said over all tasks together: no cell has an interval" in alone


def test_what_circling_texts_make_of_a_speedup_is_said() -> None:
    cut = {"truncated": 2, "truncated_tokens": 576, "speedup_ended": 1.25}
    cut |= {"speedup_ended_low": 1.1, "speedup_ended_high": 1.25**2 / 1.1}
    lossy = row("medusa_typical", speedup=2.0, **(cut | LOSSY | {"truncated": 0}))
    page = as_markdown(table(row(**cut), row("medusa", speedup=1.5, **cut), lossy))
    assert "1.65 tokens a step (1.25 [1.10, 1.42] where texts ended before the limit)." in page
    assert "in both runs, over all tasks: `medusa` 1.25 [" in page
    assert (
        "`medusa_typical`, 2.00 [1.81, 2.21] (1.25 [1.10, 1.42] where texts ended before the limit), pass_at_1" in page
    )
    assert (
        "- 22% of texts were cut off by the token limit and have 50% of the tokens, on which speed-ups depend;" in page
    )


def test_where_no_text_was_cut_off_or_it_is_not_known_nothing_is_said_of_those_that_ended() -> None:
    none = {"truncated": 0, "truncated_tokens": 0, "speedup_ended": 1.5}
    page = as_markdown(table(row(**none, speedup=1.5), row("medusa", speedup=1.5, **none)))
    assert "- 0% of texts were cut off by the token limit; " in page
    unknown = as_markdown(table(row(), row("medusa", speedup=1.5)))
    assert "- 33% of texts were cut off by the token limit; " in unknown
    assert all("ended before" not in said for said in (page, unknown))


def test_seeds_of_a_task_are_no_further_data() -> None:
    once = [row(), row("medusa", speedup=1.5), row("recycling", speedup=1.2)]
    thrice = [each | {"seed": seed} for each in once for seed in range(3)]
    strip = [line for line in as_markdown(table(*once)).split("\n") if "exactness" not in line.lower()]
    again = as_markdown(table(*thrice)).split("\n")
    said = [line for line in strip if line.startswith(("**At no loss", "- humaneval"))]
    assert len(said) == 2
    assert all(line in again for line in said)


def test_where_the_baseline_has_nothing_nothing_could_be_lost() -> None:
    zero = {"quality": 0.0, "quality_stderr": 0.0}
    page = as_markdown(table(row(**zero), row("medusa_typical", speedup=2.0, **zero, **LOSSY)))
    assert "pass_at_1 0.000 (the baseline's is 0 too: nothing could be lost)" in page


def test_a_lossy_method_is_named_with_what_it_loses() -> None:
    page = as_markdown(
        table(
            row(quality_stderr=0.02),
            row("medusa_typical", speedup=2.0, quality=0.1, quality_stderr=0.02, **LOSSY),
            row("fasterdecodemixer_raw", speedup=1.8, quality=0.24, quality_stderr=0.02, **LOSSY),
        )
    )
    assert "- humaneval: `medusa_typical`, 2.00 [1.81, 2.21], pass_at_1 0.100 (-0.150, more than chance), 25%" in page
    assert (
        "- humaneval: `fasterdecodemixer_raw`, 1.80 [1.63, 1.99], pass_at_1 0.240 (-0.010, no more than chance)" in page
    )


def test_broken_exactness_and_failures_are_told() -> None:
    page = as_markdown(
        table(
            row(),
            row("medusa", lossless_match=0.5),
            row("hf_greedy", engine="transformers", lossless_match=0.4),
            failed("union"),
        )
    )
    assert "Of 2 cells of our lossless methods 1 did not give the baseline's ids: medusa on humaneval." in page
    assert "gave them on 40% to 40%" in page
    assert "1 of them did not end well: union on humaneval." in page


def test_parallel_generators_are_held_against_their_twin() -> None:
    page = as_markdown(
        table(
            row(task="verbalized", model="twin", quality=99.0, quality_stderr=0.5),
            generator("shufflelm", quality=98.5, speedup=2.0),
            generator("diffusion_1_passes", quality=70.0, speedup=5.0),
        )
    )
    fastest = "`diffusion_1_passes`, 5.00 [4.52, 5.54]; in a batch 3.00, 1.0 passes a text, bleu 70.0 (-29.0, more"
    assert f"- Fastest of all: {fastest}" in page
    assert "- Fastest with no loss that was shown: `shufflelm`, 2.00" in page


def test_a_page_is_html_of_its_own_and_runs_nothing() -> None:
    html = as_html("# Title\n\n| a | b |\n|---|---|\n| 1 | <script>x()</script> |\n")
    assert "<title>Title</title>" in html
    assert "<table>" in html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "http" not in html
