"""What a command line names: a profile, a model of it, a method with its options, trained parts. Loads no torch.

A model is named as in the profile, and is then the folder that the DAG makes, with the parts that it trains; or it is
the path of a folder. Whatever is missing is answered with the command that makes it.

Example::

    settings = read_profile("laptop")
    model = find_model(settings, None)                                   # the profile's first: smollm2-135m
    chosen = choose(model, "prompt_lookup", ["max_ngram=3"], parts=[])   # chosen.options == {"max_ngram": 3}
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Settings, load
from pipeline.config_options import checked_methods
from pipeline.errors import UserError, nearest
from pipeline.generators import GENERATORS
from pipeline.parts import checked_parts, part_argument
from pipeline.registry import METHODS, find
from pipeline.sources import ROOT

DEFAULT_PROFILE = "laptop"
TRAINED = ("draft", "heads", "mixer", "datastore")


@dataclass(frozen=True)
class Model:
    """A model that a command line may name.

    Attributes:
        name: as the profile calls it, or the folder's name.
        folder: where its weights are.
        record: the file that the DAG writes when it is there; None for a folder of one's own.
        origin: where it comes from, in words.
        dtypes: what the profile runs it in.
        methods: the profile's options of each method.
        parts: the records of the trained parts that the DAG makes for it.
        profile: what Snakemake is to be told to make them: a name of config/, or a file of one's own.
    """

    name: str
    folder: Path
    record: Path | None = None
    origin: str = "a folder"
    dtypes: tuple[str, ...] = ("auto",)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parts: Mapping[str, Path] = field(default_factory=dict)
    profile: str = DEFAULT_PROFILE

    @property
    def is_there(self) -> bool:
        """Whether it can be loaded, as far as the files tell."""
        return (self.record or self.folder / "config.json").is_file()

    def command(self, record: Path) -> str:
        """Return the command that makes one of its files."""
        own = f" --configfile {self.profile}" if is_file(self.profile) else f" --config profile={self.profile}"
        return f"snakemake --cores all {record}{'' if self.profile == DEFAULT_PROFILE else own}"


@dataclass(frozen=True)
class Chosen:
    """A method with all that it needs, and what to call it."""

    method: str
    options: dict[str, Any]
    parts: dict[str, Path]

    @property
    def label(self) -> str:
        """Its name and options, as they are told."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.method} ({options})" if options else self.method


def is_file(profile: str) -> bool:
    """Return whether a profile is given as a file, and not by a name of ``config/``."""
    return profile.endswith((".yaml", ".yml"))


def read_profile(profile: str) -> Settings:
    """Return the settings of ``config/<profile>.yaml``, or of the file itself if ``profile`` is one.

    Raises:
        UserError: there is none, or it is not valid.
    """
    return load(profile if is_file(profile) else ROOT / "config" / f"{profile}.yaml")


def models_of(settings: Settings) -> dict[str, Model]:
    """Return the models of a profile and its twins, which the DAG trains, by name: the paths are the rules' own."""
    found = {}
    for name, entry in settings.models.items():
        parts = {part: Path("results/parts", name, settings.training.name, part, f"{part}.json") for part in TRAINED}
        if entry.draft:
            parts["draft"] = Path("results/models", f"{name}.draft", "source.json")
        origin = str(entry.package or entry.hub or entry.path)
        found[name] = _made(name, settings, origin, entry.dtypes, settings.methods, parts)
    for name, twin in settings.twins.items():
        parts = {part: Path("results/twins", name, part, "generator.json") for part in GENERATORS}
        found[name] = _made(name, settings, f"trained on {twin.task}", twin.dtypes, twin.methods, parts)
    return found


def _made(
    name: str,
    settings: Settings,
    origin: str,
    dtypes: Sequence[str],
    methods: Mapping[str, Mapping[str, Any]],
    parts: Mapping[str, Path],
) -> Model:
    folder = Path("results/models", name)
    return Model(name, folder, folder / "source.json", origin, tuple(dtypes), methods, parts, settings.profile)


def find_model(settings: Settings, name: str | None, profile: str | None = None) -> Model:
    """Return a model of the profile, its first if ``name`` is None, or the folder ``name``.

    ``profile`` is what the settings were read from; by default the profile of their own name.

    Raises:
        UserError: there is no such model, or it is not there yet.
    """
    known = models_of(settings)
    if name is not None and name not in known:
        if not Path(name).is_dir():
            where = f"no folder and no model of profile {settings.profile!r}"
            raise UserError(f"model: {name!r} is {where}; {nearest(name, known)}")
        return Model(Path(name).resolve().name, Path(name))
    model = known[name or next(iter(known))]
    model = replace(model, profile=profile or settings.profile)
    if not model.is_there and model.record:
        raise UserError(f"model {model.name!r} is not in {model.folder}; get it with: {model.command(model.record)}")
    return model


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Return options given as NAME=VALUE, each value read as YAML reads it.

    Raises:
        UserError: one is not of that form.
    """
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UserError(f"option: {text!r} is not NAME=VALUE")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"option: {text!r}: the value is not YAML") from None
    return options


def parse_parts(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """Return trained parts given as NAME=FOLDER.

    Raises:
        UserError: one is not of that form.
    """
    try:
        return [part_argument(text) for text in texts]
    except argparse.ArgumentTypeError as error:
        raise UserError(f"part: {error}") from None


def choose(model: Model, method: str, options: Sequence[str], parts: Sequence[tuple[str, Path]]) -> Chosen:
    """Return the method with its options, over those of the profile, and with the parts that it needs.

    Parts that are not given are those that the DAG trained for the model.

    Raises:
        UserError: the method or an option is unknown or not valid, or a part is not there.
    """
    entry = find(method, METHODS, "method")
    checked = _checked(model, method, options)
    given = dict(parts)
    for part in entry.parts_with(checked):
        record = model.parts.get(part)
        if part in given or (record is None and not model.parts):
            continue  # a folder of one's own: what is missing is told below
        if record is None:
            kind = "a twin" if part in GENERATORS else "a pretrained model"
            hint = "see: python -m pipeline list models"
            raise UserError(f"method {method!r} runs on {kind}, which {model.name!r} is not; {hint}")
        if not record.is_file():
            hint = f"make it with: {model.command(record)}, or give --part {part}=FOLDER"
            raise UserError(f"method {method!r} needs {part!r}, and {record} is not there; {hint}")
        given[part] = record.parent
    return Chosen(method, checked, checked_parts(method, checked, list(given.items())))


def choose_two(
    model: Model,
    first: tuple[str, Sequence[str]],
    second: tuple[str, Sequence[str]],
    parts: Sequence[tuple[str, Path]],
) -> list[Chosen]:
    """Return two methods, each with its options; of the parts, each takes what it needs.

    Raises:
        UserError: as :func:`choose`, or neither needs one of the parts.
    """
    needs = [
        find(method, METHODS, "method").parts_with(_checked(model, method, own)) for method, own in (first, second)
    ]
    wanted = {part for own in needs for part in own}
    for part, _ in parts:
        if part not in wanted:
            raise UserError(f"part: neither method takes {part!r}" + (f"; {nearest(part, wanted)}" if wanted else ""))
    return [
        choose(model, method, options, [each for each in parts if each[0] in own])
        for (method, options), own in zip((first, second), needs, strict=True)
    ]


def _checked(model: Model, method: str, options: Sequence[str]) -> dict[str, Any]:
    """Return the options of a method, over those of the profile."""
    return checked_methods({method: {**model.methods.get(method, {}), **parse_options(options)}})[method]
