"""``python -m pipeline rows``: what a row costs, on a model whose passes take as long as they are told to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from decoding import CandidateTree, TargetModel
from pipeline.cli import rows
from pipeline.cli.rows import measure, tree_of
from pipeline.errors import UserError
from tests.decoding.tiny import SHAPE, save_model
from tests.pipeline.conftest import Run

FIRST, FURTHER = 0.020, 0.001  # seconds


@pytest.fixture
def target(tmp_path: Path) -> TargetModel:
    save_model(tmp_path)
    return TargetModel.from_pretrained(tmp_path)


def test_a_tree_has_each_node_behind_its_parent() -> None:
    tree = tree_of(7)
    assert tree.parents == (-1, 0, 0, 1, 1, 2, 2)
    assert tree.depths == (0, 1, 1, 2, 2, 2, 2)
    assert tree_of(1).parents == (-1,)


def test_the_cost_of_a_row_is_what_each_adds_to_a_pass_of_one(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that each pass moves on by as much as its rows cost, and now and then by far more."""
    clock, passes = [0.0], [0]
    read = target.read

    def timed(cache: Any, tree: CandidateTree) -> Any:
        passes[0] += 1
        clock[0] += FIRST + FURTHER * (tree.width - 1) + (1.0 if passes[0] % 7 == 0 else 0.0)
        assert cache.length == 30  # what was read before is taken back
        return read(cache, tree)

    monkeypatch.setattr(target, "read", timed)
    monkeypatch.setattr(rows.time, "perf_counter", lambda: clock[0])
    costs = measure(target, 30, [16, 4, 4])
    assert [cost.rows for cost in costs] == [1, 4, 16]
    for cost in costs:
        assert cost.seconds == pytest.approx(FIRST + FURTHER * (cost.rows - 1))
        assert cost.ratio == pytest.approx(1 + (cost.rows - 1) * FURTHER / FIRST)
        assert cost.row_cost == pytest.approx(FURTHER / FIRST if cost.rows > 1 else 0)


def test_what_does_not_fit_is_refused(target: TargetModel) -> None:
    limit = int(SHAPE["max_position_embeddings"])
    with pytest.raises(UserError, match=f"context: {limit - 8} and 16 rows do not fit the model's context of {limit}"):
        measure(target, limit - 8, [16])
    with pytest.raises(UserError, match="must be 1 or more, not 0"):
        measure(target, 30, [0])


def test_the_command_prints_a_line_a_width(run: Run, at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("rows", "-w", "8", "-w", "3", "--context", "20", "--dtype=float32", "--device=cpu", "--num-threads=1") == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t") == ["rows", "ms a pass", "times one row", "row_cost"]
    assert [line.split("\t")[0] for line in lines[1:4]] == ["1", "3", "8"]
    assert re.fullmatch(r"1\t\d+\.\d\d\t1\.00\t-", lines[1])
    assert lines[4] in ("engine: native", "engine: eager")
