"""Writing files so that a reader sees all of the old one or all of the new one, never a half.

Example::

    atomic_write(folder / "cell.json", json.dumps(summary))
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it, on failure remove it.

    Raises:
        OSError: the folder cannot be written, or the disk is full; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since some writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_lines(path: Path) -> list[Any]:
    """Return what the lines of a JSON Lines file hold.

    Not by splitlines(): a text may hold other line separators (U+2028), which JSON leaves as they are.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is not JSON.
    """
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def whole_lines(path: Path) -> list[Any]:
    """Return what the lines of a journal hold, up to the first that was not written whole: none, if there is no file.

    A kill can tear the last line, a power cut several.
    """
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def write_reason(record: Path, reason: str) -> None:
    """Write why there is nothing to record: ``{"error": reason}``."""
    atomic_write(record, json.dumps({"error": reason}, indent=2) + "\n")


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for one process, of all machines that share it; the file system lets go of it however it ends.

    Where the file system has no locks between machines, this says so and goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            print(f"{folder} cannot be locked ({error.strerror}): see that no other run works on it", file=sys.stderr)
        yield


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_all(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of one file, or, for several, of the lines ``<sha256>  <name>`` in order of name."""
    files = sorted(paths)
    if len(files) == 1:
        return sha256_of(files[0])
    return hashlib.sha256("".join(f"{sha256_of(file)}  {file.name}\n" for file in files).encode()).hexdigest()
