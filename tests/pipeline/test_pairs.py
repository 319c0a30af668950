"""Training pairs: nothing evaluated among them, splits that stay, and a tokenizer to which no text is unknown."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pipeline.errors import UserError
from pipeline.pairs import pairs_of, split_file, train_tokenizer, without, write_pairs
from pipeline.tasks import verbalized
from pipeline.training_examples import Batches, read_examples
from shuffle.examples import Example, collate_causal, collate_joined, collate_pairs


def given(output: Path, **changes: Any) -> argparse.Namespace:
    values = {"task": "verbalized_plain", "path": None, "evaluated": None, "max_target_tokens": None, "output": output}
    return argparse.Namespace(**(values | {"num_pairs": 300, "vocab_size": 320, "seed": 0} | changes))


def test_no_evaluated_sentence_is_learned(tmp_path: Path) -> None:
    splits = pairs_of("verbalized_plain", None, 3000, seed=5)
    asked = {document["source"] for document in verbalized.documents("test", 400, verbalized.SEED)}
    assert not asked & {row["source"] for rows in splits.values() for row in rows}
    assert not {row["source"] for row in splits["train"]} & {row["source"] for row in splits["validation"]}
    assert len(splits["train"]) == 3000


def test_a_pair_that_is_evaluated_is_dropped_and_counted(tmp_path: Path) -> None:
    splits = {"train": [{"source": "A  dog.", "target": "x"}, {"source": "b", "target": "y"}], "validation": []}
    kept, dropped = without(splits, [{"source": "a dog."}])
    assert kept["train"] == [{"source": "b", "target": "y"}]
    assert dropped == 1


def test_long_targets_are_left_out_and_counted(tmp_path: Path) -> None:
    write_pairs(given(tmp_path / "all"))
    everything = read_examples(tmp_path / "all")
    write_pairs(given(tmp_path / "short", max_target_tokens=8))
    short = read_examples(tmp_path / "short")
    for split, examples in everything.items():
        assert short[split] == [example for example in examples if len(example.target_ids) <= 8]
    dropped = json.loads((tmp_path / "short" / "pairs.json").read_text())["dropped_since_long"]
    assert dropped == sum(len(everything[split]) - len(short[split]) for split in short) > 0
    with pytest.raises(UserError, match="--max-target-tokens 1: no pair"):
        write_pairs(given(tmp_path / "none", max_target_tokens=1))


def test_ones_own_pairs_keep_their_split_in_any_order() -> None:
    rows = [{"source": f"sentence {i}", "target": str(i)} for i in range(500)]
    splits, turned = split_file(rows), split_file(reversed(rows))
    assert 0 < len(splits["validation"]) < 40
    assert {row["source"] for row in splits["validation"]} == {row["source"] for row in turned["validation"]}


def test_the_tokenizer_gives_back_any_text_and_ends_a_prompt(tmp_path: Path) -> None:
    write_pairs(given(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in ["einundzwanzig Euro", "two thousand", "Überraschung 🎲 новый"]:
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.convert_tokens_to_ids("<sep>")
        assert ids.count(ids[-1]) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) <= 320


def test_examples_are_what_the_pairs_say(tmp_path: Path) -> None:
    write_pairs(given(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    examples = read_examples(tmp_path)
    train = [row for row in rows if row["split"] == "train"]
    assert len(examples["train"]) == len(train) == 300
    for row, example in zip(train, examples["train"], strict=True):
        assert tokenizer.decode(example.prompt_ids, skip_special_tokens=True) == row["source"]
        assert tokenizer.decode(example.target_ids, skip_special_tokens=True) == row["target"]
        assert example.target_ids[-1] == tokenizer.eos_token_id


def test_distilled_targets_replace_the_references_of_the_train_split_alone(tmp_path: Path) -> None:
    write_pairs(given(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    answers = tmp_path / "distilled.jsonl"
    lines = [json.dumps({"source": row["source"], "target": "eins"}) for row in rows if row["split"] == "train"]
    answers.write_text("\n".join(lines))
    plain, distilled = read_examples(tmp_path), read_examples(tmp_path, answers)
    assert distilled["validation"] == plain["validation"]
    assert len({example.target_ids for example in distilled["train"]}) == 1
    answers.write_text("\n".join(lines[1:]))
    with pytest.raises(UserError, match="has no target for 1 sources"):
        read_examples(tmp_path, answers)
    answers.write_text('{"error": "the twin is missing"}\n')
    with pytest.raises(UserError, match="the twin is missing"):
        read_examples(tmp_path, answers)


def test_every_epoch_has_each_example_once() -> None:
    examples = [Example(tuple(range(1, 2 + i % 30)), (1, 2)) for i in range(200)]
    batches = Batches(examples, 16, None, 0, collate_joined)
    seen = [index for batch in batches.batches for index in batch]
    assert sorted(seen) == list(range(200))
    longer = Batches(examples, 16, 40, 0, collate_joined)
    assert longer.batches[: len(batches)] == batches.batches
    assert len(longer) == 40
    assert Batches(examples, 16, None, 1, collate_joined).batches != batches.batches


def test_pools_of_like_lengths_have_each_example_once_and_less_padding() -> None:
    examples = [Example(tuple(range(1, 2 + i * 7 % 30)), (1, 2)) for i in range(200)]

    def padding(batches: Batches) -> int:
        return sum(int((batches[i]["attention_mask"] == 0).sum()) for i in range(len(batches)))

    mixed, pooled = (Batches(examples, 16, None, 0, collate_joined, length_pool=pool) for pool in (1, 4))
    assert sorted(index for batch in pooled.batches for index in batch) == list(range(200))
    assert padding(pooled) < padding(mixed) / 2
    widths = [pooled[i]["input_ids"].shape[1] for i in range(len(pooled))]
    assert widths != sorted(widths)


def test_collated_texts_lie_where_they_should() -> None:
    examples = [Example((5, 6, 7), (8, 2)), Example((9,), (3, 4, 2))]
    pairs, joined = collate_pairs(examples), collate_joined(examples)
    assert pairs["input_ids"].tolist() == [[5, 6, 7], [0, 0, 9]]
    assert pairs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert pairs["labels"].tolist() == [[8, 2, -100], [3, 4, 2]]
    assert joined["input_ids"].tolist() == [[5, 6, 7, 8, 2], [9, 3, 4, 2, 0]]
    assert joined["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 1, 0]]
    assert joined["labels"].tolist() == [[-100, -100, -100, 8, 2], [-100, 3, 4, 2, -100]]
    causal = collate_causal(examples)
    assert causal["input_ids"].tolist() == [[5, 6, 7, 8, 2], [0, 9, 3, 4, 2]]
    assert causal["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3]]
    assert causal["labels"].tolist() == [[-100, -100, 8, 2], [-100, 3, 4, 2]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_twin_learns_as_much_from_the_columns_of_targets_as_from_all(attention: str) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=24, attn_implementation=attention, **shape))
    examples = [Example((5, 6, 7, 9), (8, 2)), Example((9,), (3, 4, 5, 6, 2)), Example((4, 4), (2,))]

    def learned(batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    (loss, gradient), (expected, whole) = learned(collate_causal(examples)), learned(collate_joined(examples))
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "verbalised_plain"}, "did you mean 'verbalized_plain'"),
        ({"task": "humaneval"}, "'humaneval' has no train split"),
        ({"task": "multi30k_plain"}, "train.en.gz"),
        ({"task": None}, "give --task or --path"),
        ({"task": None, "path": Path("no/such.jsonl")}, "no such file"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        write_pairs(given(tmp_path, **changes))
    assert not (tmp_path / "pairs.json").exists()


def test_pairs_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run python -m pipeline\.pairs first"):
        read_examples(tmp_path)
    (tmp_path / "pairs.json").write_text('{"error": "no train split"}')
    with pytest.raises(UserError, match="no train split"):
        read_examples(tmp_path)


def test_a_rare_letter_is_no_unknown_token() -> None:
    tokenizer = train_tokenizer(["aaa bbb"] * 10, 300)
    assert tokenizer.decode(tokenizer("ccc", add_special_tokens=False)["input_ids"]) == "ccc"
