"""Plain values as JSON and back: all that crosses the border of the sandbox.

Scalars are written as they are, all else as ``[type, content]``, so that a tuple is told from a list and 1 from True.
What is read back is of exact built-in types, which no completion can make lie about what they equal.

Example::

    to_plain((1, {2.5}))                                # ["tuple", [1, ["set", [2.5]]]]
    from_plain(["tuple", [1, ["set", [2.5]]]])          # (1, {2.5})
"""

from __future__ import annotations

import decimal
import fractions
import sys
from typing import Any

_COLLECTIONS: dict[str, type[Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_NUMBERS: dict[str, type[Any]] = {"complex": complex, "Decimal": decimal.Decimal, "Fraction": fractions.Fraction}


def to_plain(value: Any) -> Any:
    """Describe ``value`` in JSON: scalars as they are, the rest as ``[type, content]``; a subclass counts as its base.

    Raises:
        TypeError: it is, or contains, something that is not data.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    for scalar in (int, float, str):
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, (bytes, bytearray)):
        return [type(value).__name__, value.hex()]
    if isinstance(value, dict):
        return ["dict", [[to_plain(key), to_plain(item)] for key, item in value.items()]]
    for name, kind in _COLLECTIONS.items():
        if isinstance(value, kind):
            return [name, [to_plain(item) for item in value]]
    for name, kind in _NUMBERS.items():
        if isinstance(value, kind):
            return [name, str(value)]
    raise TypeError(f"{type(value).__name__} is not plain data")


def from_plain(value: Any) -> Any:
    """Build what ``to_plain`` described, of exact types only.

    Raises:
        ValueError, TypeError: it is no such description.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is not list or len(value) != 2:
        raise ValueError("not a described value")
    name, content = value
    if name == "dict":
        return {from_plain(key): from_plain(item) for key, item in content}
    if name in ("bytes", "bytearray"):
        return (bytes if name == "bytes" else bytearray).fromhex(content)
    if name in _COLLECTIONS:
        return _COLLECTIONS[name]([from_plain(item) for item in content])
    if name in _NUMBERS and type(content) is str and len(content) < 10_000:
        return _NUMBERS[name](content)
    raise ValueError("not a described value")
