"""``sources_of`` against what Python really imports, and on small made-up projects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.registry import TASKS
from pipeline.sources import PACKAGES, ROOT, prompt_digest, runs_code, sources_of, yaml_sources_of

IMPORTED = f"""
import importlib, sys
importlib.import_module(sys.argv[1])
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] in {PACKAGES} and module.__file__:
        print(module.__file__)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "pipeline/__init__.py": "",
        "pipeline/run.py": "import os\nfrom decoding import Tree\nfrom pipeline import clock\n",
        "pipeline/clock.py": "def f():\n    from .late import g\n    return g\n",
        "pipeline/late.py": "",
        "pipeline/registry.py": "import pipeline.late\n",
        "pipeline/unused.py": "",
        "pipeline/by_name.py": "from pipeline import registry\n",
        "decoding/__init__.py": "from .tree import Tree\n",
        "decoding/tree.py": "from decoding import verify as v\nTree = None\n",
        "decoding/verify.py": "import decoding.tree\n",
        "pipeline/tasks/__init__.py": "",
        "pipeline/tasks/functions.py": "import pipeline.late\n",
        "pipeline/tasks/_base.yaml": "a: 1\nmetric_list: [b]\nprocess_results: !function functions.score\n",
        "pipeline/tasks/t.yaml": "include: _base.yaml\ndoc_to_text: x\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_follows_packages_submodules_relative_and_late_imports(project: Path) -> None:
    assert sources_of("pipeline.run", root=project) == [
        "decoding/__init__.py",
        "decoding/tree.py",
        "decoding/verify.py",
        "pipeline/__init__.py",
        "pipeline/clock.py",
        "pipeline/late.py",
        "pipeline/run.py",
    ]


def test_registry_and_what_is_left_out_are_not_followed(project: Path) -> None:
    assert sources_of("pipeline.by_name", root=project) == ["pipeline/__init__.py", "pipeline/by_name.py"]
    found = sources_of("pipeline.run", without=["pipeline.late"], root=project)
    assert "pipeline/late.py" not in found
    assert "pipeline/clock.py" in found


def test_missing_module_is_named(project: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pipeline\.nothing"):
        sources_of("pipeline.nothing", root=project)


def test_yaml_includes_and_functions(project: Path) -> None:
    assert yaml_sources_of("pipeline/tasks/t.yaml", root=project) == [
        "pipeline/__init__.py",
        "pipeline/late.py",
        "pipeline/tasks/__init__.py",
        "pipeline/tasks/_base.yaml",
        "pipeline/tasks/functions.py",
        "pipeline/tasks/t.yaml",
    ]


def test_which_tasks_run_code_is_read_off_their_yaml_and_what_it_includes(project: Path) -> None:
    assert not runs_code("pipeline/tasks/t.yaml", root=project)
    with (project / "pipeline/tasks/_base.yaml").open("a") as file:
        file.write("unsafe_code: true\n")
    assert runs_code("pipeline/tasks/t.yaml", root=project)
    assert [name for name, task in TASKS.items() if runs_code(task.yaml)] == ["humaneval", "mbpp"]


@pytest.mark.parametrize(
    ("file", "old", "new", "same"),
    [("_base.yaml", "[b]", "[c]", True), ("_base.yaml", "a: 1", "a: 2", False), ("t.yaml", "x", "y", False)],
)
def test_prompt_digest_sees_prompts_and_not_metrics(project: Path, file: str, old: str, new: str, same: bool) -> None:
    before = prompt_digest("pipeline/tasks/t.yaml", root=project)
    path = project / "pipeline/tasks" / file
    path.write_text(path.read_text().replace(old, new))
    assert (prompt_digest("pipeline/tasks/t.yaml", root=project) == before) is same


@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_what_judges_programs_is_among_a_tasks_files(task: str) -> None:
    """The sandbox starts it by name in another process."""
    judges = {str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").glob("sandbox*.py")}
    assert len(judges) == 4
    assert judges <= set(yaml_sources_of(f"pipeline/tasks/{task}.yaml"))


@pytest.mark.parametrize("module", ["pipeline.config", "pipeline.collect", "pipeline.score", "baselines.prompt_lookup"])
def test_finds_all_that_python_imports(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, module], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported = {str(Path(line).relative_to(ROOT)) for line in done.stdout.split()}
    registry = {f"pipeline/{name}.py" for name in ("registry", "entries", "parallel", "generators")}
    assert imported - registry - {"pipeline/sources.py"} <= set(sources_of(module))
