"""No graph is captured while a text is timed, and none fails for want of room: on stand-ins of torch.cuda."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.draft_model import DraftModel
from decoding import CandidateTree, Sampling, SpeculativeDecoder, TargetModel, loading
from decoding.cache import KVCache
from decoding.target import TreeOutput
from pipeline.methods import build_decoder, unlearned
from tests.decoding.cuda_standins import Device, ranking_frozen, stand_in
from tests.decoding.tiny import greedy_of, logits_of, save_model

PROMPTS = [[5, 9, 3, 17, 40, 9, 3], list(range(3, 40)) * 5, [7]]
METHODS: dict[str, Mapping[str, Any]] = {
    "autoregressive": {},
    "lookahead": {"window": 7, "ngram": 4, "guesses": 7, "max_nodes": 0},
    "recycling": {"num_nodes": 40},
    "speculative": {"num_draft_tokens": 5, "adaptive": True, "max_draft_tokens": 20},
    "ouroboros": {"num_draft_tokens": 4, "window": 5, "ngram": 4, "max_nodes": 0},
    "ouroboros_warm_start": {"num_draft_tokens": 4, "window": 5, "ngram": 4, "max_nodes": 0},
}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(loading, "why_not", lambda *arguments: "a device of graphs")  # the draft's engine is auto
    return stand_in(monkeypatch)


def load(folder: Path) -> TargetModel:
    return TargetModel.from_pretrained(folder, engine="eager", decode_width=8)


def marked(decoder: SpeculativeDecoder, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell in the list of calls when a text's clock starts, which is when its drafter begins."""
    begin = type(decoder.drafter).begin

    def begins(self: Any, prompt_ids: Any) -> None:
        device.calls.append("clock")
        begin(self, prompt_ids)

    def reads(self: TargetModel, cache: KVCache, tree: CandidateTree) -> TreeOutput:
        device.calls.append("plain")
        return read(self, cache, tree)

    read = TargetModel._read_plainly
    monkeypatch.setattr(type(decoder.drafter), "begin", begins)
    monkeypatch.setattr(TargetModel, "_read_plainly", reads)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_captured_while_a_text_is_timed(
    tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    model, target = save_model(tmp_path, spread=2.0), load(tmp_path)
    decoder = build_decoder(method, METHODS[method], target, {"draft": tmp_path}, Sampling())
    marked(decoder, device, monkeypatch)
    if method == "recycling":  # its first text, in a cell the warm-up, captures what it ranks by
        ranking_frozen(device, monkeypatch)
        decoder = build_decoder(method, METHODS[method], target, {}, Sampling())
        decoder.generate([5, 6], max_new_tokens=2)
    device.calls.clear()
    for prompt in PROMPTS * 2:
        for kept in (unlearned(decoder), unlearned(decoder)):
            with kept:
                generation = decoder.generate(prompt, max_new_tokens=40)
            assert list(generation.output_ids) == greedy_of(model, prompt, 40)
            last = len(device.calls) - device.calls[::-1].index("clock")
            assert "replay" in device.calls[last:]
            assert not {"capture", "decode", "plain"} & set(device.calls[last:])


@pytest.mark.parametrize("method", ["lookahead", "speculative"])
def test_with_room_reserved_for_the_longest_text_each_width_is_captured_once(
    tmp_path: Path, device: Device, method: str
) -> None:
    save_model(tmp_path)
    target = load(tmp_path)
    decoder = build_decoder(method, METHODS[method], target, {"draft": tmp_path}, Sampling())
    decoder.reserve(max(map(len, PROMPTS)) + 40)
    decoder.generate(PROMPTS[0], max_new_tokens=16)
    captures = device.calls.count("capture")
    assert captures > 1
    for number, prompt in enumerate(PROMPTS):
        decoder.generate(prompt, max_new_tokens=40 - 10 * number)
    assert device.calls.count("capture") == captures


def test_where_nothing_is_captured_no_room_is_reserved(tmp_path: Path) -> None:
    save_model(tmp_path)
    decoder = build_decoder("autoregressive", {}, load(tmp_path), {}, Sampling())
    decoder.reserve(400)
    decoder.generate([5, 6], max_new_tokens=2)
    assert decoder._caches.empty(4, 1).capacity == 256


def test_a_draft_reads_to_the_last_row_of_its_cache(tmp_path: Path, device: Device) -> None:
    """A tree of 40 nodes has room for its rows, and not for the 64 of its graph."""
    model, chance = save_model(tmp_path), random.Random(1)
    draft = DraftModel.from_pretrained(tmp_path, target=load(tmp_path))
    tree = CandidateTree(
        tuple(chance.randrange(3, 48) for _ in range(40)), (-1, *(chance.randrange(i + 1) for i in range(39)))
    )
    for length in (190, 200, 216, 217):
        context = [3 + i % 40 for i in range(length)]
        draft.begin()
        draft.sync([*context, tree.tokens[0]])
        logits = draft.read(tree).logits
        for node in (0, 17, 39):
            path, at = [], node
            while at >= 0:
                path, at = [tree.tokens[at], *path], tree.parents[at]
            torch.testing.assert_close(logits[node], logits_of(model, [*context, *path]), atol=2e-4, rtol=1e-3)
