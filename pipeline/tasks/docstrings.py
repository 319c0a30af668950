"""Docstrings: a function of the Python standard library in, the summary line of its docstring out.

The functions are read from the interpreter that runs this, so they depend on its version: ``source.json`` names the
version, and the SHA-256 of the documents says whether two machines had the same ones.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from pipeline.tasks.source import Document, Embedded, Source, keep, read_jsonl

NUM_DOCUMENTS = 400
BODY_CHARS = range(120, 1500)
SUMMARY_CHARS = range(20, 101)


def document_of(node: ast.FunctionDef, lines: list[str], module: str) -> Document | None:
    """Return one function without its docstring, and the docstring's summary line; None if it does not suit.

    Args:
        node: the function.
        lines: the lines of its file, without line ends.
        module: the name of its module.

    It suits if the first paragraph of its docstring is one line, both texts have a sensible length, and what is left
    is still Python: moving a method to the margin breaks one that holds a text of several lines.
    """
    docstring = ast.get_docstring(node)
    if docstring is None or len(node.body) < 2:
        return None
    summary, *rest = docstring.split("\n")
    quoted = node.body[0]
    header_end = quoted.lineno - 1
    if (rest and rest[0].strip()) or header_end < node.lineno or node.body[1].lineno <= (quoted.end_lineno or 0):
        return None
    without_docstring = lines[node.lineno - 1 : header_end] + lines[quoted.end_lineno : node.end_lineno]
    code = textwrap.dedent("\n".join(without_docstring)).rstrip()
    if len(code) not in BODY_CHARS or len(summary) not in SUMMARY_CHARS or not summary.isascii():
        return None
    try:
        ast.parse(code)
    except SyntaxError:
        return None
    return {"name": f"{module}.{node.name}", "body": code, "summary": summary}


def _functions(path: Path) -> Iterator[Document]:
    source = path.read_text(encoding="utf-8")
    lines = source.split("\n")  # as the parser counts them; str.splitlines would also cut at a form feed
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and (document := document_of(node, lines, path.stem)):
            yield document


def documents() -> list[Document]:
    """Return ``NUM_DOCUMENTS`` functions of the library's top-level modules, in the order of their bodies' hashes."""
    library = Path(sysconfig.get_path("stdlib"))
    found = [document for path in sorted(library.glob("*.py")) for document in _functions(path)]
    by_hash = {hashlib.sha256(document["body"].encode()).hexdigest(): document for document in found}
    return [by_hash[key] for key in sorted(by_hash)][:NUM_DOCUMENTS]


SOURCE = Source(
    embedded=Embedded(lambda: ("python standard library", platform.python_version()), documents),
    from_path=lambda path: read_jsonl(path, keep("body", "summary")),
)
