"""Who is held to every id of the baseline, and by how little it may be off: by none."""

from __future__ import annotations

import pytest

from pipeline.gate import compare
from tests.pipeline.benchmark_rows import row, table


@pytest.mark.parametrize(
    ("engine", "dtype"),
    [("native", "bfloat16"), ("native", "float32"), ("eager", "float32"), ("cuda-graph", "float32")],
)
def test_one_text_in_a_hundred_that_is_another_is_a_regression(engine: str, dtype: str) -> None:
    broken = table(row("prompt_lookup", lossless_match=0.99, engine=engine, dtype=dtype))
    (found,) = compare(broken, broken)
    assert (found.verdict, found.what, found.now) == ("regression", "lossless_match", "99.0%")


@pytest.mark.parametrize(("engine", "dtype"), [("eager", "bfloat16"), ("cuda-graph", "bfloat16")])
def test_what_rounds_otherwise_than_the_baseline_is_not_held_to_it(engine: str, dtype: str) -> None:
    rounded = table(row("prompt_lookup", lossless_match=0.99, engine=engine, dtype=dtype))
    assert compare(rounded, rounded) == []
