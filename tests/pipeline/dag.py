"""A copy of the project in which Snakemake, the Snakefile and the rules are real and the work is not.

``pipeline/__init__.py`` is replaced by a stand-in that writes empty outputs: all other files, and so what depends on
what, are real.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
# Of the default profile, in this copy: some that need nothing, one that needs a draft model, one that needs heads.
METHODS = ("autoregressive", "hf_greedy", "hf_prompt_lookup", "medusa", "prompt_lookup", "speculative")
TASKS = ("docstrings", "gsm_symbolic", "humaneval", "verbalized")
STAND_IN = """
import os, pathlib, sys, time
if sys.argv[0] == "-m":  # run as python -m pipeline.<rule>
    package, _, rule = sys.orig_argv[2].removeprefix("pipeline.").rpartition(".")
    rule, words = f"{package}.{rule}" if package else rule, sys.argv[1:]
    option = lambda name: pathlib.Path(words[words.index(name) + 1])
    PAPER = ["shufflelm", "parallel_llm", "parallel_llm_training", "ouroboros", "medusa", "spec_bench"]
    PAPER, FORMS = [*PAPER, "parallel_generators"], ["csv", "md", "tex"]
    OVERVIEW = ["speedup_by_task", "time_per_step", "mbu", "memory"]
    pages = lambda: map(pathlib.Path, words[words.index("--pages") + 1 : words.index("--output")])
    outputs = {
        "fetch": lambda: [option("--output") / "source.json"],
        "dataset": lambda: [option("--output") / "data.jsonl", option("--output") / "source.json"],
        "generate": lambda: [option("--output") / name for name in ("journal.jsonl", "records.jsonl", "cell.json")],
        "score": lambda: [option("--cell") / "score.json", option("--cell") / "samples.jsonl"],
        "collect": lambda: [option("--output"), option("--provenance")],
        "exactness": lambda: [option("--output") / name for name in ("divergences.jsonl", "exactness.csv")],
        "training_prompts": lambda: [option("--output"), option("--output").with_suffix(".json")],
        "selfgen": lambda: [option("--output").with_name(name) for name in ("text.json", "text.jsonl")],
        "train_draft": lambda: [option("--output") / "draft.json"],
        "train_heads": lambda: [option("--output") / "heads.json"],
        "train_mixer": lambda: [option("--output") / "mixer.json"],
        "build_datastore": lambda: [option("--output") / "datastore.json"],
        "paper_tables": lambda: [option("--output") / f"{name}.{form}" for name in PAPER for form in FORMS],
        "strata": lambda: [option("--output") / f"strata.{form}" for form in ("csv", "md")],
        "overview": lambda: [option("--output") / f"{name}.png" for name in OVERVIEW],
        "pages": lambda: [option("--output") / f"{page.stem}.html" for page in pages()],
        "gate": lambda: [pathlib.Path("gate.log")],
        "images.tokenise": lambda: [option("--output") / "tokenizer.json"],
        "images.train": lambda: [option("--output") / "model.json"],
        "images.generate": lambda: [option("--output") / "samples.json"],
        "images.figures": lambda: [option("--output") / f"image_{name}.png" for name in ("quality", "cost")],
        "images.table": lambda: [option("--output") / f"token_shuffle.{form}" for form in FORMS],
        "pairs": lambda: [option("--output") / "pairs.json"],
        "train": lambda: [option("--output") / f"{'source' if 'autoregressive' in words else 'generator'}.json"],
    }.get(rule, lambda: [option("--output")])()
    with open("calls.log", "a") as log:
        print(rule, "begin", outputs[0], file=log, flush=True)
        for output in outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
            failed = output.name == "source.json" and output.parent.name in os.environ.get("STAND_IN_FAILS", "").split()
            output.write_text('{"error": "unreachable"}' if failed else "{}")
            time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0.02")))
        print(rule, "end", outputs[0], file=log, flush=True)
    sys.exit()
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--cores", "4", *arguments]


def snakemake(project: Path, *arguments: str, status: int = 0, fails: str = "") -> str:
    environment = os.environ | {"STAND_IN_FAILS": fails}
    done = subprocess.run(
        command(*arguments), cwd=project, capture_output=True, text=True, timeout=300, env=environment
    )
    output = done.stdout + done.stderr
    assert done.returncode == status, output
    return output


def plan(project: Path, *arguments: str) -> Counter[str]:
    """Count the jobs of each rule, and of each cell to be generated or scored, that a run would start."""
    output = snakemake(project, "--dry-run", *arguments)
    counts = Counter(re.findall(r"Job \d+: (\w+ \w+ on \w+)", output))
    jobs = re.search(r"^job +count\n-.*?\n(.*?)\n\n", output, re.MULTILINE | re.DOTALL)
    for line in jobs[1].splitlines() if jobs else ():
        rule, count = line.split()
        counts[rule] = int(count)
    return counts


def cells_of(counts: Counter[str], verb: str) -> set[tuple[str, str]]:
    """The (method, task) pairs of the jobs whose message begins with ``verb``."""
    words = (key.split() for key in counts if key.startswith(verb))
    return {(method, task) for _, method, _, task in words}


def calls(project: Path) -> list[list[str]]:
    return [line.split() for line in (project / "calls.log").read_text().splitlines()]


def copy_project(folder: Path) -> Path:
    for name in ("config", "profiles", "pipeline", "decoding", "baselines", "shuffle"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for profile in ("laptop", "smoke"):
        file = folder / "config" / f"{profile}.yaml"
        values = yaml.safe_load(file.read_text()) | {"twins": {}, "images": None}  # they have tests of their own
        file.write_text(yaml.safe_dump(values | {"methods": {method: {} for method in METHODS}}))
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "pipeline" / "__init__.py").write_text(STAND_IN)
    return folder


def short_profile(
    project: Path, name: str = "mine", methods: tuple[str, ...] = ("autoregressive", "prompt_lookup"), **model: object
) -> Path:
    """Write a configuration of the tasks docstrings and verbalized, with two methods four cells; return its file."""
    limits = {"num_prompts": 1, "max_new_tokens": 2, "chat_template": False}
    values = {
        "profile": name,
        "models": {"tiny": {"dtypes": ["float32"]} | (model or {"hub": "org/tiny"})},
        "methods": {method: {} for method in methods},
        "tasks": {"docstrings": limits, "verbalized": limits},
    }
    file = project / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file
