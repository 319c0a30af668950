"""Medusa: exact whatever the heads say, and a tree that says what they say."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from baselines.medusa import MedusaDrafter
from baselines.medusa_heads import HeadsRecord, MedusaHeads, load_heads, save_heads
from decoding import CandidateTree, Sampling, SpeculativeDecoder, TargetModel, Verdict
from tests.decoding.tiny import SHAPE, greedy_of, logits_of, save_model

PROMPTS = [[5, 9, 3], [7], list(range(3, 40))]
D, V = int(SHAPE["hidden_size"]), int(SHAPE["vocab_size"])
SHORTLIST = tuple(range(2, V, 2))
ACCURACIES = ((0.5, 0.3, 0.1), (0.4, 0.1, 0.2), (0.3, 0.1, 0.05))
PATHS = [[0], [1], [0, 0], [2], [0, 0, 1]]


def write_heads(folder: Path, shortlist: tuple[int, ...] = SHORTLIST, width: int = D) -> Path:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    heads = MedusaHeads(3, width, len(shortlist))
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_(0, 0.3)
    save_heads(folder, heads, HeadsRecord(3, width, shortlist, ACCURACIES, ((0,), (1,), (0, 0))))
    return folder


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
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"heads": write_heads(tmp_path_factory.mktemp("heads"))}


def write_good_heads(folder: Path, model: torch.nn.Module) -> Path:
    """Heads that know the texts of the tests: least squares from hidden states to the tokens after the next."""
    heads, hidden, texts = MedusaHeads(3, D, V), [], []
    for prompt in PROMPTS:
        text = [*prompt, *greedy_of(model, prompt, 40)]
        with torch.no_grad():
            hidden.append(model.base_model(torch.tensor([text])).last_hidden_state[0, :-4])
        texts.append(torch.tensor(text))
    with torch.no_grad():
        for k in range(3):
            tokens = torch.cat([text[k + 2 : len(text) - 2 + k] for text in texts])
            wanted = torch.nn.functional.one_hot(tokens, V).float()
            heads.output_weight[k] = 20 * torch.linalg.lstsq(torch.cat(hidden), wanted).solution.T
    folder.mkdir(exist_ok=True)
    save_heads(folder, heads, HeadsRecord(3, D, tuple(range(V)), ACCURACIES))
    return folder


def drafter_of(target: TargetModel, parts: dict[str, Path], **options: object) -> MedusaDrafter:
    return MedusaDrafter.from_target(target, parts=parts, sampling=Sampling(), **options)


def teach(drafter: MedusaDrafter, hidden: torch.Tensor) -> None:
    """Let the drafter see a verdict whose last accepted node has this hidden state."""
    states = torch.stack([torch.zeros_like(hidden), torch.ones_like(hidden), hidden])
    tree = CandidateTree((4, 5, 6), (-1, 0, 0))
    assert drafter.observe(Verdict(tree, (0, 2), 7, (6, 1, 7), torch.zeros(3, V), states)) == 0


@pytest.mark.parametrize("tree", ["dynamic", "fitted", PATHS])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_targets_own(
    model: torch.nn.Module, target: TargetModel, tmp_path: Path, prompt: list[int], tree: object
) -> None:
    parts = {"heads": write_good_heads(tmp_path, model)}
    generation = SpeculativeDecoder(target, drafter_of(target, parts, tree=tree)).generate(prompt, max_new_tokens=40)
    assert list(generation.output_ids) == greedy_of(model, prompt, 40)
    assert generation.accepted_draft_tokens > 10  # or the test would hold for a drafter that is never right


def test_a_dynamic_tree_holds_the_nodes_of_greatest_probability(target: TargetModel, parts: dict[str, Path]) -> None:
    heads = load_heads(parts["heads"])[0].requires_grad_(False)
    hidden = torch.randn(D, generator=torch.Generator().manual_seed(3))
    probabilities = heads(hidden[None])[:, 0].softmax(-1)
    top = probabilities.topk(9)
    chances = {
        ranks: float(torch.stack([top.values[k, rank] for k, rank in enumerate(ranks)]).prod())
        for depth in (1, 2, 3)
        for ranks in itertools.product(range(9), repeat=depth)
    }
    best = sorted(chances, key=lambda ranks: -chances[ranks])[:9]  # a parent's chance is never below its child's
    expected = {tuple(SHORTLIST[int(top.indices[k, rank])] for k, rank in enumerate(ranks)) for ranks in best}

    drafter = drafter_of(target, parts, num_nodes=9, tree="dynamic")
    teach(drafter, hidden)
    tree = drafter.propose([3, 8])
    texts: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        texts.append((*texts[parent], token))
    assert tree.tokens[0] == 8
    assert tree.draft_probabilities is None
    assert set(texts[1:]) == expected
    assert tree.width == drafter.max_width == 10


def test_a_given_tree_holds_the_named_choices(target: TargetModel, parts: dict[str, Path]) -> None:
    heads, _ = load_heads(parts["heads"])
    hidden = torch.randn(D, generator=torch.Generator().manual_seed(4))
    top = [[SHORTLIST[i] for i in row] for row in heads(hidden[None])[:, 0].topk(3).indices.tolist()]
    drafter = drafter_of(target, parts, tree=PATHS)
    teach(drafter, hidden)
    tree = drafter.propose([3, 8])
    assert tree.tokens == (8, top[0][0], top[0][1], top[0][2], top[1][0], top[2][1])
    assert tree.parents == (-1, 0, 0, 0, 1, 4)
    assert drafter.max_width == 6


def test_a_fitted_tree_is_fitted_to_the_heads_that_are_used(target: TargetModel, parts: dict[str, Path]) -> None:
    three = drafter_of(target, parts, num_nodes=4, tree="fitted")
    assert three.shape is not None
    assert (three.shape.heads, three.shape.ranks) == ((0, 0, 1, 1), (0, 1, 0, 0))
    one = drafter_of(target, parts, num_nodes=4, num_heads=1, tree="fitted")
    assert one.shape is not None
    assert (one.shape.heads, one.shape.ranks) == ((0, 0, 0), (0, 1, 2))
    assert (three.max_width, one.max_width) == (5, 4)


def test_a_new_text_starts_without_the_last_ones_state(target: TargetModel, parts: dict[str, Path]) -> None:
    drafter = drafter_of(target, parts)
    teach(drafter, torch.ones(D))
    assert drafter.propose([3]).width > 1
    drafter.begin([4])
    assert drafter.propose([4]).width == 1


@pytest.mark.parametrize("tree", ["dynamic", "fitted"])
def test_sampled_text_follows_the_targets_distribution(tmp_path: Path, tree: str) -> None:
    model = save_model(tmp_path / "model", spread=0.5)
    target = TargetModel.from_pretrained(tmp_path / "model")
    sampling, prompt, draws = Sampling(temperature=1.0, top_k=4), [5, 9, 3], 1200
    parts = {"heads": write_heads(tmp_path / "heads", tuple(range(V)))}
    drafter = MedusaDrafter.from_target(target, parts=parts, sampling=sampling, tree=tree)
    decoder = SpeculativeDecoder(target, drafter, sampling)
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
    observed = [counts[text] for text in expected]
    assert chisquare(observed, [p * draws for p in expected.values()]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_nodes": 0}, "num_nodes must be 1 or more"),
        ({"num_nodes": 0, "tree": "fitted"}, "num_nodes must be 1 or more"),
        ({"num_heads": 4}, "num_heads must be between 1 and 3"),
        ({"tree": "fited"}, "must be 'dynamic', 'fitted' or a list"),
        ({"tree": []}, "no nodes"),
        ({"tree": [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0]]}, "has depth 4, but there are 3 heads"),
        ({"tree": [[len(SHORTLIST)]]}, "of a shortlist of 23 tokens"),
    ],
)
def test_bad_options_are_refused(
    target: TargetModel, parts: dict[str, Path], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        drafter_of(target, parts, **options)


def test_heads_that_are_missing_or_anothers_are_refused(target: TargetModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs trained heads"):
        drafter_of(target, {})
    with pytest.raises(ValueError, match="hidden size 16, the target has 32"):
        drafter_of(target, {"heads": write_heads(tmp_path, width=16)})
