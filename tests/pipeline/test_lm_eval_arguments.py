"""What lm-eval's model ``shufflebench`` may be told, and what of it is refused, in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from decoding import Sampling
from pipeline.errors import UserError
from pipeline.lm_eval_model import ShuffleBenchLM, run_command, sampling_of
from tests.pipeline.standins import save_target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("lm") / "tiny")


@pytest.mark.parametrize(
    ("asked_for", "sampling"),
    [
        ({"do_sample": False, "temperature": 0.0, "top_p": 0.9}, Sampling()),
        ({"do_sample": True, "temperature": 0.0}, Sampling()),
        ({"do_sample": True, "temperature": 0.7}, Sampling(0.7, top_k=50)),  # transformers' own default
        ({"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.9}, Sampling(0.7, 0, 0.9)),
        ({"do_sample": False, "temperature": 0.0, "num_beams": 1, "attention_mask": None}, Sampling()),
    ],
)
def test_what_is_drawn_is_what_transformers_would_draw(asked_for: dict[str, Any], sampling: Sampling) -> None:
    assert sampling_of(asked_for, GenerationConfig()) == sampling


def test_what_a_checkpoint_says_of_sampling_counts_where_the_task_is_silent() -> None:
    asked_for = {"do_sample": True, "temperature": 0.5}
    assert sampling_of(asked_for, GenerationConfig(top_k=20, top_p=0.8)) == Sampling(0.5, 20, 0.8)


@pytest.mark.parametrize(
    ("asked_for", "line"),
    [
        ({"num_beams": 10}, r"gen_kwargs: num_beams = 10: no method here does that; .*"),
        ({"top_kk": 3}, r"gen_kwargs: top_kk = 3: .*; did you mean 'top_k'\?"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 7.0}, r"gen_kwargs: top_p must be .*, not 7.0"),
    ],
)
def test_what_no_method_does_is_refused_in_one_line(asked_for: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}$"):
        sampling_of(asked_for, GenerationConfig())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"method": "prompt_lokup"}, r"unknown method 'prompt_lokup'; did you mean 'prompt_lookup'\?"),
        (
            {"method": "prompt_lookup", "max_ngrm": 3},
            r"model_args: max_ngrm = 3: prompt_lookup has no such option; did you mean 'max_ngram'\?",
        ),
        ({"max_lenght": 9}, r"model_args: max_lenght = 9: .*; did you mean 'max_length'\?"),
        ({"method": "prompt_lookup", "max_ngram": 0}, r"model_args: methods.prompt_lookup.max_ngram = 0: .*"),
        ({"method": "medusa"}, r"model_args: method 'medusa' needs heads=FOLDER"),
        ({"method": "medusa", "heads": "nowhere"}, r"part: 'nowhere' is no folder; .*"),
        ({"method": "recycling", "heads": "x"}, r"model_args: heads = 'x': recycling has no such option; .*"),
        ({"method": "union", "drafters": ["medusa"]}, r"model_args: method 'union' needs heads=FOLDER"),
        ({"method": "union", "drafters": ["medusa"], "heads": "nowhere"}, r"part: 'nowhere' is no folder; .*"),
        ({"method": "union", "drafters": ["recycling"], "heads": "x"}, r"model_args: heads = 'x': union has no .*"),
        ({"dtype": "float23"}, r"dtype: unknown 'float23'; did you mean 'float32'\?"),
        ({"device": "gpu"}, r"device: unknown 'gpu'; did you mean 'cpu'\?"),
        ({"device": "cpu:1"}, r"device: unknown 'cpu:1'; did you mean 'cpu'\?"),
        ({"device": "auto:0"}, r"device: unknown 'auto:0'; .*"),
        ({"num_threads": -1}, r"num_threads: must be 0 .* not -1"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(folder: Path, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}$"):
        ShuffleBenchLM(pretrained=str(folder), **arguments)


def test_what_is_not_given_is_told_in_one_line_and_a_wrong_name_of_it_first() -> None:
    with pytest.raises(UserError, match=r"^model_args: needs pretrained=FOLDER$"):
        ShuffleBenchLM()
    with pytest.raises(UserError, match=r"^model_args: pretraind = 'x': .*; did you mean 'pretrained'\?$"):
        ShuffleBenchLM(pretraind="x")


def test_a_task_that_lm_eval_does_not_find_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_lm_eval(message: str) -> None:
        def fails() -> None:
            raise ValueError(message)

        monkeypatch.setattr("lm_eval.__main__.cli_evaluate", fails)

    monkeypatch.setattr(sys, "argv", [])  # so that it is put back
    of_lm_eval("Tasks not found: gsm9k")
    with pytest.raises(UserError, match=r"^Tasks not found: gsm9k; see: [^\n]*$"):
        run_command(["--tasks", "gsm9k"])
    of_lm_eval("something else")
    with pytest.raises(ValueError, match=r"^something else$"):
        run_command([])


def test_a_folder_that_is_no_model_is_told_in_one_line(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=rf"^{place}: [^\n]*$"):
            ShuffleBenchLM(pretrained=str(place))
