"""A model spread over several cards, without one: the second card is torch's meta device, which computes shapes alone.

An operation on tensors of two devices is refused there as it is on a GPU. Numbers are checked on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHAPE, save_model
from torch import Tensor
from transformers import LlamaConfig

from decoding import CandidateTree, TargetModel
from decoding.cache import KVCache
from decoding.placement import spread

CARDS = [torch.device("cuda", index) for index in range(4)]
CPU, META = torch.device("cpu"), torch.device("meta")
TREE = CandidateTree(tokens=(20, 21, 23), parents=(-1, 0, 0))


def config(num_layers: int, vocab_size: int = 100, tied: bool = True) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=tied,
    )


def counts(places: Sequence[torch.device]) -> list[int]:
    assert list(places) == sorted(places, key=lambda place: place.index)  # in order: each card is crossed once
    return [places.count(card) for card in dict.fromkeys(places)]


def test_layers_are_shared_out_evenly_and_the_first_card_gets_fewer_for_the_embeddings() -> None:
    assert counts(spread(config(8), CARDS[:2])) == [4, 4]
    assert counts(spread(config(9), CARDS[:1])) == [9]
    layer = 64 * (2 * 8 * 16 + 3 * 128)
    assert counts(spread(config(10, vocab_size=4 * layer // 64), CARDS[:2])) == [3, 7]
    assert counts(spread(config(10, vocab_size=2 * layer // 64, tied=False), CARDS[:2])) == [3, 7]


@pytest.mark.parametrize("vocab_size", [100, 10**7])
@pytest.mark.parametrize("num_layers", range(4, 12))
def test_every_card_has_a_layer_and_every_layer_a_card(num_layers: int, vocab_size: int) -> None:
    places = spread(config(num_layers, vocab_size), CARDS)
    assert len(places) == num_layers
    assert min(counts(places)) >= 1
    assert len(counts(places)) == 4


def test_what_cannot_be_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="3 layers cannot be spread over 4 devices"):
        spread(config(3), CARDS)
    with pytest.raises(ValueError, match="different devices"):
        spread(config(3), [CARDS[0], CARDS[0]])


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let what is on the meta device be brought back, as zeros; return where tensors of a model's width went."""
    to, crossings = Tensor.to, []

    def bring(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        place = arguments[0] if arguments else None
        if isinstance(place, torch.device) and place != tensor.device and tensor.shape[-1:] == (SHAPE["hidden_size"],):
            crossings.append(place.type)
        if tensor.is_meta and place == CPU:
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        return to(tensor, *arguments, **options)

    monkeypatch.setattr(Tensor, "to", bring)
    return crossings


@pytest.mark.parametrize("member", ["llama", "llama-untied-scaled", "llama-attention-bias", "qwen2", "qwen3"])
def test_a_forward_pass_over_cards_mixes_none_and_ends_on_the_first(
    tmp_path: Path, moved: list[str], member: str
) -> None:
    save_model(tmp_path, member)
    target = TargetModel.from_pretrained(tmp_path, engine="eager", devices=[CPU, META])
    assert target.places == [CPU, META]
    assert target.device == target.weights.norm.device == target.weights.cosine.device == CPU
    assert target._graphs is None
    assert target.engine == "eager"
    cache = target.new_cache(64)
    assert [keys.device for keys, _ in cache.layers] == [CPU, META]
    moved.clear()
    outputs = [target.prefill(cache, [5, 9, 3, 17]), target.read(cache, TREE)]
    assert moved == ["meta", "cpu"] * 2  # a forward pass crosses once to each card, and back
    cache.keep([0, 2])
    for output, rows in zip(outputs, (1, TREE.width), strict=True):
        assert output.logits.device == output.hidden.device == CPU
        assert output.logits.shape == (rows, SHAPE["vocab_size"])


def test_one_device_is_no_spread(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path, devices=[CPU])
    assert target.places == []
    assert target.new_cache(8).buffer.device == CPU


def test_a_cache_in_several_places_holds_what_one_in_one_place_holds() -> None:
    shape = {"num_layers": 3, "num_kv_heads": 2, "head_dim": 4, "capacity": 8, "dtype": torch.float32, "device": CPU}
    whole, apart = KVCache(**shape), KVCache(**shape, places=[CPU, CPU, torch.device("cpu", 0)])  # type: ignore[arg-type]
    assert [len(buffer) for buffer in apart.buffers] == [2, 1]
    assert apart.bytes_per_token == whole.bytes_per_token
    for layer in range(3):
        keys, values = torch.randn(2, 5, 2, 4)
        for cache in (whole, apart):
            cache.write(layer, keys, values)
    for cache in (whole, apart):
        cache.keep([0, 2, 4])
    assert torch.equal(torch.cat(apart.buffers)[:, :, :, :3], whole.buffer[:, :, :, :3])
    with pytest.raises(ValueError, match="too many values"):
        _ = apart.buffer


def test_weights_in_int8_are_not_spread(tmp_path: Path) -> None:
    save_model(tmp_path)
    with pytest.raises(ValueError, match="int8 need the native engine"):
        TargetModel.from_pretrained(tmp_path, dtype=torch.bfloat16, weights="int8", devices=CARDS[:2], device=CARDS[0])
    with pytest.raises(ValueError, match="native engine cannot run here: the layers are on 2 devices"):
        TargetModel.from_pretrained(tmp_path, engine="native", devices=CARDS[:2], device=CARDS[0])
