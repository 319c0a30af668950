"""The draft's cache against a model that reads the whole text anew; and which drafts are refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.draft_model import DraftModel, check_same_vocabulary, common_length
from decoding import CandidateTree, TargetModel
from tests.decoding.tiny import SHAPE, logits_of, save_model

PROMPT = [5, 9, 3, 17, 40, 9, 3, 30, 31]
SHORTLIST = [0, 2, 5, 9, 11, 17, 30, 31, 40]
CLOSE = {"atol": 2e-4, "rtol": 1e-3}


def load(folder: Path, **options: Any) -> DraftModel:
    return DraftModel.from_pretrained(folder, target=TargetModel.from_pretrained(folder), **options)


def test_every_node_reads_as_its_own_text_would_whatever_came_before(tmp_path: Path) -> None:
    """Random rounds: draft a few tokens, have some of them accepted, sync, read; the text is always the reference."""
    model, chance = save_model(tmp_path), random.Random(0)
    draft = load(tmp_path)
    for text in range(4):
        context = PROMPT[: chance.randint(1, 9)] * (1 + 9 * (text % 2))
        draft.begin()
        for _ in range(12):
            draft.sync(context)
            drafted: list[int] = []
            for _ in range(chance.randint(1, 5)):
                logits = draft.read(CandidateTree.chain([context[-1], *drafted][-1], ())).logits[0]
                torch.testing.assert_close(logits, logits_of(model, [*context, *drafted]), **CLOSE)
                draft.keep([0])
                drafted.append(chance.randint(3, 47))
            context = [*context, *drafted[: chance.randint(0, len(drafted))], chance.randint(3, 47)]


def test_a_tree_can_be_read_with_tokens_missing_ahead_of_it_and_kept_in_part(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    draft = load(tmp_path)
    draft.begin()
    draft.sync(PROMPT)
    tree = CandidateTree(tokens=(PROMPT[-1], 20, 21, 22), parents=(-1, 0, 0, 2))
    logits = draft.read(tree).logits
    for node, tail in ((0, []), (1, [20]), (2, [21]), (3, [21, 22])):
        torch.testing.assert_close(logits[node], logits_of(model, PROMPT + tail), **CLOSE)
    draft.keep([0, 2, 3])
    logits = draft.read(CandidateTree.chain(33, ())).logits
    torch.testing.assert_close(logits[0], logits_of(model, [*PROMPT, 21, 22, 33]), **CLOSE)
    draft.keep([0])
    with pytest.raises(ValueError, match="no tree"):
        draft.keep([0])


def test_after_partial_acceptance_the_cache_is_a_fresh_prefills_and_nothing_is_read_twice(tmp_path: Path) -> None:
    save_model(tmp_path)
    draft, fresh = load(tmp_path), load(tmp_path)
    draft.begin()
    draft.sync([*PROMPT, 0])
    for token in (7, 8, 9):
        draft.read(CandidateTree.chain(token, ()))
        draft.keep([0])
    before = draft.num_forwards
    draft.sync(text := [*PROMPT, 7, 8, 20])  # 9 was rejected, 20 is the bonus
    ours = draft.read(CandidateTree.chain(20, ()))
    assert draft.num_forwards == before + 1
    fresh.begin()
    fresh.sync([1] * 20)  # another text, taken back as a whole
    fresh.sync(text)
    theirs = fresh.read(CandidateTree.chain(20, ()))
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)
    assert ours.hidden.shape == (1, SHAPE["hidden_size"])


def test_a_text_may_outgrow_the_rows_set_aside_for_it(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    draft = load(tmp_path)
    draft.begin(capacity=10)
    context = [3 + i % 40 for i in range(250)]
    for length in (240, 250, 258, 300):
        context = [3 + i % 40 for i in range(length)]
        draft.sync(context)
        logits = draft.read(CandidateTree.chain(context[-1], ())).logits[0]
        torch.testing.assert_close(logits, logits_of(model, context), **CLOSE)


@pytest.mark.parametrize("member", ["llama", "llama-untied-scaled"])
def test_a_shortlist_leaves_the_rows_of_its_tokens(tmp_path: Path, member: str) -> None:
    model = save_model(tmp_path, member)
    (tmp_path / "shortlist.json").write_text(json.dumps(SHORTLIST))
    short, whole = load(tmp_path), load(tmp_path, use_shortlist=False)
    for draft, wanted in ((short, logits_of(model, PROMPT)[SHORTLIST]), (whole, logits_of(model, PROMPT))):
        draft.begin()
        draft.sync(PROMPT)
        torch.testing.assert_close(draft.read(CandidateTree.chain(PROMPT[-1], ())).logits[0], wanted, **CLOSE)
    assert [short.token_of(row) for row in range(len(SHORTLIST))] == SHORTLIST
    assert whole.token_of(7) == 7
    row_bytes = 4 * SHAPE["hidden_size"]
    saved = whole.model.weights.weight_bytes - short.model.weights.weight_bytes
    assert saved == (SHAPE["vocab_size"] - len(SHORTLIST)) * row_bytes
    spread = short.over_vocabulary(torch.arange(1.0, 10.0)[None])
    assert spread.shape == (1, SHAPE["vocab_size"])
    assert spread[0, SHORTLIST].tolist() == list(range(1, 10))
    assert spread.sum() == 45


@pytest.mark.parametrize("bad", [[], [3, 2], [3, 3], [0, 48], [-1, 3], ["a"], {"a": 1}, [True, 2]])
def test_a_bad_shortlist_is_refused(tmp_path: Path, bad: Any) -> None:
    save_model(tmp_path)
    (tmp_path / "shortlist.json").write_text(json.dumps(bad))
    with pytest.raises(ValueError, match=r"shortlist\.json is not an ascending list of token ids below 48"):
        load(tmp_path)


def tokenizer(folder: Path, **changes: Any) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]} | changes
    content = {"model": model, "added_tokens": [{"id": 3, "content": changes.get("end", "<end>"), "special": True}]}
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changes", [{"vocab": {"a": 1, "b": 0, "ab": 2}}, {"merges": [["b", "a"]]}, {"end": "<stop>"}, {"merges": []}]
)
def test_a_draft_with_another_tokenizer_of_the_same_size_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    for name in ("target", "draft"):
        save_model(tmp_path / name)
        tokenizer(tmp_path / name)
    target = TargetModel.from_pretrained(tmp_path / "target")
    DraftModel.from_pretrained(tmp_path / "draft", target=target)
    tokenizer(tmp_path / "draft", merges=["a b"])  # the older notation of the same merge
    DraftModel.from_pretrained(tmp_path / "draft", target=target)
    tokenizer(tmp_path / "draft", **changes)
    with pytest.raises(ValueError, match=r"tokenizer of the draft model in .*draft is not the target's"):
        DraftModel.from_pretrained(tmp_path / "draft", target=target)
    (tmp_path / "draft" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="cannot be compared"):
        DraftModel.from_pretrained(tmp_path / "draft", target=target)


def test_a_draft_with_another_number_of_tokens_or_none_at_all_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "target")
    larger = save_model(tmp_path / "draft")
    larger.resize_token_embeddings(50)
    larger.save_pretrained(tmp_path / "draft")
    target = TargetModel.from_pretrained(tmp_path / "target")
    with pytest.raises(ValueError, match="has 50 tokens, the target 48"):
        DraftModel.from_pretrained(tmp_path / "draft", target=target)
    with pytest.raises(ValueError, match=r"there is no draft model in .*nowhere"):
        DraftModel.from_pretrained(tmp_path / "nowhere", target=target)


@pytest.mark.parametrize("sizes", [(48, 50), (50, 48)])
def test_vocabularies_may_be_padded_to_different_sizes(tmp_path: Path, sizes: tuple[int, int]) -> None:
    """As those of one family's models are. What only one of them has is never drafted, and is read as some token."""
    for name, size in zip(("target", "draft"), sizes, strict=True):
        model = save_model(tmp_path / name, "llama-untied-scaled")
        model.resize_token_embeddings(size)
        model.save_pretrained(tmp_path / name)
        tokenizer(tmp_path / name)
    target = TargetModel.from_pretrained(tmp_path / "target")
    draft = DraftModel.from_pretrained(tmp_path / "draft", target=target)
    assert draft.vocab_size == sizes[0]
    draft.begin()
    draft.sync([*PROMPT * 3, sizes[0] - 1, 5])
    logits = draft.read(CandidateTree.chain(5, ())).logits
    known = sizes[0] - 1 if sizes[0] <= sizes[1] else 0
    reference = logits_of(model, [*PROMPT * 3, known, 5])[:48]
    torch.testing.assert_close(logits[0], reference, **CLOSE)
    spread = draft.over_vocabulary(logits.softmax(-1))
    assert spread.shape == (1, sizes[0])
    assert float(spread.sum()) == pytest.approx(1)
    assert draft.token_of(47) == 47
    with pytest.raises(ValueError, match=f"has {sizes[1]} tokens, the target {sizes[0]}"):
        check_same_vocabulary(tmp_path / "draft", target_folder=tmp_path / "target", vocab_size=sizes[0], padding=False)


def test_a_draft_runs_in_the_targets_dtype(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = TargetModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    draft = DraftModel.from_pretrained(tmp_path, target=target)
    assert (draft.model.dtype, draft.model.device, draft.model.decode_width) == (torch.bfloat16, target.device, None)


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 4, 3], 1), ([2], [1], 0), ([1, 2], [1, 2], 2)],
)
def test_common_length(first: list[int], second: list[int], length: int) -> None:
    assert common_length(first, second) == common_length(second, first) == length
