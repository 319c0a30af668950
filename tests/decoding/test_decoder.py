"""The loop: whatever is drafted, what is emitted is the target's own."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from baselines.autoregressive import AutoregressiveDrafter
from decoding import CandidateTree, SpeculativeDecoder, StopStrings, TargetModel, Verdict
from tests.decoding.tiny import greedy_of, save_model

PROMPTS = [[5, 9, 3], [7], list(range(3, 40))]


class RandomTrees:
    """Proposes trees that are sometimes right: tokens of the true continuation mixed with random ones."""

    max_width = 12

    def __init__(self, truth: Sequence[int] = (), seed: int = 0) -> None:
        self.truth, self.random = list(truth), random.Random(seed)
        self.verdicts: list[Verdict] = []

    def begin(self, prompt_ids: Sequence[int]) -> None:
        self.prompt_length = len(prompt_ids)

    def propose(self, context: Sequence[int]) -> CandidateTree:
        width = self.random.randint(1, self.max_width)
        parents = [-1] + [self.random.randint(0, node - 1) for node in range(1, width)]
        tokens, depths = [context[-1]], [0]
        for node in range(1, width):
            depths.append(depths[parents[node]] + 1)
            at = len(context) - self.prompt_length + depths[node] - 1
            right = self.random.random() < 0.7 and at < len(self.truth)
            tokens.append(self.truth[at] if right else self.random.randint(3, 47))
        return CandidateTree(tuple(tokens), tuple(parents))

    def observe(self, verdict: Verdict) -> int:
        self.verdicts.append(verdict)
        return 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def model(folder: Path) -> torch.nn.Module:
    return save_model(folder)


@pytest.fixture(scope="module")
def target(folder: Path, model: torch.nn.Module) -> TargetModel:
    return TargetModel.from_pretrained(folder)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("seed", range(4))
def test_random_trees_change_nothing_but_the_number_of_steps(
    model: torch.nn.Module, target: TargetModel, prompt: list[int], seed: int
) -> None:
    truth = greedy_of(model, prompt, 40)
    drafter = RandomTrees(truth, seed)
    generation = SpeculativeDecoder(target, drafter).generate(prompt, max_new_tokens=40)
    plain = SpeculativeDecoder(target, AutoregressiveDrafter()).generate(prompt, max_new_tokens=40)
    assert list(generation.output_ids) == list(plain.output_ids) == truth
    assert generation.truncated == plain.truncated == (2 not in truth)
    assert len(plain.steps) == len(truth) - 1
    assert len(generation.steps) <= len(plain.steps)


def test_counters_add_up(model: torch.nn.Module, target: TargetModel) -> None:
    truth = greedy_of(model, PROMPTS[0], 40)
    drafter = RandomTrees(truth)
    generation = SpeculativeDecoder(target, drafter).generate(PROMPTS[0], max_new_tokens=40)
    steps = generation.steps
    assert 1 + sum(step.emitted for step in steps) == generation.num_new_tokens
    assert generation.target_forwards == 1 + len(steps)
    assert generation.draft_forwards == 3 * (1 + len(steps))  # prefill is observed too
    assert generation.candidate_tokens == sum(verdict.tree.width - 1 for verdict in drafter.verdicts)
    assert 0 < generation.accepted_draft_tokens <= generation.candidate_tokens
    assert generation.accepted_draft_tokens <= sum(len(verdict.accepted) for verdict in drafter.verdicts)
    assert generation.tokens_per_step == pytest.approx((generation.num_new_tokens - 1) / len(steps))
    assert generation.total_s == pytest.approx(generation.ttft_s + sum(step.total_s for step in steps))
    assert all(0 <= step.draft_s <= step.total_s for step in steps)


@pytest.mark.parametrize("limit", [1, 7, 40])
def test_who_watches_sees_the_text_step_by_step_and_changes_nothing(
    model: torch.nn.Module, target: TargetModel, limit: int
) -> None:
    truth = greedy_of(model, PROMPTS[0], 40)
    alone = SpeculativeDecoder(target, RandomTrees(truth)).generate(PROMPTS[0], max_new_tokens=limit)
    seen: list[tuple[int, ...]] = []
    watched = SpeculativeDecoder(target, RandomTrees(truth)).generate(
        PROMPTS[0], max_new_tokens=limit, on_step=lambda ids: seen.append(tuple(ids))
    )
    assert watched.output_ids == alone.output_ids == tuple(token for ids in seen for token in ids)
    assert [len(ids) for ids in seen] == [1, *(step.emitted for step in watched.steps)]
    assert [step.emitted for step in watched.steps] == [step.emitted for step in alone.steps]


def test_no_time_is_counted_while_somebody_watches(model: torch.nn.Module, target: TargetModel) -> None:
    started = time.perf_counter()
    generation = SpeculativeDecoder(target, AutoregressiveDrafter()).generate(
        PROMPTS[0], max_new_tokens=5, on_step=lambda ids: time.sleep(0.05)
    )
    elapsed = time.perf_counter() - started
    assert generation.total_s <= elapsed - 0.05 * (1 + len(generation.steps))


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_the_limit_is_kept_to_the_token(model: torch.nn.Module, target: TargetModel, limit: int) -> None:
    truth = greedy_of(model, PROMPTS[0], 40)
    generation = SpeculativeDecoder(target, RandomTrees(truth)).generate(PROMPTS[0], max_new_tokens=limit)
    assert list(generation.output_ids) == truth[:limit]
    assert generation.truncated


def test_a_stop_string_inside_a_step_ends_the_text_where_plain_decoding_ends_it(
    model: torch.nn.Module, target: TargetModel
) -> None:
    truth = greedy_of(model, PROMPTS[0], 40)
    stop = StopStrings(lambda ids: "".join(f"<{i}>" for i in ids), [f"<{truth[9]}><{truth[10]}>"])
    generations = [
        SpeculativeDecoder(target, drafter).generate(PROMPTS[0], max_new_tokens=40, stop=stop)
        for drafter in (AutoregressiveDrafter(), RandomTrees(truth, 1), RandomTrees(truth, 2))
    ]
    assert len({generation.output_ids for generation in generations}) == 1
    assert generations[0].num_new_tokens <= 11
    assert not any(generation.truncated for generation in generations)


def test_one_prompt_leaves_nothing_behind_for_the_next(model: torch.nn.Module, target: TargetModel) -> None:
    decoder = SpeculativeDecoder(target, AutoregressiveDrafter())
    alone = [decoder.generate(prompt, max_new_tokens=12).output_ids for prompt in PROMPTS]
    again = [decoder.generate(prompt, max_new_tokens=12).output_ids for prompt in reversed(PROMPTS)]
    assert alone == again[::-1]


@pytest.mark.parametrize(
    ("prompt", "limit", "message"),
    [([], 5, "empty"), ([3], 0, "max_new_tokens must be 1 or more"), ([3] * 500, 50, "exceed the context of 512")],
)
def test_bad_requests_are_refused(target: TargetModel, prompt: list[int], limit: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeculativeDecoder(target, AutoregressiveDrafter()).generate(prompt, max_new_tokens=limit)


def test_the_context_can_be_filled_to_its_last_token(model: torch.nn.Module, target: TargetModel) -> None:
    truth = greedy_of(model, [3] * 480, 32)
    generation = SpeculativeDecoder(target, RandomTrees(truth)).generate([3] * 480, max_new_tokens=32)
    assert list(generation.output_ids) == truth


def test_accepted_tokens_are_counted_as_a_walk_through_the_trees_counts_them(
    model: torch.nn.Module, target: TargetModel
) -> None:
    truth = greedy_of(model, PROMPTS[0], 40)
    drafter = RandomTrees(truth)
    generation = SpeculativeDecoder(target, drafter).generate(PROMPTS[0], max_new_tokens=len(truth))
    at, accepted = 1, 0
    for verdict in drafter.verdicts[1:]:  # the first is on prefill
        node, depth = 0, 0
        while children := [
            c for c in verdict.tree.children[node] if verdict.tree.tokens[c : c + 1] == (*truth[at : at + 1],)
        ]:
            node, depth, at = children[0], depth + 1, at + 1
        accepted, at = accepted + depth, at + 1
    assert generation.accepted_draft_tokens == accepted > 0


def test_a_tree_wider_than_the_decode_width_is_read_too(folder: Path, model: torch.nn.Module) -> None:
    narrow = TargetModel.from_pretrained(folder, decode_width=4)
    truth = greedy_of(model, PROMPTS[0], 30)
    assert (
        list(SpeculativeDecoder(narrow, RandomTrees(truth)).generate(PROMPTS[0], max_new_tokens=30).output_ids) == truth
    )
