"""What runs on a GPU must say what the CPU says: engine, graphs, methods, generators, trainings, a whole cell.

The rest of the suite checks the CUDA paths against stand-ins. This file runs them on a card, and is skipped where there
is none. Its own logic is checked on a CPU by naming that as the device::

    SHUFFLEBENCH_TEST_DEVICE=cpu python -m pytest tests/test_on_device.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.autoregressive import AutoregressiveDrafter
from decoding import CandidateTree, Sampling, SpeculativeDecoder, StopStrings, TargetModel
from decoding.stopping import Ending
from pipeline.batching import Job, answer
from pipeline.cell import CellSpec, run_cell
from pipeline.clock import MemoryMeter, measure_limits
from pipeline.methods import build_decoder, build_generator, build_peer
from pipeline.power import figures, meter_of
from pipeline.precision import precision_of
from pipeline.record import Journal
from pipeline.registry import METHODS
from shuffle.diffusion.config import DiffusionConfig
from shuffle.diffusion.model import DiffusionTransformer
from shuffle.passes import GoesAbreast, reads_one_by_one
from shuffle.shufflelm.config import ShuffleConfig
from shuffle.shufflelm.model import ShuffleLM
from shuffle.twostream.config import TwoStreamConfig
from shuffle.twostream.model import LlamaTwoStreamForCausalLM
from tests.decoding.tiny import greedy_of, save_model
from tests.pipeline.standins import requests, save_parts, save_target

DEVICE = torch.device(os.environ.get("SHUFFLEBENCH_TEST_DEVICE", "cuda"))
ON_CARD = DEVICE.type == "cuda"
pytestmark = pytest.mark.skipif(ON_CARD and not torch.cuda.is_available(), reason="there is no graphics card here")

PROMPTS = [[5, 9, 3, 17, 40, 9, 3], list(range(3, 40)) * 3, [7]]
TREES = [
    CandidateTree(tokens=(20, 21, 23, 22, 24, 25, 26), parents=(-1, 0, 0, 1, 2, 2, 5)),
    CandidateTree((30,), (-1,)),
    CandidateTree.chain(31, [8, 9] * 12),
]
DRAFTERS: Mapping[str, Mapping[str, Any]] = {
    "autoregressive": {},
    "prompt_lookup": {},
    "lookahead": {},
    "recycling": {"num_nodes": 40},
    "speculative": {},
    "ouroboros": {},
    "ouroboros_warm_start": {},
    "medusa": {},
    "union": {},
    "fasterdecodemixer": {},
}
LIMIT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_parts(tmp_path_factory.mktemp("parts"))


def on_device(folder: Path, dtype: torch.dtype = torch.float32) -> TargetModel:
    return TargetModel.from_pretrained(folder, dtype=dtype, device=DEVICE)


def text_of(method: Any, prompt: list[int], seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    found: tuple[int, ...] = method.generate(
        prompt, max_new_tokens=LIMIT, stop=StopStrings(str, []), generator=generator
    ).output_ids
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("member", ["llama", "llama-untied-scaled", "qwen2", "qwen3"])
def test_every_step_says_what_the_plain_engine_says_on_a_cpu(
    member: str, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    save_model(tmp_path, member)
    target, plain = on_device(tmp_path, dtype), TargetModel.from_pretrained(tmp_path, engine="eager")
    for prompt in PROMPTS:
        caches = [each.new_cache(256) for each in (target, plain)]
        pairs = [[each.prefill(cache, prompt) for each, cache in zip((target, plain), caches, strict=True)]]
        for tree in TREES:
            pairs.append([each.read(cache, tree) for each, cache in zip((target, plain), caches, strict=True)])
            for cache in caches:
                cache.keep([0, tree.width - 1] if tree.width == 7 else [0])
        for found, expected in pairs:
            scale = expected.logits.abs().max()
            assert (found.logits.cpu().float() - expected.logits).abs().max() / scale < tolerance
        if ON_CARD:
            assert pairs[0][0].logits.dtype == torch.float32  # unrounded, in bfloat16 too
    assert target.engine == ("cuda-graph" if ON_CARD else target.engine)


@pytest.mark.parametrize("method", DRAFTERS)
def test_in_float32_each_lossless_method_writes_what_a_cpu_writes_a_token_at_a_time(
    method: str, folder: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    model = save_model(tmp_path)
    decoder = build_decoder(method, DRAFTERS[method], on_device(folder), parts, Sampling())
    decoder.reserve(160)
    text_of(decoder, PROMPTS[0])
    captured = captures(decoder)
    for prompt in PROMPTS:
        assert list(text_of(decoder, prompt)) == greedy_of(model, prompt, LIMIT)
    assert captures(decoder) == captured  # the first text's warm-up captured all
    if ON_CARD:
        assert decoder.target.engine == "cuda-graph"


@pytest.mark.parametrize("method", DRAFTERS)
def test_in_bfloat16_each_lossless_method_writes_what_the_baseline_writes(
    method: str, folder: Path, parts: dict[str, Path]
) -> None:
    target = on_device(folder, torch.bfloat16)
    baseline = SpeculativeDecoder(target, AutoregressiveDrafter(), Sampling())
    decoder = build_decoder(method, DRAFTERS[method], target, parts, Sampling())
    same = [text_of(decoder, prompt) == text_of(baseline, prompt) for prompt in PROMPTS]
    assert sum(same) >= len(same) - 1  # a tree may take the other side of a near-tie


def captures(decoder: SpeculativeDecoder) -> int:
    graphs = decoder.target._graphs
    return 0 if graphs is None else graphs.num_captures


@pytest.mark.parametrize("method", ["medusa_typical", "fasterdecodemixer_raw"])
def test_lossy_methods_end(method: str, folder: Path, parts: dict[str, Path]) -> None:
    decoder = build_decoder(method, {}, on_device(folder), parts, Sampling())
    for prompt in PROMPTS:
        assert 0 < len(text_of(decoder, prompt)) <= LIMIT


@pytest.mark.parametrize("method", ["hf_greedy", "hf_prompt_lookup", "hf_assisted"])
def test_peers_write_what_the_cpu_writes(method: str, folder: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    model = save_model(tmp_path)
    needed = {name: parts[name] for name in METHODS[method].parts}
    peer = build_peer(method, {}, folder, needed, precision=precision_of("float32"), device=DEVICE, sampling=Sampling())
    for prompt in PROMPTS:
        assert list(text_of(peer, prompt)) == greedy_of(model, prompt, LIMIT)


@pytest.mark.parametrize("method", ["autoregressive", "speculative", "recycling"])
def test_draws_are_those_of_the_cpu(method: str, folder: Path, parts: dict[str, Path]) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9)
    here = build_decoder(method, {}, on_device(folder), parts, sampling)
    there = build_decoder(method, {}, TargetModel.from_pretrained(folder, engine="eager"), parts, sampling)
    for seed, prompt in enumerate(PROMPTS):
        assert text_of(here, prompt, seed) == text_of(there, prompt, seed)


SHAPE = {"vocab_size": 48, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "eos_token_id": 2}
GENERATORS = {
    "shufflelm": lambda: ShuffleLM(ShuffleConfig(**SHAPE, max_parallel_tokens=6, rotary_dim=8)),
    "shufflelm_copies": lambda: ShuffleLM(
        ShuffleConfig(**SHAPE, max_parallel_tokens=6, rotary_dim=8, source_copy=True)
    ),
    "diffusion": lambda: DiffusionTransformer(DiffusionConfig(**SHAPE, block_length=6)),
    "twostream": lambda: LlamaTwoStreamForCausalLM(TwoStreamConfig(**SHAPE)),
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_generators_write_what_they_write_on_a_cpu_alone_and_in_a_batch(
    name: str, temperature: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = GENERATORS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path)
    method, sampling = name.partition("_")[0], Sampling(temperature=temperature)
    parts = {method: tmp_path}
    found, expected = (
        build_generator(method, {}, parts, precision=precision_of("float32"), device=device, sampling=sampling)
        for device in (DEVICE, torch.device("cpu"))
    )
    assert isinstance(found, GoesAbreast)
    assert isinstance(expected, GoesAbreast)
    for seed, prompt in enumerate(PROMPTS):
        assert text_of(found, prompt, seed) == text_of(expected, prompt, seed)
    # Abreast: the compiled engine goes through a batch text by text, and so draws in another order.
    batches = [
        each.generate_abreast(PROMPTS, max_new_tokens=LIMIT, generator=torch.Generator().manual_seed(0))
        for each in (found, expected)
    ]
    assert batches[0] == batches[1]
    if not reads_one_by_one(found.target):
        draws = torch.Generator().manual_seed(0)
        assert found.generate_batch(PROMPTS, max_new_tokens=LIMIT, generator=draws) == batches[1]


def test_many_texts_at_once_are_those_written_alone(folder: Path) -> None:
    target = on_device(folder)
    alone = SpeculativeDecoder(target, AutoregressiveDrafter(), Sampling())
    jobs = [Job(tuple(prompt), Ending(LIMIT, [2], StopStrings(str, []))) for prompt in PROMPTS]
    found = answer(target, jobs, with_states=True)
    assert [tuple(each.ids) for each in found] == [text_of(alone, prompt) for prompt in PROMPTS]
    assert all(each.states is not None and len(each.states) == len(each.ids) for each in found)


def test_a_cell_is_whole_and_says_what_it_ran_on(folder: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"model_dir": folder, "dtype": "float32", "method": "prompt_lookup", "options": {}}
    values |= {"task": "toy", "requests": tmp_path / "toy.jsonl", "seed": 0, "sampling": {"temperature": 0.0}}
    values |= {"repeats": 3, "warmup_prompts": 1, "device": DEVICE.type, "num_threads": 1, "parts": {}}
    spec = CellSpec(**values, output=tmp_path / "cell")
    asked = requests()
    spec.requests.write_text("".join(json.dumps(row) + "\n" for row in asked))
    with Journal(tmp_path / "journal.jsonl", "toy") as journal:
        records, summary = run_cell(spec, asked, journal, os.getppid())
    assert len(records) == len(asked)
    assert summary["lossless_match"] == 1.0
    assert summary["speedup_low"] <= summary["speedup"] <= summary["speedup_high"]
    if ON_CARD:
        assert summary["engine"] == "cuda-graph"
        assert summary["peak_memory_bytes"] > 0
        assert summary["hardware"] == torch.cuda.get_device_name(DEVICE)
    print(json.dumps(summary, indent=1, default=str))


def test_the_cards_limits_and_peaks_are_read() -> None:
    meter = MemoryMeter(DEVICE)
    held = torch.zeros(2**26, dtype=torch.uint8, device=DEVICE) + 1
    before = meter.resident()
    meter.reset_peak()
    more = torch.zeros(2**27, dtype=torch.uint8, device=DEVICE) + 1
    del more
    assert held.sum() > 0
    assert meter.peak() - before >= 2**27
    if ON_CARD:
        limits = measure_limits(DEVICE, torch.bfloat16)
        assert 1e11 < limits.bandwidth_bytes_per_s < 1e13
        assert 1e12 < limits.flops_per_s < 5e15
        print(limits)


def test_a_cards_energy_is_read_where_the_library_is() -> None:
    pytest.importorskip("pynvml")
    matrix = torch.ones(4096, 4096, device=DEVICE)
    with meter_of([DEVICE]).reading() as reading:
        for _ in range(200):
            matrix = matrix @ matrix * 1e-4
        assert matrix.isfinite().all()
    if ON_CARD:
        assert reading["energy_j"] > 0
        assert reading["sm_clock_mhz"] > 100
        assert figures([reading], 10)["mean_power_w"] > 10
        print(reading)


@pytest.mark.parametrize("generator", ["autoregressive", "shufflelm_glancing", "diffusion", "twostream"])
def test_a_model_is_trained(generator: str, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    save_target(pairs)
    rows = [
        {
            "split": "train" if i % 8 else "validation",
            "source": f"w{i % 40 + 3} w{i % 7 + 3}",
            "target": f"w{i % 9 + 3}",
        }
        for i in range(80)
    ]
    (pairs / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (pairs / "pairs.json").write_text("{}")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 96}
    command = [sys.executable, "-m", "pipeline.train", "--generator", generator, "--pairs", str(pairs), "--backbone"]
    command += [json.dumps(shape), "--steps", "20", "--batch-size", "8", "--device", DEVICE.type]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "trained")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    curve = (tmp_path / "trained/loss.csv").read_text().splitlines()
    assert curve[0] == "step,epoch,loss,eval_loss,learning_rate"
    assert len(curve) > 20
