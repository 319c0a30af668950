"""The assisted peer emits the target's own ids, counts what both models did, and carries nothing from text to text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.transformers_assisted import TransformersAssisted
from baselines.transformers_generate import load_model
from decoding import Sampling, StopStrings
from tests.decoding.tiny import greedy_of, save_model

PROMPTS = [[5, 9, 3, 5, 9], list(range(3, 30)) * 2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    save_model(root / "target")
    save_model(root / "random", seed=7)
    near = save_model(root / "near")
    with torch.no_grad():
        for parameter in near.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    near.save_pretrained(root / "near")
    return {name: root / name for name in ("target", "random", "near")}


def build(folders: dict[str, Path], draft: str, **options: Any) -> TransformersAssisted:
    return TransformersAssisted.from_pretrained(folders["target"], dtype=torch.float32, draft=folders[draft], **options)


def truth_of(folders: dict[str, Path], prompt: list[int]) -> list[int]:
    return greedy_of(load_model(folders["target"], torch.float32, "cpu"), prompt, 50)


def test_what_transformers_imports_on_its_way_is_there_before_the_clock_starts(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[str] = []
    monkeypatch.setattr("baselines.transformers_assisted.import_module", imported.append)
    build(folders, "near")
    assert imported == ["sklearn.metrics"]


@pytest.mark.parametrize("options", [{}, {"num_assistant_tokens": 3, "assistant_confidence_threshold": 0.4}])
@pytest.mark.parametrize("draft", ["target", "random", "near"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_the_models_greedy_ones(
    folders: dict[str, Path], draft: str, prompt: list[int], options: dict[str, Any]
) -> None:
    peer = build(folders, draft, **options)
    generation = peer.generate(prompt, max_new_tokens=50)
    assert list(generation.output_ids) == truth_of(folders, prompt)


@pytest.mark.parametrize("draft", ["target", "near", "random"])
def test_without_options_it_drafts_as_transformers_does_by_itself(folders: dict[str, Path], draft: str) -> None:
    """Against ``generate`` as a user calls it: the rows of every forward pass of both models, in order."""
    logs: list[list[tuple[str, int]]] = []

    def log_of(peer: TransformersAssisted) -> None:
        log: list[tuple[str, int]] = []
        for name, model in (("target", peer.model), ("draft", peer.assistant)):
            model.register_forward_pre_hook(
                lambda module, args, kwargs, name=name: log.append((name, kwargs["input_ids"].shape[1])),
                with_kwargs=True,
            )
        logs.append(log)

    ours, theirs = build(folders, draft), build(folders, draft)
    for peer in (ours, theirs):
        log_of(peer)
    generation = ours.generate(PROMPTS[1], max_new_tokens=50)
    prompt = torch.tensor([PROMPTS[1]])
    theirs.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), assistant_model=theirs.assistant, max_new_tokens=50
    )
    assert logs[0] == logs[1]
    assert generation.num_new_tokens > 1


@pytest.mark.parametrize("draft", ["target", "near", "random"])
def test_counters_are_those_of_the_two_models(folders: dict[str, Path], draft: str) -> None:
    """Against a log of every forward pass, in order: the rows that the target read and the draft's passes before it."""
    peer = build(folders, draft, num_assistant_tokens=4)
    log: list[tuple[str, int]] = []
    for name, model in (("target", peer.model), ("draft", peer.assistant)):
        model.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: log.append((name, kwargs["input_ids"].shape[1])), with_kwargs=True
        )
    generation = peer.generate(PROMPTS[0], max_new_tokens=30)
    at = [i for i, (name, _) in enumerate(log) if name == "target"]
    drafts = [end - start - 1 for start, end in zip([-1, *at[:-1]], at, strict=True)]
    rows = [log[i][1] for i in at]
    assert generation.prefill_draft_forwards == drafts[0] > 0
    assert [step.draft_forwards for step in generation.steps] == drafts[1:]
    assert generation.draft_forwards == sum(drafts)
    assert generation.prefill_candidates == rows[0] - len(PROMPTS[0])
    assert [step.candidates for step in generation.steps] == [count - 1 for count in rows[1:]]
    assert generation.target_forwards == len(at)
    emitted = 1 + generation.prefill_accepted + sum(step.emitted for step in generation.steps)
    assert emitted == generation.num_new_tokens
    assert all(0 < step.draft_s < step.total_s for step in generation.steps if step.draft_forwards)


def test_the_target_as_its_own_draft_is_always_right(folders: dict[str, Path]) -> None:
    peer = build(folders, "target", num_assistant_tokens=4, assistant_confidence_threshold=0.0)
    # An end token that does not come; not none at all: transformers would mask the padding token out of the text.
    peer.end_token_ids = frozenset([47])
    peer.model.generation_config.eos_token_id = peer.model.generation_config.pad_token_id = 47
    generation = peer.generate(PROMPTS[0], max_new_tokens=25)
    assert [step.emitted for step in generation.steps] == [5] * 4
    assert [step.accepted for step in generation.steps] == [4] * 4
    assert generation.accepted_draft_tokens == generation.candidate_tokens == 20


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_nothing_is_carried_from_one_prompt_to_the_next(folders: dict[str, Path], threshold: float) -> None:
    def counts(peer: TransformersAssisted, prompt: list[int]) -> list[tuple[int, int]]:
        steps = peer.generate(prompt, max_new_tokens=40).steps
        return [(step.candidates, step.draft_forwards) for step in steps]

    options = {"num_assistant_tokens": 5, "assistant_confidence_threshold": threshold}
    used = build(folders, "near", **options)
    for prompt in (*PROMPTS, PROMPTS[0]):
        assert counts(used, prompt) == counts(build(folders, "near", **options), prompt)
    assert max(candidates for candidates, _ in counts(used, PROMPTS[0])) <= 5


def test_a_stop_string_ends_it_where_it_ends_the_others(folders: dict[str, Path]) -> None:
    peer = build(folders, "target")
    truth = truth_of(folders, PROMPTS[0])
    stop = StopStrings(lambda ids: "".join(f"<{i}>" for i in ids), [f"<{truth[7]}><{truth[8]}>"])
    generation = peer.generate(PROMPTS[0], max_new_tokens=50, stop=stop)
    assert list(generation.output_ids) == truth[: generation.num_new_tokens]
    assert generation.num_new_tokens <= 9
    assert not generation.truncated


def test_sampling_is_seeded(folders: dict[str, Path]) -> None:
    peer = build(folders, "near", sampling=Sampling(1.0, top_k=20))
    texts = [
        peer.generate(PROMPTS[0], max_new_tokens=20, generator=torch.Generator().manual_seed(seed)).output_ids
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_draft_that_does_not_go_with_the_target_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    larger = save_model(tmp_path)
    larger.resize_token_embeddings(50)
    larger.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 50 tokens, the target 48"):
        build(folders | {"near": tmp_path}, "near")
    with pytest.raises(ValueError, match="needs the folder of a draft model"):
        TransformersAssisted.from_pretrained(folders["target"], dtype=torch.float32)
    with pytest.raises(ValueError, match="num_assistant_tokens must be 1 or more"):
        build(folders, "near", num_assistant_tokens=0)
    with pytest.raises(ValueError, match="assistant_confidence_threshold must be between 0 and 1"):
        build(folders, "near", assistant_confidence_threshold=-1.0)
