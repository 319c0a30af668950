"""The shape of the house: who may import whom, what stays light, how long a file may be; read off the files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.sources import imports_of

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "decoding": {"decoding"},
    "baselines": {"baselines", "decoding"},
    "shuffle": {"shuffle", "decoding"},
    "pipeline": {"pipeline", "decoding", "baselines", "shuffle"},
}
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in MAY_IMPORT
    for path in sorted((ROOT / package).rglob("*.py"))
]
LIBRARIES = [module for module in MODULES if not module.startswith("pipeline")]


def tree_of(module: str) -> ast.Module:
    stem = ROOT.joinpath(*module.split("."))
    path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
    return ast.parse(path.read_text())


def outside_imports_of(module: str) -> set[str]:
    """The top-level packages that ``module`` imports, anywhere in it."""
    nodes = list(ast.walk(tree_of(module)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in plain | {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}}


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_what_it_may(module: str) -> None:
    imported = {name.partition(".")[0] for name in imports_of(module)}
    assert imported <= MAY_IMPORT[module.partition(".")[0]]


@pytest.mark.parametrize("module", MODULES)
def test_only_smk_files_know_snakemake(module: str) -> None:
    assert "snakemake" not in outside_imports_of(module)


@pytest.mark.parametrize("module", LIBRARIES)
def test_libraries_neither_print_nor_read_the_environment(module: str) -> None:
    for node in ast.walk(tree_of(module)):
        assert not (isinstance(node, ast.Name) and node.id == "print")
        assert not (isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"})


@pytest.mark.parametrize(
    "module", ["config", "registry", "sources", "collect", "tables", "figures", "__main__", "cli.listing"]
)
def test_stays_without_torch(module: str) -> None:
    code = f"import sys, pipeline.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("pattern", ["*/**/*.py", "*/**/*.smk", "tests/*.py"])
def test_files_are_short(pattern: str) -> None:
    folders = (*MAY_IMPORT, "tests")
    for path in ROOT.glob(pattern):
        if path.relative_to(ROOT).parts[0] in folders:
            assert len(path.read_text().splitlines()) <= 300, path


@pytest.mark.parametrize("module", MODULES)
def test_says_what_it_is_for_in_functions_of_forty_lines(module: str) -> None:
    tree = tree_of(module)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            code = node.body[1:] if ast.get_docstring(node) else node.body
            length = code[-1].end_lineno - code[0].lineno + 1 if code else 0
            assert length <= 40, node.name


def test_snakefile_is_a_table_of_contents() -> None:
    lines = (ROOT / "Snakefile").read_text().splitlines()
    assert len(lines) <= 40
    assert not any(line.startswith(("def ", "import ", "from ")) for line in lines)
