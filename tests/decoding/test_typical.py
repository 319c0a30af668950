"""Typical acceptance against a computation by hand, number by number."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest
import torch

from decoding import CandidateTree, Sampling, SpeculativeDecoder, TargetModel
from decoding.sampling import GREEDY
from decoding.typical import TypicalAcceptance
from tests.decoding.test_decoder import RandomTrees
from tests.decoding.tiny import greedy_of, save_model


def by_hand(
    tree: CandidateTree, logits: list[list[float]], epsilon: float, delta: float, temperature: float
) -> tuple[int, ...]:
    """Try every path of the tree from its end to the root."""
    best: tuple[int, float, tuple[int, ...]] = (0, 0.0, (0,))
    for end in range(1, tree.width):
        path = [end]
        while path[0]:
            path.insert(0, tree.parents[path[0]])
        likelihood = 0.0
        for node, child in itertools.pairwise(path):
            weights = [math.exp(x / temperature) for x in logits[node]]
            p = [weight / sum(weights) for weight in weights]
            entropy = -sum(x * math.log(x) for x in p)
            if not p[tree.tokens[child]] > min(epsilon, delta * math.exp(-entropy)):
                break
            likelihood += math.log(p[tree.tokens[child]])
        else:
            best = max(best, (len(path) - 1, likelihood, tuple(path)))
    return best[2]


@pytest.mark.parametrize("seed", range(40))
def test_the_longest_plausible_path_is_kept(seed: int) -> None:
    rng = random.Random(seed)
    width, vocabulary = 12, 14
    parents = [-1] + [rng.randint(0, node - 1) for node in range(1, width)]
    tree = CandidateTree(tuple(rng.sample(range(vocabulary), width)), tuple(parents))  # no two paths are equally likely
    logits = [[rng.gauss(0, 2) for _ in range(vocabulary)] for _ in range(width)]
    epsilon, delta, temperature = rng.choice([(0.09, 0.3, 0.7), (0.05, 0.9, 1.0), (0.9, 0.2, 0.5)])
    rule = TypicalAcceptance(epsilon, delta, temperature)
    verdict = rule(tree, torch.tensor(logits), GREEDY, None)
    assert verdict.path == by_hand(tree, logits, epsilon, delta, temperature)
    row = logits[verdict.path[-1]]
    assert verdict.bonus == row.index(max(row))
    assert verdict.choices == tuple(row.index(max(row)) for row in logits)


def test_the_floor_sinks_where_the_target_is_undecided() -> None:
    """Four tokens alike: H = log 4, so the floor is min(epsilon, delta / 4) against a probability of 1/4."""
    tree, logits = CandidateTree.chain(0, [1]), torch.zeros(2, 4)
    assert TypicalAcceptance(epsilon=0.26, delta=0.99)(tree, logits, GREEDY, None).path == (0, 1)
    assert TypicalAcceptance(epsilon=0.26, delta=1.05)(tree, logits, GREEDY, None).path == (0,)
    assert TypicalAcceptance(epsilon=0.24, delta=1.05)(tree, logits, GREEDY, None).path == (0, 1)


def test_the_temperature_is_the_samplings_own_where_it_has_one() -> None:
    tree, logits = CandidateTree.chain(0, [1]), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    rule = TypicalAcceptance(epsilon=0.2, delta=1.0, temperature=0.1)
    assert rule(tree, logits, GREEDY, None).path == (0,)
    generator = torch.Generator().manual_seed(0)
    assert rule(tree, logits, Sampling(temperature=5.0), generator).path == (0, 1)  # p = 0.40 against 0.2
    assert rule(tree, logits, Sampling(temperature=5.0, top_k=1), generator).path == (0,)  # filtered: p = 0
    bonuses = {rule(tree, logits, Sampling(temperature=5.0), generator).bonus for _ in range(50)}
    assert bonuses == {0, 1}


def test_it_accepts_more_than_verification_and_says_other_things(tmp_path: Path) -> None:
    model = save_model(tmp_path, spread=0.5)
    target = TargetModel.from_pretrained(tmp_path)
    truth = greedy_of(model, [5, 9, 3], 60, end=-1)
    target.end_token_ids = frozenset()
    rule = TypicalAcceptance(epsilon=0.05, delta=0.9, temperature=1.0)
    lossy = SpeculativeDecoder(target, RandomTrees(truth), verify=rule).generate([5, 9, 3], max_new_tokens=60)
    lossless = SpeculativeDecoder(target, RandomTrees(truth)).generate([5, 9, 3], max_new_tokens=60)
    assert list(lossless.output_ids) == truth
    assert list(lossy.output_ids) != truth
    strict = TypicalAcceptance(epsilon=1.0, delta=1e9, temperature=1.0)  # nothing is above 1
    alone = SpeculativeDecoder(target, RandomTrees(truth), verify=strict).generate([5, 9, 3], max_new_tokens=60)
    assert (list(alone.output_ids), alone.accepted_draft_tokens) == (truth, 0)


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"epsilon": 1.5}, {"delta": 0.0}, {"temperature": 0.0}])
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be above 0"):
        TypicalAcceptance(**options)


def test_what_the_sampling_leaves_out_is_never_accepted() -> None:
    """Of four tokens top-k keeps two, 0.73 and 0.27: H = 0.58, so the floor is min(epsilon, 0.3 * 0.56)."""
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 3)
    sampling, generator = Sampling(temperature=1.0, top_k=2), torch.Generator().manual_seed(0)
    for token, accepted in ((0, True), (1, True), (2, False), (3, False)):
        tree = CandidateTree.chain(0, [token])
        verdict = TypicalAcceptance(epsilon=0.2, delta=0.3)(tree, logits[:2], sampling, generator)
        assert (verdict.path == (0, 1)) is accepted


@pytest.mark.parametrize("name", ["delta", "temperature"])
def test_nan_is_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0, not nan"):
        TypicalAcceptance(**{name: math.nan})
