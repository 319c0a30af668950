"""The image transformer: who sees what, the loss against one window at a time, and training as transformers does it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, LlamaModel, Trainer, TrainingArguments

from shuffle.examples import Example
from shuffle.tokenshuffle.config import TokenShuffleConfig
from shuffle.tokenshuffle.layers import to_windows
from shuffle.tokenshuffle.model import TokenShuffleTransformer, collate_images

SHAPE = {"vocab_size": 11, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "grid_size": 4, "num_classes": 3}
CLASSES, IDS = torch.tensor([0, 2]), torch.randint(11, (2, 4, 4), generator=torch.Generator().manual_seed(0))


def tiny(window: int, **own: object) -> TokenShuffleTransformer:
    torch.manual_seed(0)
    model = TokenShuffleTransformer(TokenShuffleConfig(**SHAPE, window=window, **own)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def window_logits(model: TokenShuffleTransformer, label: int, before: Tensor) -> Tensor:
    """Logits ``[s^2, V]`` of the window behind ``before``, ``[k, s^2]``, read as one sequence without a cache."""
    told = model.conditions(torch.tensor([label]))[:, : len(before) + 1]
    if len(before):
        told = told + F.pad(model.embed_windows(before[None]), (0, 0, 1, 0))
    return model.window_logits(model.read_rows(told))[0, -1]


@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_loss_is_that_of_one_window_at_a_time(window: int) -> None:
    model, total = tiny(window), 0.0
    for label, windows in zip(CLASSES.tolist(), to_windows(IDS, window), strict=True):
        for k, one in enumerate(windows):
            total += float(F.cross_entropy(window_logits(model, label, windows[:k]), one, reduction="sum"))
    assert model(CLASSES, IDS, labels=IDS).loss.item() == pytest.approx(total / IDS.numel(), rel=1e-5)


@pytest.mark.parametrize("window", [1, 2])
@torch.no_grad()
def test_a_window_sees_those_before_it_and_not_its_own_tokens(window: int) -> None:
    model, changed = tiny(window), IDS.clone()
    changed[:, 0, 2] = (IDS[:, 0, 2] + 1) % 11  # of the second window of two, the third of one
    moved = (model(CLASSES, IDS).logits - model(CLASSES, changed).logits).abs().amax(-1)[0] > 1e-5
    first = to_windows(moved[None], window)[0]
    own = 2 // window
    assert not first[: own + 1].any()
    assert first[own + 1 :].all()


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
@torch.no_grad()
def test_attention_back_ends_agree(implementation: str) -> None:
    """Also those that know of no order unless a mask tells them."""
    model = tiny(2)
    expected = model(CLASSES, IDS).logits
    model.set_attn_implementation(implementation)
    torch.testing.assert_close(model(CLASSES, IDS).logits, expected, atol=1e-5, rtol=1e-4)


def test_without_windows_it_is_a_plain_llama() -> None:
    model = tiny(1)
    rows = model.conditions(CLASSES)
    rows[:, 1:] += model.embed(IDS.flatten(1)[:, :-1])
    llama = LlamaModel(model.config.llama()).eval()
    llama.load_state_dict(model.backbone.state_dict())
    expected = model.head(llama(inputs_embeds=rows).last_hidden_state)
    assert torch.allclose(model(CLASSES, IDS).logits.flatten(1, 2), expected, atol=1e-5)
    assert not any("shuffle" in name for name, _ in model.named_parameters())


@torch.no_grad()
def test_rows_read_one_by_one_with_a_cache_are_those_read_at_once() -> None:
    model, cache = tiny(2), DynamicCache()
    rows = torch.randn(2, 4, 32)
    one_by_one = torch.cat([model.read_rows(rows[:, k : k + 1], cache) for k in range(4)], dim=1)
    assert torch.allclose(one_by_one, model.read_rows(rows), atol=1e-5)
    with pytest.raises(ValueError, match="2 rows behind 4 that are cached: one at a time"):
        model.read_rows(rows[:, :2], cache)


@torch.no_grad()
def test_compressed_codes_are_what_the_layer_makes_of_them() -> None:
    model, windows = tiny(2, shuffle_blocks=1), to_windows(IDS, 2)
    assert torch.allclose(
        model.embed_windows(windows, model.compressed_codes()), model.embed_windows(windows), atol=1e-5
    )
    assert tiny(1).compressed_codes() is None


def test_the_class_is_hidden_now_and_then_in_training_alone() -> None:
    model = tiny(2, class_dropout=0.5)
    many, ids = torch.zeros(64, dtype=torch.long), IDS[:1].expand(64, 4, 4)
    asked = model(many, ids).logits
    none = model(torch.full_like(many, model.no_class_id), ids).logits
    assert torch.equal(asked[0], asked[1])
    torch.manual_seed(0)
    drawn = model.train()(many, ids).logits
    is_asked = torch.isclose(drawn, asked, atol=1e-5).flatten(1).all(1)
    is_none = torch.isclose(drawn, none, atol=1e-5).flatten(1).all(1)
    assert (is_asked ^ is_none).all()
    assert 10 < int(is_none.sum()) < 54


def test_saved_and_loaded_it_says_the_same(tmp_path: Path) -> None:
    model = tiny(2, shuffle_blocks=1)
    model.save_pretrained(tmp_path)
    assert [file.suffix for file in tmp_path.glob("model*")] == [".safetensors"]
    loaded = TokenShuffleTransformer.from_pretrained(tmp_path).eval()
    assert loaded.config.window == 2
    assert torch.equal(loaded(CLASSES, IDS).logits, model(CLASSES, IDS).logits)


def test_the_added_layers_start_so_that_a_signal_keeps_its_size() -> None:
    torch.manual_seed(0)
    model = TokenShuffleTransformer(TokenShuffleConfig(**SHAPE | {"hidden_size": 64}, window=2))
    row = torch.randn(1, 1, 64)
    assert 0.2 < float(model.unshuffle(row).std()) < 2


@pytest.mark.slow
def test_the_trainer_of_transformers_trains_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TokenShuffleTransformer(TokenShuffleConfig(**SHAPE, window=2))
    examples = [Example((label,), tuple([label * 3] * 16)) for label in range(3)]
    batch = collate_images(examples)
    before = model.eval()(**batch).loss.item()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=100, learning_rate=1e-2, use_cpu=True, report_to="none", save_strategy="no",
        remove_unused_columns=False, per_device_train_batch_size=3, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=examples, data_collator=collate_images).train()
    assert model.eval()(**batch).loss.item() < before / 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"window": 0}, "window must be 1 or more, not 0"),
        ({"window": 3}, "grid_size 4 is no multiple of window 3"),
        ({"window": 4, "hidden_size": 24}, "hidden_size 24 is no multiple of window x window 16"),
        ({"shuffle_blocks": -1}, "shuffle_blocks must be 0 or more, not -1"),
        ({"num_classes": 0}, "num_classes must be 1 or more, not 0"),
        ({"class_dropout": 1.0}, "class_dropout must be at least 0 and below 1, not 1.0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TokenShuffleConfig(**SHAPE | wrong)


def test_an_unknown_class_and_another_size_are_named() -> None:
    model = tiny(2)
    with pytest.raises(ValueError, match="unknown class 4; known: 0 to 3"):
        model(torch.tensor([4]), IDS[:1])
    with pytest.raises(ValueError, match="an image of 4 x 2 tokens, for a model of 4 x 4"):
        model(CLASSES, IDS[:, :, :2])
