"""What the rules share: the checked configuration, which files a rule depends on, and the lock against a second run."""

import fcntl
import json
import os
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))  # the code beside this Snakefile, also where another copy is installed
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))

from pipeline import config as configuration
from pipeline import config_file, sources
from pipeline.config_images import ImageSettings
from pipeline.config_sections import flags_of
from pipeline.errors import UserError
from pipeline.generators import GENERATORS
from pipeline.registry import METHODS, TASKS


def read_settings():
    """Return the checked configuration; a mistake in it ends Snakemake before any job, with one line.

    The values of --config are laid over the files of --configfile or, without one, over the profile's. The files are
    read here again, since Snakemake's ``config`` no longer tells a key that is given twice.
    """
    files, given = workflow.config_settings.configfiles, workflow.config_settings.config
    try:
        if files and "profile" in given:
            raise UserError(f"config: profile = {given['profile']!r} beside --configfile: name it in that file instead")
        profile = Path(os.path.relpath(ROOT), "config", f"{given.get('profile', 'laptop')}.yaml")
        values = {}
        for file in files or [profile]:
            values = config_file.overlay(values, config_file.read_yaml(Path(file)))
        return configuration.load(config_file.overlay(values, given))
    except UserError as error:
        sys.exit(f"error: {error}")


def here(files):
    """Return files of the project as paths relative to the working directory, so that the project can be moved."""
    return [os.path.relpath(ROOT / file) for file in files]


def sources_of(*modules, without=()):
    return here(sources.sources_of(*modules, without=without))


def method_sources(wildcards):
    """The method's code, and that of the baseline which every cell runs in turn with it."""
    modules = METHODS[wildcards.method].modules + METHODS["autoregressive"].modules
    return sources_of("pipeline.generate", *modules)


def methods_of(model):
    """The methods that run on a model, with their options: a twin has its own."""
    return SETTINGS.twins[model].methods if model in SETTINGS.twins else SETTINGS.methods


def task_settings(task):
    """How much of a task is asked for, and where its data comes from: of a model's tasks or of a twin's."""
    return SETTINGS.tasks.get(task) or next(twin for twin in SETTINGS.twins.values() if twin.task == task)


def asked_tasks():
    return [*SETTINGS.tasks, *(twin.task for twin in SETTINGS.twins.values())]


def chat_flags(task):
    return ["--chat-template"] * getattr(task_settings(task), "chat_template", False)


def part_record(model, part):
    """The file that says that a trained part is there, or why it is not. A draft of one's own is fetched, not trained."""
    if part in GENERATORS:
        return f"results/twins/{model}/{part}/generator.json"
    if part == "draft" and f"{model}.draft" in SETTINGS.drafts:
        return f"results/models/{model}.draft/source.json"
    return f"results/parts/{model}/{SETTINGS.training.name}/{part}/{part}.json"


def parts_of(model, method):
    return METHODS[method].parts_with(methods_of(model)[method])


def flags_of_parts(parts, records):
    """Parts as arguments, each in the folder of its record: an input, which may have come from a storage."""
    folders = [f"{part}={Path(record).parent}" for part, record in zip(parts, records)]
    return [word for folder in folders for word in ("--part", folder)]


def part_records(wildcards):
    """What a cell needs beside its model: the parts of its method."""
    return records_of(wildcards.model, parts_of(wildcards.model, wildcards.method))


def records_of(model, parts):
    """The records of parts and, where they were trained here, of what they were trained on being none of what is asked."""
    records = [part_record(model, part) for part in parts]
    folder = f"results/parts/{model}/{SETTINGS.training.name}"
    trained = any(record.startswith(f"{folder}/") for record in records)
    return records + [f"{folder}/overlap/{PROFILE}.json"] * trained


def part_flags(wildcards, input):
    """The parts of a cell as arguments: ``--part draft=FOLDER``."""
    return flags_of_parts(parts_of(wildcards.model, wildcards.method), input.parts)


def dataset_sources(wildcards):
    """A task's module also names the function that scores it, which writing the data does not use."""
    return sources_of("pipeline.dataset", TASKS[wildcards.task].source, without=["pipeline.sandbox"])


def score_sources(wildcards):
    """Of the tasks that run code the YAML names the sandbox; of those with kinds of documents a module tells them."""
    own = here(sources.yaml_sources_of(TASKS[wildcards.task].yaml))
    return sources_of("pipeline.score", *TASKS[wildcards.task].kinds_from, without=["pipeline.sandbox"]) + own


def score_flags(wildcards):
    """Leave to run code is given only where code is run: a change of it concerns no other cell."""
    allowed = SETTINGS.allow_code_execution and sources.runs_code(TASKS[wildcards.task].yaml)
    return ["--allow-code-execution"] * allowed


def model_settings(name):
    """The settings of a model, or of the draft model that it brings."""
    return (SETTINGS.models | SETTINGS.drafts)[name]


def local_path(entry):
    """The files that a model or a task is read from, as inputs: when one changes, so does what is made of it.

    Those in a folder one by one, since a folder looks the same when a file in it is written anew. And where links lead,
    since that is where they are written.
    """
    path = entry.path
    if path is None:
        return []
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    return sorted(str(file.resolve()) for file in files)


def last_failure(mark):
    """When a model or a task's documents could not be had, as a parameter: so they are tried again in the next run.

    A failure is written down as an output like any other, so that its cells become rows with a reason and all others go
    on. But a hub that could not be reached, or a file that was wrong, may be right by now. The mark, a file that the
    rule touches, stays when a later try succeeds, so that success changes nothing and is final.
    """
    return Path(mark).stat().st_mtime_ns if Path(mark).exists() else None


def origin(entry, keys):
    """What is set of ``keys`` as arguments, such as where a model comes from."""
    return flags_of({key: getattr(entry, key, None) for key in keys})


def layout_flags(wildcards):
    """The cards that a model is spread over and the rows that it reads, as arguments; a twin is small."""
    return origin(SETTINGS.models.get(wildcards.model), ("device_map", "decode_width"))


def cells(pattern):
    """``pattern`` for each cell of the configuration: each model with each task, and each twin with its own."""
    grids = [(model, settings.dtypes, SETTINGS.tasks) for model, settings in SETTINGS.models.items()]
    grids += [(model, twin.dtypes, [twin.task]) for model, twin in SETTINGS.twins.items()]
    return [
        pattern.format(model=model, dtype=dtype, task=task, method=method, seed=seed)
        for model, dtypes, tasks in grids
        for dtype in dtypes
        for task in tasks
        for method in methods_of(model)
        for seed in SETTINGS.seeds
    ]


def compared():
    """The methods whose ids must be the baseline's: those on our engine that claim it."""
    entries = {name: METHODS[name] for name in SETTINGS.methods if name != "autoregressive"}
    return [name for name, entry in entries.items() if entry.lossless and entry.kind == "drafter"]


def compared_parts():
    return sorted({part for method in compared() for part in METHODS[method].parts_with(SETTINGS.methods[method])})


def recipe(wildcards):
    """What a twin and all its generators share, as arguments; a generator may have a recipe of its own."""
    twin = SETTINGS.twins[wildcards.twin]
    names = ("steps", "batch_size", "learning_rate", "dropout", "length_pool", "seed")
    values = {name: getattr(twin, name) for name in names}
    if generator := getattr(wildcards, "generator", None):  # none: the twin itself
        if GENERATORS[generator].from_twin:
            values |= twin.fine_tuning.model_dump(exclude_none=True)
        if generator in twin.recipes:
            values |= twin.recipes[generator].model_dump(exclude_none=True)
    return flags_of(values)


def backbone(wildcards):
    return json.dumps(SETTINGS.twins[wildcards.twin].backbone.model_dump(), sort_keys=True)


def generator_options(twin, generator):
    return json.dumps(SETTINGS.twins[twin].generators.get(generator, {}), sort_keys=True)


def distilled(wildcards):
    """The twin's answers, for a generator that learns from them."""
    return f"results/twins/{wildcards.twin}/distilled.jsonl" if GENERATORS[wildcards.generator].distilled else []


def twin_to_start_from(wildcards):
    """The twin's record, for a generator that starts from its weights."""
    return f"results/models/{wildcards.twin}/source.json" if GENERATORS[wildcards.generator].from_twin else []


def trained_records():
    """The records of everything that is trained for the cells of this configuration, with a loss curve beside each."""
    parts = {
        part_record(model, part)
        for model in SETTINGS.models
        for method in SETTINGS.methods
        for part in parts_of(model, method)
        if not (part == "draft" and f"{model}.draft" in SETTINGS.drafts)
    }
    generators = {
        part_record(twin, part)
        for twin, settings in SETTINGS.twins.items()
        for method in settings.methods
        for part in parts_of(twin, method)
    }
    return sorted({*parts, *generators, *(f"results/models/{twin}/source.json" for twin in SETTINGS.twins)})


def figure(name):
    """A figure, which the report shows with its caption."""
    return report(f"results/figures/{name}.png", caption=f"../captions/{name}.rst", category="3 Figures")


def page(name, category):
    """A page of the report; the captions of tables say what they are compared with."""
    caption = name if name in ("report", "benchmark", "strata") else "paper_table"
    return report(
        f"results/pages/{name}.html", caption=f"../captions/{caption}.rst", category=category, labels={"page": name}
    )


def hold_lock():
    """Keep a second run out of this folder. The operating system lets go of the lock when this process ends, however."""
    Path(".snakemake").mkdir(exist_ok=True)
    file = open(".snakemake/shufflebench.lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("error: another run is at work in this folder; wait for it, or stop it")
    except OSError as error:  # a file system without locks
        print(f"this folder cannot be locked ({error.strerror}): see that no other run works in it", file=sys.stderr)
    return file


SETTINGS = read_settings()
PROFILE = SETTINGS.profile
TRAINING_THREADS = max(1, workflow.cores // 2)
FIGURES = ["speed_quality", "speedup_by_task", "tokens_per_step", "time_per_step", "mbu", "memory", "training"]
FIGURES += ["passes"] * bool(SETTINGS.twins)
IMAGES = SETTINGS.images or ImageSettings()
IMAGE_FIGURES = ["image_sheet", "image_quality", "image_cost"] * bool(SETTINGS.images)
IMAGE_TABLES = ["token_shuffle"] * bool(SETTINGS.images)
PAPER_TABLES = list(yaml.safe_load((ROOT / "pipeline/published.yaml").read_text(encoding="utf-8")))
CELL = f"results/cells/{PROFILE}/{{model}}/{{dtype}}/{{task}}/{{method}}/{{seed}}"
if "timed" not in workflow.global_resources:  # no profile is used
    workflow.register_resource("timed", 1)


wildcard_constraints:
    model="|".join(re.escape(name) for name in [*SETTINGS.models, *SETTINGS.drafts, *SETTINGS.twins]),
    task="|".join(asked_tasks()),
    method="|".join({*SETTINGS.methods, *(name for twin in SETTINGS.twins.values() for name in twin.methods)}),
    twin="|".join(map(re.escape, SETTINGS.twins)) or "(?!)",
    generator="|".join(GENERATORS),
    dtype="[^/]+",
    seed="[0-9]+",
    window="[0-9]+",
    guidance="|".join(IMAGES.guidances),


onstart:
    globals().update(LOCK=hold_lock())
    if workflow.local_exec:
        # The limiter makes Snakemake look for jobs every second, and one time more a second for every job that has ended:
        # after a hundred jobs that is the better part of a core, of those that cells are timed on.
        workflow.scheduler.job_rate_limiter = None
