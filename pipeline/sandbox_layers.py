"""What the kernel can take away from a process, layer by layer; each function says what was granted.

No layer is trusted alone. Namespaces (Linux, where allowed) remove the network, the other processes and, by a new root
of read-only bind mounts, the file system. Landlock and seccomp need no privilege at all, so they remain where user
namespaces are forbidden (Ubuntu 24.04, most containers). Resource limits remain everywhere, macOS included.

Example (in a process that is about to run untrusted code)::

    granted = enter_namespaces("/tmp/empty", ["/usr", "/lib"], [], 16 << 20)
    granted += drop_privileges(1_000_000_001, WORK_FOLDER)
    granted += restrict_files(WORK_FOLDER, ["/usr", "/lib"]) + filter_system_calls()
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_IPC, _NEW_MOUNT = 0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x00020000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_KEPT_FLAGS = {os.ST_NOSUID: 2, os.ST_NODEV: 4, os.ST_NOEXEC: 8, os.ST_NOATIME: 1024, os.ST_NODIRATIME: 2048,
               os.ST_RELATIME: 1 << 21} if sys.platform == "linux" else {}  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
WORK_FOLDER = "/sandbox"  # in the new root; no environment is likely to live below it, as one may below /tmp

# System calls that no completion needs and that reach past the other layers: (x86_64, aarch64) numbers.
_DENIED = {
    "socket": (41, 198), "connect": (42, 203), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "prlimit64": (302, 261), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "memfd_create": (319, 279), "memfd_secret": (447, 447), "unshare": (272, 97),
    "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "fsopen": (430, 430),
    "fsmount": (432, 432), "open_tree": (428, 428), "move_mount": (429, 429), "mount_setattr": (442, 442),
    "io_uring_setup": (425, 425), "bpf": (321, 280), "keyctl": (250, 219), "add_key": (248, 217),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "setpriority": (141, 140),
    # Landlock does not cover the rights, owners, times and attributes of files.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Call a C function with machine words and pointers; raise ``OSError`` where it returns -1."""
    words = [ctypes.c_ulong(a & (2**64 - 1)) if isinstance(a, int) else a for a in arguments]
    result: int = getattr(_libc(), name)(*words)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def die_with_parent() -> None:
    """Ask for SIGKILL when the parent ends, and forbid others of the same user to trace this process (Linux)."""
    if sys.platform == "linux":
        _call("prctl", 1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG; a change of user clears it, so this comes after that
        _call("prctl", 4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (Linux)."""
    if sys.platform == "linux":
        _call("prctl", 36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def enter_namespaces(root: str, readable: Sequence[str], hidden: Iterable[str], temporary_bytes: int) -> list[str]:
    """Leave the host's network, IPC, process ids (for children) and file system, as far as the kernel allows.

    Args:
        root: an empty folder, used as a mount point in this process's own view.
        readable: files and folders that stay visible, read-only, at their own paths; all else is gone.
        hidden: folders inside those that are masked by an empty one.
        temporary_bytes: size of ``WORK_FOLDER``, which is writable and held in memory.

    Returns:
        Names of what was granted; the folder to work in is ``WORK_FOLDER`` if they include ``read-only file system``.
    """
    if sys.platform != "linux":
        return []
    granted = []
    # An ordinary user gets the right to the others with a user namespace. Root needs none, and must not stay root.
    if os.geteuid() != 0:
        if not _enter_user_namespace():
            return []
        granted.append("user namespace")
    for name, flag in (("network", _NEW_NET), ("ipc", _NEW_IPC), ("pid", _NEW_PID)):
        if _granted("unshare", flag):
            granted.append(f"{name} namespace")
    if _granted("unshare", _NEW_MOUNT):
        try:
            _change_root(root, readable, hidden, temporary_bytes)
            granted.append("read-only file system")
        except OSError:
            _granted("umount2", root.encode(), 2)  # nothing half-made stays over the folder
    return granted


def _granted(name: str, *arguments: int | bytes) -> bool:
    try:
        _call(name, *arguments)
    except OSError:
        return False
    return True


def _enter_user_namespace() -> bool:
    uid, gid = os.geteuid(), os.getegid()
    if not _granted("unshare", _NEW_USER):
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        try:
            Path(f"/proc/self/{name}").write_text(text)
        except OSError:  # without a map the others are refused, one by one
            return False
    return True


def _change_root(root: str, readable: Sequence[str], hidden: Iterable[str], temporary_bytes: int) -> None:
    """Make a new root of read-only bind mounts and one small writable folder, and forget the old root."""
    base = root.encode()
    _call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)
    _call("mount", b"tmpfs", base, b"tmpfs", _NO_SUID | _NO_DEVICES, b"size=1m,mode=755")
    for path in sorted((*readable, *_DEVICES)):  # a folder before what lies in it
        _show(path, root + path)
    for path in hidden:
        if Path(root + path).is_dir():
            _call("mount", b"tmpfs", (root + path).encode(), b"tmpfs", _READ_ONLY | _NO_SUID | _NO_DEVICES, b"size=4k")
    Path(root + WORK_FOLDER).mkdir(parents=True)
    options = f"size={temporary_bytes},nr_inodes=1024,mode=1777".encode()
    _call("mount", b"tmpfs", (root + WORK_FOLDER).encode(), b"tmpfs", _NO_SUID | _NO_DEVICES, options)
    os.chdir(root)
    _call("syscall", 155 if platform.machine() == "x86_64" else 41, b".", b".")  # pivot_root has no wrapper in libc
    _call("umount2", b".", 2)
    os.chdir("/")
    _call("mount", None, b"/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES, None)


def _show(source: str, target: str) -> None:
    """Bind ``source`` read-only at ``target``; links are copied, what does not exist is left out."""
    origin, place = Path(source), Path(target)
    if not os.path.lexists(origin) or os.path.lexists(place):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if origin.is_symlink():
        place.symlink_to(origin.readlink())
        return
    if origin.is_dir():
        place.mkdir()
    else:
        place.touch()
    _call("mount", source.encode(), target.encode(), None, _BIND | _RECURSIVE, None)
    # What the mount already forbids has to be repeated, or the kernel refuses the remount in a user namespace.
    present = os.statvfs(target).f_flag
    kept = sum(mount for flag, mount in _KEPT_FLAGS.items() if present & flag)
    _call("mount", None, target.encode(), None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | kept, None)


def drop_privileges(uid: int, folder: str) -> list[str]:
    """Become a user that nobody is (only root can), without capabilities, and own ``folder``."""
    granted = []
    if os.geteuid() == 0:
        # A uid of its own: the process limit counts this sandbox alone. In a container few uids exist: then nobody.
        for candidate in (uid, 65534):
            try:
                os.chown(folder, candidate, candidate)
                os.setgroups([])
                os.setresgid(candidate, candidate, candidate)
                os.setresuid(candidate, candidate, candidate)
            except OSError:
                continue
            granted.append("unprivileged user")
            break
    if sys.platform == "linux":
        _call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        header, nothing = struct.pack("II", 0x20080522, 0), bytes(24)
        _call("capset", ctypes.create_string_buffer(header), ctypes.create_string_buffer(nothing, 24))
    return granted


def limit_resources(limits: dict[str, int]) -> list[str]:
    """Set each named ``RLIMIT_*`` of this process, hard and soft; fewer are granted on macOS."""
    granted = False
    for name, value in limits.items():
        try:
            # The second more lets SIGXCPU tell what happened before SIGKILL does.
            resource.setrlimit(getattr(resource, name), (value, value + 1 if name == "RLIMIT_CPU" else value))
            granted = True
        except (AttributeError, ValueError, OSError):
            continue
    return ["rlimits"] if granted else []


def restrict_files(folder: str, readable: Iterable[str]) -> list[str]:
    """Landlock: from now on write only below ``folder`` and read only there and below ``readable``."""
    if sys.platform != "linux":
        return []
    try:
        version = _call("syscall", 444, None, 0, 1)
    except OSError:
        return []
    read = 0b1101  # execute, read file, read folder
    rights = (1 << {1: 13, 2: 14}.get(version, 15)) - 1  # all of this version; later ones add ioctl on devices
    network = 0b11 if version >= 4 else 0  # bind and connect TCP
    handled = ctypes.create_string_buffer(struct.pack("QQ", rights, network), 16)
    ruleset = _call("syscall", 444, handled, 16 if network else 8, 0)
    places = dict.fromkeys(readable, read) | dict.fromkeys(_DEVICES, 0b110) | {folder: rights}
    for path, allowed in places.items():
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not Path(path).is_dir():
            allowed &= 0b111 | 1 << 14
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed & rights, place), 12)
        _call("syscall", 445, ruleset, 1, rule, 0)
        os.close(place)
    _call("syscall", 446, ruleset, 0)
    os.close(ruleset)
    return ["landlock"]


def _statement(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def filter_system_calls() -> list[str]:
    """Seccomp: the calls in ``_DENIED`` and new user namespaces fail with EPERM."""
    machine = platform.machine()
    architectures = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
    if sys.platform != "linux" or machine not in architectures:
        return []
    audit, column = architectures[machine]
    numbers = [number for row in _DENIED.values() if (number := row[column]) is not None]

    load, equal, at_least, has_bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    clone, count = (56, 220)[column], len(numbers)
    program = [  # a jump counts the statements that it leaps over
        _statement(load, 0, 0, 4),
        _statement(equal, 1, 0, audit),
        _statement(give, 0, 0, 0x80000000),  # another architecture: kill the process
        _statement(load, 0, 0, 0),
        _statement(at_least, count + 5, 0, 0x40000000),  # x86_64 answers to a second set of numbers, all above this
        _statement(equal, count + 5, 0, 435),  # clone3 hides its flags from filters; the C library then uses clone
        *(_statement(equal, count + 3 - index, 0, number) for index, number in enumerate(numbers)),
        _statement(equal, 0, 2, clone),
        _statement(load, 0, 0, 16),
        _statement(has_bits, 1, 0, _NEW_USER),
        _statement(give, 0, 0, 0x7FFF0000),  # allow
        _statement(give, 0, 0, 0x00050001),  # EPERM
        _statement(give, 0, 0, 0x00050026),  # ENOSYS
    ]
    code = ctypes.create_string_buffer(b"".join(program))
    bpf = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    try:
        _call("prctl", 22, 2, bpf, 0, 0)
    except OSError:
        return []
    return ["seccomp filter"]
