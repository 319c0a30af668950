"""The mixer as it is decoded with: in torch, layer by layer, and in one call of the compiled code."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from decoding import part_layers
from decoding.native.product import can_multiply
from shuffle.fasterdecodemixer.compiled import CompiledMixer
from shuffle.fasterdecodemixer.guesses import DecodingMixer
from tests.shuffle.mixers import SHORTLIST, C, D, new_mixer


@pytest.mark.parametrize("changes", [{}, {"num_slots": 3}, {"num_mixer_layers": 2}, {"num_positions": 1}])
def test_guesses_are_those_of_the_model(changes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Chances, links and keep from the model as it is trained, told one parent at a time."""
    monkeypatch.setattr(part_layers, "can_multiply", lambda device: False)  # which rounds: see the next test
    mixer = new_mixer(**changes)
    positions, size = mixer.config.num_positions, len(SHORTLIST)
    hidden, context = torch.randn(D, generator=torch.Generator().manual_seed(3)), [9, 4, 8]
    rows = torch.tensor([[SHORTLIST.index(token) for token in context[-C:]]])
    with torch.no_grad():
        slots, p = mixer.slots(hidden[None], rows), mixer.distributions(hidden[None], rows)[0]
        kept = slots.keep_logits.sigmoid().log()[..., None]
        weights = (mixer.config.position_sharpness * slots.scores + kept).softmax(1)[0]
        plain = mixer(hidden[None], rows).logits[0]
    homes = slots.homes[0].tolist()
    guesses = DecodingMixer(mixer, torch.float32, torch.device("cpu"))(hidden, context)
    best = p.topk(10)
    assert guesses.tokens == [[SHORTLIST[row] for row in position] for position in best.indices.tolist()]
    torch.testing.assert_close(torch.tensor(guesses.chances), best.values, atol=1e-5, rtol=1e-4)
    keep = slots.keep_logits[0].sigmoid().tolist()
    for j in range(positions):
        assert guesses.keep[j] == pytest.approx(max((keep[k] for k in range(len(homes)) if homes[k] == j), default=0))
    for j, a, b in itertools.product(range(1, positions), range(10), range(10)):
        parent, child = int(best.indices[j - 1, a]), int(best.indices[j, b])
        expected, total = 0.0, 0.0
        for k in (k for k in range(len(homes)) if homes[k] == j):
            with torch.no_grad():
                state = mixer.told(slots.states[:, k : k + 1], torch.tensor([[parent]]))[0, 0]
                told = torch.nn.functional.linear(state, mixer.rows[:-1]).exp()
            among = torch.tensor([row in best.indices[j].tolist() for row in range(size)])
            chance = told[child] / (told[among].sum() + plain[k].exp()[~among].sum())
            expected, total = expected + float(weights[k, j] * chance), total + float(weights[k, j])
        expected = expected / total if total else float(p[j, child])
        assert guesses.links[j - 1][a][b] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_code_guesses_what_torch_does_but_for_rounding(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, context = torch.randn(D, generator=torch.Generator().manual_seed(3)), [9, 4, 8]
    mixer = new_mixer()
    found = DecodingMixer(copy.deepcopy(mixer), dtype, torch.device("cpu"))(hidden, context)
    monkeypatch.setattr(part_layers, "can_multiply", lambda device: False)
    expected = DecodingMixer(mixer, torch.float32, torch.device("cpu"))(hidden, context)
    for position, tokens in enumerate(found.tokens):
        theirs = dict(zip(expected.tokens[position], expected.chances[position], strict=True))
        in_both = [
            (chance, theirs[token])
            for token, chance in zip(tokens, found.chances[position], strict=True)
            if token in theirs
        ]
        assert len(in_both) >= len(tokens) - 2
        assert max(abs(one - other) for one, other in in_both) < 0.02
    assert found.keep == pytest.approx(expected.keep, abs=0.02)


@pytest.mark.skipif(not can_multiply(torch.device("cpu")), reason="no compiled library here")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_slots": 3},
        {"num_slots": 20},  # more rows than one block of a product
        {"num_mixer_layers": 2},
        {"num_mixer_layers": 0},
        {"num_positions": 1},
        {"num_context": 1, "rotary_dim": 2},
        {"shortlist": SHORTLIST[:7]},  # fewer tokens than candidates
        {"width": 41},
    ],
)
def test_one_compiled_call_guesses_what_torch_does_layer_by_layer(changes: dict[str, Any], threads: int) -> None:
    """The same layers, rounded alike: what enters a product may still be rounded the other way, now and then."""
    mixer = DecodingMixer(new_mixer(**changes), torch.float32, torch.device("cpu"))
    assert isinstance(mixer._read, CompiledMixer)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    positions, count = mixer.config.num_positions, mixer.num_candidates
    sizes = [positions * count, positions * count, (positions - 1) * count**2, positions]
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(mixer.config.hidden_size, generator=generator)
        rows = torch.randint(len(mixer.tokens) + 1, (mixer.config.num_context,), generator=generator)
        with torch.inference_mode():
            found, expected = (each[0].split(sizes) for each in (mixer._read(hidden, rows), mixer._guess(hidden, rows)))
        torch.testing.assert_close(found[1], expected[1], atol=3e-3, rtol=0)
        torch.testing.assert_close(found[3], expected[3], atol=3e-3, rtol=0)
        if torch.equal(found[0], expected[0]):
            torch.testing.assert_close(found[2], expected[2], atol=1e-2, rtol=0)
        else:  # two candidates that are all but as likely as each other
            changed = (found[0] != expected[0]).view(positions, count)
            gaps = expected[1].view(positions, count).diff(dim=1).abs()
            assert all(gaps[j, max(0, c - 1) : c + 1].min() < 3e-3 for j, c in changed.nonzero().tolist())
    torch.set_num_threads(before)
