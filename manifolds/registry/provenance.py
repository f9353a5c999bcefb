"""Which distributions the parts of a config or a checkpoint came from: data beside it, compared on loading."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
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

    A manifold has its name for a key, a part of another kind its kind before it, ``"gate:NAME"``. Empty where all of
    them come with this library, or were registered in the process.

    >>> from hyperconn.manifolds import make
    >>> plugin_records([make("kronecker", n=4)])
    {}
    """
    records = {}
    for registry, part in _all_parts(tuple(parts)):
        origin = registry.provider(part)
        if origin is not None and not origin.built_in:
            record = {"distribution": origin.distribution, "version": origin.version}
            if _is_record(record):  # no installer could be asked for a distribution without a version
                records[part.name if registry.kind == "manifold" else f"{registry.kind}:{part.name}"] = record
    return records


def check_plugin_records(records: object, what: str, parts: Parts | None = None) -> None:
    """Compare what ``plugin_records`` gave once with what is installed now; ``what`` begins the messages.

    With parts, only the records of these and of what is in them count.

    Raises:
        ValueError: no such records.
        UnknownNameError: a plugin that is not installed, with the command that installs it.

    Warns:
        PluginVersionWarning: the name is provided by another version, by another distribution or by none.
    """
    used = None if parts is None else {(registry, part_key(part.name)) for registry, part in _all_parts(tuple(parts))}
    for registry, name, recorded in _read(records, what):
        if used is not None and (registry, part_key(name)) not in used:
            continue
        try:
            found = registry.provider(name)
        except NotAllowedError:
            raise
        except UnknownNameError as error:
            raise _missing(registry, name, recorded, what) from error
        if found is None or _key(found) != _key(recorded):
            here = "a class registered in this process" if found is None else str(found)
            warnings.warn(
                f"{what} was written with the {registry.kind} {name!r} of {recorded}; here it is that of {here}, which "
                f"may compute something else. To go back: {_install(recorded)}",
                PluginVersionWarning,
                stacklevel=3,
            )


def with_install_hint(error: UnknownNameError, records: object, what: str) -> UnknownNameError:
    """The error, or where a record says who provides the part that is missing, one that says how to install it."""
    if isinstance(error, NotAllowedError) or not isinstance(error.name, str):
        return error
    for registry, name, recorded in _read(records, what):
        if registry.kind == error.kind and part_key(name) == part_key(error.name):
            return _missing(registry, name, recorded, what)
    return error


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


def _missing(registry: Registry[Any], name: str, recorded: Provider, what: str) -> UnknownNameError:
    return UnknownNameError(
        f"{what} needs the {registry.kind} {name!r} of {recorded}, which is not installed: {_install(recorded)}"
    )


def _install(recorded: Provider) -> str:
    return f"pip install '{recorded.distribution}=={recorded.version}'"


def _key(origin: Provider) -> tuple[str, str]:
    return distribution_key(origin.distribution), origin.version


def _read(records: object, what: str) -> list[tuple[Registry[Any], str, Provider]]:
    if not isinstance(records, Mapping):
        raise ValueError(f"{what}: plugins must be a table of names, got {type(records).__name__}")
    registries, found = {registry.kind: registry for registry in Registry.all}, []
    for key, record in records.items():
        kind, _, name = key.rpartition(":") if isinstance(key, str) else ("", "", "")
        registry = registries.get(kind or "manifold")
        if not (name and registry and isinstance(record, Mapping) and _is_record(record)):
            raise ValueError(
                f"{what}: the record of plugin {shown(key)} must be a table of two strings, distribution and version, "
                f"got {shown(record)}"
            )
        found.append((registry, name, Provider(record["distribution"], record["version"])))
    return found


def _is_record(record: Mapping[Any, Any]) -> bool:
    return set(record) == {"distribution", "version"} and all(
        isinstance(record[key], str) and pattern.fullmatch(record[key]) is not None
        for key, pattern in (("distribution", _NAME), ("version", _VERSION))
    )
