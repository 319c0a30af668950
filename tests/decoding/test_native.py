"""The compiled engine: the same numbers as transformers, and rows that do not depend on the rows beside them."""

from __future__ import annotations

import ctypes
import platform
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from decoding import CandidateTree, TargetModel
from decoding.native import build, sum_of
from tests.decoding.tiny import FAMILY, SHAPE, logits_of, save_model

GENERATOR = random.Random(7)
PROMPT = [GENERATOR.randrange(3, 48) for _ in range(37)]
KINDS = ["float32", "bfloat16", "int8"]

try:
    build.load_library()
except build.BuildError as error:
    pytest.skip(f"no native engine here: {error}", allow_module_level=True)


def load(folder: Path, kind: str = "float32") -> TargetModel:
    weights = "int8" if kind == "int8" else None
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    return TargetModel.from_pretrained(folder, dtype=dtype, engine="native", weights=weights)


def random_tree(width: int, seed: int) -> CandidateTree:
    rng = random.Random(seed)
    parents = (-1, *(rng.randrange(node) for node in range(1, width)))
    return CandidateTree(tuple(rng.randrange(3, 48) for _ in range(width)), parents)


def branch(tree: CandidateTree, node: int) -> list[int]:
    return [] if node < 0 else [*branch(tree, tree.parents[node]), node]


@pytest.mark.parametrize("member", FAMILY)
def test_gives_what_transformers_gives(tmp_path: Path, member: str) -> None:
    model, target = save_model(tmp_path, member), load(tmp_path)
    cache = target.new_cache(256)
    first = target.prefill(cache, PROMPT)
    torch.testing.assert_close(first.logits[0], logits_of(model, PROMPT), atol=2e-4, rtol=1e-4)
    tree = random_tree(11, seed=1)
    logits = target.read(cache, tree).logits
    for node in range(tree.width):
        ids = [*PROMPT, *(tree.tokens[i] for i in branch(tree, node))]
        torch.testing.assert_close(logits[node], logits_of(model, ids), atol=2e-4, rtol=1e-4)


def test_what_lies_outside_the_tables_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = load(tmp_path)
    last = target.max_context - 1
    for ids, line in ([5, target.vocab_size], f"know. {target.vocab_size} tokens"), ([5, -1], "token ids from -1"):
        with pytest.raises(ValueError, match=line):
            target.prefill(target.new_cache(256), ids)
    cache = target.new_cache(target.max_context + 64)
    with pytest.raises(ValueError, match=f"position {last + 1} in a context of {last + 1} tokens"):
        target.prefill(cache, [5] * (last + 2))


@pytest.mark.parametrize(("kind", "close"), [("float32", 1e-3), ("bfloat16", 0.15)])
def test_gates_far_below_zero_are_closed(tmp_path: Path, kind: str, close: float) -> None:
    """silu(g) = g / (1 + exp(-g)) is 0 where exp(-g) is beyond float32, and not g."""
    model = save_model(tmp_path, "qwen2")
    gates: list[Tensor] = []
    for layer in model.model.layers:
        layer.mlp.gate_proj.weight.data.mul_(120)
        layer.mlp.down_proj.weight.data.mul_(1 / 120)
        layer.mlp.gate_proj.register_forward_hook(lambda module, inputs, output: gates.append(output))
    model.save_pretrained(tmp_path)
    expected = logits_of(model, PROMPT)
    assert min(float(gate.min()) for gate in gates) < -350
    target = load(tmp_path, kind)
    logits = target.prefill(target.new_cache(256), PROMPT).logits[0]
    torch.testing.assert_close(logits, expected, atol=close, rtol=close)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("member", ["llama", "qwen3"])
@pytest.mark.parametrize("length", [1, 15, 16, 37])
def test_a_node_of_any_tree_has_the_bits_of_the_same_token_read_alone(
    tmp_path: Path, member: str, kind: str, length: int
) -> None:
    save_model(tmp_path, member)
    target = load(tmp_path, kind)
    for width in (2, 7, 16, 17, 40):
        tree = random_tree(width, seed=width)
        cache = target.new_cache(256)
        target.prefill(cache, PROMPT[:length])
        output = target.read(cache, tree)
        node = max(range(width), key=lambda node: tree.depths[node])
        for last in branch(tree, node):
            alone = target.read(cache, CandidateTree((tree.tokens[last],), (-1,)))
            assert torch.equal(alone.logits[0], output.logits[last])
            assert torch.equal(alone.hidden[0], output.hidden[last])
            cache.keep([0])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_of_a_tree_is_what_reading_it_token_by_token_leaves(tmp_path: Path, kind: str) -> None:
    save_model(tmp_path)
    target = load(tmp_path, kind)
    tree = random_tree(16, seed=3)
    path = branch(tree, max(range(16), key=lambda node: tree.depths[node]))
    caches = [target.new_cache(256), target.new_cache(256)]
    for cache in caches:
        target.prefill(cache, PROMPT)
    target.read(caches[0], tree)
    caches[0].keep(path)
    for node in path:
        target.read(caches[1], CandidateTree((tree.tokens[node],), (-1,)))
        caches[1].keep([0])
    end = caches[0].length
    assert end == len(PROMPT) + len(path) == caches[1].length
    assert torch.equal(caches[0].buffer[:, :, :, :end], caches[1].buffer[:, :, :, :end])


@pytest.mark.parametrize("kind", KINDS)
def test_prefill_has_the_bits_of_reading_one_token_after_the_other(tmp_path: Path, kind: str) -> None:
    save_model(tmp_path)
    target = load(tmp_path, kind)
    at_once, one_by_one = target.new_cache(256), target.new_cache(256)
    whole = target.prefill(at_once, PROMPT)
    last = target.prefill(one_by_one, PROMPT[:1])
    for token in PROMPT[1:]:
        last = target.read(one_by_one, CandidateTree((token,), (-1,)))
        one_by_one.keep([0])
    assert torch.equal(whole.logits, last.logits)
    assert torch.equal(at_once.buffer[:, :, :, : len(PROMPT)], one_by_one.buffer[:, :, :, : len(PROMPT)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Each thread having columns of its own, and waiting for what others write, every time."""
    monkeypatch.setitem(SHAPE, "hidden_size", 256)
    monkeypatch.setitem(SHAPE, "intermediate_size", 320)
    save_model(tmp_path)
    target = load(tmp_path, kind)
    threads = torch.get_num_threads()

    def logits(num_threads: int) -> Tensor:
        torch.set_num_threads(num_threads)
        cache = target.new_cache(256)
        target.prefill(cache, PROMPT)
        return target.read(cache, random_tree(16, seed=5)).logits

    try:
        alone = logits(1)
        assert all(torch.equal(alone, logits(n)) for n in (2, 3, 5) * 12)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(params=["x86-64", "x86-64-v3", "x86-64-v4"])
def level(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An engine for vectors of 4 or 8 floats, or of 16 without products in int8, in place of this machine's own."""
    if platform.machine() != "x86_64":
        pytest.skip("instruction sets of x86")
    chosen = str(request.param)
    needed = {"x86-64": set(), "x86-64-v3": {"avx2", "fma"}, "x86-64-v4": {"avx512bw", "avx512vl"}}[chosen]
    if not needed <= set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip(f"this processor has not {' and '.join(sorted(needed))}")
    monkeypatch.setattr(build, "FLAGS", tuple(f"-march={chosen}" if "-march" in flag else flag for flag in build.FLAGS))
    monkeypatch.setenv("HOME", str(tmp_path))
    build.attempt.cache_clear()
    yield chosen
    build.attempt.cache_clear()
    assert list((tmp_path / ".cache" / "shufflebench").glob("*.so"))


@pytest.mark.usefixtures("level")
def test_narrower_vectors_give_the_same_model_and_rows_that_stand_alone(tmp_path: Path) -> None:
    for kind in ("llama", "qwen3"):
        test_gives_what_transformers_gives(tmp_path / kind, kind)
    for kind in KINDS:
        test_a_node_of_any_tree_has_the_bits_of_the_same_token_read_alone(tmp_path / kind, "llama", kind, 37)


def test_bfloat16_is_as_close_to_float32_as_torchs_own(tmp_path: Path) -> None:
    tree, errors = random_tree(12, seed=2), {"native": 0.0, "eager": 0.0}
    for seed in range(4):  # of one model alone either can be the luckier one, by a sixth
        save_model(tmp_path, seed=seed)
        results = {}
        for name, dtype, engine in [
            ("true", torch.float32, "eager"),
            ("native", torch.bfloat16, "native"),
            ("eager", torch.bfloat16, "eager"),
        ]:
            target = TargetModel.from_pretrained(tmp_path, dtype=dtype, engine=engine)
            cache = target.new_cache(256)
            target.prefill(cache, PROMPT)
            results[name] = target.read(cache, tree).logits.float()
        for name in errors:
            errors[name] += float((results[name] - results["true"]).square().mean())
    # With room: how well torch's own kernels round depends on the processor and on torch's version.
    assert errors["native"] <= 2 * errors["eager"]


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path)
    with pytest.raises(ValueError, match="engine must be auto, native or eager, not 'fast'"):
        TargetModel.from_pretrained(tmp_path, engine="fast")


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_without_instructions_for_bfloat16_the_numbers_are_the_same_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    save_model(tmp_path / "model")
    tree = random_tree(12, seed=4)

    def logits() -> Tensor:
        target = load(tmp_path / "model", kind)
        cache = target.new_cache(256)
        target.prefill(cache, PROMPT)
        return target.read(cache, tree).logits

    ours = logits()
    plain = tuple(flag for flag in build.FLAGS if flag != "-march=native")
    monkeypatch.setattr(build, "FLAGS", plain)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    build.attempt.cache_clear()
    try:
        generic = logits()
        assert isinstance(build.load_library(), ctypes.CDLL)
    finally:
        monkeypatch.undo()
        build.attempt.cache_clear()
    torch.testing.assert_close(generic, ours, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_of_each_of_several_texts_has_the_bits_of_each_text_alone(tmp_path: Path, kind: str) -> None:
    save_model(tmp_path)
    target = load(tmp_path, kind)
    caches = [target.new_cache(256) for _ in range(21)]
    alone = []
    for number, cache in enumerate(caches):
        target.prefill(cache, PROMPT[: 1 + number])
        alone.append(target.read(cache, CandidateTree((number + 3,), (-1,))).logits[0])
    logits = target.read_each(caches, range(3, 24)).logits
    assert torch.equal(logits, torch.stack(alone))
    assert [cache.length for cache in caches] == list(range(2, 23))
    with pytest.raises(ValueError, match=r"different capacities: \[256, 512\]"):
        target.read_each([caches[0], target.new_cache(512)], [3, 4])


@pytest.mark.parametrize("count", [1, 127, 128, 1000, 100_003])
def test_sums_every_number_once(count: int) -> None:
    numbers = torch.randint(-8, 9, (count,)).float()  # exact in float32, in any order
    assert sum_of(numbers) == float(numbers.sum())


def test_sums_no_other_type() -> None:
    with pytest.raises(ValueError, match="float32"):
        sum_of(torch.ones(8, dtype=torch.bfloat16))
