"""The slots: their formula by naive loops, their loss, and a folder of them written and read back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from shuffle.fasterdecodemixer.config import MixerConfig
from shuffle.fasterdecodemixer.model import NEVER, FasterDecodeMixer
from shuffle.shufflelm.rotary import frequencies
from tests.decoding.tiny import SHAPE, save_model

D, S, K, J, C = 8, 5, 4, 2, 2
SHORTLIST = [2, 5, 6, 9, 11]


def random_mixer(**changes: object) -> FasterDecodeMixer:
    shape = {"vocab_size": 12, "hidden_size": D, "shortlist_size": S, "num_slots": K, "num_positions": J}
    mixer = FasterDecodeMixer(MixerConfig(**{**shape, "num_context": C, "rotary_dim": 4, **changes}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    mixer.shortlist.copy_(torch.tensor(SHORTLIST))
    return mixer.eval()


def silu(x: list[float]) -> list[float]:
    return [v / (1 + math.exp(-v)) for v in x]


def times(weight: torch.Tensor, x: list[float], bias: torch.Tensor | None = None) -> list[float]:
    out = [sum(w * v for w, v in zip(row, x, strict=True)) for row in weight.tolist()]
    return out if bias is None else [a + b for a, b in zip(out, bias.tolist(), strict=True)]


def plus(x: list[float], y: list[float]) -> list[float]:
    return [a + b for a, b in zip(x, y, strict=True)]


def softmax(x: list[float]) -> list[float]:
    total = sum(map(math.exp, x))
    return [math.exp(v) / total for v in x]


def embedding(mixer: FasterDecodeMixer, row: int) -> list[float]:
    if row == S:
        return [0.0] * D
    values = mixer.rows[row].tolist()
    size = math.sqrt(sum(v * v for v in values) / D)
    return [v / size for v in values]


def naive(
    mixer: FasterDecodeMixer, hidden: list[float], context: list[int], before: list[int]
) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """One state, one number at a time: logits [K][S], scores [K][J], keep logits [K]; ``before`` is each position's."""
    seen = hidden + [v for row in context for v in embedding(mixer, row)]
    x = plus(hidden, silu(times(mixer.merge.weight, seen, mixer.merge.bias)))
    fan = mixer.fan.weight.view(K, D, D), mixer.fan.bias.view(K, D)
    slots = [plus(x, silu(times(fan[0][k], x, fan[1][k]))) for k in range(K)]
    for block in mixer.blocks:  # itself tested elsewhere
        slots = block(torch.tensor(slots)).tolist()
    omega = frequencies(2, J).tolist()
    logits, scores, keep = [], [], []
    for k in range(K):
        rotary = plus(times(mixer.place.weight, slots[k], mixer.place.bias), mixer.place_of_slot[k].tolist())
        angles = [math.atan2(rotary[2 * m + 1], rotary[2 * m]) for m in range(2)]
        scores.append([sum(math.cos(angles[m] - j * omega[m]) for m in range(2)) / 2 for j in range(J)])
        keep.append(times(mixer.keep.weight, slots[k], mixer.keep.bias)[0] + float(mixer.keep_of_slot[k]))
        home = scores[k].index(max(scores[k]))
        told = times(mixer.follow.weight, embedding(mixer, before[home]))
        state = plus(slots[k], silu(plus(times(mixer.blend.weight, slots[k], mixer.blend.bias), told)))
        logits.append(times(mixer.rows[:-1], state))
    return logits, scores, keep


def naive_shares(mixer: FasterDecodeMixer, scores: list[list[float]], keep: list[float]) -> list[list[float]]:
    """w [K][J]."""
    shares = [[0.0] * J for _ in range(K)]
    for j in range(J):
        raw = [math.exp(mixer.config.position_sharpness * scores[k][j]) / (1 + math.exp(-keep[k])) for k in range(K)]
        for k in range(K):
            shares[k][j] = raw[k] / sum(raw)
    return shares


def inputs(n: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    context = torch.randint(0, S + 1, (n, C), generator=generator)
    labels = torch.randint(0, S, (n, J), generator=generator)
    labels[0, 1] = -100
    return torch.randn(n, D, generator=generator), context, labels


def test_the_forward_computes_the_formula() -> None:
    mixer = random_mixer()
    hidden, context, _ = inputs()
    output, distributions = mixer(hidden, context), mixer.distributions(hidden, context)
    for i in range(len(hidden)):
        rows = context[i].tolist()
        logits, scores, keep = naive(mixer, hidden[i].tolist(), rows, [rows[-1], S])
        torch.testing.assert_close(output.logits[i], torch.tensor(logits), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.shuffle_scores[i], torch.tensor(scores), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.keep_logits[i], torch.tensor(keep), atol=1e-4, rtol=1e-4)
        shares = naive_shares(mixer, scores, keep)
        for j in range(J):
            mixed = [sum(shares[k][j] * softmax(logits[k])[s] for k in range(K)) for s in range(S)]
            torch.testing.assert_close(distributions[i, j], torch.tensor(mixed), atol=1e-4, rtol=1e-4)


def test_the_loss_is_the_likelihood_of_the_mixture() -> None:
    """With every token before told, as in training where ``reveal`` is 1; what a slot was told it does not guess."""
    mixer = random_mixer(reveal=1.0).train()
    hidden, context, labels = inputs()
    loss, losses, keeps, places = mixer(hidden, context, labels).loss, [[], []], [], 0.0
    for i in range(len(hidden)):
        first = int(labels[i, 0])
        logits, scores, keep = naive(mixer, hidden[i].tolist(), context[i].tolist(), [int(context[i, -1]), first])
        shares = naive_shares(mixer, scores, keep)
        for j in range(J):
            token = int(labels[i, j])
            if token >= 0:
                homes = [scores[k].index(max(scores[k])) for k in range(K)]
                # A slot of a later position was told this token, or a later one.
                chances = [softmax(logits[k])[token] if homes[k] <= j else math.exp(NEVER) for k in range(K)]
                losses[j].append(-math.log(sum(shares[k][j] * chances[k] for k in range(K))))
        for k in range(K):
            places += (1 - scores[k][k % J]) / 3
            if scores[k].index(max(scores[k])) == 0:  # the others were told what is right
                chance, right = 1 / (1 + math.exp(-keep[k])), logits[k].index(max(logits[k])) == first
                keeps.append(-math.log(chance if right else 1 - chance))
    expected = sum(losses[0]) / 3 + 0.8 * sum(losses[1]) / 2 + places + 0.1 * sum(keeps) / len(keeps)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-4)


def test_a_new_mixer_says_what_the_models_head_says_at_positions_in_tiers(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    mixer = FasterDecodeMixer.from_backbone(tmp_path, shortlist=SHORTLIST, num_slots=7, num_positions=3)
    hidden = torch.randn(2, int(SHAPE["hidden_size"])) * 3
    with torch.no_grad():
        mixer.merge.weight.zero_()
        output = mixer(hidden, torch.full((2, 3), -1))
        said = model.lm_head(hidden)[:, SHORTLIST]
        assert output.shuffle_scores.argmax(-1).tolist() == [[0, 1, 2, 0, 1, 2, 0]] * 2
        assert (output.logits - said[:, None]).abs().max() < 0.15 * said.abs().max()
    assert mixer.config.backbone == str(tmp_path)
    assert mixer.rows_of(torch.tensor([11, 2, 3])).tolist() == [4, 0, 5]


def test_a_folder_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    mixer = random_mixer()
    mixer.save_pretrained(tmp_path)
    loaded, info = FasterDecodeMixer.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.shortlist.tolist() == SHORTLIST
    for (name, wrote), (_, got) in zip(mixer.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(wrote, got), name
    hidden, context, _ = inputs()
    assert torch.equal(mixer(hidden, context).logits, loaded(hidden, context).logits)


def test_it_learns_under_a_trainer_with_gradient_checkpointing_and_bfloat16(tmp_path: Path) -> None:
    """The two tokens after each state are a function of it; the second one also of the first."""
    torch.manual_seed(0)
    mixer = random_mixer(num_mixer_layers=2)
    states, first = torch.randn(4, D) * 2, torch.tensor([0, 1, 2, 3])
    kind = torch.arange(256) % 4
    labels = torch.stack([first[kind], (first[kind] + 1) % S], 1)
    rows = [
        {"hidden": states[k], "context": torch.tensor([S, S]), "labels": label}
        for k, label in zip(kind.tolist(), labels, strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=12,
        per_device_train_batch_size=32,
        learning_rate=0.01,
        use_cpu=True,
        bf16=True,
        gradient_checkpointing=True,
        report_to="none",
        save_strategy="no",
        label_names=["labels"],
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    Trainer(model=mixer, args=arguments, train_dataset=rows).train()
    mixer.eval()
    guesses = mixer.distributions(states, torch.full((4, 2), S)).argmax(-1)
    assert torch.equal(guesses, torch.stack([first, (first + 1) % S], 1))


def test_slots_stay_where_they_are_for_though_the_first_token_is_the_easiest() -> None:
    """The first token is a function of the state and the others are noise: only the first rewards a slot."""
    torch.manual_seed(0)
    mixer = FasterDecodeMixer(
        MixerConfig(vocab_size=12, hidden_size=D, shortlist_size=S, num_slots=4, num_positions=4, num_context=1)
    ).train()
    mixer.start_from(SHORTLIST, torch.randn(S, D))
    optimizer, states = torch.optim.Adam(mixer.parameters(), lr=0.01), torch.randn(S, D) * 2
    for _ in range(200):
        labels = torch.randint(0, S, (32, 4))
        optimizer.zero_grad()
        mixer(states[labels[:, 0]], torch.full((32, 1), S), labels).loss.backward()
        optimizer.step()
    assert mixer.slots(states, torch.full((S, 1), S)).homes.tolist() == [[0, 1, 2, 3]] * S


def test_gradients_are_the_same_with_and_without_checkpointing() -> None:
    mixer, found = random_mixer(reveal=1.0).train(), []
    for checkpointed in (False, True):
        if checkpointed:
            mixer.gradient_checkpointing_enable()
        mixer.zero_grad()
        mixer(*inputs()).loss.backward()
        found.append([parameter.grad.clone() for parameter in mixer.parameters()])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_positions": 5}, "num_positions must be 1 to num_slots=4, not 5"),
        ({"shortlist_size": 13}, "shortlist_size must be 1 to vocab_size=12, not 13"),
        ({"rotary_dim": 3}, "rotary_dim must be even"),
        ({"num_context": 0}, "num_context must be 1 or more, not 0"),
        ({"reveal": 2.0}, "reveal must be 0 to 1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_mixer(**changes)


@pytest.mark.parametrize("shortlist", [[2, 2, 6, 9, 11], [2, 5], [2, 5, 6, 9, 12]])
def test_a_wrong_shortlist_is_refused(shortlist: list[int]) -> None:
    with pytest.raises(ValueError, match="distinct tokens, not 5 of the vocabulary"):
        random_mixer().start_from(shortlist, torch.zeros(5, D))
