"""The peers emit what transformers emits, cut where every method is cut, and count what they did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baselines.autoregressive import AutoregressiveDrafter
from baselines.transformers_generate import TransformersGreedy, TransformersPromptLookup
from decoding import Sampling, SpeculativeDecoder, StopStrings, TargetModel
from tests.decoding.tiny import greedy_of, save_model

PROMPTS = [[5, 9, 3, 5, 9], list(range(3, 30)) * 2]
PEERS = [TransformersGreedy, TransformersPromptLookup]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("peer", PEERS)
def test_ids_are_the_models_greedy_ones(tmp_path: Path, peer: type[TransformersGreedy], prompt: list[int]) -> None:
    model = save_model(tmp_path)
    generation = peer.from_pretrained(tmp_path, dtype=torch.float32).generate(prompt, max_new_tokens=50)
    assert list(generation.output_ids) == greedy_of(model, prompt, 50)
    assert generation.prefill_accepted + 1 + sum(step.emitted for step in generation.steps) == len(
        generation.output_ids
    )
    assert generation.accepted_draft_tokens <= generation.candidate_tokens


def test_prompt_lookup_counts_what_its_prefill_accepts(tmp_path: Path) -> None:
    """The prompt holds its own continuation: transformers drafts before prefill, which then emits several tokens."""
    model = save_model(tmp_path)
    start = [5, 9, 3]
    prompt = [*start, *greedy_of(model, start, 30), *start, *greedy_of(model, start, 30)[:10]]
    truth = greedy_of(model, prompt, 40)
    peer = TransformersPromptLookup.from_pretrained(tmp_path, dtype=torch.float32)
    generation = peer.generate(prompt, max_new_tokens=40)
    assert list(generation.output_ids) == truth
    assert generation.prefill_accepted > 0
    # By hand: each forward pass emits what it accepts and one token more.
    emitted = [generation.prefill_accepted + 1, *(step.emitted for step in generation.steps)]
    assert sum(emitted) == generation.num_new_tokens
    assert generation.accepted_draft_tokens >= generation.num_new_tokens - len(emitted)
    assert generation.tokens_per_step == pytest.approx(sum(emitted[1:]) / len(emitted[1:]))


def test_a_checkpoints_own_penalties_are_left_aside(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    model.generation_config.repetition_penalty = 1.8
    model.generation_config.eos_token_id = [2, 17]
    model.generation_config.save_pretrained(tmp_path)
    peer = TransformersGreedy.from_pretrained(tmp_path, dtype=torch.float32)
    engine = SpeculativeDecoder(TargetModel.from_pretrained(tmp_path), AutoregressiveDrafter())
    for prompt in ([5, 9, 3], [7], [30, 8]):
        assert (
            peer.generate(prompt, max_new_tokens=40).output_ids == engine.generate(prompt, max_new_tokens=40).output_ids
        )
    assert peer.end_token_ids == engine.target.end_token_ids == {2, 17}


def test_prompt_lookup_counts_its_steps_and_candidates(tmp_path: Path) -> None:
    save_model(tmp_path)
    plain, lookup = (
        peer.from_pretrained(tmp_path, dtype=torch.float32).generate(PROMPTS[0], max_new_tokens=60) for peer in PEERS
    )
    assert len(plain.steps) == plain.num_new_tokens - 1
    assert plain.candidate_tokens == 0
    assert len(lookup.steps) < len(plain.steps)
    assert lookup.accepted_draft_tokens > 0


@pytest.mark.parametrize("peer", PEERS)
def test_a_stop_string_ends_a_peer_where_it_ends_the_engine(tmp_path: Path, peer: type[TransformersGreedy]) -> None:
    model = save_model(tmp_path)
    truth = greedy_of(model, PROMPTS[0], 50)
    stop = StopStrings(lambda ids: "".join(f"<{i}>" for i in ids), [f"<{truth[7]}><{truth[8]}>"])
    engine = SpeculativeDecoder(TargetModel.from_pretrained(tmp_path), AutoregressiveDrafter())
    ours = engine.generate(PROMPTS[0], max_new_tokens=50, stop=stop)
    theirs = peer.from_pretrained(tmp_path, dtype=torch.float32).generate(PROMPTS[0], max_new_tokens=50, stop=stop)
    assert theirs.output_ids == ours.output_ids
    assert theirs.truncated == ours.truncated == False  # noqa: E712  both are compared with the same value


def test_sampling_is_seeded(tmp_path: Path) -> None:
    save_model(tmp_path)
    peer = TransformersGreedy.from_pretrained(tmp_path, dtype=torch.float32, sampling=Sampling(1.0))
    texts = [
        peer.generate(PROMPTS[0], max_new_tokens=20, generator=torch.Generator().manual_seed(seed)).output_ids
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    torch.manual_seed(5)
    generator, before = torch.Generator().manual_seed(1), torch.get_rng_state()
    following = [peer.generate(PROMPTS[0], max_new_tokens=20, generator=generator).output_ids for _ in range(2)]
    assert following[0] == texts[0] != following[1]
    assert torch.equal(torch.get_rng_state(), before)  # others draw from it, too
