"""The rules of images one after the other, on models that learned for a moment: what they write, what they refuse."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import clock
from pipeline.errors import UserError
from pipeline.images import collect, cost, generate, prefill, score, sheet, timing, tokenise, train
from pipeline.images.data import NUM_CLASSES
from pipeline.images.patches import PatchTokenizer
from pipeline.images.records import IMAGES, MODEL_RECORD, TOKENIZER, TOKENS, read_arrays, read_record
from pipeline.schemas import image
from pipeline.statistics import RUN_TO_RUN
from tests.pipeline.image_rows import Run

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2}
WINDOWS, GUIDANCES = (1, 2), ("none", "half_linear")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens, two models, and a folder of samples each."""
    folder, before = tmp_path_factory.mktemp("images"), sys.argv
    shape = ("--backbone", json.dumps(SHAPE), "--steps", "3", "--batch-size", "8")

    def place(window: int, guidance: str) -> str:
        return f"samples/window_{window}/{guidance}"

    few = ("--images-per-class", "4", "--output")
    words: list[tuple[str, ...]] = [
        ("tokenise", "--data", "digits", "--patch-size", "2", "--codebook-size", "16", "--output", "digits"),
        *(
            ("train", "--tokens", "digits", "--window", str(window), *shape, "--output", f"window_{window}")
            for window in WINDOWS
        ),
        *(
            (
                "generate",
                "--model",
                f"window_{window}",
                "--tokens",
                "digits",
                "--guidance",
                guidance,
                *few,
                place(window, guidance),
            )
            for window in WINDOWS
            for guidance in GUIDANCES
        ),
    ]
    modules = {"tokenise": tokenise, "train": train, "generate": generate}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for rule, *rest in words:
            patch.setattr(sys, "argv", [rule, *rest])
            modules[rule].main()
    assert sys.argv == before
    return folder


@pytest.fixture
def at_work(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    # The lock is the machine's, and a test times nothing.
    monkeypatch.setattr(clock, "machine_lock", nullcontext)
    return made


def test_a_model_says_how_it_was_made(made: Path) -> None:
    one, two = (read_record(made / f"window_{window}" / MODEL_RECORD, "train") for window in WINDOWS)
    differing = {name for name in one if one[name] != two[name]}
    assert differing <= {"window", "num_parameters", "training_seconds", "validation_loss", "weights_sha256"}
    assert (one["training_images"], one["num_parameters"] < two["num_parameters"]) == (1198, True)
    assert (made / "window_2" / "loss.csv").read_text().startswith("step,epoch,loss,eval_loss")
    assert {file.suffix for file in (made / "window_2").iterdir()} == {".json", ".csv", ".safetensors"}


def test_digits_are_drawn_of_every_class_and_are_what_their_tokens_stand_for(made: Path) -> None:
    found = read_arrays(made / "samples/window_2/none" / IMAGES, "generate")
    assert np.bincount(found["classes"]).tolist() == [4] * NUM_CLASSES
    assert found["ids"].shape == (40, 4, 4)
    assert np.array_equal(found["images"], PatchTokenizer.load(made / "digits" / TOKENIZER).decode(found["ids"]))


def test_the_same_seed_draws_the_same_digits(at_work: Path, run_rule: Run) -> None:
    words = ("--model", "window_2", "--tokens", "digits", "--images-per-class", "4", "--output", "again")
    assert run_rule(generate, *words) == 0
    first, again = (read_arrays(Path(place) / IMAGES, "generate") for place in ("samples/window_2/none", "again"))
    assert np.array_equal(first["ids"], again["ids"])


def test_everything_ends_in_one_table(at_work: Path, run_rule: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [f"samples/window_{window}/{guidance}" for window in WINDOWS for guidance in GUIDANCES]
    assert run_rule(score, "--tokens", "digits", "--samples", *samples, "--output", "scores.json") == 0
    words = ("--models", "window_1", "window_2", "--guidances", *GUIDANCES, "--images", "3", "--batch-size", "3")
    assert run_rule(timing, *words, "--output", "timing.json") == 0
    shape = ("--patch-size", "16", "--codebook-size", "16", "--sides", "64")
    assert run_rule(tokenise, "--data", "photographs", *shape, "--output", "photographs") == 0
    monkeypatch.setattr(cost, "measure_side", lambda *given: [cost_row(window) for window in WINDOWS])
    words = ("--tokens", "photographs", "--sides", "64", "--windows", "1", "2", "--output", "cost.json")
    assert run_rule(cost, *words) == 0
    words = ("--digits", "digits", "--scores", "scores.json", "--timing", "timing.json", "--profile", "test")
    assert (
        run_rule(collect, *words, "--photographs", "photographs", "--cost", "cost.json", "--output", "image.csv") == 0
    )
    table = image.read(at_work / "image.csv").set_index(["subject", "method", "guidance"])
    assert sorted(table.index) == sorted(
        [("digits", "real", ""), ("digits", "tokenizer", "")]
        + [("digits", f"window_{window}", guidance) for window in WINDOWS for guidance in GUIDANCES]
        + [("photograph", f"window_{window}", "") for window in WINDOWS]
    )
    one, two = (table.loc["digits", f"window_{window}", "half_linear"] for window in WINDOWS)
    assert (one["rows"], two["rows"], one["batch_size"], one["images_at_once"]) == (16, 4, 8, 3)
    assert one["speedup"] == pytest.approx(1)
    assert two["speedup_low"] < two["speedup"] < two["speedup_high"]


def cost_row(window: int) -> dict[str, float]:
    counted = {one: {"rows": 16 // one**2, "attention_flops": 256 // one**4, "flops": 999} for one in WINDOWS}
    counted = {one: row | {"num_parameters": 5, "weight_bytes": 20} for one, row in counted.items()}
    trials = {one: [{"seconds": k / one, "peak_memory_bytes": 100 * k / one} for k in (2, 1, 3)] for one in WINDOWS}
    return cost.row_of(window, 16, counted, trials)


def test_a_cost_is_held_against_window_1_and_the_formula() -> None:
    row = cost_row(2)
    assert (row["prefill_s"], row["prefill_ratio"], row["memory_ratio"]) == (1.0, 0.5, 0.5)
    assert row["prefill_ratio_high"] == pytest.approx(0.25 / row["prefill_ratio_low"])
    assert np.log(row["prefill_ratio_high"] / 0.5) == pytest.approx(1.96 * RUN_TO_RUN, rel=1e-3)
    assert cost_row(1)["prefill_ratio_low"] == cost_row(1)["prefill_ratio_high"] == 1  # itself by itself
    assert (row["rows"], row["predicted_rows"], row["attention_flops"], row["predicted_attention_flops"]) == (
        4,
        4,
        16,
        16,
    )
    assert row["peak_memory_bytes"] == 150


@pytest.mark.parametrize("window", [1, 2])
def test_a_prefill_counts_what_the_formula_says(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "settle", lambda: None)  # it would freeze what other tests made
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 7, "window": window}
    counted = prefill.prepare(shape, np.zeros((8, 8), dtype=np.int64), torch.get_num_threads())
    rows = 64 // window**2
    assert counted["rows"] == rows
    assert counted["attention_flops"] == 2 * (2 * 2 * rows * rows * 32)  # layers x (QK' and AV, times and plus)
    assert counted["flops"] > counted["attention_flops"]
    figures = prefill.prefill()
    assert figures["seconds"] > 0
    prefill._state.clear()


def test_a_prefill_says_what_the_model_says_of_the_last_window() -> None:
    from tests.shuffle.test_tokenshuffle_model import IDS, tiny

    model = tiny(2)
    logits = model(torch.tensor([0]), IDS[:1]).logits[:, 2:, 2:].flatten(1, 2)
    assert torch.allclose(prefill.read(model, IDS[:1])[:, 0], logits, atol=1e-5)


@pytest.mark.slow
def test_each_window_reads_in_a_process_of_its_own() -> None:
    ids = np.zeros((8, 8), dtype=np.int64)
    rows = cost.measure_side(ids, SHAPE | {"vocab_size": 7}, [1, 2], repeats=2, num_threads=1)
    assert [row["window"] for row in rows] == [1, 2]
    assert [row["rows"] for row in rows] == [64, 16]
    assert all(row["prefill_s"] > 0 and row["repeats"] == 2 for row in rows)
    assert rows[0]["prefill_ratio"] == rows[0]["memory_ratio"] == 1


def test_the_sheet_shows_the_first_of_each_class(at_work: Path, run_rule: Run) -> None:
    arrays = read_arrays(at_work / "digits" / TOKENS, "tokenise")
    held_out = ~arrays["is_training"]
    images, classes = arrays["images"][held_out], arrays["classes"][held_out]
    pixels = sheet.strip(images, classes, per_class=2)
    assert pixels.shape == (9, 9 * 20)
    assert np.array_equal(pixels[:8, 9:17], images[classes == 0][1, :, :, 0])
    assert not pixels[8].any()
    words = ("--tokens", "digits", "--samples", "samples/window_1/none", "--output", "sheet.png")
    assert run_rule(sheet, *words) == 0
    assert (at_work / "sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("rule", "words", "said"),
    [
        (train, ("--tokens", "digits", "--window", "0"), "window must be 1 or more, not 0"),
        (train, ("--tokens", "digits", "--window", "3"), "TokenShuffleConfig: grid_size 4 is no multiple of window 3"),
        (train, ("--tokens", "digits", "--window", "2", "--steps", "0"), "--steps must be above 0, not 0"),
        (train, ("--tokens", "nowhere", "--window", "2"), "there is no nowhere/tokens.safetensors"),
        (
            train,
            ("--tokens", "digits", "--window", "2", "--backbone", '{"hiden_size": 8}'),
            "TokenShuffleConfig.hiden_size = 8: no such key; did you mean 'hidden_size'?",
        ),
        (generate, ("--guidance-scale", "0"), "guidance-scale must be above 0 (1 is no guidance), not 0.0"),
        (generate, ("--guidance-scale", "-2"), "guidance-scale must be above 0 (1 is no guidance), not -2.0"),
        (generate, ("--guidance", "linar"), "guidance: unknown 'linar'; did you mean 'linear'?"),
        (generate, ("--classes", "3", "12"), "unknown class 12; known: 0 to 9"),
        (generate, ("--classes", "-1"), "unknown class -1; known: 0 to 9"),
        (generate, ("--images-per-class", "0"), "images-per-class must be 1 or more, not 0"),
        (generate, ("--sampling", '{"top_p": 0}'), "top_p must be above 0 and at most 1, not 0"),
        (generate, ("--model", "nowhere"), "nowhere holds no model; python -m pipeline.images.train makes it"),
        (timing, ("--models", "window_2"), "models: none has window 1, which speed-ups are over"),
        (timing, ("--models", "window_1", "--images", "0"), "images must be 1 or more, not 0"),
        (cost, ("--sides", "64", "--windows", "2"), "windows: 1, which ratios are over, is not among [2]"),
        (cost, ("--sides", "64", "--windows", "1", "0"), "there is no nowhere/tokens.safetensors"),
        (score, ("--tokens", "nowhere"), "there is no nowhere/tokens.safetensors"),
    ],
)
def test_a_mistake_is_one_line_and_no_file(
    at_work: Path, run_rule: Run, capsys: pytest.CaptureFixture[str], rule: object, words: tuple[str, ...], said: str
) -> None:
    if rule is generate:
        words = ("--model", "window_2", "--tokens", "digits", *words)
    if rule is cost:
        words = ("--tokens", "nowhere", *words)
    assert run_rule(rule, *words, "--output", "refused") == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith(f"error: {said}"), errors
    assert not (at_work / "refused").exists()


def test_a_side_without_whole_windows_is_refused(
    at_work: Path, run_rule: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ("--patch-size", "16", "--codebook-size", "16", "--sides", "48")
    assert run_rule(tokenise, "--data", "photographs", *shape, "--output", "odd") == 0
    for windows, said in (
        (("1", "2"), "side 48 cannot be cut into windows of 2 x 2"),
        (("1", "0"), "window must be 1"),
    ):
        words = ("--tokens", "odd", "--sides", "48", "--windows", *windows, "--output", "refused")
        assert run_rule(cost, *words) == 2
        assert f"error: {said}" in capsys.readouterr().err


def test_a_damaged_record_is_named(at_work: Path, run_rule: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (at_work / "damaged.json").write_text("{")
    words = ("--digits", "digits", "--photographs", "digits", "--scores", "damaged.json", "--timing", "damaged.json")
    assert run_rule(collect, *words, "--cost", "damaged.json", "--profile", "test", "--output", "refused.csv") == 2
    assert "error: damaged.json is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"there is no none\.json; python -m pipeline\.images\.score makes it"):
        read_record(Path("none.json"), "score")
