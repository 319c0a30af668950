"""The forward pass and the cache against transformers' own, for each member of the family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MistralConfig

from decoding import CandidateTree, TargetModel
from decoding.llama import check_supported
from decoding.native import why_not
from tests.decoding.tiny import FAMILY, SHAPE, logits_of, save_model

PROMPT = [5, 9, 3, 17, 40, 9, 3]
# 20 -> {21 -> 22, 23 -> {24, 25 -> 26}}
TREE = CandidateTree(tokens=(20, 21, 23, 22, 24, 25, 26), parents=(-1, 0, 0, 1, 2, 2, 5))


def path_to(tree: CandidateTree, node: int) -> list[int]:
    """Tokens from the root to ``node``, found by walking up."""
    tokens: list[int] = []
    while node >= 0:
        tokens.insert(0, tree.tokens[node])
        node = tree.parents[node]
    return tokens


@pytest.mark.parametrize("member", FAMILY)
@pytest.mark.parametrize("decode_width", [None, 16])
def test_every_node_of_a_tree_reads_as_its_own_path_would(
    tmp_path: Path, member: str, decode_width: int | None
) -> None:
    model = save_model(tmp_path, member)
    target = TargetModel.from_pretrained(tmp_path, decode_width=decode_width)
    cache = target.new_cache(64)
    torch.testing.assert_close(target.prefill(cache, PROMPT).logits[0], logits_of(model, PROMPT), atol=2e-4, rtol=1e-3)
    logits = target.read(cache, TREE).logits
    assert logits.shape == (TREE.width, SHAPE["vocab_size"])
    for node in range(TREE.width):
        expected = logits_of(model, PROMPT + path_to(TREE, node))
        torch.testing.assert_close(logits[node], expected, atol=2e-4, rtol=1e-3)


def test_after_a_scattered_path_is_kept_the_cache_is_as_if_only_it_had_been_read(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path)
    cache = target.new_cache(64)
    target.prefill(cache, PROMPT)
    target.read(cache, TREE)
    cache.keep([0, 2, 5, 6])
    assert cache.length == len(PROMPT) + 4
    logits = target.read(cache, CandidateTree.chain(30, [31])).logits
    for count in (1, 2):
        expected = logits_of(model, [*PROMPT, 20, 23, 25, 26, *[30, 31][:count]])
        torch.testing.assert_close(logits[count - 1], expected, atol=2e-4, rtol=1e-3)


def test_a_rejected_candidate_leaves_no_trace(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path)
    outputs = []
    for candidates in ([7, 8, 9, 10, 11], [12, 13, 14, 15, 16]):
        cache = target.new_cache(64)
        target.prefill(cache, PROMPT)
        target.read(cache, CandidateTree.chain(20, candidates))
        cache.keep([0])
        outputs.append(target.read(cache, CandidateTree.chain(21, [22])).logits)
    assert torch.equal(*outputs)


def test_in_bfloat16_a_row_does_not_depend_on_how_many_are_read_with_it(tmp_path: Path) -> None:
    """Of the compiled engine alone: torch's products may round otherwise at another width, by the processor."""
    model = save_model(tmp_path)
    if reason := why_not(model.config, torch.bfloat16, torch.device("cpu")):
        pytest.skip(reason)
    target = TargetModel.from_pretrained(tmp_path, dtype=torch.bfloat16, decode_width=16, engine="native")
    chain = [20, 21, 22, 23, 24, 25]

    def rows(widths: list[int]) -> torch.Tensor:
        cache = target.new_cache(64)
        target.prefill(cache, PROMPT)
        parts, start = [], 0
        for width in widths:
            parts.append(target.read(cache, CandidateTree.chain(chain[start], chain[start + 1 : start + width])).logits)
            cache.keep(range(width))
            start += width
        return torch.cat(parts)

    assert torch.equal(rows([1, 1, 1, 1, 1, 1]), rows([6]))
    assert torch.equal(rows([1, 1, 1, 1, 1, 1]), rows([2, 4]))


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    save_model(tmp_path)
    both = []
    for dtype in (torch.float32, torch.bfloat16):
        target = TargetModel.from_pretrained(tmp_path, dtype=dtype)
        both.append(target.prefill(target.new_cache(64), PROMPT).logits.float())
    assert torch.nn.functional.cosine_similarity(*both).item() > 0.99


def test_weight_bytes_are_what_a_forward_pass_reads(tmp_path: Path) -> None:
    for member, tied in (("llama", True), ("llama-untied-scaled", False)):
        model = save_model(tmp_path / member, member)
        embedding = model.get_input_embeddings().weight
        expected = sum(p.numel() for p in model.parameters()) - (0 if tied else embedding.numel())
        assert TargetModel.from_pretrained(tmp_path / member).weights.weight_bytes == 4 * expected


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path)
    cache = target.new_cache(8)
    target.prefill(cache, PROMPT)
    with pytest.raises(ValueError, match="9 rows do not fit a cache of capacity 8"):
        target.read(cache, CandidateTree.chain(1, [2]))
    with pytest.raises(ValueError, match="into a cache of length 7"):
        target.prefill(cache, PROMPT)


def test_what_the_forward_pass_lacks_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'gpt2' is not of the Llama family; known: llama, mistral, qwen2, qwen3"):
        check_supported(GPT2Config())
    with pytest.raises(ValueError, match="sliding_window=4096"):
        check_supported(MistralConfig(sliding_window=4096))
    with pytest.raises(ValueError, match="activation 'gelu'"):
        check_supported(LlamaConfig(hidden_act="gelu"))
    with pytest.raises(ValueError, match="quantised"):
        check_supported(LlamaConfig(quantization_config={"quant_method": "fp8"}))
    with pytest.raises(ValueError, match="rope_type 'dynamic'"):
        check_supported(LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}))


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="no safetensors"):
        TargetModel.from_pretrained(tmp_path)
