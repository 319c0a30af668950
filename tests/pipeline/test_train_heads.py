"""Training heads on a tiny target: what is learned, from where, and what a killed run leaves."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pipeline.train_heads as rule
from baselines.medusa import MedusaDrafter
from baselines.medusa_heads import MedusaHeads, load_heads, rows_of
from baselines.medusa_tree import fit_paths
from decoding import Sampling, SpeculativeDecoder, TargetModel
from pipeline.errors import UserError
from pipeline.heads_states import IGNORED, choose_shortlist, hidden_states, labels_of, read_text
from pipeline.train_heads import HeadsWithLoss, Settings, measure, train_heads
from tests.decoding.tiny import greedy_of, save_model

SETTINGS = Settings(num_heads=3, shortlist_size=30, epochs=12, batch_size=32, learning_rate=0.02)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return folder


@pytest.fixture(scope="module")
def text(model_dir: Path) -> Path:
    model, rng = save_model(model_dir), random.Random(0)
    lines = []
    for number in range(24):
        prompt = [rng.randrange(3, 48) for _ in range(rng.randint(2, 9))]
        output = greedy_of(model, prompt, 12)
        split = "validation" if number % 6 == 0 else "train"
        lines.append({"prompt_ids": prompt, "output_ids": output, "source": "tiny", "split": split, "finished": True})
    file = model_dir.parent / "text.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def trained(model_dir: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "heads"
    train_heads(model_dir, text, folder, SETTINGS)
    return folder


def losses(folder: Path) -> dict[int, float]:
    with (folder / "loss.csv").open() as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def test_every_label_is_the_token_that_its_head_is_to_guess(model_dir: Path, text: Path) -> None:
    """State by state, each computed by a forward pass of its own over the text up to its token."""
    model = save_model(model_dir)
    pairs = read_text(text)["validation"]
    shortlist = choose_shortlist(pairs, 20)
    hidden = hidden_states(model, pairs)
    labels, tokens = labels_of(pairs, 3, torch.tensor(rows_of(shortlist, 48)))
    at = 0
    for prompt, output in pairs:
        for i in range(len(output) - 1):
            prefix = torch.tensor([[*prompt, *output[:i]]])
            with torch.no_grad():
                alone = model.base_model(prefix).last_hidden_state[0, -1]
            torch.testing.assert_close(hidden[at], alone, atol=1e-5, rtol=1e-4)
            assert int(model.lm_head(alone).argmax()) == output[i]  # the target's own head: one place ahead
            for k in range(3):
                token = output[i + 1 + k] if i + 1 + k < len(output) else IGNORED
                assert tokens[at, k] == token
                assert labels[at, k] == (shortlist.index(token) if token in shortlist else IGNORED)
            at += 1
    assert at == len(hidden) == len(labels)


def test_the_shortlist_is_what_is_said_most(text: Path) -> None:
    pairs = read_text(text)["train"]
    counts = Counter(token for _, output in pairs for token in output)
    shortlist = choose_shortlist(pairs, 7)
    assert shortlist == sorted(shortlist)
    assert min(counts[token] for token in shortlist) >= max(counts[token] for token in counts.keys() - set(shortlist))
    assert choose_shortlist(pairs, 1000) == sorted(counts)


def test_the_loss_is_the_weighted_cross_entropy_of_each_head() -> None:
    torch.manual_seed(0)
    heads = MedusaHeads(2, 4, 5)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    hidden, labels = torch.randn(3, 4), torch.tensor([[1, 2], [0, IGNORED], [4, IGNORED]])
    log_probabilities = heads(hidden).log_softmax(-1)
    first = -(log_probabilities[0, 0, 1] + log_probabilities[0, 1, 0] + log_probabilities[0, 2, 4]) / 3
    expected = first - 0.8 * log_probabilities[1, 0, 2]
    torch.testing.assert_close(HeadsWithLoss(heads)(hidden, labels)["loss"], expected)


def test_accuracies_are_counted_by_rank_and_what_is_off_the_shortlist_is_missed() -> None:
    heads = MedusaHeads(1, 3, 3)
    with torch.no_grad():
        heads.output_weight[0] = torch.eye(3)
    hidden = torch.tensor([[3.0, 2.0, 1.0]] * 5)  # always guesses tokens 10, 20, 30, in this order
    tokens = torch.tensor([[10], [20], [10], [40], [IGNORED]])
    assert measure(heads, hidden, tokens, [10, 20, 30]) == [[0.5, 0.25, 0.0]]


def test_training_lowers_the_loss_and_writes_all_of_the_folder(trained: Path, text: Path) -> None:
    curve = losses(trained)
    assert list(curve) == sorted(curve)
    assert min(curve.values()) == pytest.approx(list(curve.values())[-1], rel=0.2)
    assert list(curve.values())[-1] < 0.7 * curve[min(curve)]
    heads, record = load_heads(trained)
    assert heads.num_heads == 3
    assert list(record.shortlist) == choose_shortlist(read_text(text)["train"], 30)
    assert list(record.tree) == fit_paths(record.top_accuracies, len(record.tree))
    assert all(0 <= share <= 1 and sum(row) <= 1.001 for row in record.top_accuracies for share in row)
    assert {file.name for file in trained.iterdir()} == {"heads.json", "heads.safetensors", "loss.csv"}
    assert [file.name for file in trained.parent.iterdir()] == ["heads"]  # no work folder stays behind


def test_heads_that_go_astray_are_told_and_not_written(model_dir: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no number any more at step \d+: a lower learning rate \(now 1e\+30\)"):
        train_heads(model_dir, text, tmp_path / "heads", replace(SETTINGS, learning_rate=1e30))
    assert not (tmp_path / "heads").exists()


def test_trained_heads_guess_what_the_target_says(trained: Path, model_dir: Path, text: Path) -> None:
    target = TargetModel.from_pretrained(model_dir)
    drafter = MedusaDrafter.from_target(target, parts={"heads": trained}, sampling=Sampling())
    decoder, steps, emitted = SpeculativeDecoder(target, drafter), 0, 0
    for prompt, output in read_text(text)["train"]:
        generation = decoder.generate(prompt, max_new_tokens=12)
        assert list(generation.output_ids) == output
        steps, emitted = steps + len(generation.steps), emitted + generation.num_new_tokens - 1
    assert emitted / steps > 1.5


def test_tokens_a_step_are_those_of_walking_along_the_held_out_text(trained: Path, model_dir: Path, text: Path) -> None:
    heads, record = load_heads(trained)
    pairs = read_text(text)["validation"]
    states = hidden_states(save_model(model_dir).bfloat16(), pairs)
    emitted = steps = start = 0
    for _, output in pairs:
        i = 0
        while i < len(output) - 1:
            with torch.no_grad():
                guesses = heads.bfloat16()(states[start + i : start + i + 1])[:, 0].argmax(-1)
            right = 0
            for guess in guesses.tolist():
                if i + 1 + right == len(output) or record.shortlist[guess] != output[i + 1 + right]:
                    break
                right += 1
            gained = min(right + 1, len(output) - 1 - i)
            emitted, steps, i = emitted + gained, steps + 1, i + gained
        start += len(output) - 1
    assert record.chain_tokens_per_step == pytest.approx(emitted / steps, abs=1e-4)
    assert record.tree_tokens_per_step is not None
    assert 1.2 < record.chain_tokens_per_step <= record.tree_tokens_per_step <= 4


class KilledError(Exception):
    """Stands for the end of a process."""


def test_a_killed_run_goes_on_where_it_was_and_ends_in_the_same_heads(
    trained: Path, model_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"before": 0, "after": 0}
    forward, name = HeadsWithLoss.forward, "before"
    read = rule.kept_or_read

    def counted(self: HeadsWithLoss, hidden: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        calls[name] += 1
        if name == "before" and calls[name] == 45:
            raise KilledError
        return forward(self, hidden, labels)

    monkeypatch.setattr(HeadsWithLoss, "forward", counted)
    monkeypatch.setattr(rule, "SAVE_STEPS", 20)
    output = tmp_path / "heads"
    with pytest.raises(KilledError):
        train_heads(model_dir, text, output, SETTINGS)
    assert not output.exists()
    name = "after"
    monkeypatch.setattr(rule, "kept_or_read", lambda *_: pytest.fail("the target was read a second time"))
    train_heads(model_dir, text, output, SETTINGS)
    assert max(losses(trained)) - 40 <= calls["after"] < max(losses(trained)) - 30  # from step 40, not from 0
    assert losses(output) == losses(trained)
    assert (output / "heads.safetensors").read_bytes() == (trained / "heads.safetensors").read_bytes()
    monkeypatch.setattr(rule, "kept_or_read", read)


def test_the_target_is_laid_over_the_cards_that_there_are(
    model_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        assert options["device_map"] == "auto"
        raise MemoryError("asked for")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(rule.AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(MemoryError, match="asked for"):
        rule.read_target(model_dir, read_text(text), [3], tmp_path, tmp_path)


def test_another_run_takes_nothing_over(model_dir: Path, text: Path, tmp_path: Path) -> None:
    work = tmp_path / ".heads.partial"
    work.mkdir()
    (work / "run.json").write_text("{}")
    (work / "states.safetensors").write_bytes(b"of another run")
    train_heads(model_dir, text, tmp_path / "heads", Settings(num_heads=1, epochs=1, batch_size=64))
    assert (tmp_path / "heads/heads.json").is_file()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"prompt_ids": [3], "output_ids": [4, 5], "split": "train"}', "no text of split 'validation'"),
        ('{"prompt_ids": [3], "split": "train"}', "text.jsonl:1: not a line of generated text"),
        ('{"prompt_ids": [3], "output_ids": [4, 5], "split": "test"}', "generated text: KeyError: 'test'"),
        ("{", "text.jsonl:1: not a line"),
        ('{"error": "the target is missing"}', "^the target is missing$"),
    ],
)
def test_bad_text_is_told(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "text.jsonl").write_text(lines + "\n")
    with pytest.raises(UserError, match=message):
        read_text(tmp_path / "text.jsonl")


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    entries = [
        {"prompt_ids": [3], "output_ids": [4, 5], "split": split, "text": "one\u2028line\u0085still"}
        for split in ("train", "validation")
    ]
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    (tmp_path / "text.jsonl").write_text(lines, encoding="utf-8")
    assert read_text(tmp_path / "text.jsonl") == {"train": [([3], [4, 5])], "validation": [([3], [4, 5])]}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["train_heads", *arguments])
    try:
        rule.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_command_line_tells_errors_in_one_line_or_as_a_row(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--model={tmp_path}", f"--text={text}", f"--output={tmp_path / 'heads'}"]
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith("error: --model:")
    assert not (tmp_path / "heads").exists()
    assert run(monkeypatch, *arguments, "--num-heads", "0") == 2
    assert capsys.readouterr().err == "error: --num-heads must be above 0, not 0\n"
    assert run(monkeypatch, *arguments, "--errors-as-rows") == 0
    assert "is not a model folder" in json.loads((tmp_path / "heads/heads.json").read_text())["error"]
