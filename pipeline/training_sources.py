"""Material for training prompts that is found on the machine: problems, functions and prose; nothing evaluated.

Functions and prose are read from the standard library's sub-packages (the evaluated docstrings are those of its
top-level modules) and from packages that this project depends on, in an order that depends on file names alone::

    prompts = code_documents(100)      # signature and docstring, as in HumanEval
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.tasks.docstrings import document_of

PACKAGES = (
    "networkx", "scipy", "pandas", "matplotlib", "babel", "nltk", "lm_eval", "reasoning_gym", "datasets", "seaborn",
    "num2words", "sympy", "transformers",
)  # fmt: skip
# Some two hundred words, as the first paragraphs of an article.
ARTICLE_WORDS = range(60, 260)
# A paragraph without the marks of code, lists and tables.
PROSE = re.compile(r"[A-Z][^:|=>`*_{}]{60,}[.]$")


def python_files() -> list[Path]:
    """Return the files of sub-packages and packages in the order of their names' hashes, tests left out."""
    roots = [path.parent for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*/__init__.py"))]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        roots += [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    named = {
        f"{root.name}/{file.relative_to(root)}": file
        for root in roots
        for file in root.rglob("*.py")
        if "test" not in str(file.relative_to(root)) and root.name not in ("test", "idlelib", "lib2to3")
    }
    return [named[name] for name in sorted(named, key=lambda name: hashlib.sha256(name.encode()).digest())]


def _gather(count: int, find: Callable[[ast.Module, list[str]], Iterator[str]]) -> list[str]:
    """Return the first ``count`` different texts that ``find`` sees in the files, at most four of a file."""
    found: dict[str, None] = {}
    for file in python_files():
        try:
            source = file.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError):
            continue
        for number, text in enumerate(find(tree, source.split("\n"))):
            if number == 4:
                break
            found.setdefault(text)
        if len(found) >= count:
            break
    return list(found)[:count]


def docstring_documents(count: int) -> list[str]:
    """Return functions without their docstrings, as the docstrings task has them."""

    def find(tree: ast.Module, lines: list[str]) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (document := document_of(node, lines, "")):
                yield document["body"]

    return _gather(count, find)


def code_documents(count: int) -> list[str]:
    """Return signatures with docstrings, in HumanEval's form."""

    def find(tree: ast.Module, lines: list[str]) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and len(node.body) > 1 and (docstring := ast.get_docstring(node)):
                last = node.body[0].end_lineno or node.lineno
                text = textwrap.dedent("\n".join(lines[node.lineno - 1 : last])).rstrip()
                suits = text.startswith("def ") and text.endswith('"""') and "self" not in text.partition(")")[0]
                if suits and 60 <= len(docstring) <= 600 and text.isascii():
                    yield text

    return _gather(count, find)


def prose_documents(count: int) -> list[str]:
    """Return running text of some paragraphs: from the docstrings of modules, classes and functions."""

    def find(tree: ast.Module, lines: list[str]) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (docstring := ast.get_docstring(node)):
                paragraphs = re.split(r"\n\s*\n", docstring)
                words = " ".join(text for text in paragraphs if re.match(PROSE, text)).split()
                if len(words) >= ARTICLE_WORDS.start:
                    yield " ".join(words[: ARTICLE_WORDS.stop])

    return _gather(count, find)
