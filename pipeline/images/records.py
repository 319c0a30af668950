"""The files that the rules of images hand on: their names, and reading them, with one line where they are not there.

Example::

    arrays = read_arrays(folder / TOKENS, "tokenise")
    record = read_record(folder / TOKENIZER_RECORD, "tokenise")
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.files import atomic_path

TOKENIZER, TOKENS, TOKENIZER_RECORD = "tokenizer.safetensors", "tokens.safetensors", "tokenizer.json"
MODEL_RECORD = "model.json"
IMAGES, SAMPLES_RECORD = "images.safetensors", "samples.json"

NO_GUIDANCE = "none"
GUIDANCES = (NO_GUIDANCE, "constant", "linear", "half_linear")
BASELINE = 1  # the window that others are held against: plain next-token prediction


def read_record(path: Path, made_by: str) -> Any:
    """Return a record in JSON, which ``pipeline.images.<made_by>`` writes.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"there is no {path}; python -m pipeline.images.{made_by} makes it") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_arrays(path: Path, made_by: str) -> dict[str, np.ndarray]:
    """Return arrays in safetensors, which ``pipeline.images.<made_by>`` writes.

    Raises:
        UserError: they are missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise UserError(f"there is no {path}; python -m pipeline.images.{made_by} makes it")
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as safetensors, whole or not at all."""
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
