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
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from pipeline.config_file import read_yaml
from pipeline.config_images import ImageSettings
from pipeline.config_options import checked_methods, checked_twin
from pipeline.config_sections import (
    Count,
    Differing,
    DraftSettings,
    ExactnessSettings,
    ModelSettings,
    Name,
    Positive,
    Sampling,
    Section,
    Seed,
    TaskSettings,
    TrainingSettings,
)
from pipeline.config_twins import TwinSettings
from pipeline.errors import UserError, nearest
from pipeline.machine import fast_dtype
from pipeline.registry import METHODS, TASKS, find

# In which of pydantic's findings is told first: a key that there is not says more than one that is missing for it.
ORDER = {"extra_forbidden": 0, "missing": 2}


class Settings(Section):
    """A whole configuration file."""

    profile: Name
    allow_code_execution: bool = False
    update_reference: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: Annotated[Count, Field(le=4096)] = 0
    seeds: Annotated[list[Seed], Differing] = Field(default=[0], min_length=1)
    repeats: Positive = 1
    warmup_prompts: Count = 1
    sampling: Sampling = Sampling()
    models: dict[Name, ModelSettings] = Field(default={})
    methods: dict[str, dict[str, Any]] = Field(default={})
    tasks: dict[str, TaskSettings] = Field(default={})
    training: TrainingSettings = TrainingSettings()
    exactness: ExactnessSettings = ExactnessSettings()
    twins: dict[Name, TwinSettings] = Field(default={})
    images: ImageSettings | None = None

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
        return checked_methods(methods)

    @field_validator("methods")
    @classmethod
    def _methods_run_on_models(cls, methods: dict[str, Any]) -> dict[str, Any]:
        for name in methods:
            if METHODS[name].kind == "generator":
                raise ValueError(f"{name!r} is a model of its own: it goes under twins, beside its autoregressive twin")
        return methods

    @field_validator("twins", mode="before")
    @classmethod
    def _twins_options_exist(cls, twins: Any) -> Any:
        if not isinstance(twins, Mapping):
            return twins
        return {
            name: checked_twin(twin, f"twins.{name}.") if isinstance(twin, Mapping) else twin
            for name, twin in twins.items()
        }

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks_exist(cls, tasks: Any) -> Any:
        for name in tasks if isinstance(tasks, Mapping) else ():
            if isinstance(name, str):  # another type has its own finding
                find(name, TASKS, "task")
        return tasks

    @field_validator("tasks")
    @classmethod
    def _tasks_have_data(cls, tasks: dict[str, TaskSettings]) -> dict[str, TaskSettings]:
        for name, task in tasks.items():
            origins = TASKS[name].origins
            chosen = "path" if task.path else "hub" if task.hub else "embedded"
            if chosen not in origins:
                asked = "its data from somewhere" if chosen == "embedded" else f"no {chosen!r}"
                raise ValueError(f"task {name!r} takes {asked}; known: {', '.join(origins)}")
        return tasks

    @model_validator(mode="after")
    def _something_is_run(self) -> Settings:
        grid = {"models": self.models, "methods": self.methods, "tasks": self.tasks}
        if any(grid.values()) or not self.twins:
            for name, entries in grid.items():
                if not entries:
                    raise ValueError(f"{name} = {{}}: needs at least one")
        return self

    @model_validator(mode="after")
    def _only_cards_share_a_model(self) -> Settings:
        for name, model in self.models.items():
            if model.device_map and self.device == "cpu":
                given = f"device_map {model.device_map!r}"
                raise ValueError(f"models.{name}: {given} spreads it over graphics cards, but device is 'cpu'")
        return self

    @model_validator(mode="after")
    def _dtypes_suit_the_machine(self) -> Settings:
        grids: tuple[dict[str, Any], ...] = (self.models, self.twins)
        for grid in grids:
            for name, model in grid.items():
                if "auto" in model.dtypes:
                    named = [fast_dtype(self.device) if dtype == "auto" else dtype for dtype in model.dtypes]
                    grid[name] = model.model_copy(update={"dtypes": list(dict.fromkeys(named))})
        return self

    @model_validator(mode="after")
    def _drafts_have_names_of_their_own(self) -> Settings:
        for name in self.models.keys() & self.drafts.keys():
            raise ValueError(f"models.{name}: the draft model of {name.removesuffix('.draft')!r} has this name")
        for name in self.twins.keys() & (self.models.keys() | self.drafts.keys()):
            raise ValueError(f"twins.{name}: a model has this name")
        asked = [*self.tasks, *(twin.task for twin in self.twins.values())]
        for task in {task for task in asked if asked.count(task) > 1}:
            raise ValueError(f"twins: task {task!r} is asked for twice; a task has one source of data in a run")
        return self

    @property
    def drafts(self) -> dict[str, DraftSettings]:
        """The models' own draft models, by the name that each has among the models' folders."""
        return {f"{name}.draft": model.draft for name, model in self.models.items() if model.draft}


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
        details = sorted(error.errors(), key=lambda detail: ORDER.get(detail["type"], 1))
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        raise UserError(f"config: {_explain(details[0])}{more}{_beside(details[0], values)}") from None


def _beside(detail: ErrorDetails, values: Mapping[str, Any]) -> str:
    """Return which entry of the profile one that is not whole is called like: it may be that one, misspelt."""
    location = detail["loc"]
    entries = values.get(str(location[0])) if location else None
    lacks_a_key = (detail["type"] == "missing" and len(location) > 2) or "needs one of" in detail["msg"]
    if not lacks_a_key or not isinstance(entries, Mapping):
        return ""
    hint = nearest(location[1], [name for name in entries if name != location[1]])
    return f"; {hint}" if hint.startswith("did you mean") else ""


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
        section = _section_at(location[:-1])
        return f"{key} = {_shown(value)}: not a known key; {nearest(location[-1], section.model_fields)}"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        return f"{key} = {value!r}: {nearest(str(value), known)}"
    problem = str(detail["ctx"]["error"]) if kind == "value_error" else _uncapitalised(detail["msg"])
    # What is wrong with a whole section is said in the problem itself.
    if isinstance(value, Mapping):
        return f"{key}: {problem}" if key else problem
    return f"{key} = {_shown(value)}: {problem}"


def _section_at(location: list[str]) -> type[Section]:
    """Return the section that the keys of ``location`` lead to; a mapping's own keys, such as a model's name, too."""
    section: type[Section] = Settings
    keys = iter(location)
    for key in keys:
        kind = section.model_fields[key].annotation
        section = next(k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, Section))
        if get_origin(kind) is dict:
            next(keys, None)
    return section


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _uncapitalised(message: str) -> str:
    return message[:1].lower() + message[1:]
