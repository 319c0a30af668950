"""The parts that some methods need, made beforehand, as folders: a draft model, Medusa heads, a datastore.

A part that could not be fetched or trained is a folder whose record says why (``{"error": ...}``), so that the cells
that need it become rows with that reason and all others go on. Example::

    python -m pipeline.generate --method speculative --part draft=results/parts/smollm2-135m/default/draft ...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, nearest
from pipeline.registry import METHODS, find

# of a draft model that was fetched, of one trained, of heads, of a mixer, of a datastore, of a parallel generator
RECORDS = ("source.json", "draft.json", "heads.json", "mixer.json", "datastore.json", "generator.json")


def part_argument(text: str) -> tuple[str, Path]:
    """Parse ``NAME=FOLDER``."""
    name, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, Path(folder)


def checked_parts(method: str, options: Mapping[str, Any], given: list[tuple[str, Path]]) -> dict[str, Path]:
    """Return the folders of the trained parts by name.

    Raises:
        UserError: the method is unknown, a part that it needs is not given, or one is given that it does not use.
    """
    needed = find(method, METHODS, "method").parts_with(options)
    for name, _ in given:
        if name not in needed:
            hint = nearest(name, needed) if needed else "it takes none"
            raise UserError(f"part: method {method!r} takes no {name!r}; {hint}")
    parts = dict(given)
    for name in needed:
        if name not in parts:
            raise UserError(f"part: method {method!r} needs --part {name}=FOLDER")
    return parts


def error_of(folder: Path) -> str | None:
    """Return why there is no such part, as the rule that should have made it wrote it down.

    Raises:
        UserError: the folder is not there.
    """
    if not folder.is_dir():
        makers = "train_draft, train_heads, train_mixer or build_datastore"
        raise UserError(f"part: {str(folder)!r} is no folder; run python -m pipeline.<rule> first, {makers}")
    for record in RECORDS:
        try:
            about = json.loads((folder / record).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            return f"{folder / record} is damaged: {error}"
        if "error" in about:
            return str(about["error"])
    return None


def files_of(folder: Path) -> list[Path]:
    """Return the files of a part that a figure can depend on."""
    return sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
