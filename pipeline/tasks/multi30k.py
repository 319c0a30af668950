"""Multi30k (Elliott et al. 2016): image captions, English to German, test_2016_flickr. From a folder or a hub.

The folder holds ``test_2016_flickr.en.gz`` and ``test_2016_flickr.de.gz``, one sentence a line, line i of one being the
translation of line i of the other; to learn from it, ``train`` and ``val`` of both languages as well.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.tasks.source import Document, Hub, Source, keep

SPLIT = "test_2016_flickr"


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"{path}: no such file (a Multi30k folder holds {SPLIT}.en.gz, {SPLIT}.de.gz and the like)")
    try:
        return gzip.decompress(path.read_bytes()).decode("utf-8").rstrip("\n").split("\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start} of the unpacked text)") from None


def read_folder(folder: Path, split: str = SPLIT) -> list[Document]:
    """Return the sentence pairs of a split in a Multi30k folder.

    Raises:
        UserError: a file is missing, damaged, not UTF-8, or the two have different numbers of lines.
    """
    english, german = (_lines(folder / f"{split}.{language}.gz") for language in ("en", "de"))
    if len(english) != len(german):
        raise UserError(f"{folder}: {split}.en.gz has {len(english)} lines, {split}.de.gz has {len(german)}")
    return [{"source": en.strip(), "target": de.strip()} for en, de in zip(english, german, strict=True) if en.strip()]


def training_pairs(path: Path | None, num_pairs: int | None, seed: int) -> dict[str, list[Document]]:
    """Return the pairs of a folder's ``train`` and ``val``, in the order of the files.

    Raises:
        UserError: no folder is given, or it lacks them.
    """
    if path is None:
        raise UserError("multi30k: give the folder that holds train.en.gz as path:")
    return {"train": read_folder(path, "train")[:num_pairs], "validation": read_folder(path, "val")}


def _from_hub(row: Mapping[str, Any]) -> Document:
    pair = keep("en", "de")(row)
    return {"source": pair["en"], "target": pair["de"]}


SOURCE = Source(from_path=read_folder, hub=Hub(config=None, split="test", to_document=_from_hub))
