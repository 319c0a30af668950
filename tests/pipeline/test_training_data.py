"""What reaches a training: nothing that is evaluated or held out, the twin's answers, dropout, and how far it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainingArguments

from pipeline import train, train_draft
from pipeline.generators import TWIN
from pipeline.pairs import write_pairs
from pipeline.trainer import Recipe, make_trainer, parts_of_a_step, training_batches
from pipeline.training_examples import Batches
from pipeline.training_work import on_one_card, only
from shuffle.examples import Example, collate_causal
from tests.decoding.tiny import save_model
from tests.pipeline.test_pairs import given
from tests.pipeline.test_train import BACKBONE
from tests.pipeline.test_train_draft import given_of


class Begins(Exception):  # noqa: N818 - no error
    """The training would begin here."""


def test_a_process_trains_on_one_card_however_many_it_sees(tmp_path: Path) -> None:
    """On more, the Trainer takes as many items a step, and an item is a whole batch."""
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert on_one_card(arguments).n_gpu <= 1
    arguments._n_gpu = 4
    assert arguments.train_batch_size == 4 * arguments.per_device_train_batch_size
    assert on_one_card(arguments).n_gpu == 1
    assert arguments.train_batch_size == arguments.per_device_train_batch_size


def test_a_second_batch_is_not_thrown_away_in_silence() -> None:
    assert only([{"input_ids": 1}]) == {"input_ids": 1}
    with pytest.raises(ValueError, match="too many values"):
        only([1, 2])


def test_what_is_evaluated_is_in_no_split_of_the_pairs_that_are_written(tmp_path: Path) -> None:
    def written(folder: Path, **changes: Any) -> list[dict[str, str]]:
        write_pairs(given(folder, **changes))
        return [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]

    all_pairs = written(tmp_path / "all")
    asked = [row["source"] for row in all_pairs if row["split"] == "train"][:3]
    lines = [json.dumps({"source": source, "target": "", "doc_id": i}) for i, source in enumerate(asked)]
    (tmp_path / "evaluated.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    kept = written(tmp_path / "kept", evaluated=tmp_path / "evaluated.jsonl")
    assert kept == [row for row in all_pairs if row["source"] not in asked]
    assert json.loads((tmp_path / "kept/pairs.json").read_text())["dropped_since_evaluated"] == 3


def test_a_distilled_generator_is_trained_on_the_twins_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_rule: Callable[..., int]
) -> None:
    write_pairs(given(tmp_path / "pairs"))
    rows = [json.loads(line) for line in (tmp_path / "pairs/pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [json.dumps({"source": row["source"], "target": "eins"}) for row in rows if row["split"] == "train"]
    (tmp_path / "distilled.jsonl").write_text("\n".join(answers) + "\n")
    seen: list[Batches] = []

    def begin(model: Any, batches: Batches, validation: Batches, *others: Any) -> NoReturn:
        seen.extend((batches, validation))
        raise Begins

    monkeypatch.setattr(train, "make_trainer", begin)
    words = ["--generator=shufflelm", f"--pairs={tmp_path / 'pairs'}", f"--distilled={tmp_path / 'distilled.jsonl'}"]
    with pytest.raises(Begins):
        run_rule(train, *words, f"--backbone={json.dumps(BACKBONE)}", "--steps=2", f"--output={tmp_path / 'out'}")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pairs")
    learned, measured = ({tokenizer.decode(e.target_ids[:-1]) for e in batches.examples} for batches in seen)
    assert learned == {"eins"}
    assert len(measured) > 1  # the validation loss stays that of the references


def test_a_training_drops_what_its_recipe_says_and_tells_the_model_how_far_it_is(tmp_path: Path) -> None:
    class Watched(LlamaForCausalLM):
        def set_progress(self, fraction: float) -> None:
            told.append(fraction)

    told: list[float] = []
    dropped: list[float] = []
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = Watched(LlamaConfig(vocab_size=24, **shape))
    batches = Batches([Example((5, 6, 7, 9), (8, 2))] * 8, 4, 4, 0, collate_causal)
    trainer = make_trainer(model, batches, batches, Recipe(steps=4, batch_size=4, dropout=0.25), tmp_path)
    model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: dropped.append(float((output == 0).float().mean())) if module.training else None
    )
    trainer.train()
    assert told == [0, 0.25, 0.5, 0.75]
    assert dropped == pytest.approx([0.25] * 4, abs=0.1)


def test_a_step_in_parts_has_the_gradient_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.trainer.trains_in_bfloat16", lambda: False)  # whose sums round, in parts elsewhere
    examples = [Example((5, 6, 7 + i), (*range(9, 10 + i), 2)) for i in range(8)]  # of 2 to 9 tokens
    norms: list[float] = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=24, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        )
        recipe = Recipe(steps=1, batch_size=8)
        batches = training_batches(examples, recipe, collate_causal, parts)
        assert len(batches) == parts
        trainer = make_trainer(model, batches, batches, recipe, tmp_path / str(parts), parts)
        trainer.train()
        norms += [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    assert len(norms) == 2
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.parametrize(
    ("generator", "batch_size", "parts"), [(TWIN, 512, 8), (TWIN, 64, 1), (TWIN, 96, 1), ("diffusion", 512, 1)]
)
def test_a_twin_alone_reads_a_large_step_in_parts(generator: str, batch_size: int, parts: int) -> None:
    assert parts_of_a_step(generator, batch_size) == (1 if torch.cuda.is_available() else parts)


def test_a_draft_is_trained_on_the_train_split_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model")
    splits: list[set[str]] = []
    shortlist_of = train_draft.shortlist_of

    def counted(rows: list[dict[str, Any]], *others: Any) -> list[int]:
        splits.append({row["split"] for row in rows})
        return shortlist_of(rows, *others)

    def begin(rows: list[dict[str, Any]], *others: Any) -> NoReturn:
        splits.append({row["split"] for row in rows})
        raise Begins

    monkeypatch.setattr(train_draft, "shortlist_of", counted)
    monkeypatch.setattr(train_draft, "examples", begin)
    with pytest.raises(Begins):
        train_draft.train_draft(given_of(tmp_path))
    assert splits == [{"train"}, {"train"}]
