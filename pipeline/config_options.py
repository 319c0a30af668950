"""The options of methods and of generators in a configuration, against the types that their registries give.

Example::

    checked_methods({"prompt_lookup": {"max_ngram": "3"}})     # {"prompt_lookup": {"max_ngram": 3}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import UserError, nearest
from pipeline.generators import GENERATORS
from pipeline.registry import METHODS, find


def checked_methods(methods: Mapping[Any, Any], where: str = "") -> dict[str, dict[str, Any]]:
    """Return the methods with their options in the right types; ``where`` is what stands before ``methods``.

    Raises:
        UserError: a method or an option is unknown, or a value is not valid.
    """
    checked = {}
    for name, options in methods.items():
        if not isinstance(name, str):
            raise UserError(f"{where}methods: {name!r} is not a name; {nearest(name, METHODS)}")
        entry, place = find(name, METHODS, "method"), f"{where}methods.{name}"
        checked[name] = checked_options(options, entry.all_options, place)
        try:
            if entry.check:
                entry.check(checked[name])
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
    return checked


def checked_generators(generators: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    """Return the settings of generators in the right types; unknown names are left to the section they stand in.

    Raises:
        UserError: a setting is unknown, or a value is not valid.
    """
    return {
        name: checked_options(options, GENERATORS[name].options, f"{where}generators.{name}")
        if name in GENERATORS
        else options
        for name, options in generators.items()
    }


def checked_twin(twin: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    """Return a section of ``twins`` with the options of its methods and generators in the right types.

    Raises:
        UserError: an option is unknown, or a value is not valid.
    """
    checked = dict(twin)
    for key, check in (("methods", checked_methods), ("generators", checked_generators)):
        if isinstance(twin.get(key), Mapping):
            checked[key] = check(twin[key], where)
    return checked


def checked_options(options: Any, types: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return options with their values in the right types; ``place`` is the key that they stand under.

    Raises:
        UserError: an option is unknown, or a value is not valid.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise UserError(f"{place} = {options!r}: should be a mapping of options")
    checked = {}
    for name, value in options.items():
        if name not in types:
            hint = nearest(str(name), types) if types else "it takes none"
            raise UserError(f"{place}.{name} = {value!r}: {place.rpartition('.')[2]} has no such option; {hint}")
        try:
            checked[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise UserError(f"{place}.{name} = {value!r}: {problem[:1].lower()}{problem[1:]}") from None
        if isinstance(value, bool) and types[name] is not bool:
            raise UserError(f"{place}.{name} = {value!r}: should be a number")
    return checked
