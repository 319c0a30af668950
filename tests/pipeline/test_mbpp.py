"""MBPP: rows of either published form become problems for the sandbox; what cannot be judged there is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import dataset
from pipeline.errors import UserError
from tests.pipeline.test_dataset import jsonl

MBPP_ROW = {
    "task_id": 7,
    "text": "Write a function that halves a number.",
    "code": "import math\r\ndef floor(x):\r\n    return math.floor(x)\r\ndef half(x):\r\n    return floor(x / 2)",
    "test_list": ["assert half(5) == 2", "assert half(\n    4) == 2"],
    "test_setup_code": "",
}


def test_mbpp_asserts_become_a_check_of_the_function_that_they_call(tmp_path: Path) -> None:
    sanitized = {key: value for key, value in MBPP_ROW.items() if key not in ("text", "test_setup_code")}
    sanitized |= {"prompt": MBPP_ROW["text"], "test_imports": ["import math"]}
    first, second = dataset.from_path("mbpp", jsonl(tmp_path / "mbpp.jsonl", MBPP_ROW, sanitized))[0]
    assert first["text"] == second["text"] == MBPP_ROW["text"]
    assert (first["task_id"], first["entry_point"], "\r" in first["code"]) == ("MBPP/7", "half", False)
    assert first["tests"] == "assert half(5) == 2\nassert half(4) == 2"
    assert first["test"] == "def check(half):\n    assert half(5) == 2\n    assert half(4) == 2"
    assert second["test"] == "import math\n" + first["test"]


def test_an_mbpp_problem_whose_asserts_need_more_than_one_function_is_left_out(tmp_path: Path) -> None:
    code = "class Pair:\n    pass\ndef longest(pairs):\n    return 1"
    pairs = MBPP_ROW | {"code": code, "test_list": ["assert longest([Pair()]) == 1"]}
    documents, _, _ = dataset.from_path("mbpp", jsonl(tmp_path / "mbpp.jsonl", pairs, MBPP_ROW))
    assert [document["entry_point"] for document in documents] == ["half"]


def test_an_mbpp_function_may_have_capitals_and_a_class_is_none(tmp_path: Path) -> None:
    capital = MBPP_ROW | {"code": "def remove_Occ(s):\n    return s", "test_list": ["assert remove_Occ('a') == 'a'"]}
    of_class = MBPP_ROW | {"code": "class pair:\n    pass", "test_list": ["assert pair() != 1"]}
    documents, _, _ = dataset.from_path("mbpp", jsonl(tmp_path / "mbpp.jsonl", capital, of_class))
    assert [document["entry_point"] for document in documents] == ["remove_Occ"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"code": "def half(x:"}, "key 'code': not Python"),
        ({"test_list": ["assert half(5 == 2"]}, "key 'test_list': not Python"),
        ({"test_list": []}, "key 'test_list' must be a list of texts"),
        ({"test_list": "assert half(4) == 2"}, "key 'test_list' must be a list of texts"),
    ],
)
def test_a_damaged_mbpp_row_is_told_by_its_key(change: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"line 1: {words}"):
        dataset.from_path("mbpp", jsonl(tmp_path / "mbpp.jsonl", MBPP_ROW | change))
