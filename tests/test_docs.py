"""Every command of the documentation is run: as it stands where that is quick, else as far as a plan of it goes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from decoding import SpeculativeDecoder, TargetModel
from tests.decoding.tiny import greedy_of, save_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
README = ROOT / "README.md"  # its commands stand four spaces in, without a prompt
PROGRAMS = "snakemake|make|python|torchrun"
INDENTED = re.compile(rf"^    ((?:{PROGRAMS}) (?:.*\\\n)*.*)$", re.MULTILINE)
NEEDS_A_MODEL = ("generate", "compare", "rows", "lm-eval")  # run with one by tests/pipeline/cli


def commands_of(page: Path) -> list[tuple[str, str]]:
    """Return the commands of a page, each with the output that the page shows below it."""
    found: list[tuple[str, str]] = []
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], ""))
            else:
                found[-1] = found[-1][0], found[-1][1] + line + "\n"
    return found


COMMANDS = [
    pytest.param(command, output, id=f"{page.stem}: {command[:60]}")
    for page in PAGES
    for command, output in commands_of(page)
] + [
    pytest.param(command.replace("\\\n", ""), "", id=f"README: {command[:60]}")
    for command in INDENTED.findall(README.read_text(encoding="utf-8"))
]


def planned(words: list[str]) -> list[str]:
    """Return the command as it is tried: a run is planned, not done, and the environment's own programs are used."""
    match words[0]:
        case "snakemake":
            words = [sys.executable, "-m", *words]
            return words if "--dry-run" in words else [*words[:3], "--dry-run", *words[3:]]
        case "make":
            return ["make", "--dry-run", *words[1:]]
        case "python" if words[1:3] == ["-m", "pipeline"] and words[3] in NEEDS_A_MODEL:
            return [sys.executable, *words[1:], "--help"]  # which an unknown option comes before
        case "python" | "torchrun":
            if "--steps" in words:
                words[words.index("--steps") + 1] = "2"
            program = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "torch.distributed.run"]
            return [*program, *words[1:]]
    raise AssertionError(f"a test must know how to try {words[0]!r}")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which commands can write."""
    project = tmp_path_factory.mktemp("docs") / "project"
    left_out = shutil.ignore_patterns(
        ".git", ".venv", ".snakemake", ".*_cache", "__pycache__", "cells", "models", "twins"
    )
    shutil.copytree(ROOT, project, ignore=left_out)
    for made in (project / "results").glob("*"):
        if made.name != "reference":
            shutil.rmtree(made) if made.is_dir() else made.unlink()
    # What the pages speak of as the reader's own.
    shutil.copy(project / "config" / "smoke.yaml", project / "my.yaml")
    pairs = [{"source": f"number {number}", "target": f"Zahl {number}"} for number in range(300)]
    (project / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    (project.parent / "shared" / "data" / "multi30k").mkdir(parents=True)
    return project


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.slow
@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_a_command_does_what_the_page_says(project: Path, command: str, output: str) -> None:
    words = shlex.split(command, comments=True)
    if "--report" in words:
        pytest.skip("needs a finished run: tests/pipeline/test_dag.py makes a report of one")
    if "--workflow-profile" in words:
        pytest.skip("needs Snakemake's plug-ins for a cluster")
    environment = os.environ | {"PYTHONPATH": str(project), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        planned(words), cwd=project, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    told = done.stdout + done.stderr
    if output:
        assert output.strip() in told
    assert (done.returncode == 0) is not output.startswith("error:"), told


def test_the_method_that_adding_shows_is_lossless(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    written = re.search(r"^```python\n(\"\"\"Repeat.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert written
    names: dict[str, Any] = {}
    exec(written[1], names)
    model = save_model(tmp_path)
    decoder = SpeculativeDecoder(TargetModel.from_pretrained(tmp_path), names["RepeatDrafter"]())
    generation = decoder.generate([5, 9, 7], max_new_tokens=24)
    assert list(generation.output_ids) == greedy_of(model, [5, 9, 7], 24)


def test_every_link_leads_somewhere() -> None:
    for page in [README, *PAGES]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_menu_and_the_site_is_built(tmp_path: Path) -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        assert f": {page.name}" in menu, f"{page.name} is not in mkdocs.yml"
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "speed-up" in (tmp_path / "site" / "reading.html").read_text(encoding="utf-8")
