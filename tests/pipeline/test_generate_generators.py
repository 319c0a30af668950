"""Cells of models that generate in parallel: timed against their twin, alone and in a batch."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from decoding import Sampling, TargetModel
from pipeline.batch_speed import TRIALS, in_turn, measure_batch
from pipeline.methods import build_generator
from pipeline.precision import precision_of
from pipeline.registry import METHODS, import_target
from shuffle.backbone import BackboneConfig
from shuffle.diffusion.config import DiffusionConfig
from shuffle.diffusion.model import DiffusionTransformer
from shuffle.shufflelm.config import ShuffleConfig
from shuffle.shufflelm.model import ShuffleLM
from shuffle.twostream.config import TwoStreamConfig
from shuffle.twostream.model import LlamaTwoStreamForCausalLM

SHAPE: dict[str, Any] = {"vocab_size": 48, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "eos_token_id": 2}
SHAPE |= {"max_position_embeddings": 128}
MADE = {
    "shufflelm": lambda: ShuffleLM(ShuffleConfig(**SHAPE, max_parallel_tokens=12)),
    "diffusion": lambda: DiffusionTransformer(DiffusionConfig(**SHAPE)),
    "twostream": lambda: LlamaTwoStreamForCausalLM(TwoStreamConfig(**SHAPE)),
}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("twins") / "twin"
    model = LlamaForCausalLM(BackboneConfig(**SHAPE).llama())
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(48)}, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<2>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    for name, make in MADE.items():
        torch.manual_seed(1)
        make().save_pretrained(folder / name)
        (folder / name / "generator.json").write_text("{}")
    return {name: folder / name for name in MADE}


def requests(count: int) -> list[dict[str, Any]]:
    rng = random.Random(4)
    prompts = [[rng.randint(3, 47) for _ in range(rng.randint(3, 14))] for _ in range(count)]
    common = {"prompt": "", "until": ["<2>"], "max_new_tokens": 20}
    return [{"prompt_id": i, "doc_id": i, "prompt_ids": prompt, **common} for i, prompt in enumerate(prompts)]


def run(method: str, twin: Path, part: Path, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in requests(4)))
    values = {"model-dir": twin, "dtype": "float32", "method": method, "task": "toy", "device": "cpu"}
    values |= {"requests": folder / "requests.jsonl", "num-threads": 1, "output": folder / "cell"}
    values |= {"part": f"{METHODS[method].parts[0]}={part}"}
    words = [f"--{name}={value}" for name, value in values.items()]
    subprocess.run([sys.executable, "-m", "pipeline.generate", *words], check=True, capture_output=True)
    records = (folder / "cell" / "records.jsonl").read_text().splitlines()
    return json.loads((folder / "cell" / "cell.json").read_text()), [json.loads(line) for line in records]


@pytest.mark.parametrize("method", ["shufflelm", "shufflelm_reranked", "diffusion_2_passes", "twostream"])
def test_a_generators_cell_tells_its_passes_and_its_batch(
    method: str, twin: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    name = METHODS[method].parts[0]
    summary, records = run(method, twin, weights[name], tmp_path)
    assert summary["status"] == "ok", summary["reason"]
    assert summary["lossless"] is False
    assert summary["batch_size"] == 4
    assert summary["batch_speedup"] == pytest.approx(
        summary["batch_tokens_per_second"] / summary["batch_baseline_tokens_per_second"]
    )
    assert summary["divergences"] == []
    assert summary["flops"] is None
    tokens = sum(len(record["method"]["output_ids"]) for record in records)
    passes = sum(record["method"]["target_forwards"] for record in records)
    assert summary["target_forwards"] == passes
    assert summary["tokens_per_step"] == pytest.approx(tokens / passes)
    given = dict(METHODS[method].fixed)
    if METHODS[method].twin_chooses:
        given["twin"] = TargetModel.from_pretrained(twin)
    generator = import_target(METHODS[method].target).from_pretrained(weights[name], **given)
    for record, request in zip(records, requests(4), strict=True):
        alone = generator.generate(request["prompt_ids"], max_new_tokens=20)
        assert record["method"]["output_ids"] == list(alone.output_ids)
        assert sum(record["method"]["tokens_by_step"]) <= len(alone.output_ids)


def test_a_generator_that_could_not_be_trained_is_a_row_with_the_reason(twin: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    (part / "generator.json").write_text('{"error": "no pairs here"}')
    summary, _ = run("shufflelm", twin, part, tmp_path)
    assert summary["status"] == "failed"
    assert summary["reason"] == "no pairs here"


def test_a_method_whose_twin_chooses_is_not_built_without_one(weights: dict[str, Path]) -> None:
    given: dict[str, Any] = {"precision": precision_of("float32"), "device": torch.device("cpu")}
    with pytest.raises(ValueError, match="shufflelm_reranked cannot do without its autoregressive twin"):
        build_generator("shufflelm_reranked", {}, weights, **given, sampling=Sampling())


def test_a_batch_has_the_tokens_of_its_prompts(twin: Path, weights: dict[str, Path]) -> None:
    generator = import_target(METHODS["shufflelm"].target).from_pretrained(weights["shufflelm"])
    target = TargetModel.from_pretrained(twin)
    figures = measure_batch(generator, target, requests(40), torch.device("cpu"))
    assert figures["batch_size"] == 32
    assert figures["batch_tokens_per_second"] > 0
    assert figures["batch_speedup_low"] < figures["batch_speedup"] < figures["batch_speedup_high"]


def test_a_twin_that_reads_text_by_text_is_no_batch(twin: Path, weights: dict[str, Path]) -> None:
    generator = import_target(METHODS["shufflelm"].target).from_pretrained(weights["shufflelm"])
    target = TargetModel.from_pretrained(twin, engine="eager")
    assert measure_batch(generator, target, requests(4), torch.device("cpu"))["batch_size"] == 4
    target.reads_together = False  # as one that is spread over cards
    assert measure_batch(generator, target, requests(4), torch.device("cpu")) == {}


def test_neither_of_a_batch_always_goes_first() -> None:
    order: list[str] = []
    runs = [lambda name=name: order.append(name) or 5 for name in ("ours", "twins")]  # type: ignore[func-returns-value]
    ours, twins = in_turn(*runs, torch.device("cpu"))
    assert order == ["ours", "twins"] + ["ours", "twins", "twins", "ours"] * 3 + ["ours", "twins"]
    assert len(ours) == len(twins) == TRIALS
    assert all(tokens == 5 and seconds > 0 for tokens, seconds in ours + twins)
