"""Maps as Python: what a reader calls them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any


def expression(value: Any) -> str:
    """The Python that makes a value: for a dataclass its call, options at their defaults left out.

    The repr of such a class is not asked: it is under test.

    >>> from hyperconn.manifolds import Birkhoff
    >>> expression(Birkhoff(n=4, iterations=20, finish="round"))
    "Birkhoff(n=4, finish='round')"
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        options = {
            field.name: expression(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init and hasattr(value, field.name) and not _is_default(field, getattr(value, field.name))
        }
        return f"{_name(type(value))}({', '.join(f'{name}={option}' for name, option in options.items())})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {expression(item)}' for key, item in value.items())}}}"
    if type(value) is list:
        return f"[{', '.join(map(expression, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(expression, value))}{',' * (len(value) == 1)})"
    return repr(value)


def _is_default(field: dataclasses.Field[Any], value: object) -> bool:
    return field.default is not dataclasses.MISSING and repr(value) == repr(field.default)


def _name(cls: type) -> str:
    """What the class is called in its module: a factory's product by the name that the module gave it."""
    if "<locals>" not in cls.__qualname__:
        return cls.__qualname__
    module = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
    return next((name for name, value in module.items() if value is cls), cls.__name__)
