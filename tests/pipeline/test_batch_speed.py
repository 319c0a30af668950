"""A generator goes through a batch as it is fastest, and is timed in turn with its twin."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch

from decoding import TargetModel
from pipeline.batch_speed import TRIALS, fastest, in_turn
from shuffle.passes import ParallelGenerator, ways_through

CPU = torch.device("cpu")


class Alone:
    """A generator that goes from text to text; ``native`` says whether its target is compiled."""

    def __init__(self, native: object) -> None:
        self.target = cast(TargetModel, type("Target", (), {"native": native}))

    def generate(self, prompt_ids: Sequence[int], **others: Any) -> Any: ...

    def generate_batch(self, prompts: Sequence[Sequence[int]], **others: Any) -> list[tuple[int, ...]]:
        return [(1,) for _ in prompts]


class Abreast(Alone):
    """One that can read all texts together, where its options allow it."""

    def __init__(self, native: object, goes_abreast: bool = True) -> None:
        super().__init__(native)
        self.goes_abreast = goes_abreast

    def generate_abreast(self, prompts: Sequence[Sequence[int]], **others: Any) -> list[tuple[int, ...]]:
        return [(1,) for _ in prompts]


def test_the_fastest_way_is_taken_whatever_its_place_and_its_first_run() -> None:
    calls: list[str] = []

    def run(name: str, seconds: float, first: float) -> Callable[[], int]:
        def it() -> int:
            time.sleep(seconds if name in calls else first)
            calls.append(name)
            return 1

        return it

    slow, quick = run("slow", 0.03, 0.0), run("quick", 0.003, 0.1)  # what is compiled at first use is slow once
    assert fastest([slow, quick], CPU) is quick
    assert fastest([quick, slow], CPU) is quick
    calls.clear()
    assert fastest([slow], CPU) is slow
    assert not calls, "there is nothing to choose from"


@pytest.mark.parametrize(
    ("generator", "ways"),
    [
        (Abreast(native="compiled"), ["generate_batch", "generate_abreast"]),
        (Abreast(native="compiled", goes_abreast=False), ["generate_batch"]),
        (Abreast(native=None), ["generate_batch"]),  # which is abreast there
        (Alone(native="compiled"), ["generate_batch"]),
    ],
)
def test_the_ways_through_a_batch_are_those_that_differ(generator: ParallelGenerator, ways: list[str]) -> None:
    assert [way.__name__ for way in ways_through(generator)] == ways


def test_both_run_in_turn_and_each_is_first_in_every_other_trial() -> None:
    order: list[str] = []

    def run(name: str) -> Callable[[], int]:
        return lambda: order.append(name) or len(name)  # type: ignore[func-returns-value]

    ours, twins = in_turn(run("ours"), run("twins"), CPU)
    assert order[:2] == ["ours", "twins"]  # untimed
    assert order[2:6] == ["ours", "twins", "twins", "ours"]
    assert [tokens for tokens, _ in ours] == [4] * TRIALS
    assert [tokens for tokens, _ in twins] == [5] * TRIALS
