"""The union of drafters against enumerating all candidate paths; what it learns; greedy ids and sampled texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from baselines.prompt_lookup import PromptLookupDrafter
from baselines.recycling import RecyclingDrafter
from baselines.union import UnionDrafter
from decoding import CandidateTree, Drafter, Sampling, SpeculativeDecoder, TargetModel, Verdict
from decoding.verify import verify
from tests.baselines.test_recycling import assert_samples_like_plain_sampling, path_chances
from tests.decoding.tiny import greedy_of, save_model

VOCABULARY = 20


class Scripted:
    """Proposes what it is told to, and counts what it is told."""

    max_width = 99

    def __init__(self, tokens: Sequence[int], parents: Sequence[int], chances: Sequence[float] | None = None) -> None:
        self.tokens, self.parents = tuple(tokens), tuple(parents)
        self.node_probabilities = None if chances is None else (1.0, *chances)
        self.begun = self.observed = 0

    def begin(self, prompt_ids: Sequence[int]) -> None:
        self.begun += 1

    def propose(self, context: Sequence[int]) -> CandidateTree:
        return CandidateTree((context[-1], *self.tokens), (-1, *self.parents))

    def observe(self, verdict: Verdict) -> int:
        self.observed += 1
        return 2


def verdict_of(tree: CandidateTree, wanted: Sequence[int]) -> Verdict:
    """The verdict of a target that goes on with ``wanted`` whatever the path."""
    logits = torch.zeros(tree.width, VOCABULARY)
    for node, depth in enumerate(tree.depths):
        logits[node, wanted[depth]] = 9.0
    return verify(tree, logits, Sampling(), None, torch.zeros(tree.width, 4))


def paths_of(tree: CandidateTree) -> set[tuple[int, ...]]:
    """Every node as the tokens that lead to it."""
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, tree.width):
        paths.append((*paths[tree.parents[node]], tree.tokens[node]))
    return set(paths[1:])


def test_takes_the_paths_that_enumerating_all_of_them_finds_best() -> None:
    """With probabilities and nothing counted yet, a candidate's chance is the noisy-or of its proposals'."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        chances: dict[tuple[int, ...], float] = {}
        drafters: dict[str, Drafter] = {}
        for name in ("a", "b", "c"):
            parents = [int(torch.randint(0, node, (), generator=generator)) for node in range(1, 13)]
            tokens, paths = [], [()]
            for parent in parents:
                token = 0
                while (*paths[parent], token) in paths:  # siblings differ; small tokens, so that drafters meet
                    token += 1
                tokens.append(token)
                paths.append((*paths[parent], token))
            given = torch.rand(12, generator=generator, dtype=torch.float64).tolist()
            drafters[name] = Scripted(tokens, parents, given)
            for path, chance in zip(paths[1:], given, strict=True):
                chances[path] = 1 - (1 - chances.get(path, 0.0)) * (1 - chance)
        products = dict.fromkeys(chances, 1.0)
        for path in chances:
            for end in range(1, len(path) + 1):
                products[path] *= chances[path[:end]]
        best = sorted(products, key=lambda path: -products[path])[:8]
        union = UnionDrafter(drafters, num_nodes=8)
        union.begin([3])
        tree = union.propose([3])
        assert paths_of(tree) == set(best)
        assert tree.width == union.max_width == 9
        assert union.node_probabilities is not None
        expected = sorted((products[path] for path in best), reverse=True)
        assert path_chances(tree, union.node_probabilities) == pytest.approx(expected)


def test_what_several_propose_is_one_candidate() -> None:
    union = UnionDrafter({"a": Scripted([5, 6], [0, 1]), "b": Scripted([5, 7, 6], [0, 1, 1])}, num_nodes=15)
    union.begin([3])
    tree = union.propose([3])
    assert paths_of(tree) == {(5,), (5, 6), (5, 7)}
    assert tree.width == 4


@pytest.mark.parametrize("chances", [None, [0.6] * 4])
def test_a_drafter_that_is_always_wrong_loses_its_nodes(chances: list[float] | None) -> None:
    wrong = Scripted([11, 12, 13, 14], [0, 1, 2, 3], chances)
    right = Scripted([1, 2, 3, 4], [0, 1, 2, 3], None if chances is None else [0.5] * 4)
    union = UnionDrafter({"wrong": wrong, "right": right}, num_nodes=4)
    union.begin([3])
    first = union.propose([3])
    assert 11 in first.tokens
    for _ in range(40):
        union.observe(verdict_of(union.propose([3]), [1, 2, 3, 4, 5]))
    assert union.propose([3]).tokens == (3, 1, 2, 3, 4)
    union.begin([3])
    assert union.propose([3]) == first


def test_guesses_that_found_no_place_are_learned_from_too() -> None:
    """What comes next is known whether or not it was read: else what is once left out could never come back."""
    union = UnionDrafter({"a": Scripted([11], [0], [0.6]), "b": Scripted([1], [0], [0.2])}, num_nodes=1)
    union.begin([3])
    assert union.propose([3]).tokens == (3, 11)
    for _ in range(20):
        union.observe(verdict_of(union.propose([3]), [1, 2]))
    assert union.propose([3]).tokens == (3, 1)


def test_that_two_always_agree_is_learned() -> None:
    """Twins are right half of the time: two of them are no better than one, whatever noisy-or says."""
    twins: dict[str, Drafter] = {name: Scripted([5], [0], [0.5]) for name in ("a", "b")}
    union = UnionDrafter(twins, num_nodes=1)
    union.begin([3])
    for step in range(400):
        union.observe(verdict_of(union.propose([3]), [5 if step % 2 else 6, 7]))
    union.propose([3])
    assert union.node_probabilities is not None
    assert union.node_probabilities[1] == pytest.approx(0.5, abs=0.02)


def test_a_streak_of_right_guesses_is_trusted_more() -> None:
    chain = Scripted([1, 2], [0, 1])
    union = UnionDrafter({"chain": chain}, num_nodes=2)
    chances = []
    for wanted in ([1, 2, 9], [9, 9, 9]):
        union.begin([3])
        for _ in range(3):
            union.observe(verdict_of(union.propose([3]), wanted))
        union._chances.clear()
        union.propose([3])
        assert union.node_probabilities is not None
        chances.append(union.node_probabilities[1])
    assert chances[0] > chances[1]


def test_every_drafter_is_begun_and_told_and_their_forwards_are_summed() -> None:
    drafters = {"a": Scripted([5], [0]), "b": Scripted([6], [0])}
    union = UnionDrafter(dict(drafters))
    union.begin([3])
    assert union.observe(verdict_of(CandidateTree((3,), (-1,)), [4])) == 4  # after prefill, before any proposal
    assert union.observe(verdict_of(union.propose([3, 4]), [5, 6])) == 4
    assert all(drafter.begun == 1 and drafter.observed == 2 for drafter in drafters.values())


def test_a_new_text_knows_nothing_of_the_last_unless_started_warm() -> None:
    for warm_start in (False, True):
        union = UnionDrafter({"a": Scripted([5], [0], [0.5])}, num_nodes=1, warm_start=warm_start)
        union.begin([3])
        for _ in range(30):
            union.observe(verdict_of(union.propose([3]), [5, 6]))
        union.begin([3])
        union.propose([3])
        assert union.node_probabilities is not None
        assert (union.node_probabilities[1] > 0.6) == warm_start


def test_what_cannot_be_built_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path)
    for drafters, message in ((["lookup"], "known: prompt_lookup"), (["recycling"] * 2, "twice"), ([], "at least one")):
        with pytest.raises(ValueError, match=message):
            UnionDrafter.from_target(target, parts={}, sampling=Sampling(), drafters=drafters)
    with pytest.raises(ValueError, match="num_nodes"):
        UnionDrafter({"a": Scripted([5], [0])}, num_nodes=0)


def test_a_draft_that_was_sampled_is_refused() -> None:
    class Sampled(Scripted):
        def propose(self, context: Sequence[int]) -> CandidateTree:
            return CandidateTree((context[-1],), (-1,), torch.ones(1, VOCABULARY))

    union = UnionDrafter({"sampled": Sampled([], [])})
    with pytest.raises(ValueError, match="'sampled' samples its draft"):
        union.propose([3])


@pytest.mark.parametrize("num_nodes", [5, 31])
def test_greedy_ids_are_the_targets_own(tmp_path: Path, num_nodes: int) -> None:
    model = save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path)
    union = UnionDrafter.from_target(
        target, parts={}, sampling=Sampling(), drafters=["prompt_lookup", "recycling"], num_nodes=num_nodes
    )
    decoder = SpeculativeDecoder(target, union)
    for prompt in ([5, 9, 3, 5, 9], list(range(3, 30))):
        generation = decoder.generate(prompt, max_new_tokens=60)
        assert list(generation.output_ids) == greedy_of(model, prompt, 60)
        assert generation.accepted_draft_tokens > 0
        assert all(step.candidates <= num_nodes for step in generation.steps)


def test_sampled_texts_are_distributed_as_plain_sampling_distributes_them(tmp_path: Path) -> None:
    drafters = {"prompt_lookup": PromptLookupDrafter(2, 1, 3), "recycling": RecyclingDrafter(6)}
    assert_samples_like_plain_sampling(tmp_path, UnionDrafter(drafters, num_nodes=6))
