"""Captured decode forwards, on a CPU, against stand-ins of torch.cuda that freeze what a CUDA graph freezes.

A stand-in graph records nothing but the call: a replay runs it again, on the tensors and with the cache length of the
capture, into the outputs of the capture. Whatever entered by another way than the static tensor is stale then, as it
would be on a GPU. None of this says that the kernels can be captured: that needs hardware.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import greedy_of, save_model
from torch import Tensor

from baselines.autoregressive import AutoregressiveDrafter
from decoding import CandidateTree, SpeculativeDecoder, TargetModel, graphs
from decoding.cache import KVCache
from decoding.graphs import DecodeGraphs, graph_width

PROMPT = [5, 9, 3, 17, 40, 9, 3]
TREE = CandidateTree(tokens=(20, 21, 23, 22, 24, 25, 26), parents=(-1, 0, 0, 1, 2, 2, 5))
TREES = [TREE, CandidateTree((30,), (-1,)), CandidateTree.chain(31, [8, 9]), CandidateTree((7, 8, 8), (-1, 0, 0))]
PATHS = [[0, 2, 5, 6], [0], [0, 1], [0, 2]]


class Device:
    """What the stand-ins saw, in order, and the capture that is under way."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.capturing: Graph | None = None
        self.problem: str | None = None

    def stream(self, name: str) -> Any:
        device = self

        class Stream:
            def wait_stream(self, other: Any) -> None:
                device.calls.append(f"{name} waits")

            def __enter__(self) -> None:
                device.calls.append(f"on {name}")

            def __exit__(self, *error: object) -> None:
                pass

        return Stream()


class Graph:
    """Runs the captured call again, as it was when it was captured."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.again: Callable[[], None] | None = None

    def replay(self) -> None:
        self.device.calls.append("replay")
        assert self.again is not None
        self.again()


def refuse(*arguments: object) -> None:
    raise RuntimeError("a capture cannot wait for a number of the device")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    seen, decode = Device(), graphs.decode
    main = seen.stream("main")

    @contextmanager
    def capturing(graph: Graph) -> Iterator[None]:
        seen.calls.append("capture")
        if seen.problem:
            raise RuntimeError(seen.problem)
        seen.capturing = graph
        yield
        seen.capturing = None

    def decode_or_record(weights: Any, cache: KVCache, numbers: Tensor) -> tuple[Tensor, Tensor]:
        if seen.capturing is None:
            seen.calls.append("decode")
            return decode(weights, cache, numbers)
        frozen, before = cache.length, cache.buffer.clone()
        with monkeypatch.context() as patch:
            for name in ("__int__", "__index__", "__bool__", "__float__", "item", "tolist"):
                patch.setattr(Tensor, name, refuse)
            outputs = decode(weights, cache, numbers)
        cache.buffer.copy_(before)  # a capture runs nothing
        for output in outputs:
            output.fill_(torch.nan)

        def again() -> None:
            length, cache.length = cache.length, frozen
            for output, found in zip(outputs, decode(weights, cache, numbers), strict=True):
                output.copy_(found)
            cache.length = length

        seen.capturing.again = again
        return outputs

    monkeypatch.setattr(graphs, "DEVICE_TYPES", ("cpu",))
    monkeypatch.setattr(graphs, "decode", decode_or_record)
    monkeypatch.setattr(torch.cuda, "device", lambda device: seen.stream("device"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: seen.stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(seen))
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    return seen


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
    target._graphs = kept = DecodeGraphs(target.weights, most=2)
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
    target.prepare(cache)
    assert cache.length == 0
    assert cache.buffer[:, :, :, :8].any()
    assert cache.buffer.isfinite().all()  # a masked row enters attention with weight 0, and 0 x NaN is NaN


def test_many_texts_at_once_are_not_captured(tmp_path: Path, device: Device) -> None:
    save_model(tmp_path)
    target = load(tmp_path)
    caches = [target.new_cache(64) for _ in range(3)]
    target.read_each(caches, [4, 5, 6])
    assert "capture" not in device.calls


def test_widths_are_few_and_what_does_not_fit_is_refused(tmp_path: Path, device: Device) -> None:
    assert [graph_width(width, 16) for width in (1, 2, 16, 17, 33, 64)] == [16, 16, 16, 32, 64, 64]
    assert [graph_width(width, None) for width in (1, 2, 3, 5, 8, 9)] == [1, 2, 4, 8, 8, 16]
    save_model(tmp_path)
    target = load(tmp_path)
    cache = target.new_cache(16)
    with pytest.raises(ValueError, match="32 rows do not fit a cache of capacity 16"):
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
