"""Where a task's documents come from: an installed package (embedded), local files, or the Hugging Face hub.

A task's module defines one constant, read by ``pipeline.dataset``::

    SOURCE = Source(from_path=read_rows, hub=Hub(config="main", split="test", to_document=keep("question", "answer")))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import MOST_LISTED, UserError, nearest

Document = dict[str, str]


@dataclass(frozen=True)
class Embedded:
    """Documents that need no network; ``about`` names what makes them and what pins them (version, seed)."""

    about: Callable[[], tuple[str, str]]
    documents: Callable[[], Iterable[Document]]


@dataclass(frozen=True)
class Hub:
    """How a hub data set becomes documents: its configuration, its split, and what to keep of a row (None: nothing)."""

    config: str | None
    split: str
    to_document: Callable[[Mapping[str, Any]], Document | None]


@dataclass(frozen=True)
class Source:
    """The sources that a task knows; ``None`` where it has no such source."""

    embedded: Embedded | None = None
    from_path: Callable[[Path], list[Document]] | None = None
    hub: Hub | None = None


def keep(*keys: str) -> Callable[[Mapping[str, Any]], Document]:
    """Return a function that keeps ``keys`` of a row, all of them text.

    Raises:
        UserError: a key is missing (the nearest key of the row is named) or its value is not text.
    """

    def select(row: Mapping[str, Any]) -> Document:
        for key in keys:
            if key not in row:
                raise UserError(f"key {key!r} is missing; {nearest_key(key, row)}")
            if not isinstance(row[key], str):
                raise UserError(f"key {key!r} is {type(row[key]).__name__}, expected text")
        return {key: row[key] for key in keys}

    return select


def nearest_key(key: str, row: Mapping[str, Any]) -> str:
    """Name the key of ``row`` that was perhaps meant by ``key``."""
    return nearest(key, row) if row else "the row is empty"


def read_text(path: Path) -> str:
    """Return a UTF-8 file as text, with an error that names the file if it is missing or not UTF-8."""
    if path.is_dir():
        names = sorted(file.name for file in path.glob("*.jsonl"))
        inside = f"did you mean one of {', '.join(names[:MOST_LISTED])}?" if names else "it holds no *.jsonl"
        raise UserError(f"{path}: a folder, expected a file; {inside}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x})") from None


def read_jsonl(path: Path, to_document: Callable[[Mapping[str, Any]], Document | None]) -> list[Document]:
    """Read one document a line; ``to_document`` may answer None for a row that is not of this task.

    Raises:
        UserError: naming the file and the line: not JSON, not an object, or what ``to_document`` says.
    """
    documents = []
    # Only \n ends a line: str.splitlines would also cut at U+2028, which JSON may hold unescaped.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        try:
            document = to_document(row)
            to_jsonl([document or {}]).encode()
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise UserError(f"{path}, line {number}: {half} is half a character, which no text can hold") from None
        if document is not None:
            documents.append(document)
    return documents


def to_jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return one JSON object a line, non-ASCII characters as they are."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def spec_bench(
    row: Mapping[str, Any], category: str, prefix: str, question_key: str, answer_key: str
) -> Document | None:
    """Make a document of a Spec-Bench row (its ``question.jsonl``), or None if it is of another category.

    The first of its ``turns`` starts with ``prefix``; the first of its ``reference`` counts.
    """
    if row["category"] != category:
        return None
    for key in ("turns", "reference"):
        if not (isinstance(row.get(key), list) and row[key] and isinstance(row[key][0], str)):
            raise UserError(f"key {key!r} must be a list that starts with a text")
    return {question_key: row["turns"][0].removeprefix(prefix), answer_key: row["reference"][0]}
