"""Captured decode forwards, on a CPU, against stand-ins of torch.cuda (:mod:`tests.decoding.cuda_standins`)."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import greedy_of, save_model
from torch import Tensor

from baselines.autoregressive import AutoregressiveDrafter
from decoding import CandidateTree, SpeculativeDecoder, TargetModel
from decoding.cache import KVCache
from decoding.graphs import WIDEST, DecodeGraphs, graph_width
from decoding.stopping import Ending
from pipeline.batching import Job, answer
from tests.decoding.cuda_standins import Device, stand_in

PROMPT = [5, 9, 3, 17, 40, 9, 3]
TREE = CandidateTree(tokens=(20, 21, 23, 22, 24, 25, 26), parents=(-1, 0, 0, 1, 2, 2, 5))
TREES = [TREE, CandidateTree((30,), (-1,)), CandidateTree.chain(31, [8, 9]), CandidateTree((7, 8, 8), (-1, 0, 0))]
PATHS = [[0, 2, 5, 6], [0], [0, 1], [0, 2]]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return stand_in(monkeypatch)


def load(folder: Path, decode_width: int | None = 8, dtype: torch.dtype = torch.float32) -> TargetModel:
    return TargetModel.from_pretrained(folder, engine="eager", decode_width=decode_width, dtype=dtype)


def plain(folder: Path, **options: Any) -> TargetModel:
    """The same model without graphs."""
    target = load(folder, **options)
    target._graphs = None
    return target


def texts(target: TargetModel, cache: KVCache) -> list[Tensor]:
    """Outputs of some steps, each of which keeps a part of its tree."""
    target.prefill(cache, PROMPT)
    outputs: list[Tensor] = []
    for tree, path in zip(TREES, PATHS, strict=True):
        outputs.extend(target.read(cache, tree))
        cache.keep(path)
    return outputs


@pytest.mark.parametrize("member", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_step_gives_what_plain_eager_gives(
    tmp_path: Path, device: Device, member: str, dtype: torch.dtype
) -> None:
    save_model(tmp_path, member)
    target, other = load(tmp_path, dtype=dtype), plain(tmp_path, dtype=dtype)
    caches = [target.new_cache(64), other.new_cache(64)]
    for found, expected in zip(texts(target, caches[0]), texts(other, caches[1]), strict=True):
        assert torch.equal(found, expected)
    end = caches[0].length
    assert torch.equal(caches[0].buffer[:, :, :, :end], caches[1].buffer[:, :, :, :end])


def test_one_graph_serves_all_steps_of_a_cache_and_is_warmed_up_beside(tmp_path: Path, device: Device) -> None:
    save_model(tmp_path)
    target = load(tmp_path)
    assert target.engine == "eager"
    texts(target, target.new_cache(64))
    assert device.calls == [
        *("on device", "side waits", "on side", "decode", "decode", "decode", "main waits", "capture"),
        *["replay"] * len(TREES),
    ]
    assert target.engine == "cuda-graph"


def test_another_cache_and_a_wider_tree_are_captured_anew(tmp_path: Path, device: Device) -> None:
    save_model(tmp_path)
    target, other = load(tmp_path), plain(tmp_path)
    cache = target.new_cache(64)
    texts(target, cache)
    cache.clear()
    texts(target, cache)
    assert device.calls.count("capture") == 1
    texts(target, target.new_cache(64))
    assert device.calls.count("capture") == 2
    wide = CandidateTree.chain(20, [21, 22, 23, 24, 25, 26, 27, 28])
    expected = other.new_cache(64)
    texts(other, expected)
    torch.testing.assert_close(target.read(cache, wide).logits, other.read(expected, wide).logits)
    assert device.calls.count("capture") == 3
    target.read(cache, TREE)
    target.read(cache, wide)
    assert device.calls.count("capture") == 3


def test_what_was_read_stays_when_the_graph_runs_again(tmp_path: Path, device: Device) -> None:
    save_model(tmp_path)
    target = load(tmp_path)
    cache = target.new_cache(64)
    target.prefill(cache, PROMPT)
    first = target.read(cache, TREE)
    copies = [tensor.clone() for tensor in first]
    target.read(cache, CandidateTree.chain(40, [41, 42]))
    assert all(map(torch.equal, first, copies))


def test_no_more_graphs_are_kept_than_asked_for_and_none_of_a_cache_that_is_gone(
    tmp_path: Path, device: Device
) -> None:
    save_model(tmp_path)
    target = load(tmp_path)
    target._graphs = kept = DecodeGraphs(target.weights, decode_width=8, most=2)
    caches = [target.new_cache(64) for _ in range(3)]
    for cache in (*caches[:2], caches[0], caches[2], caches[0]):  # the second was not used for longest
        target.read(cache, TREE)
    assert (kept.num_captures, len(kept._captured)) == (3, 2)
    target.read(caches[1], TREE)
    assert kept.num_captures == 4
    for captured in kept._captured.values():
        captured.graph.again = None  # type: ignore[attr-defined]  # a real graph does not hold the cache
    del captured, cache
    caches.clear()
    gc.collect()
    survivor = target.new_cache(64)
    target.read(survivor, TREE)
    assert [one.cache() for one in kept._captured.values()] == [survivor]


def test_where_capturing_fails_the_eager_engine_runs_and_says_so(tmp_path: Path, device: Device) -> None:
    save_model(tmp_path)
    device.problem = "operation not permitted when stream is capturing\nmore"
    target, other = load(tmp_path), plain(tmp_path)
    for found, expected in zip(texts(target, target.new_cache(64)), texts(other, other.new_cache(64)), strict=True):
        assert torch.equal(found, expected)
    assert device.calls.count("capture") == 1  # not tried again
    assert target.engine == "eager"
    assert target._graphs is not None
    assert target._graphs.problem == "operation not permitted when stream is capturing"


def test_a_later_failure_ends_the_use_of_graphs(tmp_path: Path, device: Device) -> None:
    save_model(tmp_path)
    target = load(tmp_path)
    target.read(target.new_cache(64), TREE)
    assert target.engine == "cuda-graph"
    device.problem = "out of memory"
    target.read(target.new_cache(64), TREE)
    assert target.engine == "eager"
    assert target._graphs is not None
    assert not target._graphs._captured


def test_a_decoder_captures_before_its_clock_starts_and_emits_the_targets_text(tmp_path: Path, device: Device) -> None:
    model = save_model(tmp_path, spread=2.0)
    target = load(tmp_path)

    class Repeats(AutoregressiveDrafter):
        max_width = 4

        def begin(self, prompt_ids: Sequence[int]) -> None:
            device.calls.append("begin")

        def propose(self, context: Sequence[int]) -> CandidateTree:
            return CandidateTree.chain(context[-1], list(context[-4:-1]))

    generation = SpeculativeDecoder(target, Repeats()).generate(PROMPT, max_new_tokens=20)
    assert list(generation.output_ids) == greedy_of(model, PROMPT, 20)
    assert device.calls.index("capture") < device.calls.index("begin")  # which is when the clock has started
    assert device.calls.count("capture") == 1


def test_a_prepared_cache_holds_numbers_alone(tmp_path: Path, device: Device) -> None:
    save_model(tmp_path)
    target = load(tmp_path)
    cache = target.new_cache(64)
    target.prepare(cache, tree_width=1)
    assert cache.length == 0
    assert cache.buffer[:, :, :, :8].any()
    assert cache.buffer.isfinite().all()  # a masked row enters attention with weight 0, and 0 x NaN is NaN


def test_many_texts_in_separate_caches_are_not_captured(tmp_path: Path, device: Device) -> None:
    save_model(tmp_path)
    target = load(tmp_path)
    caches = [target.new_cache(64) for _ in range(3)]
    target.read_each(caches, [4, 5, 6])
    assert "capture" not in device.calls


def test_a_prompt_behind_a_shared_beginning_is_read_without_a_graph(tmp_path: Path, device: Device) -> None:
    model = save_model(tmp_path)
    target = load(tmp_path, decode_width=16)
    assert target.capacity_for(448, 1) == 512  # 440 more rows fit, but not in a graph: they would be padded to 512
    start = [4 + i % 30 for i in range(10)]
    prompts = [(*start, *(5 + (i * i + number) % 40 for i in range(430))) for number in range(4)]
    found = answer(target, [Job(prompt, Ending(8, ())) for prompt in prompts])
    assert [text.ids for text in found] == [greedy_of(model, list(prompt), 8, end=-1) for prompt in prompts]
    assert device.calls.count("capture") == 1  # of the pass that reads a token of each text


def test_at_the_end_of_a_cache_and_beyond_the_widest_graph_trees_are_read_plainly(
    tmp_path: Path, device: Device
) -> None:
    save_model(tmp_path)
    target, other = load(tmp_path), plain(tmp_path)
    for prompt, width in ((PROMPT, 10), (PROMPT * 7, 9), ([5], 10), ([6], 300)):
        tree = CandidateTree.chain(20, [3 + i % 40 for i in range(width - 1)])
        outputs = []
        for model in (target, other):
            cache = model.new_cache(len(prompt) + (width if len(prompt) != 1 else 2 * width))
            model.prefill(cache, prompt)
            outputs.append(model.read(cache, tree))
        torch.testing.assert_close(*outputs)
    assert device.calls.count("capture") == 1  # of the tree of 10 nodes for which there was room
    assert target.capacity_for(100, WIDEST + 1) == 512


def test_widths_are_few_and_what_does_not_fit_is_refused(tmp_path: Path, device: Device) -> None:
    assert [graph_width(width, 16) for width in (1, 2, 16, 17, 33, 64)] == [16, 16, 16, 32, 64, 64]
    assert [graph_width(width, None) for width in (1, 2, 3, 5, 8, 9, 256, 257)] == [1, 2, 4, 8, 8, 16, 256, 257]
    save_model(tmp_path)
    target = load(tmp_path)
    cache = target.new_cache(16)
    with pytest.raises(ValueError, match="17 rows do not fit a cache of capacity 16"):
        target.read(cache, CandidateTree.chain(1, [2] * 16))
    assert target.capacity_for(190, 70) == 512  # 190 + 128


def test_the_last_positions_of_the_context_are_read_as_without_graphs(tmp_path: Path, device: Device) -> None:
    save_model(tmp_path)
    prompt = [3 + i % 40 for i in range(510)]
    outputs = []
    for target in (load(tmp_path), plain(tmp_path)):
        cache = target.new_cache(768)
        target.prefill(cache, prompt)
        outputs.append(target.read(cache, CandidateTree.chain(4, [5, 6, 7])).logits)
    assert torch.equal(*outputs)
