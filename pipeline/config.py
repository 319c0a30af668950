"""The configuration: what is run, on what, and how much of it. Checked whole before any job starts.

Every key and value is checked here; a mistake becomes one line that names the key, the value and the nearest valid one.
Example::

    settings = load("config/laptop.yaml")
    settings.tasks["humaneval"].num_prompts   # 6
    # error: config: tasks.humaneval.num_promts = 6: not a known key; did you mean 'num_prompts'?
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from pipeline.config_file import read_yaml
from pipeline.errors import UserError, nearest
from pipeline.registry import METHODS, TASKS, find

Dtype = Literal["bfloat16", "float16", "float32"]
Item = TypeVar("Item")


def _like(pattern: str, description: str) -> AfterValidator:
    """Check that a text matches ``pattern``, and say in words what it should look like if not."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"should be {description}")
        return text

    return AfterValidator(check)


def _no_boolean(value: Any) -> Any:
    """Refuse true and false, which Python would count as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def _no_empty_text(value: Any) -> Any:
    """Refuse the empty path, which would be the working directory."""
    if value == "":
        raise ValueError("is empty; should be the path of a file or a folder")
    return value


def _all_differ(items: list[Item]) -> list[Item]:
    if len(set(items)) < len(items):
        raise ValueError("one is listed twice")
    return items


Count = Annotated[int, BeforeValidator(_no_boolean), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_no_boolean), Field(gt=0)]
Seed = Annotated[Count, Field(lt=2**32)]
Place = Annotated[Path, BeforeValidator(_no_empty_text)]
Differing = AfterValidator(_all_differ)
Name = Annotated[str, _like(r"[A-Za-z0-9][\w.-]*", "letters, digits, '.', '_' or '-', since it names a folder")]
Package = Annotated[str, _like(r"[\w.-]+==[\w.!+]+", "pinned, as name==version")]
Hub = Annotated[str, _like(r"[\w.-]+/[\w.-]+", "org/name")]
Sha256 = Annotated[str, _like(r"[0-9a-f]{64}", "64 lower-case hexadecimal digits")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sampling(_Section):
    """How the next token is drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep every token."""

    temperature: Annotated[float, BeforeValidator(_no_boolean), Field(ge=0, allow_inf_nan=False)] = 0.0
    top_k: Count = 0
    top_p: Annotated[float, BeforeValidator(_no_boolean), Field(gt=0, le=1)] = 1.0


class ModelSettings(_Section):
    """Where a model comes from (one of ``package``, ``hub``, ``path``) and the precisions it is run in."""

    package: Package | None = None
    file: str | None = None
    sha256: Sha256 | None = None
    hub: Hub | None = None
    revision: str | None = None
    path: Place | None = None
    dtypes: Annotated[list[Dtype], Field(min_length=1), Differing]

    @model_validator(mode="after")
    def _has_one_source(self) -> ModelSettings:
        _one_source({"package": self.package, "hub": self.hub, "path": self.path}, required=True)
        if self.package and not (self.file and self.sha256):
            missing = "file" if self.file is None else "sha256"
            raise ValueError(f"package {self.package!r} needs {missing!r} beside it")
        _used("file", self.file, "package", self.package)
        _used("revision", self.revision, "hub", self.hub)
        _exists(self.path)
        if self.path and not self.path.is_dir():
            raise ValueError(f"path {str(self.path)!r} is a file; should be a model's folder")
        return self


class TaskSettings(_Section):
    """How much of a task is asked for, and where its data comes from if no package embeds it."""

    num_prompts: Positive
    max_new_tokens: Positive
    chat_template: bool
    path: Place | None = None
    hub: Hub | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _has_at_most_one_source(self) -> TaskSettings:
        _one_source({"hub": self.hub, "path": self.path}, required=False)
        _used("revision", self.revision, "hub", self.hub)
        _exists(self.path)
        return self


class Settings(_Section):
    """A whole configuration file."""

    profile: Name
    allow_code_execution: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: Annotated[Count, Field(le=4096)] = 0
    seeds: Annotated[list[Seed], Field(min_length=1), Differing] = [0]
    repeats: Positive = 1
    warmup_prompts: Count = 1
    sampling: Sampling = Sampling()
    models: Annotated[dict[Name, ModelSettings], Field(min_length=1)]
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    tasks: Annotated[dict[str, TaskSettings], Field(min_length=1)]

    @field_validator("repeats")
    @classmethod
    def _repeats_have_a_median(cls, repeats: int) -> int:
        if repeats % 2 == 0:
            raise ValueError(f"must be odd, so that one trial is the median; did you mean {repeats + 1}?")
        return repeats

    @field_validator("methods", mode="before")
    @classmethod
    def _methods_exist(cls, methods: Any) -> Any:
        if not isinstance(methods, Mapping):
            return methods
        return {name: _checked_options(name, {} if options is None else options) for name, options in methods.items()}

    @field_validator("tasks")
    @classmethod
    def _tasks_exist(cls, tasks: dict[str, TaskSettings]) -> dict[str, TaskSettings]:
        for name, task in tasks.items():
            origins = find(name, TASKS, "task").origins
            chosen = "path" if task.path else "hub" if task.hub else "embedded"
            if chosen not in origins:
                asked = "its data from somewhere" if chosen == "embedded" else f"no {chosen!r}"
                raise ValueError(f"task {name!r} takes {asked}; known: {', '.join(origins)}")
        return tasks


def load(source: Mapping[str, Any] | str | Path) -> Settings:
    """Read and check a configuration, given as a mapping or as the path of a YAML file.

    Raises:
        UserError: the file cannot be read, or something in it is not valid.
    """
    values = source if isinstance(source, Mapping) else read_yaml(Path(source))
    try:
        return Settings.model_validate(values)
    except UserError as error:
        raise UserError(f"config: {error}") from None
    except ValidationError as error:
        details = error.errors()
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        raise UserError(f"config: {_explain(details[0])}{more}") from None


def _one_source(sources: Mapping[str, object], required: bool) -> None:
    """Check that not more than one of ``sources`` (and at least one, if ``required``) is given."""
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"has {' and '.join(map(repr, given))}; keep one of them")
    if required and not given:
        raise ValueError(f"needs one of {', '.join(map(repr, sources))}")


def _used(key: str, value: object, other: str, wanted: object) -> None:
    """Check that ``key`` does not stand without the ``other`` key that it belongs to."""
    if value is not None and wanted is None:
        raise ValueError(f"{key} {value!r} is of no use without {other!r}")


def _exists(path: Path | None) -> None:
    if path is not None and not path.exists():
        parent = next(folder for folder in path.absolute().parents if folder.is_dir())
        known = [other.name for other in parent.iterdir()] if parent == path.absolute().parent else []
        raise ValueError(f"path {str(path)!r} does not exist" + (f"; {nearest(path.name, known)}" if known else ""))


def _checked_options(method: object, options: Any) -> dict[str, Any]:
    """Return a method's options with their values in the right types."""
    if not isinstance(method, str):
        raise UserError(f"methods: {method!r} is not a name; known: {', '.join(METHODS)}")
    entry = find(method, METHODS, "method")
    if not isinstance(options, Mapping):
        raise UserError(f"methods.{method} = {options!r}: should be a mapping of options")
    types, checked = entry.options, {}
    for name, value in options.items():
        if name not in types:
            hint = nearest(str(name), types) if types else "it takes none"
            raise UserError(f"methods.{method}.{name} = {value!r}: {method} has no such option; {hint}")
        try:
            checked[name] = TypeAdapter(types[name]).validate_python(value)
            if isinstance(value, bool) and types[name] is not bool:
                raise UserError(f"methods.{method}.{name} = {value!r}: should be a number")
        except ValidationError as error:
            problem = _uncapitalised(error.errors()[0]["msg"])
            raise UserError(f"methods.{method}.{name} = {value!r}: {problem}") from None
    try:
        if entry.check:
            entry.check(checked)
    except ValueError as error:
        raise UserError(f"methods.{method}: {error}") from None
    return checked


_SECTIONS: Mapping[str, type[_Section]] = {"models": ModelSettings, "tasks": TaskSettings, "sampling": Sampling}


def _explain(detail: ErrorDetails) -> str:
    """Turn one of pydantic's findings into ``key = value: what is wrong; the nearest valid one``."""
    kind, value = detail["type"], detail["input"]
    location = [str(part) for part in detail["loc"] if part != "[key]"]
    key = ".".join(location)
    if kind == "missing":
        return f"{key} is missing"
    if kind == "too_short":
        return f"{key} = {value!r}: needs at least one"
    if kind == "extra_forbidden":
        section = _SECTIONS[location[0]] if len(location) > 1 else Settings
        return f"{key} = {_shown(value)}: not a known key; {nearest(location[-1], section.model_fields)}"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        return f"{key} = {value!r}: {nearest(str(value), known)}"
    problem = str(detail["ctx"]["error"]) if kind == "value_error" else _uncapitalised(detail["msg"])
    # What is wrong with a whole section is said in the problem itself.
    return f"{key}: {problem}" if isinstance(value, Mapping) else f"{key} = {_shown(value)}: {problem}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _uncapitalised(message: str) -> str:
    return message[:1].lower() + message[1:]
