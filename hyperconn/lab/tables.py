"""Dataclasses from the tables of a config file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from hyperconn.manifolds.core.errors import shown, unknown_name

T = TypeVar("T")


def from_table(cls: type[T], table: Mapping[str, Any], section: str) -> T:
    """A flat dataclass from a table; unknown keys and values of the wrong type are refused."""
    if not isinstance(table, Mapping):
        raise ValueError(f"[{section}] must be a table, got {shown(table)}")
    hints = get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in table.items():
        if key not in known:
            raise unknown_name("config key", f"{section}.{key}", {f"{section}.{name}" for name in known})
        values[key] = _checked(f"{section}.{key}", value, hints[key])
    return cls(**values)


def _checked(key: str, value: Any, expected: Any) -> Any:
    accepted = get_args(expected) if type(None) in get_args(expected) else (expected,)
    if value is None and type(None) in accepted:
        return None
    if get_origin(accepted[0]) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError(f"{key} must be a list of strings, got {shown(value)}")
    if float in accepted and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kinds = tuple(kind for kind in accepted if kind is not type(None))
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        hint = "; YAML takes this for text, write a decimal point" if _looks_like_a_number(value) else ""
        raise ValueError(f"{key} must be of type {names}, got {shown(value)}{hint}")
    return value


def _looks_like_a_number(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) is not None
