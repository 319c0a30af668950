"""Ouroboros: lossless with any draft model; what verification teaches the pool, worked out by hand; warm and cold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from baselines.autoregressive import AutoregressiveDrafter
from baselines.draft_model import DraftModel
from baselines.ouroboros import OuroborosDrafter
from decoding import CandidateTree, Sampling, SpeculativeDecoder, TargetModel, Verdict
from tests.baselines.test_lookahead import same_distribution, sampled_texts
from tests.decoding.tiny import greedy_of, save_model

PROMPTS = [[5, 9, 3], [7], list(range(3, 40))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("target")


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return save_model(folder)


@pytest.fixture(scope="module")
def target(folder: Path, model: PreTrainedModel) -> TargetModel:
    return TargetModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def drafts(folder: Path, model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Draft models that are often right, never wrong, and wrong all the time."""
    close, other = tmp_path_factory.mktemp("close"), tmp_path_factory.mktemp("other")
    save_model(other, seed=1)
    torch.manual_seed(0)
    nearly = type(model).from_pretrained(folder)
    with torch.no_grad():
        for parameter in nearly.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    nearly.save_pretrained(close)
    return {"close": close, "same": folder, "other": other}


def drafter_of(target: TargetModel, draft: Path, **options: Any) -> OuroborosDrafter:
    return OuroborosDrafter.from_target(target, parts={"draft": draft}, sampling=Sampling(), **options)


@pytest.mark.parametrize("draft", ["close", "same", "other"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_draft_tokens": 1, "window": 1, "ngram": 2, "guesses": 1, "num_suffixes": 1},
        {"num_draft_tokens": 9, "window": 3, "ngram": 3, "num_suffixes": 2, "max_nodes": 0},
        {"num_draft_tokens": 3, "ngram": 5, "num_suffixes": 0, "pool_from_prompt": False},
        {"warm_start": True, "max_nodes": 8, "num_draft_tokens": 7},
    ],
)
def test_greedy_ids_are_the_targets_own(
    model: PreTrainedModel,
    target: TargetModel,
    drafts: dict[str, Path],
    draft: str,
    prompt: list[int],
    options: dict[str, Any],
) -> None:
    decoder = SpeculativeDecoder(target, drafter_of(target, drafts[draft], **options))
    for _ in range(1 + options.get("warm_start", False)):  # the second time a warm pool has something in it
        generation = decoder.generate(prompt, max_new_tokens=24)
        assert list(generation.output_ids) == greedy_of(model, prompt, 24)
        assert generation.draft_forwards > 0
        assert all(step.candidates < decoder.drafter.max_width for step in generation.steps)


def test_a_draft_model_that_is_always_right_is_accepted_whole(
    model: PreTrainedModel, target: TargetModel, drafts: dict[str, Path]
) -> None:
    decoder = SpeculativeDecoder(target, drafter_of(target, drafts["same"], num_draft_tokens=5, num_suffixes=0))
    truth = greedy_of(model, PROMPTS[2], 40)
    generation = decoder.generate(PROMPTS[2], max_new_tokens=len(truth))
    assert all(step.emitted >= 6 for step in generation.steps[:-1])


def test_drafting_takes_fewer_forward_passes_than_tokens_where_the_text_repeats_itself(
    model: PreTrainedModel, target: TargetModel, drafts: dict[str, Path]
) -> None:
    prompt = [4, 5, 6, *greedy_of(model, [4, 5, 6], 60, end=-1)]
    drafter = drafter_of(target, drafts["same"], num_draft_tokens=6)
    generation = SpeculativeDecoder(target, drafter).generate(prompt, max_new_tokens=60)
    assert generation.draft_forwards - generation.prefill_draft_forwards < 0.7 * generation.num_new_tokens
    without = drafter_of(target, drafts["same"], num_draft_tokens=6, num_suffixes=0)
    shorter = SpeculativeDecoder(target, without).generate(prompt, max_new_tokens=60)
    assert generation.tokens_per_step > shorter.tokens_per_step  # the suffixes are accepted, too


class FixedDraft(OuroborosDrafter):
    """Drafts what it is told."""

    told: tuple[int, ...] = ()

    def _draft(self, context: Any) -> list[int]:
        return list(self.told)


@pytest.fixture
def fixed(target: TargetModel, drafts: dict[str, Path]) -> FixedDraft:
    draft = DraftModel.from_pretrained(drafts["same"], target=target)
    drafter = FixedDraft(draft, num_draft_tokens=5, ngram=3, num_suffixes=2, pool_from_prompt=False)
    drafter.begin([1, 2])
    return drafter


def verdict_of(tree: CandidateTree, choices: dict[int, int], path: tuple[int, ...]) -> Verdict:
    """A target that chose ``choices`` after the nodes named, and 0 after the others."""
    row = tuple(choices.get(node, 0) for node in range(tree.width))
    return Verdict(tree, path, row[path[-1]], row, torch.zeros(tree.width, 48))


def test_a_rejected_draft_leaves_the_phrases_on_which_it_agreed_with_the_target(fixed: FixedDraft) -> None:
    fixed.told = (10, 11, 12, 13, 14)
    tree = fixed.propose([1, 2])
    assert tree.tokens == (2, 10, 11, 12, 13, 14)
    # 10 is accepted, 11 is not (20 is right). After the rejected 11 the target says 12, then 13, then 21, then 22.
    fixed.observe(verdict_of(tree, {0: 10, 1: 20, 2: 12, 3: 13, 4: 21, 5: 22}, (0, 1)))
    assert fixed.pool.look_up(11) == [(12, 13)]
    assert fixed.pool.look_up(12) == [(13, 21)]
    assert fixed.pool.look_up(13) == []  # the draft's 14 is not the 21 that the target said after 13
    assert fixed.pool.look_up(10) == []  # accepted: nothing to learn
    assert len(fixed.pool) == 2


@pytest.mark.parametrize("path", [(0, 1, 2, 3, 4), (0, 1)])
def test_suffixes_are_replaced_by_what_the_target_said_whether_the_draft_was_right_or_not(
    fixed: FixedDraft, path: tuple[int, ...]
) -> None:
    fixed.told = (10, 11)
    fixed.pool.add(11, (33, 34))
    fixed.pool.add(11, (30, 31))
    fixed.pool.add(11, (30, 32))
    tree = fixed.propose([1, 2])
    assert tree.tokens == (2, 10, 11, 30, 32, 31)  # the two newest, which share the 30
    assert tree.parents == (-1, 0, 1, 2, 3, 3)
    fixed.observe(verdict_of(tree, {0: 10, 1: 11, 2: 30, 3: 32, 4: 9}, path))
    # Both phrases become 30, then what the target says after 30. The third was not verified and stays.
    assert fixed.pool.look_up(11) == [(30, 32), (33, 34)]


def test_an_accepted_phrase_is_refreshed(fixed: FixedDraft) -> None:
    fixed.told = (11,)
    for phrase in [(30, 32), (33, 34)]:
        fixed.pool.add(11, phrase)
    tree = fixed.propose([1, 2])
    assert tree.tokens == (2, 11, 33, 34, 30, 32)
    fixed.observe(verdict_of(tree, {0: 11, 1: 30, 2: 40, 4: 32, 5: 7}, (0, 1, 4, 5)))
    assert fixed.pool.look_up(11) == [(30, 40), (30, 32)]


def test_the_pool_of_a_warm_start_outlives_the_prompt_and_that_of_a_cold_start_does_not(
    target: TargetModel, drafts: dict[str, Path]
) -> None:
    sizes = {}
    for warm in (True, False):
        drafter = drafter_of(target, drafts["close"], warm_start=warm)
        SpeculativeDecoder(target, drafter).generate(PROMPTS[2], max_new_tokens=30)
        before = len(drafter.pool)
        assert before > 0
        drafter.begin(PROMPTS[0])
        sizes[warm] = len(drafter.pool) / before
    assert sizes == {True: 1.0, False: 0.0}


def test_a_cold_start_makes_each_prompts_steps_independent_of_the_last(
    target: TargetModel, drafts: dict[str, Path]
) -> None:
    decoder = SpeculativeDecoder(target, drafter_of(target, drafts["close"]))
    runs = [decoder.generate(PROMPTS[i], max_new_tokens=30) for i in (0, 2, 0)]
    steps = [[(step.emitted, step.candidates, step.draft_forwards) for step in run.steps] for run in runs]
    assert steps[0] == steps[2]
    assert runs[0].draft_forwards == runs[2].draft_forwards


def test_the_context_can_be_filled_to_its_last_token(
    model: PreTrainedModel, target: TargetModel, drafts: dict[str, Path]
) -> None:
    decoder = SpeculativeDecoder(target, drafter_of(target, drafts["close"]))
    generation = decoder.generate([3] * 490, max_new_tokens=22)
    assert list(generation.output_ids) == greedy_of(model, [3] * 490, 22)


def test_a_draft_over_a_shortlist_changes_nothing_but_the_number_of_steps(
    model: PreTrainedModel, target: TargetModel, drafts: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(drafts["close"], tmp_path / "draft")
    (tmp_path / "draft/shortlist.json").write_text(str(list(range(0, 48, 2))))
    drafter = drafter_of(target, tmp_path / "draft", pool_from_prompt=False)
    generation = SpeculativeDecoder(target, drafter).generate(PROMPTS[2], max_new_tokens=40)
    assert list(generation.output_ids) == greedy_of(model, PROMPTS[2], 40)
    drafter.begin(PROMPTS[0])
    assert all(token % 2 == 0 for token in drafter._draft([*PROMPTS[0], 4]))


def test_nothing_is_drafted_behind_an_end_token(target: TargetModel, drafts: dict[str, Path]) -> None:
    drafter = drafter_of(target, drafts["same"], num_draft_tokens=8)
    drafter.begin(PROMPTS[0])
    drafter.end_token_ids = frozenset()
    free = drafter._draft(PROMPTS[0])
    assert len(free) >= 8
    end = next(token for token in free if token != PROMPTS[0][-1])
    drafter.end_token_ids = frozenset({end})
    drafter.begin(PROMPTS[0])
    assert drafter._draft(PROMPTS[0]) == free[: free.index(end) + 1]
    assert drafter._draft([*PROMPTS[0], end]) == []


@pytest.mark.parametrize(
    "options",
    [{"num_draft_tokens": 0}, {"num_draft_tokens": 16}, {"num_suffixes": -1}, {"num_suffixes": 6}, {"window": 0}],
)
def test_options_out_of_range_are_refused_by_name(
    target: TargetModel, drafts: dict[str, Path], options: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        drafter_of(target, drafts["same"], **options)


def test_sampled_texts_are_distributed_as_plain_sampling_distributes_them(
    model: PreTrainedModel, target: TargetModel, drafts: dict[str, Path]
) -> None:
    prompt = [4, 5, 6, *greedy_of(model, [4, 5, 6], 20)]
    plain, _ = sampled_texts(target, AutoregressiveDrafter(), prompt)
    texts, accepted = sampled_texts(target, drafter_of(target, drafts["close"], num_draft_tokens=2), prompt)
    assert accepted > 100
    assert same_distribution(plain, texts) > 1e-3
