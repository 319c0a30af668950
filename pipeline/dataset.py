"""Rule: write a task's documents to ``data.jsonl`` and say in ``source.json`` where they came from.

Nothing falls back: without ``--path`` or ``--hub`` the documents are the embedded ones, and a task that has none says
so. Nothing is downloaded unless ``--hub`` asks for it. By hand::

    python -m pipeline.dataset --task humaneval --output results/tasks/humaneval
    python -m pipeline.dataset --task gsm8k --path ../shared/data/gsm8k/test.jsonl --output results/tasks/gsm8k
    python -m pipeline.dataset --task gsm8k --hub openai/gsm8k --revision main --output results/tasks/gsm8k
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, command, tell
from pipeline.files import atomic_write, sha256_of_all
from pipeline.hub import reason_of
from pipeline.registry import TASKS, find
from pipeline.tasks.source import Document, Source, to_jsonl


def source_of(task: str) -> Source:
    """Return the sources that a registered task knows."""
    source: Source = importlib.import_module(find(task, TASKS, "task").source).SOURCE
    return source


def from_embedded(task: str) -> tuple[list[Document], str, str]:
    """Return the embedded documents of ``task``, what they come from, and what pins them (a version, a seed)."""
    embedded = source_of(task).embedded
    if embedded is None:
        raise UserError(f"task {task!r} has no embedded documents: give it a path: or a hub:")
    return list(embedded.documents()), *embedded.about()


def from_path(task: str, path: Path) -> tuple[list[Document], str, str]:
    """Return the documents of ``task`` in a file or folder, its name, and as revision the SHA-256 of what was read."""
    read = source_of(task).from_path
    if read is None:
        raise UserError(f"task {task!r} cannot be read from a path")
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    documents = read(path)
    files = (file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return documents, f"path:{path}", f"sha256:{sha256_of_all(files)}"


def from_hub(task: str, name: str, revision: str | None) -> tuple[list[Document], str, str]:
    """Return the documents of ``task`` in a hub data set, its name, and the commit that was read.

    Raises:
        UserError: the hub cannot be reached, or has no such data set, revision, configuration or split.
    """
    hub = source_of(task).hub
    if hub is None:
        raise UserError(f"task {task!r} is in no hub: leave hub: out to use its embedded documents")
    import datasets  # type: ignore[import-untyped]
    from huggingface_hub import HfApi

    try:
        # The name of a branch moves; the commit that it stands for now is what is read and recorded.
        commit = HfApi().dataset_info(name, revision=revision).sha
        rows = datasets.load_dataset(name, hub.config, split=hub.split, revision=commit)
    except Exception as error:  # the hub's client raises its own, requests', httpx's and the system's errors alike
        raise UserError(f"cannot read hub {name!r}, revision {revision or 'main'}: {reason_of(error)}") from error
    documents = []
    for number, row in enumerate(rows):
        try:
            document = hub.to_document(row)
        except UserError as error:
            raise UserError(f"hub:{name}, row {number}: {error}") from None
        if document is not None:
            documents.append(document)
    return documents, f"hub:{name}", str(commit)


def write(task: str, documents: list[Document], source: str, revision: str, output: Path) -> None:
    """Write ``source.json``, then ``data.jsonl``: where there is a ``data.jsonl``, both are whole and belong together.

    Raises:
        UserError: there are no documents.
    """
    if not documents:
        raise UserError(f"task {task!r}: {source} has no documents")
    text = to_jsonl(documents)
    about = {
        "task": task,
        "source": source,
        "revision": revision,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "num_docs": len(documents),
    }
    _write_both(about, text, output)


def _write_both(about: Mapping[str, Any], text: str, output: Path) -> None:
    (output / "data.jsonl").unlink(missing_ok=True)
    atomic_write(output / "source.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    atomic_write(output / "data.jsonl", text)


def read(arguments: argparse.Namespace) -> tuple[list[Document], str, str]:
    """Return the documents from the one source that the command line asks for, its name, and what pins it."""
    if arguments.revision and not arguments.hub:
        raise UserError(f"revision: {arguments.revision!r} is of no use without hub:")
    if arguments.hub:
        return from_hub(arguments.task, arguments.hub, arguments.revision)
    if arguments.path:
        return from_path(arguments.task, arguments.path)
    return from_embedded(arguments.task)


@command
def main() -> None:
    """Write the documents, or, as a row, why there are none."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.dataset", description="Write the documents of a task.")
    parser.add_argument("--task", required=True)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--path", type=Path, help="local file or folder")
    where.add_argument("--hub", help="data set on the Hugging Face hub: org/name")
    parser.add_argument("--revision", help="branch, tag or commit of the hub data set")
    parser.add_argument("--output", type=Path, required=True, help="folder for data.jsonl and source.json")
    parser.add_argument(
        "--errors-as-rows",
        action="store_true",
        help="where there are no documents, write an empty data.jsonl and the reason, for the cells to tell as a row",
    )
    arguments = parser.parse_args()
    try:
        write(arguments.task, *read(arguments), arguments.output)
    except UserError as error:
        if not arguments.errors_as_rows:
            raise
        tell(error)
        _write_both({"task": arguments.task, "error": str(error)}, "", arguments.output)


if __name__ == "__main__":
    main()
