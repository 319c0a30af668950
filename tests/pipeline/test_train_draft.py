"""The draft: layers of the target, a loss over a shortlist, and agreement counted as a decoder would meet it."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from pipeline import train_draft
from pipeline.draft_objective import (
    IGNORED,
    DraftObjective,
    agreements,
    chosen_layers,
    cut_draft,
    measured,
    tokens_per_step,
)
from pipeline.errors import UserError
from pipeline.train_draft import examples, read_text, shortlist_of
from tests.decoding.tiny import FAMILY, logits_of, save_model


@pytest.fixture
def target(tmp_path: Path):
    return save_model(tmp_path / "model")


def rows_of(count: int, split: str = "train", seed: int = 0) -> list[dict]:
    """Answers with a rule that can be learned: each token is followed by the next one."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        first = rng.randrange(5, 20)
        output = list(range(first + 3, first + 3 + rng.randrange(4, 12)))
        prompt = [1, first, first + 1, first + 2]
        rows.append({"source": "ab"[number % 2], "split": split, "prompt_ids": prompt, "output_ids": output})
    return rows


def given_of(folder: Path, **changes) -> argparse.Namespace:
    text = folder / "text.jsonl"
    rows = rows_of(120) + rows_of(20, "validation", seed=1)
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "model" / "tokenizer.json").write_text("{}")
    values = {"layers": [1], "epochs": 6, "shortlist_size": 40, "prompt_tokens": 192}
    values |= {"tokens_per_batch": 4096, "seed": 0}
    places = {"model": folder / "model", "text": text, "output": folder / "draft"}
    return argparse.Namespace(**values | places | changes)


@pytest.mark.parametrize("member", FAMILY)
def test_any_family_can_be_cut(tmp_path: Path, member: str) -> None:
    """Qwen's configs name the attention of each layer, of which a draft has fewer."""
    whole = save_model(tmp_path, member)
    draft = cut_draft(whole, [1])
    assert draft.config.num_hidden_layers == len(draft.model.layers) == 1
    assert type(draft) is type(whole)
    draft.save_pretrained(tmp_path / "draft")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "draft").config.num_hidden_layers == 1


def test_all_layers_are_the_target_itself(target) -> None:
    same = cut_draft(target, [0, 1])
    assert torch.equal(logits_of(same, [1, 7, 9]), logits_of(target, [1, 7, 9]))
    swapped = cut_draft(target, [1, 0])
    assert not torch.allclose(logits_of(swapped, [1, 7, 9]), logits_of(target, [1, 7, 9]))
    with pytest.raises(UserError, match="layers: 2, but the target has layers 0 to 1"):
        cut_draft(target, [0, 2])


def test_by_default_it_is_the_first_two_layers_and_the_last_of_any_target() -> None:
    found = [chosen_layers(None, total) for total in (30, 28, 3, 2, 1)]
    assert found == [[0, 1, 29], [0, 1, 27], [0, 1, 2], [0, 1], [0]]
    assert chosen_layers([2, 0], 3) == [2, 0]


def test_a_layer_that_the_target_has_not_is_told_before_the_target_is_loaded(
    target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = given_of(tmp_path, layers=[0, 29])
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match="layers: 29, but the target has layers 0 to 1"):
        train_draft.train_draft(given)


def test_the_shortlist_is_the_most_frequent_and_the_ends() -> None:
    rows = [{"output_ids": [9, 9, 9, 4, 4, 7]}, {"output_ids": [30, 2]}]
    assert shortlist_of(rows, 3, [2]) == [2, 4, 9]
    assert shortlist_of(rows, 100, [2]) == [2, 4, 7, 9, 30]
    assert shortlist_of(rows, 3, [2, 3]) == [2, 3, 9]


def test_the_loss_is_that_of_output_tokens_one_text_at_a_time(target) -> None:
    shortlist, rows = list(range(2, 40)), rows_of(9)
    objective = DraftObjective(cut_draft(target, [0, 1]), shortlist).eval()
    batches = examples(rows, shortlist, prompt_tokens=192, tokens_per_batch=4096, seed=0)
    counts = [int((batch["labels"] != IGNORED).sum()) for batch in batches]
    found = sum(objective(**batch)["loss"].item() * count for batch, count in zip(batches, counts, strict=True))
    wanted = 0.0
    for row in rows:
        for place, token in enumerate(row["output_ids"]):
            logits = logits_of(target, row["prompt_ids"] + row["output_ids"][:place])[shortlist]
            wanted += float(F.cross_entropy(logits, torch.tensor(shortlist.index(token))))
    assert sum(counts) == sum(len(row["output_ids"]) for row in rows)
    assert found == pytest.approx(wanted, rel=1e-4)


def test_tokens_off_the_shortlist_are_not_learned(target) -> None:
    (batch,) = examples(
        [{"prompt_ids": [1, 5], "output_ids": [7, 45, 8]}], [7, 8], prompt_tokens=192, tokens_per_batch=4096, seed=0
    )
    assert batch["input_ids"].tolist() == [[1, 5, 7, 45]]
    assert batch["labels"].tolist() == [[IGNORED, 0, IGNORED, 1]]


def test_of_a_prompt_only_its_last_tokens_are_seen() -> None:
    row = {"prompt_ids": [1, 5, 6, 9], "output_ids": [7, 8]}
    (batch,) = examples([row], [7, 8], prompt_tokens=2, tokens_per_batch=4096, seed=0)
    assert batch["input_ids"].tolist() == [[6, 9, 7]]
    assert batch["labels"].tolist() == [[IGNORED, 0, 1]]


def test_agreement_is_with_the_first_choice_within_the_shortlist(target) -> None:
    shortlist, rows = list(range(2, 30)), rows_of(6)
    found = agreements(DraftObjective(cut_draft(target, [0]), shortlist), rows, shortlist)
    draft = cut_draft(target, [0])
    for row, agreed in zip(rows, found, strict=True):
        for place, token in enumerate(row["output_ids"]):
            logits = logits_of(draft, row["prompt_ids"] + row["output_ids"][:place])
            assert agreed[place] == (shortlist[int(logits[shortlist].argmax())] == token)


def test_tokens_a_step_are_those_of_a_chain() -> None:
    # Prefill gives the first; then 2 accepted and the target's own, none and its own, 1 accepted and the text ends.
    agreed = [False, True, True, False, False, True]
    assert tokens_per_step([agreed], 8) == pytest.approx(5 / 3)
    assert tokens_per_step([agreed], 1) == pytest.approx(5 / 4)  # 1 and its own, its own, its own, 1
    assert tokens_per_step([[True] * 10], 2) == 3
    assert tokens_per_step([[False] * 10], 4) == 1


def test_training_learns_and_saves_a_model_that_loads(target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_draft, "LEARNING_RATE", 1e-2)
    given = given_of(tmp_path, epochs=10, tokens_per_batch=128)
    train_draft.train_draft(given)
    record = json.loads((given.output / "draft.json").read_text())
    assert record["agreement"] > max(0.5, record["agreement_before"])
    assert set(record["agreement_by_source"]) == {"a", "b"}
    assert (given.output / "tokenizer.json").is_file()
    assert (given.output / "loss.csv").read_text().startswith("step,epoch,loss,eval_loss,learning_rate\n")
    assert not list(given.output.rglob("*.bin"))
    shortlist = json.loads((given.output / "shortlist.json").read_text())
    assert shortlist == sorted(shortlist)
    assert 2 in shortlist
    loaded = AutoModelForCausalLM.from_pretrained(given.output, dtype=torch.float32)
    assert loaded.config.num_hidden_layers == 1
    held_out = [row for row in read_text(given.text) if row["split"] == "validation"]
    again = measured(DraftObjective(loaded, shortlist), held_out, shortlist)
    assert again["agreement"] == pytest.approx(record["agreement"], abs=0.05)  # saved in bfloat16
    assert torch.equal(loaded.model.embed_tokens.weight, target.model.embed_tokens.weight.bfloat16().float())
    assert not (tmp_path / ".draft.work").exists()


def test_a_killed_training_goes_on_at_its_checkpoint(target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_draft, "CHECKPOINT_STEPS", 2)
    whole = given_of(tmp_path, tokens_per_batch=256, output=tmp_path / "whole")
    train_draft.train_draft(whole)
    given = given_of(tmp_path, tokens_per_batch=256)

    real = train_draft.examples

    def broken(*arguments):
        """Let the training fail in its second epoch."""
        batches = real(*arguments)

        class Breaking(list):
            reads = 0

            def __getitem__(self, index):
                Breaking.reads += 1
                if Breaking.reads > len(self) + 3:
                    raise KeyboardInterrupt
                return super().__getitem__(index)

        return Breaking(batches)

    monkeypatch.setattr(train_draft, "examples", broken)
    with pytest.raises(KeyboardInterrupt):
        train_draft.train_draft(given)
    assert not given.output.exists()
    assert list((tmp_path / ".draft.work" / "checkpoints").glob("checkpoint-*"))
    monkeypatch.setattr(train_draft, "examples", real)
    train_draft.train_draft(given)
    losses = [(folder / "loss.csv").read_text() for folder in (whole.output, given.output)]
    assert losses[0].splitlines()[-1].split(",")[0] == losses[1].splitlines()[-1].split(",")[0]
    weights = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (whole.output, given.output)]
    assert all(torch.allclose(weights[0][name].float(), weights[1][name].float(), atol=1e-2) for name in weights[0])


def test_text_without_a_split_or_with_a_reason_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows_of(3)))
    with pytest.raises(UserError, match="no answers of the split 'validation'"):
        read_text(text)
    text.write_text('{"error": "no such model"}\n')
    with pytest.raises(UserError, match="no such model"):
        read_text(text)
