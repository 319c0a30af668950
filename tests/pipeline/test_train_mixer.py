"""Training a mixer on a tiny target: what is learned, from where, and what a killed run leaves."""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path

import pytest
import torch

import pipeline.train_mixer as rule
from decoding import CandidateTree, Sampling, SpeculativeDecoder, TargetModel, Verdict
from pipeline.errors import UserError
from pipeline.heads_states import IGNORED, choose_shortlist, hidden_states, read_text
from pipeline.mixer_data import contexts_of, replay
from pipeline.train_mixer import Settings, accuracies, train_mixer
from shuffle.fasterdecodemixer.drafter import MixerDrafter
from shuffle.fasterdecodemixer.guesses import load_mixer
from shuffle.fasterdecodemixer.model import FasterDecodeMixer
from tests.decoding.tiny import greedy_of, save_model

SETTINGS = Settings(num_slots=4, num_positions=3, shortlist_size=30, epochs=10, batch_size=32, learning_rate=0.02)


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
    folder = tmp_path_factory.mktemp("trained") / "mixer"
    train_mixer(model_dir, text, folder, SETTINGS)
    return folder


def losses(folder: Path) -> dict[int, float]:
    with (folder / "loss.csv").open() as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("num_context", [1, 2, 4])
def test_contexts_end_with_the_token_that_their_state_chose(num_context: int) -> None:
    pairs = [([3, 4], [5, 6, 7]), ([8], [9, 3]), ([4, 5, 6, 7], [3, 9])]
    rows = torch.tensor([IGNORED] * 3 + [2, 0, 1, 3, IGNORED, 4, 5])
    found, at = contexts_of(pairs, num_context, rows), 0
    for prompt, output in pairs:
        for i in range(len(output) - 1):
            seen = ([None] * num_context + prompt + output[: i + 1])[-num_context:]
            assert found[at].tolist() == [IGNORED if token is None else int(rows[token]) for token in seen]
            at += 1
    assert at == len(found)


class Fixed:
    """Proposes what it is given for each state, and writes down what it was told."""

    max_width = 4

    def __init__(self, trees: dict[float, list[tuple[int, int]]]) -> None:
        self.trees, self.seen = trees, []

    def begin(self, prompt_ids: list[int]) -> None:
        self.seen.append(("begin", list(prompt_ids)))

    def observe(self, verdict: Verdict) -> int:
        self.state = float(verdict.hidden[verdict.path[-1]])
        self.seen.append((self.state, verdict.bonus))
        return 0

    def propose(self, context: list[int]) -> CandidateTree:
        nodes = self.trees.get(self.state, [])
        return CandidateTree((context[-1], *(token for token, _ in nodes)), (-1, *(parent for _, parent in nodes)))


def test_a_replay_walks_the_text_as_decoding_would() -> None:
    pairs = [([1, 2], [10, 11, 12, 13, 14]), ([3], [20, 21, 22])]
    hidden = torch.arange(6.0)[:, None]  # states 0..3 of the first text, 4 and 5 of the second
    # From 10 a tree in which 11, 12 is a path; from 13 nothing. From 20 a chain that runs past the end of the text.
    trees = {0.0: [(9, 0), (11, 0), (12, 2)], 4.0: [(21, 0), (22, 1), (5, 2)]}
    drafter = Fixed(trees)
    assert replay(drafter, pairs, hidden) == pytest.approx((3 + 1 + 2) / 3)
    assert drafter.seen == [("begin", [1, 2]), (0.0, 10), (3.0, 13), ("begin", [3]), (4.0, 20)]
    assert replay(Fixed({}), pairs, hidden) == 1.0
    assert replay(Fixed(trees), pairs, hidden, most_tokens=2) == pytest.approx(4 / 2)


def test_accuracies_count_what_is_off_the_shortlist_as_missed(trained: Path) -> None:
    mixer = load_mixer(trained).float()
    hidden, context = torch.randn(5, 32), torch.full((5, 3), IGNORED)
    said = mixer.shortlist[mixer.distributions(hidden, context).argmax(-1)]
    tokens = said.clone()
    tokens[0, 0], tokens[1, 1], tokens[2, 1], tokens[:, 2] = 47, IGNORED, 1, IGNORED
    assert accuracies(mixer, hidden, context, tokens) == [0.8, 0.75, 0.0]


def test_training_lowers_the_loss_and_writes_all_of_the_folder(trained: Path, text: Path) -> None:
    curve = losses(trained)
    assert list(curve) == sorted(curve)
    assert list(curve.values())[-1] < 0.7 * curve[min(curve)]
    mixer = load_mixer(trained)
    assert mixer.shortlist.tolist() == choose_shortlist(read_text(text)["train"], 30)
    record = json.loads((trained / "mixer.json").read_text())
    assert len(record["accuracies"]) == 3
    assert all(0 <= share <= 1 for share in record["accuracies"])
    assert 1 <= record["chain_tokens_per_step"] <= 4
    assert {file.name for file in trained.iterdir()} == {"config.json", "mixer.json", "model.safetensors", "loss.csv"}
    assert [file.name for file in trained.parent.iterdir()] == ["mixer"]  # no work folder stays behind


def test_a_trained_mixer_guesses_what_the_target_says_as_often_as_the_replay_tells(
    trained: Path, model_dir: Path, text: Path
) -> None:
    target = TargetModel.from_pretrained(model_dir)
    drafter = MixerDrafter.from_target(target, parts={"mixer": trained}, sampling=Sampling())
    decoder, steps, emitted = SpeculativeDecoder(target, drafter), 0, 0
    pairs = read_text(text)["train"]
    for prompt, output in pairs:
        generation = decoder.generate(prompt, max_new_tokens=12)
        assert list(generation.output_ids) == output
        steps, emitted = steps + len(generation.steps), emitted + generation.num_new_tokens - 1
    assert emitted / steps > 1.5
    hidden = hidden_states(save_model(model_dir), pairs)
    assert replay(drafter, pairs, hidden) == pytest.approx(emitted / steps, rel=0.02)


class KilledError(Exception):
    """Stands for the end of a process."""


def test_a_killed_run_goes_on_where_it_was_and_ends_in_the_same_mixer(
    trained: Path, model_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"before": 0, "after": 0}
    loss, name = FasterDecodeMixer._loss, "before"

    def counted(self: FasterDecodeMixer, *args: object, **kwargs: object) -> torch.Tensor:
        calls[name] += 1
        if name == "before" and calls[name] == 45:
            raise KilledError
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(FasterDecodeMixer, "_loss", counted)
    monkeypatch.setattr(rule, "SAVE_STEPS", 20)
    output = tmp_path / "mixer"
    with pytest.raises(KilledError):
        train_mixer(model_dir, text, output, SETTINGS)
    assert not output.exists()
    name = "after"
    train_mixer(model_dir, text, output, SETTINGS)
    assert max(losses(trained)) - 40 <= calls["after"] < max(losses(trained)) - 30  # from step 40, not from 0
    assert losses(output) == losses(trained)
    assert (output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["train_mixer", *arguments])
    try:
        rule.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_command_line_tells_errors_in_one_line_or_as_a_row(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--model={tmp_path}", f"--text={text}", f"--output={tmp_path / 'mixer'}"]
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith("error: --model:")
    assert not (tmp_path / "mixer").exists()
    assert run(monkeypatch, *arguments, "--num-slots", "0") == 2
    assert capsys.readouterr().err == "error: --num-slots must be above 0, not 0\n"
    assert run(monkeypatch, *arguments, "--num-slots", "2") == 2
    assert capsys.readouterr().err == "error: --num-positions must be at most --num-slots=2, not 4\n"
    assert run(monkeypatch, *arguments, "--errors-as-rows") == 0
    assert "is not a model folder" in json.loads((tmp_path / "mixer/mixer.json").read_text())["error"]
    with pytest.raises(UserError, match="--batch-size must be above 0"):
        Settings(batch_size=0)
