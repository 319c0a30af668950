"""What the rules share: the checked configuration, which files a rule depends on, and the lock against a second run."""

import fcntl
import json
import os
import sys
from pathlib import Path

from snakemake.utils import update_config

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))  # the code beside this Snakefile, also where another copy is installed
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))

from pipeline import config as configuration
from pipeline import sources
from pipeline.errors import UserError
from pipeline.registry import METHODS, TASKS


def read_settings():
    """Return the checked configuration; a mistake in it ends Snakemake before any job, with one line.

    Snakemake has already merged the files of --configfile and the values of --config into ``config``. Without a file,
    those values are laid over the profile's.
    """
    try:
        if workflow.config_settings.configfiles:
            return configuration.load(config)
        profile = config.get("profile", "laptop")
        values = configuration.read_yaml(Path(os.path.relpath(ROOT), "config", f"{profile}.yaml"))
        update_config(values, config)
        return configuration.load(values)
    except UserError as error:
        sys.exit(f"error: {error}")


def here(files):
    """Return files of the project as paths relative to the working directory, so that the project can be moved."""
    return [os.path.relpath(ROOT / file) for file in files]


def sources_of(*modules, without=()):
    return here(sources.sources_of(*modules, without=without))


def method_sources(wildcards):
    """The method's code, and that of the baseline which every cell runs in turn with it."""
    modules = [METHODS[name].module for name in (wildcards.method, "autoregressive")]
    return sources_of("pipeline.generate", *modules)


def dataset_sources(wildcards):
    """A task's module also names the function that scores it, which writing the data does not use."""
    return sources_of("pipeline.dataset", TASKS[wildcards.task].source, without=["pipeline.sandbox"])


def score_sources(wildcards):
    return sources_of("pipeline.score") + here(sources.yaml_sources_of(TASKS[wildcards.task].yaml))


def local_path(section, name):
    """The file or folder that a model or a task is read from, as an input: when it changes, so does what is made of it."""
    path = section[name].path
    return [str(path)] if path else []


def origin(entry, keys):
    """The arguments that say where a model or a task comes from: ``--package P --file F --sha256 H``."""
    given = [(key, getattr(entry, key)) for key in keys]
    return [word for key, value in given if value is not None for word in (f"--{key}", str(value))]


def cells(pattern):
    """``pattern`` for each cell of the configuration."""
    return [
        pattern.format(model=model, dtype=dtype, task=task, method=method, seed=seed)
        for model, model_settings in SETTINGS.models.items()
        for dtype in model_settings.dtypes
        for task in SETTINGS.tasks
        for method in SETTINGS.methods
        for seed in SETTINGS.seeds
    ]


def hold_lock():
    """Keep a second run out of this folder. The operating system lets go of the lock when this process ends, however."""
    Path(".snakemake").mkdir(exist_ok=True)
    file = open(".snakemake/shufflebench.lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("error: another run is at work in this folder; wait for it, or stop it")
    return file


SETTINGS = read_settings()
CELL = "results/cells/{model}/{dtype}/{task}/{method}/{seed}"
if "timed" not in workflow.global_resources:  # no profile is used
    workflow.register_resource("timed", 1)


wildcard_constraints:
    model="|".join(SETTINGS.models),
    task="|".join(SETTINGS.tasks),
    method="|".join(SETTINGS.methods),
    dtype="[^/]+",
    seed="[0-9]+",


onstart:
    globals().update(LOCK=hold_lock())
