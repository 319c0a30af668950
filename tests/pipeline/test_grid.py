"""The arithmetic of a grid, and the page that shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.errors import UserError
from pipeline.grid import Size, cell_hours, hours, parameters_of, report, sizes

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "config" / "paper.yaml"
LIMITS = {"num_prompts": 10, "max_new_tokens": 100, "chat_template": False}
SMALL = {
    "profile": "small",
    "seeds": [0, 1],
    "models": {"a-1b": {"hub": "org/a-1B", "dtypes": ["bfloat16", "float32"]}},
    "methods": {"autoregressive": {}, "hf_greedy": {}},
    "tasks": {"humaneval": LIMITS, "docstrings": LIMITS},
}


def test_the_page_is_what_the_command_prints() -> None:
    command = [sys.executable, "-m", "pipeline.grid", "--configfile", "config/paper.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    page = (ROOT / "docs" / "paper_grid.md").read_text()
    assert page.endswith(f"<!-- grid -->\n{done.stdout}")


def test_cells_are_those_of_the_dag_and_parts_add_up_to_the_whole() -> None:
    settings = load(SMALL)
    cells, spent = hours(settings)
    assert cells == 1 * 2 * 2 * 2 * 2  # models, dtypes, methods, tasks, seeds
    by_method = [hours(settings, method=name) for name in settings.methods]
    assert cells == sum(count for count, _ in by_method)
    assert spent == pytest.approx(sum(part for _, part in by_method))
    assert by_method[1][1] > by_method[0][1]  # a peer decodes more slowly


def test_twice_the_prompts_take_twice_as_long_but_for_the_start() -> None:
    twice = load(SMALL | {"tasks": {"humaneval": LIMITS | {"num_prompts": 20}, "docstrings": LIMITS}})
    size = sizes(twice)["a-1b", "bfloat16"]
    start = size.cards * (60 + size.weight_bytes / 1e9) / 3600
    once, doubled = (cell_hours(twice, size, "autoregressive", task) for task in ("docstrings", "humaneval"))
    assert doubled - start == pytest.approx(2 * (once - start))


@pytest.mark.parametrize(("billions", "cards"), [(7, 1), (13, 1), (34, 4), (70, 8)])
def test_cards_hold_a_model_twice(billions: float, cards: int) -> None:
    assert Size(billions * 1e9, billions * 1e8, 2).cards == cards


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("01-ai/Yi-34B-Chat", 34e9),
        ("meta-llama/Llama-3.2-1B-Instruct", 1e9),
        ("deepseek-ai/deepseek-coder-6.7b-instruct", 6.7e9),
        ("lmsys/vicuna-7b-v1.3", 7e9),
        ("smollm2-135m", 135e6),
    ],
)
def test_a_name_tells_the_size(name: str, parameters: float) -> None:
    assert parameters_of(name) == pytest.approx(parameters)


def test_a_name_that_does_not_is_refused() -> None:
    with pytest.raises(UserError, match="'gpt' does not tell how large it is"):
        parameters_of("gpt")


def test_nothing_is_trained_where_no_method_needs_it() -> None:
    assert "and 0 of training" in report(load(SMALL))
