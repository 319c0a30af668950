"""The text of a configuration: a YAML file read strictly, and the values of a command line laid over it.

Example::

    values = read_yaml(Path("config/laptop.yaml"))
    overlay(values, {"methods": {"hf_greedy": "null"}, "repeats": "3"})   # one method fewer, three trials
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError, nearest


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, where PyYAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise UserError(f"the key {key.value!r} is given twice, again in line {key.start_mark.line + 1}")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: there is no such file, it does not hold a mapping, or a key is given twice.
    """
    if not path.is_file():
        raise UserError(f"config: no file {str(path)!r}; {nearest(path.name, _neighbours(path))}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except UserError as error:
        raise UserError(f"config: {str(path)!r}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that no calendar has
        raise UserError(f"config: {str(path)!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"config: {str(path)!r} holds {type(values).__name__}, not keys with values")
    return values


def overlay(values: Mapping[str, Any], changes: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Return ``values`` with ``changes`` laid over them, section by section; the text ``null`` removes a key.

    Raises:
        UserError: a key to be removed is not there.
    """
    merged = dict(values)
    for key, change in changes.items():
        if change == "null":
            if key not in merged:
                raise UserError(f"config: {place}{key} = null: there is none to remove; {nearest(key, merged)}")
            del merged[key]
        elif isinstance(change, Mapping):
            below = merged.get(key)
            merged[key] = overlay(below if isinstance(below, Mapping) else {}, change, f"{place}{key}.")
        else:
            merged[key] = change
    return merged


def _neighbours(path: Path) -> list[str]:
    return [other.name for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
