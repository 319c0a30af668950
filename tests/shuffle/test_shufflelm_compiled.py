"""ShuffleLM's heads in one call of the compiled code, against the module's and the ordering's own."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from decoding.native.product import can_multiply
from shuffle.backbone import ParallelModel
from shuffle.shufflelm.compiled import CompiledHeads
from shuffle.shufflelm.generator import ShuffleGenerator
from shuffle.shufflelm.model import ShuffleLM
from tests.decoding.test_native import level  # noqa: F401 (a fixture)
from tests.shuffle.test_shufflelm_generator import CTC, PLACED, PROMPTS, make, reference

SHAPES = [
    *PLACED,
    *CTC,
    {
        "hidden_size": 42,
        "num_heads": 3,
        "max_parallel_tokens": 19,
        "num_mixer_layers": 2,
    },  # no whole vectors; more rows than a block
    {"hidden_size": 40, "max_parallel_tokens": 1, "rotary_dim": 2},
]
compiled_only = pytest.mark.skipif(not can_multiply(torch.device("cpu")), reason="no compiled library here")


def rows_of(model: ShuffleLM) -> torch.Tensor:
    rows = model.get_input_embeddings().weight if model.config.tie_word_embeddings else model.lm_head.weight
    return rows.detach()[: model.config.vocab_size]


def same(model: ShuffleLM, hidden: torch.Tensor, threshold: float, close: float) -> int:
    """Hold the compiled heads to the module's in float32; return how many slots are kept."""
    ordering = model.ordering(keep_threshold=threshold)
    slow = ShuffleLM(model.config)
    slow.load_state_dict(model.state_dict())
    with torch.inference_mode():
        states, scores, keep = slow.eval().heads(hidden)
        logits = states @ rows_of(slow).T
    unsure = (keep - ordering.least_logit).abs() < close
    greedy, drawn = (CompiledHeads(model, ordering, rows_of(model), flag)(hidden) for flag in (False, True))
    assert greedy.kept == drawn.kept
    wanted = ordering.kept(keep)
    if close < 0.01:
        assert greedy.kept == wanted
    else:  # in bfloat16 a slot near the threshold may be on either side of it
        assert all(unsure[slot] for slot in set(greedy.kept) ^ set(wanted))
    assert greedy.logits is None
    assert not drawn.tokens
    assert drawn.logits is not None
    torch.testing.assert_close(drawn.logits, logits[greedy.kept], atol=close, rtol=close)
    assert greedy.tokens == drawn.logits.argmax(-1).tolist()
    torch.testing.assert_close(greedy.keep, keep[greedy.kept], atol=close, rtol=close)
    assert torch.equal(greedy.keep, drawn.keep)
    if scores is None:
        assert (greedy.scores, greedy.expected) == (None, [])
        return len(greedy.kept)
    torch.testing.assert_close(greedy.scores, scores[greedy.kept], atol=close, rtol=0)
    soft = (greedy.scores / ordering.temperature).softmax(-1)
    places = torch.arange(soft.shape[1], dtype=torch.float32)
    torch.testing.assert_close(torch.tensor(greedy.expected), soft @ places, atol=1e-4, rtol=1e-5)
    return len(greedy.kept)


@compiled_only
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-4), (torch.bfloat16, 0.12)])
@pytest.mark.parametrize("own", SHAPES)
def test_one_call_says_what_the_module_says(own: dict[str, Any], dtype: torch.dtype, close: float) -> None:
    for seed, bias in enumerate((-30.0, -0.5, 0.0, 0.5, 30.0)):
        model = make(bias, **own).to(dtype)
        most = model.config.max_parallel_tokens
        slots = most if model.config.num_mixer_layers else max(1, most - seed)
        hidden = torch.randn(slots, model.config.hidden_size, generator=torch.Generator().manual_seed(seed))
        kept = same(model, hidden, 0.5 if seed % 2 else 0.4, close)
        assert kept == {-30.0: 1, 30.0: slots}.get(bias, kept)


@compiled_only
@pytest.mark.usefixtures("level")
def test_narrower_vectors_say_the_same() -> None:
    for own in SHAPES:
        model = make(0.2, **own)
        hidden = torch.randn(model.config.max_parallel_tokens, model.config.hidden_size)
        same(model, hidden, 0.5, 2e-4)


@compiled_only
def test_threads_do_not_change_a_bit() -> None:
    model = make(**SHAPES[-2])
    hidden = torch.randn(19, 42, generator=torch.Generator().manual_seed(1))
    heads = CompiledHeads(model, model.ordering(), rows_of(model), with_logits=True)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        said = heads(hidden)
        assert said.logits is not None
        assert said.scores is not None
        found.append((said.kept, said.expected, said.logits.tolist(), said.scores.tolist()))
    torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@compiled_only
@pytest.mark.parametrize("strategy", ["rotary", "assignment", "none"])
@pytest.mark.parametrize("own", PLACED)
def test_tokens_drawn_at_next_to_no_temperature_are_the_likeliest_in_their_order(
    strategy: str, own: dict[str, Any]
) -> None:
    greedy, drawn = (ShuffleGenerator(make(6.0, **own), shuffle_strategy=strategy, temperature=t) for t in (0.0, 1e-6))
    wanted = [greedy.generate(prompt, max_new_tokens=20).output_ids for prompt in PROMPTS]
    assert [drawn.generate(prompt, max_new_tokens=20).output_ids for prompt in PROMPTS] == wanted
    assert any(len(set(text)) > 2 for text in wanted)  # else any order would do


@compiled_only
def test_refuses_slots_that_the_mixers_have_no_weights_for() -> None:
    for own, counts in ({}, (5, 7)), ({"num_mixer_layers": 0}, (0, 7)):
        model = make(**own)
        heads = CompiledHeads(model, model.ordering(), rows_of(model), with_logits=False)
        assert copy.deepcopy(heads) is heads
        for count in counts:
            with pytest.raises(ValueError, match=f"for 6 slots, not {count}"):
                heads(torch.zeros(count, 32))


@pytest.mark.parametrize(
    ("strategy", "own"), [*itertools.product(["rotary", "assignment", "none"], PLACED), *(("none", own) for own in CTC)]
)
def test_without_the_compiled_engine_torch_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, own: dict[str, Any]
) -> None:
    engine = ParallelModel.engine
    monkeypatch.setattr(ParallelModel, "engine", lambda self, dtype, device: engine(self, dtype, device, "eager"))
    model = make(6.0, **own)
    model.save_pretrained(tmp_path)
    generator = ShuffleGenerator.from_pretrained(tmp_path, shuffle_strategy=strategy)
    assert generator.target.native is None
    wanted = [tuple(reference(model, prompt, 20, strategy)) for prompt in PROMPTS]
    assert [generator.generate(prompt, max_new_tokens=20).output_ids for prompt in PROMPTS] == wanted
