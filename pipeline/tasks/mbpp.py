"""MBPP (Austin et al. 2021): short Python functions from a sentence and three asserts, judged by these asserts.

From a JSONL as the authors publish it (``text``, ``code``, ``test_list``; or the sanitized form's ``prompt``) or a hub.
The asserts run in our sandbox's checker, with the function that they call in place of its proxy: so a completion sees
neither them nor the verdict. That takes exactly one function; a problem whose asserts use something else that the
solution defines (one builds objects of the solution's own class) cannot be judged apart from it, and is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError
from pipeline.tasks.humaneval import process_results
from pipeline.tasks.source import Document, Hub, Source, keep, nearest_key, read_jsonl

__all__ = ["SOURCE", "process_results"]
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _to_document(row: Mapping[str, Any]) -> Document | None:
    if "text" not in row and "prompt" in row:
        row = {**row, "text": row["prompt"]}
    kept = keep("text", "code")(row)
    asserts = _lines(row, "test_list", needed=True)
    before = [*_lines(row, "test_imports"), *([row["test_setup_code"]] if row.get("test_setup_code") else [])]
    used = _used(kept["code"], asserts)
    if len(used) != 1 or isinstance(used[0], ast.ClassDef):
        return None
    called = used[0].name
    return {
        "task_id": f"MBPP/{row.get('task_id', '')}",
        "text": kept["text"],
        "code": kept["code"].replace("\r\n", "\n").strip(),
        "tests": "\n".join(asserts),
        # What the sandbox reads: check(candidate), where the candidate has the name by which the asserts call it.
        "prompt": "",
        "entry_point": called,
        "test": "\n".join([*before, f"def check({called}):", *(f"    {line}" for line in asserts)]),
    }


def _lines(row: Mapping[str, Any], key: str, needed: bool = False) -> list[str]:
    """Return a list of texts, each on one line, so that it can be indented."""
    if needed and key not in row:
        raise UserError(f"key {key!r} is missing; {nearest_key(key, row)}")
    values = row.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values) or (needed and not values):
        raise UserError(f"key {key!r} must be a list of texts")
    return [_one_line(key, value) for value in values]


def _one_line(key: str, code: str) -> str:
    """Return a statement as Python itself writes it, on one line.

    Raises:
        UserError: it is not Python.
    """
    try:
        return "; ".join(ast.unparse(ast.parse(code.strip())).splitlines())
    except SyntaxError as error:
        raise UserError(f"key {key!r}: not Python ({error.msg}): {code.strip()[:60]}") from None


def _used(code: str, asserts: list[str]) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Return what the solution defines and the asserts use, by name.

    Raises:
        UserError: the solution is not Python.
    """
    try:
        defined = {node.name: node for node in ast.parse(code).body if isinstance(node, DEFINITIONS)}
    except SyntaxError as error:
        raise UserError(f"key 'code': not Python ({error.msg})") from None
    names = {node.id for line in asserts for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Name)}
    return [defined[name] for name in sorted(defined.keys() & names)]


SOURCE = Source(
    from_path=lambda path: read_jsonl(path, _to_document),
    hub=Hub(config="full", split="test", to_document=_to_document),
)
