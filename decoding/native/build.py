"""Compiles ``forward.cpp`` for this processor, once, and loads it.

Example::

    library = load_library()              # a ctypes.CDLL with forward_float32, forward_bfloat16, forward_int8, ...
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

SOURCES = (
    "forward.cpp",
    "attention.h",
    "int8.h",
    "lanes.h",
    "mixer.h",
    "model.h",
    "panels.h",
    "piece.h",
    "product.h",
    "slots.h",
    "top.h",
    "values.h",
)
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno", "-ffp-contract=off")
COMPILERS = ("g++", "c++")


class BuildError(RuntimeError):
    """There is no native engine here; says why in one line."""


def load_library() -> ctypes.CDLL:
    """Return the compiled library, compiling it if this machine has not yet.

    Raises:
        BuildError: there is no compiler, or it failed, or its OpenMP is not the one that torch brings, or there is no
            home folder to keep the library in, or it cannot be written.
    """
    library, problem = attempt()
    if library is None:
        raise BuildError(problem)
    return library


@cache
def attempt() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and why there is none: tried once a process, for it is asked for at every step."""
    try:
        return _load(), ""
    except BuildError as error:
        warnings.warn(f"no compiled engine, the eager one is slower: {error}", RuntimeWarning, stacklevel=2)
        return None, str(error)


def _load() -> ctypes.CDLL:
    if platform.system() != "Linux":
        raise BuildError(f"not built on {platform.system()}")
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler ({' or '.join(COMPILERS)})")
    folder = Path(__file__).parent
    parts = [*(folder.joinpath(name).read_bytes() for name in SOURCES), " ".join(FLAGS).encode()]
    parts += [_output([compiler, "--version"]).encode(), _processor().encode()]
    name = f"forward-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    try:
        path = Path.home() / ".cache" / "shufflebench" / name
        if not path.exists():
            _compile(compiler, folder / SOURCES[0], path)
    except BuildError:
        raise
    except (OSError, RuntimeError) as error:  # pathlib's, where there is no home
        raise BuildError(f"cannot be kept in the home folder: {error}") from None
    try:
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        raise BuildError(f"cannot be loaded: {error}") from None
    library.scratch_floats.restype = ctypes.c_int64
    library.mixer_scratch_floats.restype = ctypes.c_int64
    library.slots_scratch_floats.restype = ctypes.c_int64
    library.slots_say_float32.restype = library.slots_say_bfloat16.restype = ctypes.c_int64
    library.int8_place.restype = ctypes.c_int64
    library.sum_of.restype = ctypes.c_float
    return library


def _compile(compiler: str, source: Path, path: Path) -> None:
    """Compile to a temporary name, then rename: two processes may do it at once."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        compiled, linked = Path(work, "forward.o"), Path(work, "forward.so")
        _output([compiler, *FLAGS, "-c", str(source), "-o", str(compiled)])
        # Linked without -fopenmp: its symbols are found in the runtime that torch has loaded already.
        _output([compiler, "-shared", str(compiled), "-o", str(linked)])
        linked.replace(path)


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        told = next((line for line in lines if "error" in line), lines[0])  # before it stand the files that include it
        raise BuildError(f"{Path(command[0]).name}: {told}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{Path(command[0]).name}: {error}") from None


def _processor() -> str:
    """What ``-march=native`` depends on: the processor's name and its instruction sets."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
