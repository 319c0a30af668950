"""The lock holds every package that an installation needs, and says nothing about any machine or index."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
LOCK = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in LINES)}


def needed(requirement: Requirement, seen: set[str]) -> None:
    """Add to ``seen`` the names of what ``requirement`` installs here, itself included."""
    name = canonicalize_name(requirement.name)
    if name in seen:
        return
    seen.add(name)
    try:
        further = [Requirement(line) for line in requires(name) or ()]
    except PackageNotFoundError:
        return
    for extra in ("", *requirement.extras):
        for each in further:
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                needed(each, seen)


def test_each_line_is_a_plain_pin() -> None:
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), line


def test_names_no_index_and_no_kind_of_machine() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--index|--find-links|--extra|@", text)
    assert not [name for name in LOCK if re.match(r"nvidia-|cuda-|triton$", name)]


def test_pins_every_package_that_is_needed() -> None:
    seen: set[str] = set()
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        needed(Requirement(line), seen)
    brought_by_torch = {name for name in seen if re.match(r"nvidia-|cuda-|triton$", name)}
    assert seen - brought_by_torch - LOCK.keys() == set()


@pytest.mark.parametrize("line", PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
def test_pins_lie_in_the_declared_ranges_and_are_installed(line: str) -> None:
    requirement = Requirement(line)
    pin = LOCK[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin)
    assert version(requirement.name).partition("+")[0] == pin


def imported_by(*folders: str) -> set[str]:
    """The names of the packages whose modules are imported anywhere in our ``folders``."""
    modules: set[str] = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(str(node.module).partition(".")[0])
    ours = {folder.name for folder in ROOT.iterdir()}
    of_module = packages_distributions()
    return {canonicalize_name(name) for module in modules - ours for name in of_module.get(module, ())}


def declared(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_what_is_imported_is_declared_and_what_is_declared_is_used() -> None:
    """Snakemake runs the rules, accelerate works inside transformers and tabulate inside pandas."""
    used = imported_by("decoding", "baselines", "shuffle", "pipeline") | {"snakemake", "accelerate", "tabulate"}
    assert used == declared(PROJECT["dependencies"])


def test_what_the_tests_import_is_declared() -> None:
    assert imported_by("tests") <= declared(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])


EXTRA = re.compile(r"\.\[([\w,-]+)\]")


def test_extras_that_pages_and_profiles_name_exist_and_are_quoted_for_every_shell() -> None:
    pages = [ROOT / "README.md", ROOT / "Makefile", *ROOT.glob("docs/*.md"), *ROOT.glob("config/*.yaml")]
    pages += [*ROOT.glob("profiles/*/profile.yaml"), ROOT / "environment.yml"]
    named: set[str] = set()
    for page in pages:
        for line in page.read_text(encoding="utf-8").splitlines():
            found = EXTRA.findall(line) if "pip install" in line else []
            named |= {name for names in found for name in names.split(",")}
            assert all(f"'.[{names}]'" in line for names in found), f"{page}: {line}"
    assert {"cluster", "dev", "flash-attn", "gpu"} == named == PROJECT["optional-dependencies"].keys()


def test_what_needs_torch_to_be_built_is_an_extra_of_its_own() -> None:
    """pip builds each package by itself, where no torch is."""
    holding = [name for name, lines in PROJECT["optional-dependencies"].items() if "flash-attn" in declared(lines)]
    assert holding == ["flash-attn"]
    assert declared(PROJECT["optional-dependencies"]["flash-attn"]) == {"flash-attn"}


def test_files_that_are_not_python_are_part_of_the_package() -> None:
    """An installed copy reads them; a pattern that fits none is a mistake."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = {pattern: set((ROOT / "pipeline").glob(pattern)) for pattern in data["pipeline"]}
    assert all(found.values())
    others = {file for file in (ROOT / "pipeline").rglob("*.*") if file.suffix not in (".py", ".pyc")}
    assert set().union(*found.values()) == others


def test_conda_environment_installs_the_same() -> None:
    text = (ROOT / "environment.yml").read_text()
    assert "-c requirements.lock" in text
    assert "-e .[dev]" in text
