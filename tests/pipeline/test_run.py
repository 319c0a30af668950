"""The whole pipeline with nothing replaced but the model: the smoke profile with a tiny random one, two tasks of four.

Run to its end, run again, and, in another folder, killed at random moments and started again until it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.decoding.tiny import SHAPE

ROOT = Path(__file__).resolve().parents[2]
KILLS = 4
CELLS = 4  # of two tasks and two methods
# The figures that only depend on the configuration: no time, no memory.
DETERMINISTIC = [
    *("profile", "dtype", "model", "model_source", "weights_sha256", "method", "options", "sampling", "lossless"),
    *("task", "data_source", "data_sha256", "seed", "metric", "quality", "quality_stderr", "bleu", "chrf"),
    *("rouge1", "rouge2", "rougeL", "signature", "num_prompts", "num_new_tokens", "truncated", "tokens_per_step"),
    *("accepted_draft_tokens", "candidate_tokens", "target_forwards", "draft_forwards", "decode_width", "bytes_read"),
    *("flops", "weight_bytes", "cache_bytes", "lossless_match", "output_sha256", "repeats", "status", "reason"),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that reads and writes bytes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    shape = SHAPE | {"vocab_size": len(vocabulary), "max_position_embeddings": 4096}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    return folder


def command(model: Path, *changes: str, target: str = "all") -> list[str]:
    """The smoke profile, its model replaced by ``model``, two of its tasks left out, and changed further."""
    limits = "{num_prompts: 3, max_new_tokens: 12, chat_template: false}"
    values = [
        f"models={{smollm2-135m: null, tiny: {{path: {model}, dtypes: [float32]}}}}",
        "methods={hf_greedy: null, hf_prompt_lookup: null}",
        f"tasks={{humaneval: null, gsm_symbolic: null, docstrings: {limits}, verbalized: {limits}}}",
        "num_threads=1",
    ]
    where = ["--snakefile", str(ROOT / "Snakefile"), "--workflow-profile", str(ROOT / "profiles" / "default")]
    words = [sys.executable, "-m", "snakemake", target, "--cores", "2", *where]
    return [*words, "--config", "profile=smoke", *values, *changes]


def run(folder: Path, words: list[str], status: int = 0) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == status, output
    return output


def deterministic(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results/benchmark.csv")[DETERMINISTIC]


def finished_cells(folder: Path) -> dict[Path, str]:
    """What each finished cell says, its times too, so that one run again would differ; run/ has the same file.

    The time of the file itself says nothing: Snakemake touches the outputs of a job that it has noted as finished.
    """
    found = {}
    for path in sorted(folder.glob("results/cells/**/cell.json")):
        cell = path.parent.parent if path.parent.name == "run" else path.parent
        with contextlib.suppress(FileNotFoundError):  # one of the two names is removed at times
            found[cell] = path.read_text()
            assert json.loads(found[cell])["status"] == "ok"
    return found


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run from its beginning to its end, without a break, and how many seconds it took."""
    folder, start = tmp_path_factory.mktemp("whole"), time.monotonic()
    run(folder, command(model))
    return folder, time.monotonic() - start


def test_every_cell_is_a_row_and_all_texts_are_the_baselines(whole: tuple[Path, float]) -> None:
    table = pd.read_csv(whole[0] / "results/benchmark.csv")
    assert len(table) == CELLS
    assert set(table["status"]) == {"ok"}, table["reason"].tolist()
    assert set(table["lossless_match"]) == {1.0}
    assert table.groupby("task")["output_sha256"].nunique().eq(1).all()
    assert table["num_new_tokens"].gt(0).all()
    for name in ("tables/benchmark.md", "figures/speed_quality.png", "provenance.json"):
        assert (whole[0] / "results" / name).stat().st_size > 0


def test_run_again_it_does_nothing(model: Path, whole: tuple[Path, float]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole[0].glob("results/**/*")}
    assert "Nothing to be done" in run(whole[0], command(model))
    assert {path: path.stat().st_mtime_ns for path in whole[0].glob("results/**/*")} == before


def kill_at(process: subprocess.Popen[bytes], folder: Path, seconds: float, after_a_cell: bool) -> None:
    """Kill Snakemake and all that it started, some seconds from now or from when one more cell is finished."""
    cells = len(finished_cells(folder))
    while after_a_cell and process.poll() is None and len(finished_cells(folder)) == cells:
        time.sleep(0.01)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)


def test_killed_at_random_moments_and_started_again_it_ends_the_same(
    model: Path, whole: tuple[Path, float], tmp_path: Path
) -> None:
    generator = random.Random(0)
    before: dict[Path, str] = {}
    for kill in range(KILLS):
        if len(before) == CELLS:
            break  # what is left may end before it can be killed
        with subprocess.Popen(
            command(model), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            # Half of them right behind the end of a cell, which Snakemake may not have noted yet.
            after_a_cell = kill % 2 == 1
            kill_at(process, tmp_path, generator.uniform(0, 1.5 if after_a_cell else whole[1] / 6), after_a_cell)
        after = finished_cells(tmp_path)
        assert {cell: after.get(cell) for cell in before} == before, "a finished cell was run again"
        before = after
    assert len(before) >= KILLS // 2
    run(tmp_path, command(model))
    after = finished_cells(tmp_path)
    assert {cell: after.get(cell) for cell in before} == before, "a finished cell was run again"
    pd.testing.assert_frame_equal(deterministic(tmp_path), deterministic(whole[0]))


def test_a_model_that_cannot_be_had_is_rows_with_a_reason_and_the_others_go_on(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = f"models={{empty: {{path: {tmp_path / 'empty'}, dtypes: [float32]}}}}"
    less = ("methods={prompt_lookup: null}", "tasks={docstrings: null}")
    output = run(tmp_path, command(model, empty, *less, target="results/benchmark.csv"))
    assert "Traceback" not in output
    table = pd.read_csv(tmp_path / "results/benchmark.csv")
    assert table.groupby("model")["status"].agg(set).to_dict() == {"empty": {"failed"}, "tiny": {"ok"}}
    assert table.loc[table["model"] == "empty", "reason"].str.contains("config.json").all()


def test_a_results_folder_that_cannot_be_written_is_told_without_our_traceback(model: Path, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file in the way: it stops root as well, which no permission does")
    output = run(tmp_path, command(model), status=1)
    assert "pipeline/" not in "".join(line for line in output.splitlines() if line.lstrip().startswith("File "))
    assert "results" in output
