"""The model: its rows' sight and positions by hand, its loss, its training as transformers does it, its round trip."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from shuffle.examples import Example, collate_pairs
from shuffle.shufflelm.config import ShuffleConfig
from shuffle.shufflelm.model import ShuffleLM

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
TARGETS = [[20, 21, 2], [22, 23, 24, 25, 2], [2]]
EXAMPLES = [Example(tuple(p), tuple(t)) for p, t in zip(PROMPTS, TARGETS, strict=True)]
BATCH = collate_pairs(EXAMPLES)
CTC = {"matching": "ctc", "position_head": "none"}
UPSAMPLED = CTC | {"num_mixer_layers": 0, "slots_per_prompt_token": 1.5}
MATCHED = UPSAMPLED | {"matching": "assignment", "position_head": "rotary", "source_copy": True, "matching_warmup": 0.0}


def make(seed: int = 0, **own: Any) -> ShuffleLM:
    """Build a random model whose rows differ much from each other."""
    shape = {"vocab_size": 48, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "eos_token_id": 2}
    slots = {"max_parallel_tokens": 6, "rotary_dim": 8, "max_position_embeddings": 64}
    torch.manual_seed(seed)
    model = ShuffleLM(ShuffleConfig(**(shape | slots | own))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


@torch.no_grad()
def slots_alone(model: ShuffleLM, prompt: list[int]) -> Tensor:
    """Logits of the slots, by transformers' own Llama on one unpadded prompt under a mask written cell by cell."""
    config, count, step = model.config, model.config.max_parallel_tokens, 1.0
    if config.slots_per_prompt_token is not None:
        count = min(count, math.ceil(config.slots_per_prompt_token * len(prompt)))
        step = len(prompt) / count
    own = model.backbone.embed_tokens.weight[config.vocab_size :]
    words = model.backbone.embed_tokens.weight[torch.tensor(prompt)]
    starts = []
    for k in range(count):
        middle = step * (k + 0.5) - 0.5  # where slot k stands along the prompt
        weights = torch.tensor([-abs(i - middle) for i in range(len(prompt))], dtype=torch.float32).softmax(0)
        copied = sum(weight * word for weight, word in zip(weights, words, strict=True))
        starts.append(own[k] + (copied if config.source_copy else 0))
    total = len(prompt) + count
    mask = torch.full((1, 1, total, total), -torch.inf)
    for row in range(total):
        for column in range(total):
            if config.prompt_attention == "bidirectional" or row >= len(prompt) or column <= row:
                mask[0, 0, row, column] = 0.0
    inputs = torch.cat([words, torch.stack(starts)])[None]
    hidden = model.backbone(inputs_embeds=inputs, attention_mask=mask, position_ids=torch.arange(total)[None])
    x = hidden.last_hidden_state[0, len(prompt) :]
    for mixer in model.mixers:
        x = mixer(x)
    return model.mixer_norm(x) @ model.backbone.embed_tokens.weight[: config.vocab_size].T


@pytest.mark.parametrize("prompt_attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("source_copy", [False, True])
@pytest.mark.parametrize("num_mixer_layers", [0, 2])
def test_padding_changes_nothing(prompt_attention: str, source_copy: bool, num_mixer_layers: int) -> None:
    own = {"prompt_attention": prompt_attention, "source_copy": source_copy, "num_mixer_layers": num_mixer_layers}
    model = make(**own)
    logits = model(BATCH["input_ids"], BATCH["attention_mask"]).logits
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(logits[row], slots_alone(model, prompt), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("implementation", "prompt_attention"),
    [("sdpa", "bidirectional"), ("sdpa", "causal"), ("flex_attention", "causal")],
)
def test_attention_back_ends_agree(implementation: str, prompt_attention: str) -> None:
    models = [make(prompt_attention=prompt_attention) for _ in range(2)]
    models[0].set_attn_implementation("eager")
    models[1].set_attn_implementation(implementation)
    # Uncompiled: flex-attention's compiler takes a minute.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        eager, other = (model(**BATCH) for model in models)
    torch.testing.assert_close(other.logits, eager.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other.loss, eager.loss)


def test_mixers_let_every_slot_hear_every_other() -> None:
    mixer = make(num_mixer_layers=1).mixers[0]
    x = torch.randn(6, 32, requires_grad=True)
    mixer(x)[4].sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(-1) > 0).all()


def test_loss_does_not_depend_on_which_slot_says_what() -> None:
    """Without a backbone's view of slot order, permuting the slots' outputs permutes the matching alone."""
    model = make(matching_warmup=0.0)
    with torch.no_grad():
        output = model(**BATCH)
        shuffled = torch.tensor([3, 1, 5, 0, 2, 4])
        real = BATCH["attention_mask"].bool()
        parts = [x[:, shuffled] for x in (output.logits, output.shuffle_scores, output.keep_logits)]
        first = model._match(BATCH["labels"], real, output.logits, output.shuffle_scores, output.keep_logits)
        second = model._match(BATCH["labels"], real, *parts)
    assert torch.equal(shuffled[second.clamp(min=0)][second >= 0], first[first >= 0])


@pytest.mark.parametrize(
    ("own", "progress", "training", "identity"),
    [
        ({}, 0.05, True, True),
        ({}, 0.15, True, False),
        ({}, 0.05, False, False),
        ({"matching_warmup": 0.0}, 0.0, True, False),
        ({"matching": "identity"}, 0.9, True, True),
        ({"matching": "identity"}, 0.9, False, True),
    ],
)
def test_matching_follows_configuration_and_progress(
    own: dict[str, Any], progress: float, training: bool, identity: bool
) -> None:
    model = make(**own).train(training)
    model.set_progress(progress)
    logits = torch.zeros(1, 6, 48)
    logits[0, 5, 20] = logits[0, 4, 21] = logits[0, 3, 2] = 9.0
    labels = torch.tensor([[20, 21, 2]])
    slots = model._match(labels, torch.ones(1, 3).bool(), logits, torch.zeros(1, 6, 6), torch.zeros(1, 6))
    assert slots.tolist() == ([[0, 1, 2]] if identity else [[5, 4, 3]])


def test_glancing_shows_tokens_in_training_alone_and_fewer_towards_its_end() -> None:
    model = make(glancing=1.0, matching="identity").train()
    seen: list[Tensor] = []
    model.say = lambda ids, real, slots, say=model.say: (seen.append(slots), say(ids, real, slots))[1]
    model.set_progress(0.0)
    model(**BATCH).loss.backward()
    first, second = seen
    changed = (first != second).any(-1)
    for row, target in enumerate(TARGETS):
        for slot, token in enumerate(target):
            if changed[row, slot]:
                assert torch.equal(second[row, slot], model.embed(torch.tensor(token)))
        assert not changed[row, len(target) :].any()
    assert changed.any()
    shown = [int(changed.sum())]
    model.set_progress(1.0)
    model(**BATCH)
    shown.append(int((seen[2] != seen[3]).any(-1).sum()))
    assert shown[1] == pytest.approx(0.6 * shown[0], abs=len(TARGETS) / 2)  # rounded in each text
    seen.clear()
    model.eval()(**BATCH)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "own",
    [{}, {"position_head": "none", "num_mixer_layers": 0}, {"glancing": 0.5}, CTC, {**CTC, "glancing": 0.5}, MATCHED],
)
def test_every_weight_learns(own: dict[str, Any]) -> None:
    model = make(**own).train()
    model.set_progress(0.5)
    model.gradient_checkpointing_enable()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**BATCH)
    output.loss.backward()
    assert (output.shuffle_scores is None) == (own.get("position_head") == "none")
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert 0 < parameter.grad.abs().sum() < torch.inf, name


def test_comes_back_from_its_folder(tmp_path: Path) -> None:
    model = make(glancing=0.25)
    model.save_pretrained(tmp_path)
    again = ShuffleLM.from_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert again.config.glancing == 0.25
    assert torch.equal(again(**BATCH).logits, model(**BATCH).logits)


@pytest.mark.parametrize("own", [{}, CTC])
def test_learns_under_the_trainer_of_transformers(tmp_path: Path, own: dict[str, Any]) -> None:
    rows = [Example((i, j, 3), (j, i, 2)) for i in range(10, 18) for j in range(20, 28)]
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "rotary_dim": 8, "max_parallel_tokens": 5}
    model = ShuffleLM(ShuffleConfig(vocab_size=30, eos_token_id=2, max_position_embeddings=16, **shape, **own))
    settings = {"max_steps": 200, "learning_rate": 1e-2, "per_device_train_batch_size": 32, "report_to": "none"}
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, save_strategy="no", disable_tqdm=True, remove_unused_columns=False, **settings
    )
    Trainer(model, arguments, train_dataset=rows, data_collator=model.collate).train()
    model.eval()
    batch = collate_pairs(rows)
    texts = model.generate(batch["input_ids"], batch["attention_mask"])[:, 3:]
    right = sum(
        text[: len(row.target_ids)].tolist() == list(row.target_ids) for text, row in zip(texts, rows, strict=True)
    )
    assert right > 0.9 * len(rows)


def test_starts_from_a_causal_model(tmp_path: Path) -> None:
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    )
    llama.save_pretrained(tmp_path)
    model = ShuffleLM.from_backbone(tmp_path, prompt_attention="causal", max_parallel_tokens=6)
    assert torch.equal(model.backbone.layers[1].mlp.up_proj.weight, llama.model.layers[1].mlp.up_proj.weight)
    assert model(**BATCH).loss.isfinite()


def test_refuses_a_target_longer_than_its_slots() -> None:
    batch = collate_pairs([Example((5,), tuple(range(3, 10)))])
    with pytest.raises(ValueError, match="7 tokens does not fit 6 slots"):
        make()(**batch)


def test_refuses_a_prompt_that_leaves_no_room() -> None:
    with pytest.raises(ValueError, match="exceed the context of 64"):
        make()(torch.full((1, 59), 5))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"matching": "best"}, "matching='best' is unknown; known: assignment, identity, ctc"),
        ({"position_head": "sine"}, "position_head='sine' is unknown; known: rotary, none"),
        ({"prompt_attention": "full"}, "prompt_attention='full' is unknown; known: bidirectional, causal"),
        ({"rotary_dim": 7}, "rotary_dim=7 must be even"),
        ({"max_parallel_tokens": 64}, "max_parallel_tokens=64 must be from 1"),
        ({**UPSAMPLED, "slots_per_prompt_token": 0.0}, "slots_per_prompt_token=0.0 must be above 0"),
        ({**UPSAMPLED, "num_mixer_layers": 2}, "slots_per_prompt_token=1.5 needs num_mixer_layers=0, not 2"),
        ({"matching": "ctc"}, "position_head='rotary' does not go with matching='ctc', which needs 'none'"),
        ({**CTC, "label_smoothing": 0.1}, "label_smoothing=0.1 does not go with matching='ctc', which needs 0.0"),
        ({"glancing": 1.5}, "glancing=1.5 must be from 0 to 1"),
        ({"shuffle_temperature": 0.0}, "shuffle_temperature=0.0 must be above 0"),
    ],
)
def test_refuses_configurations_that_mean_nothing(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**own)
