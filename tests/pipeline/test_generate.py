"""A whole cell as a process: its files, its failures, and SIGKILL at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.machine import processor_cache_bytes
from tests.decoding.tiny import SHAPE, save_model

# What no noise touches: the same however often the cell was interrupted.
DETERMINISTIC = [
    *("status", "method", "lossless", "num_prompts", "num_new_tokens", "truncated", "tokens_per_step"),
    *("accepted_draft_tokens", "candidate_tokens", "target_forwards", "draft_forwards", "weight_bytes", "cache_bytes"),
    *("lossless_match", "output_sha256", "bytes_read", "flops", "divergences"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder)
    vocabulary = {f"w{i}": i for i in range(SHAPE["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w2").save_pretrained(folder)
    return folder


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    generator = random.Random(0)
    lines = []
    for prompt_id in range(6):
        ids = [generator.randint(3, 12) for _ in range(20)]
        request = {"prompt_id": prompt_id, "doc_id": prompt_id, "prompt": "", "prompt_ids": ids}
        lines.append(json.dumps(request | {"until": ["w2"], "max_new_tokens": 30}))
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def command(
    model_dir: Path, prompts: Path, output: Path, method: str = "prompt_lookup", /, **options: Any
) -> list[str]:
    arguments = {"model-dir": model_dir, "dtype": "float32", "method": method, "task": "toy", "requests": prompts}
    arguments |= {"device": "cpu", "num-threads": 1, "output": output} | options
    return [sys.executable, "-m", "pipeline.generate", *(f"--{name}={value}" for name, value in arguments.items())]


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, **options), capture_output=True, text=True, check=False)


def cell(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "cell.json").read_text())
    return summary


def deterministic(folder: Path) -> dict[str, Any]:
    summary = cell(folder)
    return {name: summary[name] for name in DETERMINISTIC}


@pytest.mark.parametrize("method", ["autoregressive", "prompt_lookup", "hf_greedy", "hf_prompt_lookup"])
def test_a_cell_has_a_record_a_prompt_and_figures_that_follow_from_them(
    model: Path, requests: Path, tmp_path: Path, method: str
) -> None:
    done = run(model, requests, tmp_path / "cell", method)
    assert done.returncode == 0, done.stderr
    summary, lines = cell(tmp_path / "cell"), (tmp_path / "cell/records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["prompt_id"] for record in records] == list(range(6))
    assert summary["status"] == "ok"
    assert summary["lossless_match"] == 1.0
    assert summary["num_new_tokens"] == sum(len(record["method"]["output_ids"]) for record in records)
    assert summary["truncated"] == sum(record["method"]["truncated"] for record in records)
    assert summary["peak_memory_bytes"] > summary["weight_bytes"] + (summary["cache_bytes"] or 0)
    assert (summary["cache_bytes"] is None) == method.startswith("hf_")
    # Weights this small are in the processor's cache, if it says how large that is.
    assert summary["mbu"] is None if processor_cache_bytes() else summary["mbu"] > 0
    assert all("w2" not in record["text"] for record in records)
    assert not (tmp_path / "cell/journal.jsonl").exists()
    if "lookup" in method:
        assert summary["tokens_per_step"] > 1
        assert summary["accepted_draft_tokens"] > 0
    else:
        assert summary["tokens_per_step"] == 1
        assert summary["accepted_draft_tokens"] == 0


def test_a_sampled_cell_is_the_same_when_run_again_and_another_with_another_seed(
    model: Path, requests: Path, tmp_path: Path
) -> None:
    hashes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = run(model, requests, tmp_path / name, sampling='{"temperature": 1.0}', seed=seed)
        assert done.returncode == 0, done.stderr
        summary = cell(tmp_path / name)
        hashes.append(summary["output_sha256"])
        assert summary["lossless_match"] is None  # by chance the texts differ from the baseline's
    assert hashes[0] == hashes[1] != hashes[2]


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


@pytest.mark.slow
def test_killed_anywhere_and_started_again_it_ends_as_if_nothing_had_happened(
    model: Path, requests: Path, tmp_path: Path
) -> None:
    assert run(model, requests, tmp_path / "whole").returncode == 0
    generator = random.Random(1)
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(command(model, requests, tmp_path / "killed"), stderr=subprocess.DEVNULL)
        # From before the journal begins to behind its last line: loading takes some seconds, the prompts less.
        journal, wanted = tmp_path / "killed/journal.jsonl", generator.randint(0, 6)
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if wanted == 0 or (journal.exists() and journal.read_bytes().count(b"\n") > wanted):
                break
            time.sleep(0.002)
        if process.poll() is None:
            for member in family(process):
                member.kill()
            kills += 1
        process.wait()
    assert run(model, requests, tmp_path / "killed").returncode == 0
    assert kills > 0
    assert deterministic(tmp_path / "killed") == deterministic(tmp_path / "whole")


def test_when_only_the_measuring_process_is_killed_the_cell_goes_on(
    model: Path, requests: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(command(model, requests, tmp_path / "cell"), stderr=subprocess.PIPE, text=True)
    journal, until = tmp_path / "cell/journal.jsonl", time.monotonic() + 120
    while not journal.exists() and time.monotonic() < until:
        time.sleep(0.002)
    for worker in psutil.Process(process.pid).children():
        os.kill(worker.pid, signal.SIGKILL)
    _, stderr = process.communicate()
    assert process.returncode == 0
    assert "going on at the same prompt" in stderr
    assert cell(tmp_path / "cell")["status"] == "ok"


def test_a_cell_that_cannot_be_run_is_written_as_failed_with_its_reason(
    model: Path, requests: Path, tmp_path: Path
) -> None:
    done = run(model, requests, tmp_path / "cell", options='{"min_ngram": 9}')
    assert done.returncode == 0, done.stderr
    summary = cell(tmp_path / "cell")
    assert summary["status"] == "failed"
    assert "min_ngram must be between 1 and max_ngram=3, not 9" in summary["reason"]
    assert "\n" not in summary["reason"]
    assert (tmp_path / "cell/records.jsonl").read_text() == ""


def test_a_cell_that_crashes_twice_at_the_same_prompt_has_failed_and_keeps_what_it_had(
    model: Path, requests: Path, tmp_path: Path
) -> None:
    """Its own process is crashed whenever it has two prompts on disk."""
    process = subprocess.Popen(command(model, requests, tmp_path / "cell"), stderr=subprocess.DEVNULL)
    journal = tmp_path / "cell/journal.jsonl"
    while process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 3:
            for worker in psutil.Process(process.pid).children():
                worker.send_signal(signal.SIGSEGV)
        time.sleep(0.002)
    assert process.returncode == 0
    summary = cell(tmp_path / "cell")
    assert summary["status"] == "failed"
    assert summary["reason"].startswith("killed twice at prompt ")
    assert "SIGSEGV" in summary["reason"]
    assert journal.exists()


def test_a_prompt_may_hold_any_line_separator(model: Path, requests: Path, tmp_path: Path) -> None:
    first = json.loads(requests.read_text().split("\n")[0])
    requests.write_text(json.dumps(first | {"prompt": "a\u2028b\u0085c"}, ensure_ascii=False) + "\n")
    assert run(model, requests, tmp_path / "cell").returncode == 0
    assert cell(tmp_path / "cell")["status"] == "ok"


def test_what_prepare_found_wrong_is_the_cells_reason(model: Path, tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"error": "prompt 3 has 900 tokens"}\n')
    assert run(model, requests, tmp_path / "cell").returncode == 0
    assert cell(tmp_path / "cell")["reason"] == "prompt 3 has 900 tokens"


def test_a_model_outside_the_family_fails_its_cells(model: Path, requests: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    assert run(other, requests, tmp_path / "cell").returncode == 0
    assert "activation 'gelu' is not supported" in cell(tmp_path / "cell")["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "prompt_lokup"}, "did you mean 'prompt_lookup'?"),
        ({"dtype": "float23"}, "did you mean 'float32'?"),
        ({"repeats": 2}, "repeats: must be an odd number"),
        ({"model-dir": "nowhere"}, "'nowhere' is no model folder"),
        ({"requests": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"options": "{"}, "is not a JSON object"),
        ({"decode-width": 0}, "'0' is not a whole number of at least 1"),
    ],
)
def test_a_bad_command_line_is_told_in_one_line_and_writes_nothing(
    model: Path, requests: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    done = run(model, requests, tmp_path / "cell", **options)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "cell/cell.json").exists()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(model: Path, requests: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(model, requests, tmp_path / "file" / "cell")
    assert done.returncode == 2
    assert "Not a directory" in done.stderr.splitlines()[-1]


def test_a_full_disk_loses_nothing_that_was_finished(model: Path, requests: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the journal can grow by a few prompts only."""
    journal = tmp_path / "cell/journal.jsonl"
    full = ["bash", "-c", 'trap "" XFSZ; ulimit -f 3; exec "$@"', "bash", *command(model, requests, tmp_path / "cell")]
    done = subprocess.run(full, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "File too large" in done.stderr.splitlines()[-1]
    finished = journal.read_text().count("\n") - 1
    assert 0 < finished < 6
    assert not (tmp_path / "cell/cell.json").exists()
    assert run(model, requests, tmp_path / "cell").returncode == 0
    assert cell(tmp_path / "cell")["resumed_prompts"] == finished


def test_a_cell_that_another_process_has_just_finished_is_not_measured_again(
    model: Path, requests: Path, tmp_path: Path
) -> None:
    """As when the run that started this one was killed, and the measuring it had left behind went on to the end."""
    assert run(model, requests, tmp_path / "cell").returncode == 0
    before = (tmp_path / "cell/cell.json").read_text()
    assert run(model, requests, tmp_path / "cell").returncode == 0
    assert (tmp_path / "cell/cell.json").read_text() == before
    assert run(model, requests, tmp_path / "cell", options='{"num_draft_tokens": 4}').returncode == 0
    assert (tmp_path / "cell/cell.json").read_text() != before
