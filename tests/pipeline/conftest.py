"""The command line run in a test's own process, in a working directory in which the DAG seems to have been."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest

from tests.decoding.tiny import SHAPE
from tests.pipeline.standins import save_parts, save_target

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process; return its exit status."""
    from pipeline import __main__ as command_line
    from pipeline.cli import comparing, rows

    # The lock is the machine's, and a test times nothing.
    for module in (comparing, rows):
        monkeypatch.setattr(module, "machine_lock", nullcontext)

    def run_it(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return int(ended.value.code or 0)

    return run_it


@pytest.fixture
def run_rule(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command of a rule's module in this process; return its exit status."""

    def run_it(module: ModuleType, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        try:
            module.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return run_it


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the DAG has made the default profile's model and its parts: stand-ins of them."""
    from shuffle.diffusion.config import DiffusionConfig
    from shuffle.diffusion.model import DiffusionTransformer

    folder = tmp_path_factory.mktemp("home")
    (folder / "results/models").mkdir(parents=True)
    save_target(folder / "results/models/smollm2-135m")
    (folder / "results/models/smollm2-135m/source.json").write_text("{}")
    parts = folder / "results/parts/smollm2-135m/laptop"
    parts.mkdir(parents=True)
    save_parts(parts)
    save_target(folder / "results/models/verbalized-2m")
    (folder / "results/models/verbalized-2m/source.json").write_text("{}")
    diffusion = folder / "results/twins/verbalized-2m/diffusion"
    shape = {name: SHAPE[name] for name in ("vocab_size", "hidden_size", "eos_token_id")}
    DiffusionTransformer(DiffusionConfig(**shape, num_layers=2, num_heads=4)).save_pretrained(diffusion)
    (diffusion / "generator.json").write_text("{}")
    return folder


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home
