r"""Rule: turn real images into tokens by a codebook of patches (``patches.py``), and say what that loses. By hand::

    python -m pipeline.images.tokenise --data digits --patch-size 1 --codebook-size 16 \
        --output results/images/laptop/digits
    python -m pipeline.images.tokenise --data photographs --patch-size 16 --codebook-size 512 --sides 256 512 \
        --output results/images/laptop/photographs

The codebook of digits is found on those that a generator may learn from, and its error told for the others too. That of
photographs is found on both at their own size; one of them is then encoded at each of ``--sides``.

Writes ``tokenizer.safetensors``, ``tokens.safetensors`` (digits: ``ids``, ``images``, ``classes``, ``is_training``;
photographs: ``ids_<side>``) and last ``tokenizer.json``: sizes, SHA-256 of the two, errors.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError, command, nearest
from pipeline.files import atomic_write, sha256_of
from pipeline.images.data import DIGIT_SIDE, DIGITS, PHOTOGRAPHS, photograph, photographs, read_digits, source
from pipeline.images.patches import PatchTokenizer, check_side
from pipeline.images.records import TOKENIZER, TOKENIZER_RECORD, TOKENS, write_arrays

Tokenised = tuple[PatchTokenizer, dict[str, np.ndarray], dict[str, float]]
SHOWN = 0  # the photograph that is encoded


def tokenise_digits(patch_size: int, codebook_size: int, seed: int) -> Tokenised:
    """Return the tokenizer of the digits, their arrays, and the error on each part of them."""
    check_side(DIGIT_SIDE, patch_size)
    digits = read_digits()
    learned = digits.images[digits.is_training]
    tokenizer = PatchTokenizer.fit(learned, patch_size=patch_size, codebook_size=codebook_size, seed=seed)
    arrays = {
        "ids": tokenizer.encode(digits.images),
        "images": digits.images,
        "classes": digits.classes,
        "is_training": digits.is_training,
    }
    held_out = digits.images[~digits.is_training]
    errors = {"training": tokenizer.round_trip_rmse(learned), "held_out": tokenizer.round_trip_rmse(held_out)}
    return tokenizer, arrays, errors


def tokenise_photographs(patch_size: int, codebook_size: int, seed: int, sides: list[int]) -> Tokenised:
    """Return the tokenizer of the photographs, the ids of one of them at each side, and the error at each."""
    for side in sides:
        check_side(side, patch_size)
    tokenizer = PatchTokenizer.fit(photographs(), patch_size=patch_size, codebook_size=codebook_size, seed=seed)
    arrays, errors = {}, {}
    for side in sides:
        image = photograph(SHOWN, side)[None]
        arrays[f"ids_{side}"] = tokenizer.encode(image)[0]
        errors[str(side)] = tokenizer.round_trip_rmse(image)
    return tokenizer, arrays, errors


def write(
    tokenizer: PatchTokenizer,
    arrays: dict[str, np.ndarray],
    errors: dict[str, float],
    record: dict[str, Any],
    folder: Path,
) -> None:
    """Write the folder's files, the record last: where it is, the others are whole."""
    tokenizer.save(folder / TOKENIZER)
    write_arrays(folder / TOKENS, arrays)
    told = {
        "source": source(),
        **record,
        "codebook_sha256": sha256_of(folder / TOKENIZER),
        "tokens_sha256": sha256_of(folder / TOKENS),
        "round_trip_rmse": errors,
        "round_trip_psnr_db": {name: -20 * math.log10(error) if error else None for name, error in errors.items()},
    }
    atomic_write(folder / TOKENIZER_RECORD, json.dumps(told, indent=2) + "\n")


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help=f"{DIGITS} or {PHOTOGRAPHS}")
    parser.add_argument("--patch-size", type=int, required=True, help="pixels along a side of a patch")
    parser.add_argument("--codebook-size", type=int, required=True, help="different tokens")
    parser.add_argument("--sides", type=int, nargs="+", default=[], help="of photographs, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of k-means")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write in")
    given = parser.parse_args()
    if given.codebook_size < 2:
        raise UserError(f"codebook-size must be 2 or more, not {given.codebook_size}")
    shape = (given.patch_size, given.codebook_size, given.seed)
    if given.data == DIGITS:
        found = tokenise_digits(*shape)
    elif given.data == PHOTOGRAPHS:
        if not given.sides:
            raise UserError("sides: photographs need at least one, in pixels")
        found = tokenise_photographs(*shape, given.sides)
    else:
        raise UserError(f"data: unknown {given.data!r}; {nearest(given.data, (DIGITS, PHOTOGRAPHS))}")
    record = {
        "data": given.data,
        "patch_size": given.patch_size,
        "codebook_size": given.codebook_size,
        "seed": given.seed,
    }
    write(*found, record, given.output)


if __name__ == "__main__":
    main()
