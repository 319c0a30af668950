"""Which of our own files a module uses, so that a rule is run again when, and only when, code it runs has changed.

Snakemake does not look into what a command imports. So each rule lists as inputs the files found here: those of the
given modules and of everything that they import from this project, directly or through others. Imports are read, not
executed. Names resolved from strings at run time (the registry) are not followed: a rule names those modules itself,
and takes the registry's entry as a parameter, which is why the registry's own file is left out: a new line in it must
not run every method again. Example::

    sources_of("pipeline.generate", "baselines.prompt_lookup")
    # ["baselines/prompt_lookup.py", "decoding/tree.py", ..., "pipeline/generate.py"]
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("decoding", "baselines", "shuffle", "pipeline")
LOOKED_UP_BY_NAME = ("pipeline.registry",)


def sources_of(*modules: str, root: Path = ROOT) -> list[str]:
    """Return the files, relative to ``root`` and sorted, that ``modules`` and all they import consist of.

    Raises:
        ModuleNotFoundError: one of ``modules``, or one that they import from this project, has no file.
    """
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in seen and module not in LOOKED_UP_BY_NAME:
            seen.add(module)
            waiting += imports_of(module, root)
    return sorted({str(_file_of(module, root).relative_to(root)) for module in seen})


@cache
def imports_of(module: str, root: Path = ROOT) -> frozenset[str]:
    """Return the project's modules that ``module`` names in its import statements, and the packages around them."""
    path = _file_of(module, root)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    named = {module}
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            named.add(origin)
            # ``from a.b import c``: c may be a module of its own, or a name in a.b.
            members = {f"{origin}.{alias.name}" for alias in node.names}
            named |= {member for member in members if _find(member, root)}
    ours = {name for name in named if name.partition(".")[0] in PACKAGES}
    return frozenset((ours | {package for name in ours for package in _packages_of(name)}) - {module})


def _packages_of(module: str) -> set[str]:
    """Return the packages around ``module``: importing a.b.c runs a and a.b too."""
    parts = module.split(".")
    return {".".join(parts[:depth]) for depth in range(1, len(parts))}


def _find(module: str, root: Path) -> Path | None:
    """Return the file of ``module``, or None if no file or package has that name."""
    stem = root.joinpath(*module.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _file_of(module: str, root: Path) -> Path:
    path = _find(module, root)
    if path is None:
        raise ModuleNotFoundError(f"no file for module {module!r} under {root}")
    return path
