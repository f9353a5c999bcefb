"""Plain data made immutable, the options of a config: how much there may be of it, and what objects write down."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from hyperconn.manifolds.core.errors import shown

# Tables and lists inside each other. Python recurses into data that is compared, hashed or shown.
MAX_DEPTH = 32
# Values, keys and characters together; the largest published config has some hundred.
MAX_SIZE = 100_000
# Any such int converts to a float and to text; what an option takes is the option's business.
_MAX_BITS = 128


def require_small(data: object, what: str) -> None:
    """Refuse tables and lists that are too deep or too large, hold themselves, or hold huge ints, with ValueError.

    ``what`` begins its message. Takes time in proportion to MAX_SIZE at most, whatever the data.
    """
    size = 0
    todo: list[tuple[object, int]] = [(data, 0)]
    while todo:
        item, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"{what} is nested more than {MAX_DEPTH} tables and lists deep, or holds itself")
        size += 1 + (len(item) if isinstance(item, (Mapping, list, tuple, str)) else 0)
        if size > MAX_SIZE:
            raise ValueError(f"{what} has more than {MAX_SIZE} values and characters; a config is a short table")
        if isinstance(item, Mapping):
            todo += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, (list, tuple)):
            todo += [(part, depth + 1) for part in item]
        elif isinstance(item, int) and item.bit_length() > _MAX_BITS:
            raise ValueError(f"{what} holds an int of {item.bit_length()} bits, at most {_MAX_BITS} are taken")


class Options(Mapping[str, Any]):
    """An immutable, hashable mapping of plain data: strings, numbers, booleans, lists and tables of those.

    Lists become tuples and tables become Options; ``plain()`` gives dicts and lists back. TypeError for anything else
    and for names that are no strings, ValueError for more than this module allows.

    >>> Options({"factors": [2, 2]})["factors"]
    (2, 2)
    """

    __slots__ = ("_items",)
    _items: dict[str, Any]

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        items = {} if items is None else items
        if not isinstance(items, Mapping):
            raise TypeError(f"options are a table of names and values, got {shown(items)}")
        if not isinstance(items, Options):  # those have been through here
            require_small(items, "a table of options")
        for key in items:
            if not isinstance(key, str):
                raise TypeError(f"option names are strings, got {shown(key)}")
        object.__setattr__(self, "_items", {key: _freeze(key, value) for key, value in sorted(items.items())})

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("options are immutable; make a new config with dataclasses.replace")

    def __reduce__(self) -> tuple[type[Options], tuple[dict[str, Any]]]:
        return Options, (self.plain(),)

    def __repr__(self) -> str:
        return repr(self.plain())

    def plain(self) -> dict[str, Any]:
        """The same data as dicts and lists."""
        return {key: _thaw(value) for key, value in self._items.items()}


def _freeze(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return Options(value)
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(key, item) for item in value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(
        f"option {shown(key)} holds {shown(value)}; a config takes plain data only (strings, numbers, lists, tables), "
        "so that it can be written to a file"
    )


def _thaw(value: Any) -> Any:
    if isinstance(value, Options):
        return value.plain()
    if isinstance(value, tuple):
        return [_thaw(item) for item in value]
    return value


def chosen_options(part: Any) -> dict[str, Any]:
    """The options in which a frozen dataclass differs from its defaults, as plain data; its size n is none."""
    values = {
        field.name: (getattr(part, field.name), field.default)
        for field in dataclasses.fields(part)
        if field.init and field.name != "n"
    }
    return {name: _plain_option(value) for name, (value, default) in values.items() if value != default}


def _plain_option(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # a part inside a part: a factor
        return {"manifold": value.name, "n": value.n, **chosen_options(value)}  # type: ignore[attr-defined]
    return [_plain_option(item) for item in value] if isinstance(value, tuple) else value
