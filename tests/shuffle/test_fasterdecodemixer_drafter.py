"""The mixer as a drafter: exact whatever the slots say, a tree that says what they say, and the raw mode."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from decoding import CandidateTree, Sampling, SpeculativeDecoder, TargetModel, Verdict
from decoding.sampling import GREEDY
from pipeline.methods import build_decoder, copied
from shuffle.fasterdecodemixer.drafter import MixerDrafter, grow
from shuffle.fasterdecodemixer.generator import AcceptAll, KeptSlotsDrafter, MixerGenerator
from shuffle.fasterdecodemixer.guesses import DecodingMixer
from shuffle.fasterdecodemixer.model import FasterDecodeMixer
from tests.decoding.tiny import greedy_of, logits_of, save_model
from tests.shuffle.mixers import C, D, J, V, new_mixer

PROMPTS = [[5, 9, 3], [7], list(range(3, 40))]


def saved(folder: Path, mixer: FasterDecodeMixer) -> dict[str, Path]:
    mixer.save_pretrained(folder)
    return {"mixer": folder}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def model(folder: Path) -> torch.nn.Module:
    return save_model(folder)


@pytest.fixture(scope="module")
def target(folder: Path, model: torch.nn.Module) -> TargetModel:
    return TargetModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def good(folder: Path, model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A mixer that has learned the texts of the tests by heart."""
    mixer = FasterDecodeMixer.from_backbone(folder, num_slots=4, num_positions=J, num_context=C)
    hidden, contexts, labels = [], [], []
    for prompt in PROMPTS:
        text = torch.tensor([*prompt, *greedy_of(model, prompt, 40), *[-100] * J])
        start, end = len(prompt) - 1, len(text) - J - 1
        with torch.no_grad():
            hidden.append(model.base_model(text[None, : end + 1].clamp(min=0)).last_hidden_state[0, start:end])
        contexts += [([V] * C + text[: i + 2].tolist())[-C:] for i in range(start, end)]
        labels += [text[i + 2 : i + 2 + J] for i in range(start, end)]
    batch = torch.cat(hidden), torch.tensor(contexts), torch.stack(labels)
    optimizer = torch.optim.Adam(mixer.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        mixer(*batch).loss.backward()
        optimizer.step()
    return saved(tmp_path_factory.mktemp("good"), mixer)


def drafter_of(target: TargetModel, parts: dict[str, Path], **options: object) -> MixerDrafter:
    return MixerDrafter.from_target(target, parts=parts, sampling=Sampling(), **options)


def teach(drafter: MixerDrafter, hidden: torch.Tensor) -> None:
    """Let the drafter see a verdict whose last accepted node has this hidden state."""
    states = torch.stack([torch.zeros_like(hidden), torch.ones_like(hidden), hidden])
    tree = CandidateTree((4, 5, 6), (-1, 0, 0))
    assert drafter.observe(Verdict(tree, (0, 2), 7, (6, 1, 7), torch.zeros(3, V), states)) == 0


def paths_of(tree: CandidateTree) -> list[tuple[int, ...]]:
    texts: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        texts.append((*texts[parent], token))
    return texts[1:]


def test_a_copy_of_a_drafter_shares_its_mixer(target: TargetModel, good: dict[str, Path]) -> None:
    drafter = build_decoder("union", {"warm_start": True}, target, good, Sampling()).drafter
    twin = copied(drafter)
    assert twin is not drafter
    mixers = [each.drafters["fasterdecodemixer"].mixer for each in (drafter, twin)]
    assert mixers[0] is mixers[1]


def test_a_token_off_the_shortlist_is_told_as_unknown() -> None:
    mixer = DecodingMixer(new_mixer(), torch.float32, torch.device("cpu"))
    hidden = torch.ones(D)
    assert mixer(hidden, [5, 8]) == mixer(hidden, [8]) == mixer(hidden, [7, 8])
    assert mixer(hidden, [6, 8]) != mixer(hidden, [7, 8])


@pytest.mark.parametrize("options", [{}, {"max_children": 1}, {"num_nodes": 4, "row_cost": 0.05}])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_targets_own(
    model: torch.nn.Module, target: TargetModel, good: dict[str, Path], prompt: list[int], options: dict[str, object]
) -> None:
    generation = SpeculativeDecoder(target, drafter_of(target, good, **options)).generate(prompt, max_new_tokens=40)
    assert list(generation.output_ids) == greedy_of(model, prompt, 40)
    assert generation.accepted_draft_tokens > 10  # or the test would hold for a drafter that is never right


def test_a_proposal_is_the_tree_of_the_last_state(target: TargetModel, tmp_path: Path) -> None:
    drafter = drafter_of(target, saved(tmp_path, new_mixer()), num_nodes=9)
    hidden = torch.randn(D, generator=torch.Generator().manual_seed(4))
    teach(drafter, hidden)
    tree, guesses = drafter.propose([3, 6, 8]), drafter.mixer(hidden, [3, 6, 8])
    grown = grow(guesses, 9)
    tokens = [guesses.tokens[j][c] for j, c in zip(grown.positions, grown.candidates, strict=True)]
    assert tree.tokens == (8, *tokens)
    assert tree.parents == (-1, *grown.parents)
    assert tree.depths[1:] == tuple(j + 1 for j in grown.positions)
    assert tree.width == drafter.max_width == 10
    assert len(set(paths_of(tree))) == 9
    assert list(drafter.node_probabilities or ()) == [1.0, *grown.chances]
    drafter.begin([4])
    assert drafter.propose([4]).width == 1  # a new text starts without the last one's state


def test_sampled_text_follows_the_targets_distribution(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", spread=0.5)
    target = TargetModel.from_pretrained(tmp_path / "model")
    sampling, prompt, draws = Sampling(temperature=1.0, top_k=4), [5, 9, 3], 800
    parts = saved(tmp_path / "mixer", new_mixer(tuple(range(V))))
    decoder = SpeculativeDecoder(target, MixerDrafter.from_target(target, parts=parts, sampling=sampling), sampling)
    generator = torch.Generator().manual_seed(0)
    counts = Counter(decoder.generate(prompt, max_new_tokens=2, generator=generator).output_ids for _ in range(draws))
    expected = {}
    first = sampling.probabilities(logits_of(model, prompt))
    for token in first.nonzero().flatten().tolist():
        if token == 2:
            expected[(token,)] = float(first[token])
            continue
        second = sampling.probabilities(logits_of(model, [*prompt, token]))
        for after in second.nonzero().flatten().tolist():
            expected[token, after] = float(first[token] * second[after])
    assert set(counts) <= set(expected)
    assert chisquare([counts[text] for text in expected], [p * draws for p in expected.values()]).pvalue > 1e-3


@torch.no_grad()
def raw_of(model: torch.nn.Module, drafter: KeptSlotsDrafter, prompt: list[int], limit: int) -> list[int]:
    """Raw decoding, the whole text read anew for each step."""
    text = list(prompt)
    while len(text) < len(prompt) + limit:
        hidden = model.base_model(torch.tensor([text])).last_hidden_state[0, -1]
        text.append(int(model.lm_head(hidden).argmax()))
        guesses, before = drafter.mixer(hidden, text), -1
        for j, keep in enumerate(guesses.keep):
            if keep < drafter.keep_threshold:
                break
            row = guesses.links[j - 1][before] if j else guesses.chances[0]
            before = row.index(max(row))
            text.append(guesses.tokens[j][before])
    output = text[len(prompt) : len(prompt) + limit]
    return output[: output.index(2) + 1] if 2 in output else output


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.9])
def test_raw_text_is_what_the_slots_keep(
    model: torch.nn.Module, folder: Path, good: dict[str, Path], threshold: float
) -> None:
    raw = MixerGenerator.from_pretrained(good["mixer"], backbone=folder, mode="raw", keep_threshold=threshold)
    for prompt in PROMPTS:
        generation = raw.generate(prompt, max_new_tokens=24)
        assert list(generation.output_ids) == raw_of(model, raw.decoder.drafter, prompt, 24)
        assert generation.accepted_draft_tokens == generation.num_new_tokens - 1 - len(generation.steps) or (
            generation.truncated or generation.output_ids[-1] == 2  # cut in the middle of a step
        )
    assert raw.generate_batch(PROMPTS, max_new_tokens=24) == [
        raw.generate(prompt, max_new_tokens=24).output_ids for prompt in PROMPTS
    ]


def test_raw_keeps_everything_or_nothing_by_its_threshold(model: torch.nn.Module, good: dict[str, Path]) -> None:
    steps = {}
    for threshold in (0.0, 1.1):
        raw = MixerGenerator.from_pretrained(good["mixer"], mode="raw", keep_threshold=threshold)
        generation = raw.generate([5, 9, 3], max_new_tokens=24)
        steps[threshold] = len(generation.steps)
        if threshold > 1:
            assert list(generation.output_ids) == greedy_of(model, [5, 9, 3], 24)
    assert steps[0.0] < steps[1.1] / 2


def test_only_a_chain_is_accepted_whole() -> None:
    logits, hidden = torch.eye(3, 5), torch.zeros(3, 4)
    verdict = AcceptAll()(CandidateTree.chain(7, [1, 2]), logits, GREEDY, None, hidden)
    assert verdict.emitted == (1, 2, 2)
    with pytest.raises(ValueError, match="only a chain"):
        AcceptAll()(CandidateTree((7, 1, 2), (-1, 0, 0)), logits, GREEDY, None, hidden)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_nodes": 0}, "num_nodes must be 1 or more"),
        ({"max_children": 0}, "max_children must be 1 or more"),
        ({"row_cost": -1.0}, "row_cost must be 0 or more"),
    ],
)
def test_bad_options_are_refused(
    target: TargetModel, good: dict[str, Path], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        drafter_of(target, good, **options)


def test_mixers_that_are_missing_damaged_or_anothers_are_refused(
    target: TargetModel, good: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="needs a trained mixer"):
        drafter_of(target, {})
    with pytest.raises(ValueError, match="does not hold a mixer"):
        drafter_of(target, {"mixer": tmp_path / "nowhere"})
    with pytest.raises(ValueError, match="hidden size 16, the target has 32"):
        drafter_of(target, saved(tmp_path / "narrow", new_mixer(width=16)))
    with pytest.raises(ValueError, match="trained for 64 tokens, the target has 48"):
        drafter_of(target, saved(tmp_path / "wide", new_mixer((3, 60), vocab_size=64)))
    damaged = new_mixer()
    damaged.shortlist[-1] = 60
    with pytest.raises(ValueError, match="token 60, the target's vocabulary has 48"):
        drafter_of(target, saved(tmp_path / "damaged", damaged))
    with pytest.raises(ValueError, match="mode must be 'verified' or 'raw', not 'fast'"):
        MixerGenerator.from_pretrained(good["mixer"], mode="fast")
    with pytest.raises(ValueError, match="keep_threshold must be 0 or more"):
        MixerGenerator.from_pretrained(good["mixer"], mode="raw", keep_threshold=-0.5)
