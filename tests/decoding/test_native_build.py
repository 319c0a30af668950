"""How the compiled engine is built and kept; where it cannot be, the eager one runs and says why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from decoding import TargetModel
from decoding.native import build
from decoding.ranking import choices
from tests.decoding.tiny import save_model

try:
    build.load_library()
except build.BuildError as error:
    pytest.skip(f"no native engine here: {error}", allow_module_level=True)


def test_without_a_compiler_the_eager_engine_runs_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path)
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    build.attempt.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"no compiled engine, .*: no C\+\+ compiler"):
            assert TargetModel.from_pretrained(tmp_path).engine == "eager"
        with pytest.raises(ValueError, match=r"native engine cannot run here: no C\+\+ compiler"):
            TargetModel.from_pretrained(tmp_path, engine="native")
    finally:
        monkeypatch.undo()
        build.attempt.cache_clear()
    assert TargetModel.from_pretrained(tmp_path).engine == "native"


def test_of_what_a_compiler_says_the_error_is_told(tmp_path: Path) -> None:
    (tmp_path / "part.h").write_text("int broken(")
    (tmp_path / "whole.cpp").write_text('#include "part.h"')
    with pytest.raises(build.BuildError, match=r"part\.h.*error"):
        build._compile(
            next(filter(None, map(shutil.which, build.COMPILERS))), tmp_path / "whole.cpp", tmp_path / "x.so"
        )


@pytest.mark.parametrize("home", ["/proc", "file"])
def test_without_a_home_that_can_be_written_the_eager_engine_runs_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "file").touch()
    save_model(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path / home))
    build.attempt.cache_clear()
    try:
        assert TargetModel.from_pretrained(tmp_path / "model").engine == "eager"
        with pytest.raises(ValueError, match="native engine cannot run here: cannot be kept in the home"):
            TargetModel.from_pretrained(tmp_path / "model", engine="native")
    finally:
        monkeypatch.undo()
        build.attempt.cache_clear()


def test_a_compiler_that_fails_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def fail(command: list[str]) -> str:
        commands.append(command)
        raise build.BuildError("g++: error: no OpenMP here")

    monkeypatch.setattr(build, "_output", fail)
    build.attempt.cache_clear()
    try:
        for _ in range(3):
            assert choices(torch.tensor([[0.0, 2.0, 1.0]])) == (1,)
            with pytest.raises(build.BuildError, match=r"g\+\+: error: no OpenMP here"):
                build.load_library()
        assert len(commands) == 1
    finally:
        monkeypatch.undo()
        build.attempt.cache_clear()


def test_source_that_does_not_compile_is_one_line(tmp_path: Path) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("int main( {\n")
    with pytest.raises(build.BuildError, match=r"^\w[\w+]*: .*error") as caught:
        build._compile("g++", source, tmp_path / "cache" / "broken.so")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []
