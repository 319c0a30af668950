"""Images into tokens and back: against one patch at a time, what is split how, and what cannot be cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.images import tokenise
from pipeline.images.data import photograph, photographs, read_digits
from pipeline.images.patches import PatchTokenizer, check_side
from pipeline.images.records import TOKENIZER, TOKENIZER_RECORD, TOKENS, read_arrays, read_record
from tests.pipeline.image_rows import Run

RNG = np.random.default_rng(0)


def test_a_patch_becomes_the_nearest_code_and_the_codes_patch() -> None:
    codebook, image = RNG.random((5, 12), dtype=np.float32), RNG.random((1, 4, 6, 3), dtype=np.float32)
    tokenizer = PatchTokenizer(codebook, 2)
    ids = tokenizer.encode(image)
    back = tokenizer.decode(ids)
    for row in range(2):
        for column in range(3):
            patch = image[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1)
            nearest = int(np.argmin(((codebook - patch) ** 2).sum(1)))
            assert ids[0, row, column] == nearest
            decoded = back[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert np.array_equal(decoded, codebook[nearest].reshape(2, 2, 3))
    assert tokenizer.round_trip_rmse(image) == pytest.approx(float(np.sqrt(((back - image) ** 2).mean())))


def test_with_a_code_for_every_patch_nothing_is_lost() -> None:
    patches = RNG.random((6, 2, 2, 1), dtype=np.float32)
    images = patches[RNG.integers(6, size=(10, 3, 3))].transpose(0, 1, 3, 2, 4, 5).reshape(10, 6, 6, 1)
    tokenizer = PatchTokenizer.fit(images, patch_size=2, codebook_size=6, seed=0)
    assert tokenizer.round_trip_rmse(images) < 1e-6


def test_a_codebook_is_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = PatchTokenizer(RNG.random((4, 4), dtype=np.float32), 2)
    tokenizer.save(tmp_path / TOKENIZER)
    loaded = PatchTokenizer.load(tmp_path / TOKENIZER)
    assert np.array_equal(loaded.codebook, tokenizer.codebook)
    assert loaded.patch_size == 2
    (tmp_path / TOKENIZER).write_bytes(b"not this")
    with pytest.raises(UserError, match="is damaged"):
        PatchTokenizer.load(tmp_path / TOKENIZER)
    with pytest.raises(UserError, match=r"there is no .*tokenise makes it"):
        PatchTokenizer.load(tmp_path / "none")


def test_the_digits_are_split_once_and_each_class_alike() -> None:
    digits, again = read_digits(), read_digits()
    assert digits.images.shape == (1797, 8, 8, 1)
    assert 0 <= digits.images.min() < digits.images.max() == 1
    assert np.array_equal(digits.is_training, again.is_training)
    assert int(digits.is_training.sum()) == 1198
    for label in range(10):
        assert digits.is_training[digits.classes == label].mean() == pytest.approx(2 / 3, abs=0.01)


def test_a_photograph_is_scaled_from_its_middle() -> None:
    middle = photographs()[0][:, 106:533]
    assert photograph(0, 427).shape == (427, 427, 3)
    assert np.allclose(photograph(0, 427), middle, atol=1 / 255)
    assert photograph(0, 64).mean() == pytest.approx(middle.mean(), abs=0.01)


def test_the_digits_tokens_are_written_with_their_hash_and_error(run_rule: Run, tmp_path: Path) -> None:
    words = ("--data", "digits", "--patch-size", "2", "--codebook-size", "32", "--output", str(tmp_path))
    assert run_rule(tokenise, *words) == 0
    arrays, record = read_arrays(tmp_path / TOKENS, "tokenise"), read_record(tmp_path / TOKENIZER_RECORD, "tokenise")
    assert arrays["ids"].shape == (1797, 4, 4)
    assert arrays["ids"].max() == 31
    assert record["codebook_sha256"] == sha256_of(tmp_path / TOKENIZER)
    held_out = arrays["images"][~arrays["is_training"]]
    error = PatchTokenizer.load(tmp_path / TOKENIZER).round_trip_rmse(held_out)
    assert record["round_trip_rmse"]["held_out"] == pytest.approx(error)
    assert record["round_trip_psnr_db"]["held_out"] == pytest.approx(-20 * np.log10(error))
    before = (tmp_path / TOKENIZER).read_bytes()
    assert run_rule(tokenise, *words) == 0
    assert (tmp_path / TOKENIZER).read_bytes() == before


def test_a_photographs_tokens_are_there_at_each_side(run_rule: Run, tmp_path: Path) -> None:
    shape = ("--patch-size", "16", "--codebook-size", "16", "--sides", "64", "128")
    assert run_rule(tokenise, "--data", "photographs", *shape, "--output", str(tmp_path)) == 0
    arrays = read_arrays(tmp_path / TOKENS, "tokenise")
    assert {name: array.shape for name, array in arrays.items()} == {"ids_64": (4, 4), "ids_128": (8, 8)}
    assert set(json.loads((tmp_path / TOKENIZER_RECORD).read_text())["round_trip_rmse"]) == {"64", "128"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "digit", "--patch-size", "2", "--codebook-size", "8"), "data: unknown 'digit'; did you mean"),
        (
            ("--data", "digits", "--patch-size", "3", "--codebook-size", "8"),
            "side 8 cannot be cut into patches of 3 pixels; did you mean 6?",
        ),
        (("--data", "digits", "--patch-size", "0", "--codebook-size", "8"), "patch_size must be 1 or more, not 0"),
        (("--data", "digits", "--patch-size", "2", "--codebook-size", "1"), "codebook-size must be 2 or more, not 1"),
        (
            ("--data", "digits", "--patch-size", "1", "--codebook-size", "99"),
            "codebook-size 99 is above the 17 different patches that there are",
        ),
        (("--data", "photographs", "--patch-size", "16", "--codebook-size", "8"), "sides: photographs need at"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_and_no_file(
    run_rule: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert run_rule(tokenise, *words, "--output", str(tmp_path / "out")) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not (tmp_path / "out").exists()


def test_a_side_must_hold_whole_windows() -> None:
    check_side(2048, 16, 4)
    with pytest.raises(
        UserError, match=r"^side 2000 cannot be cut into windows of 2 x 2 patches of 16 pixels; did you mean 1984\?$"
    ):
        check_side(2000, 16, 2)
    with pytest.raises(UserError, match=r"^window must be 1 or more, not 0$"):
        check_side(2048, 16, 0)
