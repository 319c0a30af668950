"""The two-stream model: equal to a causal Llama in its content stream, blind where it may not see, trainable, saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from shuffle.examples import IGNORED, Example, collate_joined
from shuffle.twostream.config import TwoStreamConfig
from shuffle.twostream.masks import PADDING
from shuffle.twostream.model import LlamaTwoStreamForCausalLM, fill_up
from tests.decoding.tiny import logits_of, save_model

SHAPE = {"vocab_size": 48, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "eos_token_id": 2}


def make_model(seed: int = 0, **own: object) -> LlamaTwoStreamForCausalLM:
    """A random model whose predictions differ from place to place, in evaluation mode."""
    torch.manual_seed(seed)
    model = LlamaTwoStreamForCausalLM(TwoStreamConfig(**{**SHAPE, **own})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(3, 48, (batch, length))


@torch.no_grad()
def query_logits(model: LlamaTwoStreamForCausalLM, ids: list[int], groups: list[int], place: int) -> Tensor:
    """The prediction of one token, alone: only what it may see is read, and one query row."""
    seen = [i for i, group in enumerate(groups) if 0 <= group < groups[place]]
    order = [i for i, group in enumerate(groups) if group != PADDING]
    rows = [*(ids[i] for i in seen), model.special_id(0)]
    positions = [*(order.index(i) for i in seen), order.index(place)]
    visible = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for row, i in enumerate(seen):
        for column, j in enumerate(seen):
            visible[row, column] = groups[j] <= groups[i]
    visible[-1, :-1], visible[-1, -1] = True, not seen
    hidden = model.read(model.embed(torch.tensor([rows])), torch.tensor([positions]), visible[None])
    return model.head(hidden)[0, -1]


GROUPS = [
    [0, 0, 0, 1, 1, 2, 2, 3],  # left to right behind a prompt
    [0, 0, 3, 1, 2, 3, 1, 2],  # permuted
    [0, 0, 1, 1, 2, PADDING, PADDING, PADDING],
    [PADDING, PADDING, 2, 0, 1, 2, 0, 1],  # no prompt, padding before
    [0, 1, 2, 3, 4, 5, 6, 7],
]


def test_every_prediction_is_the_one_that_is_made_alone() -> None:
    model, ids = make_model(), random_ids(len(GROUPS), 8)
    with torch.no_grad():
        logits = model(ids, group_ids=torch.tensor(GROUPS)).logits
    for text, groups in enumerate(GROUPS):
        for place in range(8):
            if groups[place] == PADDING:
                assert not logits[text, place].any()
                continue
            alone = query_logits(model, ids[text].tolist(), groups, place)
            torch.testing.assert_close(logits[text, place], alone, atol=1e-5, rtol=1e-4)


def test_nothing_leaks_in_either_stream() -> None:
    model, ids, groups = make_model(), random_ids(len(GROUPS), 8), torch.tensor(GROUPS)
    with torch.no_grad():
        query, content = model(ids, group_ids=groups).logits, model.content_logits(ids, group_ids=groups)
        for changed in range(8):
            other = ids.clone()
            other[:, changed] = (ids[:, changed] + 7) % 48
            query_moved = (model(other, group_ids=groups).logits - query).abs().amax(-1) > 1e-6
            content_moved = (model.content_logits(other, group_ids=groups) - content).abs().amax(-1) > 1e-6
            own = groups[:, changed : changed + 1]
            is_token = groups != PADDING
            assert torch.equal(query_moved, (own >= 0) & (own < groups))
            assert torch.equal(content_moved & is_token, (own >= 0) & (own <= groups))


def test_the_content_stream_is_a_causal_llama(tmp_path: Path) -> None:
    llama = save_model(tmp_path)
    model = LlamaTwoStreamForCausalLM.from_backbone(tmp_path, prompt_groups="causal").eval()
    ids = random_ids(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(model.content_logits(ids), llama(ids).logits, atol=1e-4, rtol=1e-4)
        mask = torch.ones_like(ids)
        mask[0, :4] = 0
        padded = model.content_logits(ids, attention_mask=mask)
    torch.testing.assert_close(padded[0, -1], logits_of(llama, ids[0, 4:].tolist()), atol=1e-4, rtol=1e-4)


def test_the_content_stream_is_a_causal_llama_untied(tmp_path: Path) -> None:
    llama = save_model(tmp_path, "llama-untied-scaled")
    assert isinstance(llama, LlamaForCausalLM)
    model = LlamaTwoStreamForCausalLM.from_backbone(tmp_path).eval()
    ids = random_ids(1, 9)
    with torch.no_grad():
        torch.testing.assert_close(
            model.content_logits(ids, group_ids=torch.arange(9)[None]), llama(ids).logits, atol=1e-4, rtol=1e-4
        )


def record_groups(model: LlamaTwoStreamForCausalLM, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The groups that the model's forward passes read from now on."""
    groups: list[Tensor] = []
    read = model._query_stream

    def recorded(ids: Tensor, groups_read: Tensor, *rest: Tensor) -> Tensor:
        groups.append(groups_read)
        return read(ids, groups_read, *rest)

    monkeypatch.setattr(model, "_query_stream", recorded)
    return groups


@pytest.mark.parametrize(
    ("size", "order", "multiple"), [(1, "left_to_right", 1), (3, "left_to_right", 3), (2, "random", 6)]
)
def test_the_loss_in_evaluation_is_that_of_the_filled_text(
    size: int, order: str, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(block_groups=3)
    model.set_grouping(size, order)
    groups = record_groups(model, monkeypatch)
    examples = [Example((5, 6, 7), (8, 9, 10, 11, 2)), Example((12,), (13, 2)), Example((14, 15), (16, 17, 18, 2))]
    with torch.no_grad():
        output = model(**collate_joined(examples))
    losses = []
    for i, (prompt, target) in enumerate(examples):
        ids = [*prompt, *target, *[2] * (-len(target) % multiple)]
        text = groups[0][i].tolist()
        assert [text.count(group) for group in range(1, max(text) + 1)] == [size] * ((len(ids) - len(prompt)) // size)
        assert text[len(ids) :] == [PADDING] * (len(text) - len(ids))
        assert order == "random" or text[: len(ids)] == sorted(text[: len(ids)])
        for place in range(len(prompt), len(ids)):
            row = query_logits(model, ids, text, place)
            losses.append(F.cross_entropy(row, torch.tensor(ids[place])))
            if place < len(prompt) + len(target):
                torch.testing.assert_close(output.logits[i, place], row, atol=1e-5, rtol=1e-4)
    assert output.logits.shape == (3, 8, 48)
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-4)


def test_texts_are_filled_behind_their_last_token() -> None:
    ids = torch.tensor([[5, 6, 7, 2, 0], [0, 5, 6, 7, 2], [5, 6, 7, 8, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    labels = torch.tensor([[-100, 6, 7, 2, -100], [-100, -100, 6, 7, 2], [-100, 6, 7, 8, 2]])
    ids, mask, labels = fill_up(ids, mask, labels, torch.tensor([4, 2, 3]), end_id=2)
    assert ids.tolist() == [[5, 6, 7, 2, 2, 0, 0], [0, 5, 6, 7, 2, 2, 0], [5, 6, 7, 8, 2, 2, 2]]
    assert mask.int().tolist() == [[1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]]
    assert labels[:, -2:].tolist() == [[IGNORED, IGNORED], [2, IGNORED], [2, 2]]


def test_training_draws_sizes_and_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(group_sizes=[1, 3], permute=0.5).train()
    drawn = record_groups(model, monkeypatch)
    batch = collate_joined([Example((5, 6), (*range(8, 19), 2))] * 64)
    model(**batch)
    texts = [text[:14] for text in drawn[0].tolist()]
    sizes = [max(text.count(group) for group in range(1, 13)) for text in texts]
    assert set(sizes) == {1, 3}
    ordered = [text == sorted(text) for text in texts]
    assert 10 < sum(ordered) < 54
    assert all(text[:2] == [0, 0] for text in texts)


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_attention_back_ends_agree(implementation: str, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    ids, groups = random_ids(len(GROUPS), 8), torch.tensor(GROUPS)
    models = [
        LlamaTwoStreamForCausalLM.from_pretrained(tmp_path, attn_implementation=name).eval()
        for name in ("sdpa", implementation)
    ]
    # Uncompiled: torch 2.13 writes C++ for this flex-attention that does not compile (an undeclared variable).
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        first, second = (model(ids, group_ids=groups).logits for model in models)
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_weight(checkpointing: bool) -> None:
    model, batch = make_model().train(), collate_joined([Example((5, 6), (7, 8, 9, 2)), Example((5,), (9, 2))])
    if checkpointing:
        model.gradient_checkpointing_enable()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert model.backbone.embed_tokens.weight.grad[model.special_id(0)].abs().sum() > 0


def test_trains_under_the_trainer_and_is_saved(tmp_path: Path) -> None:
    model = LlamaTwoStreamForCausalLM(TwoStreamConfig(**SHAPE, group_sizes=[1, 2]))
    model.set_grouping(2, "random")
    examples = [Example((a, b), (b, a, 2)) for a in range(5, 9) for b in range(5, 9)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=60, per_device_train_batch_size=16, learning_rate=1e-2,
        report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, data_collator=model.collate, train_dataset=examples)  # type: ignore[arg-type]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    trainer.save_model(str(tmp_path / "saved"))
    again = LlamaTwoStreamForCausalLM.from_pretrained(tmp_path / "saved")
    assert (again.config.group_size, again.config.order, [*again.config.group_sizes]) == (2, "random", [1, 2])
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("group_sizes", []),
        ("group_sizes", [0, 1]),
        ("permute", 1.5),
        ("block_groups", 0),
        ("prompt_groups", "both"),
        ("group_size", 0),
        ("order", "right_to_left"),
    ],
)
def test_refuses_what_is_no_grouping(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        TwoStreamConfig(**SHAPE, **{key: value})


def test_refuses_to_set_an_unknown_order() -> None:
    with pytest.raises(ValueError, match="order"):
        make_model().set_grouping(2, "right_to_left")
