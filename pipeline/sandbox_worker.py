"""The three processes of the sandbox: a guard, the checker in it, and the worker that alone runs untrusted code.

    scorer --starts--> guard --forks--> checker --forks--> worker
                       namespaces       test code          prompt + completion

The guard enters the namespaces and waits. The checker (process 1 of the process-id namespace, so its end is the end
of all others) evaluates the trusted test code, with the candidate replaced by a proxy: the arguments of each call go
to the worker as JSON, and the result comes back as plain data of exact types. The worker has no test, no verdict and
no way to either: it is forked before the tests are read, so a completion can return values and nothing else. An
object that claims to equal everything is refused; a forged answer is still only a value that the test code compares.

Example, which prints ``{"outcome": "passed", ...}``::

    echo '{"prompt": ..., "completion": ..., "test": ..., "entry_point": ...}' | python -c \
        'from pipeline.sandbox_worker import main; main()' '{"folder": "/tmp/empty", "wall_s": 5, ...}'
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from pipeline import sandbox_layers as layers
from pipeline.sandbox_values import from_plain, to_plain


class Stopped(BaseException):
    """The worker is of no more use. Not an ``Exception``, so that test code does not take it for the candidate's."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(outcome, detail)
        self.outcome, self.detail = outcome, detail


class CandidateError(Exception):
    """The candidate raised; carries only the text of it."""


class Candidate:
    """What the test code calls: hands the arguments to the worker and returns the plain result."""

    def __init__(self, worker: int, requests: int, replies: int, printed: int, setup: dict[str, Any]) -> None:
        self.worker, self.requests, self.replies, self.printed = worker, requests, replies, printed
        self.deadline = time.monotonic() + setup["wall_s"]
        self.output_bytes: int = setup["output_bytes"]
        self.printed_bytes = 0
        self.buffer = bytearray()
        self.stopped: Stopped | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Return what the candidate returns; raise ``CandidateError`` if it raises."""
        return self.ask("call", [to_plain(list(arguments)), to_plain(named)])

    def ask(self, kind: str, content: Any) -> Any:
        """Send one request and return the decoded reply; raise ``CandidateError`` or ``Stopped``."""
        if self.stopped is not None:
            raise self.stopped
        try:
            self._send((json.dumps([kind, content]) + "\n").encode())
            answer, value = json.loads(self.receive())
            if answer == "returned":
                return from_plain(value)
            text = str(value)
        except Stopped as stopped:
            self.stopped = stopped  # test code with a bare except must not go on as if nothing had happened
            raise
        except (ValueError, TypeError, RecursionError, ArithmeticError, MemoryError) as error:
            self.stopped = Stopped("refused", f"the reply is not a value: {type(error).__name__}")
            raise self.stopped from error
        if answer == "refused":
            self.stopped = Stopped("refused", text)
            raise self.stopped
        raise CandidateError(text)

    def _send(self, data: bytes) -> None:
        while data:
            self._wait(self.requests)
            try:
                data = data[os.write(self.requests, data) :]
            except BrokenPipeError:
                self._ended()

    def receive(self) -> bytes:
        """Return the worker's next line; raise ``Stopped`` if there is none in time, or it is too long."""
        while (end := self.buffer.find(b"\n")) < 0:
            self._wait(self.replies)
            data = os.read(self.replies, 1 << 16)
            if not data:
                self._ended()
            self.buffer += data
            if len(self.buffer) > self.output_bytes:
                raise Stopped("refused", f"a reply of more than {self.output_bytes} bytes")
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        return line

    def _wait(self, wanted: int) -> None:
        """Return when ``wanted`` is ready; count meanwhile what the completion prints."""
        poll = select.poll()
        poll.register(wanted, select.POLLOUT if wanted == self.requests else select.POLLIN)
        poll.register(self.printed, select.POLLIN)
        while True:
            left = self.deadline - time.monotonic()
            ready = {place for place, _ in poll.poll(left * 1000)} if left > 0 else set()
            if left <= 0:
                raise Stopped("timed_out", "the wall-clock limit")
            if self.printed in ready:
                data = os.read(self.printed, 1 << 16)
                self.printed_bytes += len(data)
                if self.printed_bytes > self.output_bytes:
                    raise Stopped("killed", f"printed more than {self.output_bytes} bytes")
                if not data:
                    poll.unregister(self.printed)
            if wanted in ready:
                return

    def _ended(self) -> NoReturn:
        """The worker closed its pipe: say how it ended."""
        status = 0
        soon = min(self.deadline, time.monotonic() + 0.5)
        while time.monotonic() < soon:
            ended, status = os.waitpid(self.worker, os.WNOHANG)
            if ended:
                break
            time.sleep(0.001)
        else:
            raise Stopped("killed", "the completion closed the pipe of the sandbox")
        if os.WIFSIGNALED(status):
            if os.WTERMSIG(status) == signal.SIGXCPU:
                raise Stopped("timed_out", "the processor-time limit")
            raise Stopped("killed", f"the completion's process ended by {signal.Signals(os.WTERMSIG(status)).name}")
        raise Stopped("killed", f"the completion ended its process with status {os.WEXITSTATUS(status)}")


def judge(problem: dict[str, str], candidate: Candidate) -> tuple[str, str]:
    """Run the trusted test code of ``problem`` against ``candidate`` and return the outcome and one line about it."""
    outcome, detail = "passed", ""
    try:
        candidate.ask("load", [problem["prompt"] + problem["completion"], problem["entry_point"]])
        # Some tests call helpers of the prompt: the trusted ones are used, whatever the completion made of them.
        namespace: dict[str, Any] = {}
        exec(problem["prompt"], namespace)
        namespace[problem["entry_point"]] = candidate
        exec(problem["test"], namespace)
        namespace["check"](candidate)
    except Stopped:
        pass
    except CandidateError as error:
        outcome, detail = "failed", f"raised {error}"
    except BaseException as error:
        outcome, detail = "failed", f"{type(error).__name__} in the test: {error}"
    if candidate.stopped is not None:
        outcome, detail = candidate.stopped.outcome, candidate.stopped.detail
    return outcome, detail


def answer(requests: int, replies: int) -> None:
    """The worker's loop: load the program, then call its function as asked, until the pipe closes."""
    namespace: dict[str, Any] = {}
    entry_point = ""
    with open(requests, "rb", closefd=False) as lines:
        for line in lines:
            kind, content = json.loads(line)
            try:
                if kind == "load":
                    program, entry_point = content
                    exec(program, namespace)
                    namespace[entry_point]  # a completion that removed it fails here
                    reply: list[Any] = ["returned", None]
                else:
                    arguments, named = map(from_plain, content)
                    value = namespace[entry_point](*arguments, **named)
                    reply = _described(value)
            except BaseException as error:
                reply = ["raised", f"{type(error).__name__}: {error}"[:200]]
            data = (json.dumps(reply) + "\n").encode()
            while data:
                data = data[os.write(replies, data) :]


def _described(value: Any) -> list[Any]:
    try:
        described = to_plain(value)
        json.dumps(described)
    except (TypeError, ValueError, RecursionError) as error:
        return ["refused", f"returned no plain value: {error}"[:200]]
    return ["returned", described]


def _become_worker(setup: dict[str, Any], granted: list[str], folder: str, pipes: tuple[int, int, int]) -> NoReturn:
    """Give up everything, say which layers that took, and only then read the untrusted program."""
    requests, replies, printed = pipes
    os.setsid()
    os.chdir(folder)
    mine = layers.drop_privileges(setup["uid"], folder)
    layers.die_with_parent()
    # Without a process-id namespace nothing could find what the completion leaves behind: then it may start nothing.
    processes = setup["processes"] + 2 * ("user namespace" in granted) if "pid namespace" in granted else 1
    limits = {"RLIMIT_AS": setup["memory_bytes"], "RLIMIT_CPU": setup["cpu_s"], "RLIMIT_FSIZE": setup["file_bytes"],
              "RLIMIT_NPROC": processes, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 64}  # fmt: skip
    mine += layers.limit_resources(limits)
    mine += layers.restrict_files(folder, setup["readable"]) + layers.filter_system_calls()
    list(Path(os.__file__).parent.iterdir())  # no verdict at all rather than one without the standard library
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.path[:] = sys.path[1:] + setup["packages"]
    sys.argv[:] = [""]
    random.seed(0)  # a fork draws a new seed
    os.write(replies, (json.dumps(mine) + "\n").encode())
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    for descriptor in set(range(3, 64)) - {requests, replies}:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    answer(requests, replies)
    os._exit(0)


def _check(setup: dict[str, Any], granted: list[str], folder: str, verdict: int) -> None:
    """The checker: fork the worker, then read the tests, run them and write the verdict."""
    layers.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    random.seed(0)  # some tests draw their inputs: the same ones each time
    (requests_in, requests), (replies, replies_out), (printed, printed_out) = os.pipe(), os.pipe(), os.pipe()
    worker = os.fork()
    if worker == 0:
        _become_worker(setup, granted, folder, (requests_in, replies_out, printed_out))
    for descriptor in (requests_in, replies_out, printed_out):
        os.close(descriptor)
    os.set_blocking(requests, False)
    layers.limit_resources({"RLIMIT_AS": setup["memory_bytes"]})
    candidate = Candidate(worker, requests, replies, printed, setup)
    granted = granted + json.loads(candidate.receive())
    outcome, detail = judge(json.load(sys.stdin), candidate)
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    os.write(verdict, json.dumps({"outcome": outcome, "detail": detail[:1000], "layers": granted}).encode())


def _end_orphans() -> None:
    """Kill what is left when there was no process-id namespace to do it."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while children.exists() and (left := children.read_text().split()):
        for pid in map(int, left):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main() -> None:
    """The guard: see the module's docstring."""
    setup = json.loads(sys.argv[1])
    setup["uid"] = 1_000_000_000 + os.getpid()
    verdict = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    granted: list[str] = []
    if setup["namespaces"]:
        granted = layers.enter_namespaces(setup["folder"], setup["readable"], setup["hidden"], setup["file_bytes"])
    folder = layers.WORK_FOLDER if "read-only file system" in granted else setup["folder"]
    layers.adopt_orphans()
    layers.die_with_parent()
    checker = os.fork()
    if checker == 0:
        try:
            _check(setup, granted, folder, verdict)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(checker, signal.SIGKILL))
    _, status = os.waitpid(checker, 0)
    _end_orphans()
    sys.exit(1 if status else 0)
