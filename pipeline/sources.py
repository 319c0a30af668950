"""Which of our own files a module uses, so that a rule is run again when, and only when, code it runs has changed.

Snakemake does not look into what a command imports. So each rule lists as inputs the files found here: those of the
given modules and of everything that they import from this project, directly or through others. Imports are read, not
executed. Names resolved from strings at run time (the registry) are not followed: a rule names those modules itself,
and takes the registry's entry as a parameter. The registry's own files are left out, since a new line in them must not
run every method again, and so is this one, which changes no result. Example::

    sources_of("pipeline.generate", "baselines.prompt_lookup")
    # ["baselines/prompt_lookup.py", "decoding/tree.py", ..., "pipeline/generate.py"]

A task's YAML says both what is asked and how it is scored. A changed metric must not cost a generation, so the rule
that writes the prompts depends on the ``prompt_digest`` of the YAML, and the one that scores on all of it
(``yaml_sources_of``).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("decoding", "baselines", "shuffle", "pipeline")
NEVER_FOLLOWED = ("pipeline.registry", "pipeline.parallel", "pipeline.generators", "pipeline.sources")
# The keys of a task YAML that only scoring reads.
SCORING_KEYS = ("filter_list", "metric_list", "process_results", "unsafe_code")


def sources_of(*modules: str, without: Iterable[str] = (), root: Path = ROOT) -> list[str]:
    """Return the files, relative to ``root`` and sorted, that ``modules`` and all they import consist of.

    Imports of the modules ``without`` are not followed: for a rule that never reaches them.

    Raises:
        ModuleNotFoundError: one of ``modules``, or one that they import from this project, has no file.
    """
    seen: set[str] = set()
    waiting, left_out = list(modules), {*without, *NEVER_FOLLOWED}
    while waiting:
        module = waiting.pop()
        if module not in seen | left_out:
            seen.add(module)
            waiting += imports_of(module, root)
    files = {_file_of(module, root) for module in seen}
    # What a package compiles lies beside its __init__.py and is code like any other.
    files |= {path for file in files if file.name == "__init__.py" for path in file.parent.glob("*.[ch]*")}
    return sorted(str(path.relative_to(root)) for path in files)


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


def yaml_sources_of(yaml_file: str, root: Path = ROOT) -> list[str]:
    """Return the files that a task YAML consists of: itself, those it includes, and what its ``!function``s use."""
    folder = Path(yaml_file).parent
    values = _read_yaml(root / yaml_file)
    found = {yaml_file}
    if "include" in values:
        found |= set(yaml_sources_of(str(folder / values["include"]), root))
    package = ".".join(folder.parts)
    functions = [value for value in values.values() if isinstance(value, _Function)]
    found |= set(sources_of(*(f"{package}.{function.rpartition('.')[0]}" for function in functions), root=root))
    return sorted(found)


def prompt_digest(yaml_file: str, root: Path = ROOT) -> str:
    """Return a hash of all in a task YAML, and in those it includes, that decides what the prompts are."""
    prompt_part = {key: value for key, value in _all_values(root / yaml_file).items() if key not in SCORING_KEYS}
    return hashlib.sha256(json.dumps(prompt_part, sort_keys=True).encode()).hexdigest()


def runs_code(yaml_file: str, root: Path = ROOT) -> bool:
    """Whether scoring the task runs what the model wrote, as its YAML says."""
    return bool(_all_values(root / yaml_file).get("unsafe_code", False))


def _all_values(yaml_file: Path) -> dict[str, Any]:
    """Return what a task YAML says, and what those that it includes say where it is silent."""
    values = _read_yaml(yaml_file)
    included = _all_values(yaml_file.parent / values.pop("include")) if "include" in values else {}
    return included | values


class _Function(str):
    """The ``module.name`` after a ``!function``."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's YAMLs without running the functions that they name."""


def _function(loader: _Loader, node: yaml.ScalarNode) -> _Function:
    return _Function(loader.construct_scalar(node))


_Loader.add_constructor("!function", _function)


def _read_yaml(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    return values


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
