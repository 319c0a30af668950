"""The parts of a configuration: the types of its values and its sections, each checked by itself.

``pipeline.config`` puts them together, checks the methods and tasks by name, and tells every mistake in one line.

Example::

    ModelSettings(path="../models/mine", dtypes=["float32"], draft={"path": "../models/small"})
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.errors import nearest

Dtype = Literal["bfloat16", "float16", "float32", "int8"]
ModelDtype = Literal[Dtype, "auto"]
Item = TypeVar("Item")


def _like(pattern: str, description: str) -> AfterValidator:
    """Check that a text matches ``pattern``, and say in words what it should look like if not."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"should be {description}")
        return text

    return AfterValidator(check)


def no_boolean(value: Any) -> Any:
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


Count = Annotated[int, BeforeValidator(no_boolean), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(no_boolean), Field(gt=0)]
Seed = Annotated[Count, Field(lt=2**32)]
Temperature = Annotated[float, BeforeValidator(no_boolean), Field(ge=0, allow_inf_nan=False)]
Place = Annotated[Path, BeforeValidator(_no_empty_text)]
Differing = AfterValidator(_all_differ)
Name = Annotated[str, _like(r"[A-Za-z0-9][\w.-]*", "letters, digits, '.', '_' or '-', since it names a folder")]
Package = Annotated[str, _like(r"[\w.-]+==[\w.!+]+", "pinned, as name==version")]
Hub = Annotated[str, _like(r"[\w.-]+/[\w.-]+", "org/name")]
Sha256 = Annotated[str, _like(r"[0-9a-f]{64}", "64 lower-case hexadecimal digits")]


class Section(BaseModel):
    """A mapping of known keys, that cannot be changed once it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def flags_of(values: Mapping[str, Any]) -> list[str]:
    """Return settings as arguments of a command, but for those that are None: ``--package P --file F --sha256 H``."""
    given = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items() if value is not None]
    return [word for flag in given for word in flag]


class Sampling(Section):
    """How the next token is drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep every token."""

    temperature: Temperature = 0.0
    top_k: Count = 0
    top_p: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, le=1)] = 1.0


class DraftSettings(Section):
    """A draft model of one's own, in place of the trained one; its tokenizer must be the target's."""

    hub: Hub | None = None
    revision: str | None = None
    path: Place | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> DraftSettings:
        _one_source({"hub": self.hub, "path": self.path}, required=True)
        _used("revision", self.revision, "hub", self.hub)
        _model_folder(self.path)
        return self


class ModelSettings(Section):
    """Where a model comes from (one of ``package``, ``hub``, ``path``) and the precisions it is run in.

    A dtype ``auto`` is the one that this machine computes in fast (:func:`pipeline.machine.fast_dtype`); the whole
    configuration (``pipeline.config.Settings``) puts its name there. ``device_map: auto`` spreads a model's layers over
    all graphics cards of the machine, where one cannot hold it. ``decode_width`` is how many rows a decode forward is
    padded to, the baseline's too (:func:`decoding.graphs.default_decode_width`): 1 where rows are not free.
    """

    package: Package | None = None
    file: str | None = None
    sha256: Sha256 | None = None
    hub: Hub | None = None
    revision: str | None = None
    path: Place | None = None
    dtypes: Annotated[list[ModelDtype], Field(min_length=1), Differing]
    draft: DraftSettings | None = None
    device_map: Literal["auto"] | None = None
    decode_width: Annotated[Positive, Field(le=256)] | None = None

    @model_validator(mode="after")
    def _cards_can_read_it(self) -> ModelSettings:
        if self.device_map and "int8" in self.dtypes:
            raise ValueError(f"device_map {self.device_map!r} is of no use for dtype 'int8', which runs on a processor")
        return self

    @model_validator(mode="after")
    def _has_one_source(self) -> ModelSettings:
        _one_source({"package": self.package, "hub": self.hub, "path": self.path}, required=True)
        if self.package and not (self.file and self.sha256):
            missing = "file" if self.file is None else "sha256"
            raise ValueError(f"package {self.package!r} needs {missing!r} beside it")
        _used("file", self.file, "package", self.package)
        _used("revision", self.revision, "hub", self.hub)
        _model_folder(self.path)
        return self


class TaskSettings(Section):
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
        exists(self.path)
        return self


class DraftTraining(Section):
    """How the draft model is made: some of the target's layers, trained on what the target writes.

    ``layers`` left out are the first two and the last, of however many the target has; ``prompt_tokens`` is how many of
    a prompt's last tokens the draft sees before what it learns, ``tokens_per_batch`` how many tokens a step has.
    """

    layers: Annotated[list[Count], Field(min_length=1), Differing] | None = None
    epochs: Positive = 2
    shortlist_size: Positive = 8192
    prompt_tokens: Positive = 192
    tokens_per_batch: Positive = 1024


class HeadsTraining(Section):
    """How the Medusa heads are trained on what the target writes; ``batch_size`` is hidden states a step."""

    num_heads: Positive = 4
    epochs: Positive = 4
    shortlist_size: Positive = 8192
    batch_size: Positive = 512


class MixerTraining(Section):
    """How FasterDecodeMixer's slots are trained on what the target writes; ``batch_size`` is hidden states a step."""

    num_slots: Positive = 4
    num_positions: Positive = 4
    num_mixer_layers: Count = 1
    epochs: Positive = 3
    shortlist_size: Positive = 8192
    batch_size: Positive = 512

    @model_validator(mode="after")
    def _a_slot_for_each_position(self) -> MixerTraining:
        if self.num_positions > self.num_slots:
            raise ValueError(f"num_positions {self.num_positions} must be at most num_slots {self.num_slots}")
        return self


class TrainingSettings(Section):
    """The recipe of the trained parts, by ``name``; ``num_tokens`` is how much text the target writes for it.

    Less, and a line says so, where its answers are shorter than ``pipeline.training_forms`` has them: prompts run out.
    """

    name: Name = "default"
    num_tokens: Positive = 100_000
    max_new_tokens: Positive = 192
    temperature: Temperature = 0.0
    batch_size: Positive = 64
    seed: Seed = 0
    draft: DraftTraining = DraftTraining()
    heads: HeadsTraining = HeadsTraining()
    mixer: MixerTraining = MixerTraining()


class ExactnessSettings(Section):
    """How much ``pipeline.exactness`` compares, each lossless method's ids with the baseline's."""

    prompts_per_task: Positive = 26
    max_new_tokens: Positive = 256
    dtypes: Annotated[list[Dtype], Field(min_length=1), Differing] = ["float32", "bfloat16"]


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


def exists(path: Path | None) -> None:
    """Check that a path of the configuration is there, and name the nearest one if not."""
    if path is not None and not path.exists():
        parent = next(folder for folder in path.absolute().parents if folder.is_dir())
        known = [other.name for other in parent.iterdir()] if parent == path.absolute().parent else []
        raise ValueError(f"path {str(path)!r} does not exist" + (f"; {nearest(path.name, known)}" if known else ""))


def _model_folder(path: Path | None) -> None:
    exists(path)
    if path and not path.is_dir():
        raise ValueError(f"path {str(path)!r} is a file; should be a model's folder")
