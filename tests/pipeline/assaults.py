"""Completions that attack the machine rather than the verdict; see ``hostile``."""

from __future__ import annotations

# Attacks on the machine: all that counts is that they end, and that nothing is left.
ASSAULTS = {
    "loops for ever": "while True: pass",
    "loops for ever when called": "def add(x, y):\n    while True: pass",
    "sleeps for ever": "import time\ntime.sleep(10 ** 6)",
    "ignores all signals": """
        import signal, time
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        while True: time.sleep(1)
        """,
    "is a fork bomb": """
        import os
        while True:
            try: os.fork()
            except OSError: pass
        """,
    "starts threads without end": """
        import threading, time
        while True:
            try: threading.Thread(target=time.sleep, args=(10 ** 6,)).start()
            except RuntimeError: pass
        """,
    "leaves a daemon behind": """
        import os, time, ctypes
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
                while True: time.sleep(1)
            os._exit(0)
        """,
    "leaves another program behind": """
        import subprocess
        subprocess.Popen(['/bin/sleep', '1000'], start_new_session=True)
        """,
    "allocates 10 GB": "hoard = bytearray(10 * 2 ** 30)",
    "allocates 10 GB in pieces": "hoard = []\nwhile True: hoard.append(bytearray(2 ** 24))",
    "maps anonymous files of 10 GB": """
        import os
        while True:
            os.ftruncate(os.memfd_create('hoard'), 10 * 2 ** 30)
        """,
    "prints a gigabyte": "def add(x, y):\n    for _ in range(1024): print('x' * 2 ** 20)\n    return x + y",
    "writes a gigabyte to stderr": """
        import os
        def add(x, y):
            for _ in range(1024): os.write(2, b'x' * 2 ** 20)
            return x + y
        """,
    "sends the reply pipe a gigabyte": """
        import os
        for descriptor in range(3, 64):
            try:
                for _ in range(1024): os.write(descriptor, b'x' * 2 ** 20)
            except OSError: pass
        """,
    "fills the disk with one file": """
        with open('big', 'wb') as file:
            while True: file.write(b'x' * 2 ** 20)
        """,
    "fills the disk with many files": """
        for index in range(200):
            with open(f'big{index}', 'wb') as file: file.write(b'x' * 2 ** 20)
        """,
    "makes folders that resist removal": """
        import os
        os.mkdir('trap'); os.mkdir('trap/inner'); os.symlink('/', 'trap/root'); os.chmod('trap', 0)
        """,
    "recurses without end": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef add(x, y): return add(x, y)",
    "reads address zero": "import ctypes\nctypes.string_at(0)",
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "kills its process group": "import os, signal\nos.killpg(0, signal.SIGKILL)",
    "raises its limits": """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        """,
    "waits for input": "input()",
}

# Only where process ids are the sandbox's own: elsewhere a failure would end the tests themselves.
KILLS_ALL = {
    "kills all processes": "import os, signal\nos.kill(-1, signal.SIGKILL)",
}
