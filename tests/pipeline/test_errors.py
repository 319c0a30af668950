"""A step that cannot be done is told in one line, and as a row where cells wait for its result."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from pipeline import selfgen, states_training, train_draft
from pipeline.errors import UserError, written_down
from pipeline.training_device import claim_device

MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("no such model"), "no such model"),
        (MEMORY, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "RuntimeError: DefaultCPUAllocator: can't all"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_cannot_be_done_is_a_reason_where_that_is_wanted(
    error: Exception, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    with written_down(True, told.append):
        raise error
    assert told[0].startswith(reason)
    assert "\n" not in told[0]
    written = capsys.readouterr().err
    assert written.splitlines()[-1] == f"error: {told[0]}"
    assert ("Traceback" in written) == (not isinstance(error, UserError))
    with pytest.raises(type(error)), written_down(False, told.append):
        raise error
    assert len(told) == 1


def test_a_mistake_of_ours_is_no_row() -> None:
    with pytest.raises(KeyError), written_down(True, pytest.fail):
        raise KeyError("layers")


def test_a_training_takes_the_device_that_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    claim_device("auto")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    claim_device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(UserError, match="device: unknown 'gpu'; did you mean 'cpu'"):
        claim_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    claim_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(train_draft, "train_draft", lambda given: pytest.fail("it began"))
    words = ["--model=m", "--text=t", f"--output={tmp_path}", "--device=cuda", "--errors-as-rows"]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    train_draft.main()
    assert "torch finds no GPU" in json.loads((tmp_path / "draft.json").read_text())["error"]


def test_a_training_that_runs_out_of_memory_is_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MEMORY

    monkeypatch.setattr(train_draft, "train_draft", no_memory)
    monkeypatch.setattr(selfgen, "self_generate", no_memory)
    (tmp_path / "prompts.jsonl").write_text("")
    words = [f"--model={tmp_path}", f"--text={tmp_path / 'text.jsonl'}", f"--output={tmp_path / 'part'}"]
    monkeypatch.setattr(sys, "argv", ["train", *words, "--errors-as-rows"])
    train_draft.main()
    assert json.loads((tmp_path / "part/draft.json").read_text())["error"].startswith("OutOfMemoryError: CUDA out of")
    from pipeline.train_heads import Settings

    states_training.run_rule("", Settings, no_memory, "heads")
    assert json.loads((tmp_path / "part/heads.json").read_text())["error"].startswith("OutOfMemoryError: CUDA out of")
    words = [f"--model={tmp_path}", f"--prompts={tmp_path / 'prompts.jsonl'}", "--num-tokens=9"]
    monkeypatch.setattr(sys, "argv", ["selfgen", *words, f"--output={tmp_path / 'text.jsonl'}", "--errors-as-rows"])
    selfgen.main()
    assert json.loads((tmp_path / "text.jsonl").read_text())["error"].startswith("OutOfMemoryError: CUDA out of")
    monkeypatch.setattr(sys, "argv", sys.argv[:-1])
    with pytest.raises(torch.OutOfMemoryError):
        selfgen.main()
