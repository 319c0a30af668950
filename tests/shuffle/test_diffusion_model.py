"""The model: the loss against blocks read one at a time, who sees whom, training as transformers does it, energies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from shuffle.diffusion.config import DiffusionConfig
from shuffle.diffusion.energy import hide_worst, pseudo_log_likelihoods
from shuffle.diffusion.model import DiffusionTransformer, hide, mask_ratios
from shuffle.examples import Example
from shuffle.scoring import causal_scorer, energy

EOS, L = 2, 4
SHAPE = {"vocab_size": 24, "hidden_size": 32, "num_layers": 2, "max_position_embeddings": 64}
EXAMPLES = [Example((5, 6, 7), (8, 9, 10, 11, 12, EOS)), Example((9,), (4, EOS)), Example((3, 4), (5, 6, 7, EOS))]
MASK = 24


def tiny(**own: object) -> DiffusionTransformer:
    torch.manual_seed(0)
    config = DiffusionConfig(**SHAPE, eos_token_id=EOS, **{"block_length": L, **own})
    model = DiffusionTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def block_logits(model: DiffusionTransformer, prompt: list[int], before: list[int], block: list[int]) -> Tensor:
    """The logits ``[L, V]`` of a noisy block behind what is clean, as one sequence with later blocks absent."""
    ids = torch.tensor([[*prompt, *before, *block]])
    return model(ids, prompt_lengths=torch.tensor([len(prompt)])).logits[0, -len(block) :]


def loss_by_hand(model: DiffusionTransformer, seed: int) -> float:
    """One example, one block, one token at a time; the same draws."""
    torch.manual_seed(seed)
    ratios = mask_ratios(len(EXAMPLES), 2, model.config.min_mask_ratio, torch.device("cpu"))
    draws, shown = torch.rand(len(EXAMPLES), 2 * L), torch.rand(len(EXAMPLES), 1)
    total, tokens = 0.0, 0
    for i, (prompt, target) in enumerate(EXAMPLES):
        filled = [*target, *[EOS] * (-len(target) % L)]
        tokens += len(filled)
        for k in range(len(filled) // L):
            block = filled[k * L : k * L + L]
            t = float(ratios[i, k])
            hidden = [bool(draws[i, k * L + j] < t) for j in range(L)]
            if 0 < (filling := (k + 1) * L - len(target)) < L:
                first_shown = int(float(shown[i, 0]) * (filling + 1))
                hidden[L - filling :] = [hidden[L - filling - 1] and j < first_shown for j in range(filling)]
            noisy = [MASK if hide else token for hide, token in zip(hidden, block, strict=True)]
            scores = torch.log_softmax(block_logits(model, [*prompt], filled[: k * L], noisy), -1)
            weight = 1 / t if model.config.loss_weighting == "1/t" else 1.0
            total -= sum(weight * float(scores[j, block[j]]) for j in range(L) if hidden[j])
    return total / tokens


@pytest.mark.parametrize("weighting", ["1/t", "uniform"])
@pytest.mark.parametrize("seed", range(3))
def test_loss_is_that_of_each_block_alone(weighting: str, seed: int) -> None:
    model = tiny(loss_weighting=weighting)
    torch.manual_seed(seed)
    loss = model(**model.collate(EXAMPLES)).loss
    assert loss.item() == pytest.approx(loss_by_hand(model, seed), rel=1e-4)


def test_loss_with_everything_masked_is_the_mean_surprise_of_the_target() -> None:
    model = tiny(min_mask_ratio=1 - 1e-9, loss_weighting="1/t", block_length=6)
    loss = model(**model.collate([EXAMPLES[0]])).loss
    scores = torch.log_softmax(block_logits(model, [5, 6, 7], [], [MASK] * 6), -1)
    by_hand = -sum(scores[place, token] for place, token in enumerate(EXAMPLES[0].target_ids)) / 6
    torch.testing.assert_close(loss, by_hand, rtol=1e-4, atol=1e-5)


def test_the_filling_does_not_give_the_length_away() -> None:
    torch.manual_seed(0)
    count, length, filled = 4000, 5, 12
    ratio, place = torch.full((count, filled), 0.6), torch.arange(filled)
    masked = hide(ratio, place, torch.full((count, 1), length), torch.full((count, 1), filled))
    end, filling = masked[:, length - 1], masked[:, length:]
    assert masked[:, :length].float().mean() == pytest.approx(0.6, abs=0.02)
    assert not filling[~end].any()  # the end is known: so is what is behind it
    shown = (~filling[end]).sum(1)
    assert torch.equal(
        filling[end], torch.arange(filled - length) < (filled - length - shown)[:, None]
    )  # shown from the last
    shares = torch.bincount(shown, minlength=filled - length + 1) / len(shown)
    assert shares.tolist() == pytest.approx([1 / 8] * 8, abs=0.03)  # as many as may be: nothing is learned from it


def test_ratios_do_not_follow_the_order_of_the_batch() -> None:
    torch.manual_seed(0)
    ratios = torch.stack([mask_ratios(64, 1, 0.1, torch.device("cpu"))[:, 0] for _ in range(300)])
    assert ratios.mean(0).std() < 0.05  # in the order of the grid: 0.26


def test_ratios_cover_the_range_evenly() -> None:
    torch.manual_seed(0)
    ratios = mask_ratios(50, 4, 0.1, torch.device("cpu")).flatten().sort().values
    assert 0.1 <= ratios[0] <= ratios[-1] <= 1
    assert float(ratios.diff().max()) == pytest.approx(0.9 / 200, rel=1e-3)


@pytest.mark.parametrize("changed", range(11))
def test_a_row_sees_its_own_block_and_those_before_it(changed: int) -> None:
    model = tiny()
    ids = torch.tensor([[5, 6, 7, 8, 9, MASK, 10, 11, MASK, 12, 13]])
    other = ids.clone()
    other[0, changed] = 20
    lengths = torch.tensor([3])
    with torch.no_grad():
        before, after = (model(x, prompt_lengths=lengths).logits[0] for x in (ids, other))
    blocks = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    for row in range(11):
        assert torch.equal(before[row], after[row]) == (blocks[row] < blocks[changed]), (row, changed)


def test_what_is_before_the_first_mask_is_the_prompt() -> None:
    model, ids = tiny(), torch.tensor([[5, 6, 7, MASK, MASK], [5, MASK, MASK, 0, 0]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        logits = model(ids, attention_mask).logits
    torch.testing.assert_close(logits[0, 3:], block_logits(model, [5, 6, 7], [], [MASK] * 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1, 1:3], block_logits(model, [5], [], [MASK] * 2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_attention_back_ends_agree(implementation: str) -> None:
    def loss(name: str) -> Tensor:
        model = tiny(attn_implementation=name)
        torch.manual_seed(1)
        # Uncompiled: flex-attention's compiler takes a minute.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return model(**model.collate(EXAMPLES)).loss

    torch.testing.assert_close(loss(implementation), loss("sdpa"), atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        model = tiny().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        model(**model.collate(EXAMPLES)).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    torch.testing.assert_close(gradients(True), gradients(False))


def test_trains_under_autocast() -> None:
    model = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        loss = model(**model.collate(EXAMPLES)).loss
    torch.manual_seed(1)
    assert loss.item() == pytest.approx(model(**model.collate(EXAMPLES)).loss.item(), rel=0.05)
    loss.backward()
    assert loss.dtype == torch.float32


def test_trainer_learns_and_the_saved_model_is_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DiffusionTransformer(DiffusionConfig(**SHAPE, eos_token_id=EOS, block_length=L))
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=100, per_device_train_batch_size=24, learning_rate=1e-2, seed=0,
        report_to=[], save_strategy="no", remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=EXAMPLES * 24, data_collator=model.collate)
    trainer.train()
    model.save_pretrained(tmp_path / "model")
    loaded = DiffusionTransformer.from_pretrained(tmp_path / "model").eval()
    for prompt, target in EXAMPLES:
        logits = block_logits(loaded, [*prompt], [], [MASK] * L)
        expected = [*target, EOS, EOS][:L]
        assert logits.argmax(-1).tolist() == expected
        assert torch.equal(logits, block_logits(model.eval(), [*prompt], [], [MASK] * L))


def test_pseudo_log_likelihood_masks_each_token_in_turn() -> None:
    model, prompt = tiny(), [5, 6, 7]
    texts = [[8, 9, 10, 11, 12, EOS], [4, EOS], [5, 6, 7, EOS], [9, 4, 8, 5, 6]]
    for text, scores in zip(texts, pseudo_log_likelihoods(model, prompt, texts), strict=True):
        # A text that was cut goes on as it may; one that ended does not.
        filled = [*text, *[EOS if text[-1] == EOS else MASK] * (-len(text) % L)]
        for i, token in enumerate(text):
            start = i // L * L
            block = filled[start : start + L]
            block[i - start] = MASK
            by_hand = torch.log_softmax(block_logits(model, prompt, filled[:start], block), -1)[i - start, token]
            torch.testing.assert_close(scores[i], by_hand, atol=1e-4, rtol=1e-4)
        assert len(scores) == len(text)


def test_a_causal_model_scores_each_token_after_those_before_it() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=2)).eval()
    prompt, texts = [5, 6, 7], [[8, 9, 10, EOS], [4, EOS]]
    for text, scores in zip(texts, causal_scorer(model)(prompt, texts), strict=True):
        for i, token in enumerate(text):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *text[:i]]])).logits[0, -1]
            torch.testing.assert_close(scores[i], F.log_softmax(logits, -1)[token], atol=1e-5, rtol=1e-4)


def test_energy_is_the_mean_and_the_worst_are_hidden() -> None:
    scores = torch.tensor([-0.5, -3.0, -0.1, -2.0])
    assert energy(scores) == pytest.approx(1.4)
    assert hide_worst([4, 5, 6, 7], scores, 0.5, MASK) == [4, MASK, 6, MASK]
    assert hide_worst([4, 5, 6, 7], scores, 0.01, MASK) == [4, MASK, 6, 7]


@pytest.mark.parametrize(
    "own", [{"block_length": 0}, {"loss_weighting": "t"}, {"min_mask_ratio": 0.0}, {"min_mask_ratio": 1.0}]
)
def test_refuses_what_no_training_can_mean(own: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(own))):
        DiffusionConfig(**SHAPE, **own)


def test_training_needs_an_end_token() -> None:
    model = DiffusionTransformer(DiffusionConfig(**SHAPE))
    with pytest.raises(ValueError, match="eos_token_id"):
        model(**model.collate(EXAMPLES))


@torch.no_grad()
@pytest.mark.parametrize("placed", [True, False])
def test_a_mask_is_that_of_its_place_in_its_block(placed: bool) -> None:
    torch.manual_seed(0)
    config = DiffusionConfig(vocab_size=20, hidden_size=32, num_layers=1, block_length=3, placed_masks=placed)
    model = DiffusionTransformer(config).eval()
    assert config.num_special_tokens == (3 if placed else 1)
    prompt, masks = [4, 5], [model.mask_id] * 6

    def logits() -> torch.Tensor:
        return model(torch.tensor([prompt + masks]), prompt_lengths=torch.tensor([2])).logits[0, 2:]

    before = logits()
    ids = model.placed(torch.tensor(masks), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert (ids - model.mask_id).tolist() == ([0, 1, 2, 0, 1, 2] if placed else [0] * 6)
    if placed:
        model.backbone.embed_tokens.weight[model.special_id(2)] += 1.0
        changed = (logits() - before).abs().amax(1) > 1e-6
        assert changed.tolist() == [True] * 6  # each sees the last place of its block, or of an earlier one
