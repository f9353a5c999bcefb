"""Which distributions the parts of a config or a checkpoint came from: data beside it, compared on loading."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hyperconn.manifolds.core.errors import NotAllowedError, UnknownNameError, shown
from hyperconn.manifolds.registry.plugins import Provider, distribution_key, part_key
from hyperconn.manifolds.registry.registry import Registry

# Of distributions and versions. A record ends up in a command that the reader is asked to run.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*", re.ASCII)

Parts = Iterable[object]


class PluginVersionWarning(UserWarning):
    """What is loaded was written with another version of a plugin, or with one of another distribution."""


def plugin_records(parts: Parts) -> dict[str, dict[str, str]]:
    """Name, distribution and version of every plugin among some parts, factors included; plain data.

    A manifold has its name for a key, a part of another kind its kind before it, ``"gate:NAME"``. Parts of this
    library, and those that were registered in the process, have none.
    """
    records = {}
    for registry, part in _all_parts(tuple(parts)):
        origin = registry.provider(part)
        if origin is not None and not origin.built_in:
            record = {"distribution": origin.distribution, "version": origin.version}
            if _is_record(record):  # no installer could be asked for a distribution without a version
                records[_key(registry.kind, part.name)] = record
    return records


def check_plugin_records(records: object, what: str, parts: Parts) -> None:
    """Compare what ``plugin_records`` gave once with what provides these parts now; ``what`` begins the messages.

    Raises:
        ValueError: no such records.
        UnknownNameError: a plugin that is not installed any more, with the command that installs it.

    Warns:
        PluginVersionWarning: a part is provided by another version, by another distribution or by none.
    """
    written = _read(records, what)
    for registry, part in _all_parts(tuple(parts)):
        recorded = written.pop(part_key(_key(registry.kind, part.name)), None)
        if recorded is None:
            continue
        with install_hints(records, what):
            found = registry.provider(part.name)
        if found is None or _normal(found) != _normal(recorded):
            here = "a class registered in this process" if found is None else str(found)
            warnings.warn(
                f"{what} was written with the {registry.kind} {part.name!r} of {recorded}; here it is that of {here}, "
                f"which may compute something else. To go back: {_install(recorded)}",
                PluginVersionWarning,
                stacklevel=3,
            )


@contextmanager
def install_hints(records: object, what: str) -> Iterator[None]:
    """Where a part is missing in this context and a record says who provides it, the error says how to install it."""
    try:
        yield
    except NotAllowedError:
        raise
    except UnknownNameError as error:
        recorded = _read(records, what).get(part_key(_key(error.kind, str(error.name))))
        if recorded is None:
            raise
        raise UnknownNameError(
            f"{what} needs the {error.kind} {error.name!r} of {recorded}, which is not installed: {_install(recorded)}"
        ) from error


def _all_parts(value: object) -> Iterator[tuple[Registry[Any], Any]]:
    registry = next((registry for registry in Registry.all if isinstance(value, registry.base)), None)
    if registry is not None:
        yield registry, value
        for field in dataclasses.fields(value):  # type: ignore[arg-type]
            yield from _all_parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield from _all_parts(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _all_parts(item)


def _key(kind: str, name: str) -> str:
    return name if kind == "manifold" else f"{kind}:{name}"


def _install(recorded: Provider) -> str:
    return f"pip install '{recorded.distribution}=={recorded.version}'"


def _normal(origin: Provider) -> tuple[str, str]:
    return distribution_key(origin.distribution), origin.version


def _read(records: object, what: str) -> dict[str, Provider]:
    if not isinstance(records, Mapping):
        raise ValueError(f"{what}: plugins must be a table of names, got {type(records).__name__}")
    kinds, found = {registry.kind for registry in Registry.all}, {}
    for key, record in records.items():
        kind, _, name = key.rpartition(":") if isinstance(key, str) else ("", "", "")
        kind = kind or "manifold"
        if not (name and kind in kinds and isinstance(record, Mapping) and _is_record(record)):
            raise ValueError(
                f"{what}: the record of plugin {shown(key)} must be a table of two strings, distribution and version, "
                f"got {shown(record)}"
            )
        found[part_key(_key(kind, name))] = Provider(**record)
    return found


def _is_record(record: Mapping[Any, Any]) -> bool:
    return set(record) == {"distribution", "version"} and all(
        isinstance(record[key], str) and pattern.fullmatch(record[key]) is not None
        for key, pattern in (("distribution", _NAME), ("version", _VERSION))
    )
