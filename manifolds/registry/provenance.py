"""Which distributions the manifolds of a config or a checkpoint came from: data beside it, compared on loading."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from hyperconn.manifolds.core.errors import NotAllowedError, UnknownNameError, shown
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.registry.names import distribution_key, manifold_key
from hyperconn.manifolds.registry.plugins import Provider
from hyperconn.manifolds.registry.registry import provider

# In the metadata of a state dict, beside torch's own version number.
_METADATA_KEY = "hyperconn_plugins"

# Of distributions and versions. A record ends up in a command that the reader is asked to run.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*", re.ASCII)


class PluginVersionWarning(UserWarning):
    """What is loaded was written with another version of a plugin, or with one of another distribution."""


def plugin_records(manifold: Manifold) -> dict[str, dict[str, str]]:
    """Name, distribution and version of every plugin in a manifold, its factors included; plain data.

    Empty where all of it comes with this library, or was registered in the process.

    >>> from hyperconn.manifolds import make
    >>> plugin_records(make("kronecker", n=4))
    {}
    """
    records = {}
    for part in _parts(manifold):
        if not isinstance(part, Manifold): continue
        origin = provider(part)
        if origin is not None and not origin.built_in:
            record = {"distribution": origin.distribution, "version": origin.version}
            if _is_record(record):  # no installer could be asked for a distribution without a version
                records[part.name] = record
    return records


def _parts(value: object) -> Iterator[Manifold]:
    if isinstance(value, Manifold):
        yield value
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield from _parts(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _parts(item)


def check_plugin_records(records: object, what: str, manifold: Manifold | None = None) -> None:
    """Compare what ``plugin_records`` gave once with what is installed now; ``what`` begins the messages.

    With a manifold, only the records of it and of what is in it count.

    Raises:
        ValueError: no such records.
        UnknownNameError: a plugin that is not installed, with the command that installs it.

    Warns:
        PluginVersionWarning: the name is provided by another version, by another distribution or by none.
    """
    used = None if manifold is None else {manifold_key(part.name) for part in _parts(manifold)}
    for name, recorded in _read(records, what):
        if used is not None and manifold_key(name) not in used:
            continue
        try:
            found = provider(name)
        except NotAllowedError:
            raise
        except UnknownNameError as error:
            raise _missing(name, recorded, what) from error
        if found is None or _key(found) != _key(recorded):
            here = "a class registered in this process" if found is None else str(found)
            warnings.warn(
                f"{what} was written with the manifold {name!r} of {recorded}; here it is that of {here}, which may "
                f"compute something else. To go back: {_install(recorded)}",
                PluginVersionWarning,
                stacklevel=3,
            )


def with_install_hint(error: UnknownNameError, records: object, what: str) -> UnknownNameError:
    """The error, or where a record says who provides the manifold that is missing, one that says how to install it."""
    if isinstance(error, NotAllowedError) or error.kind != "manifold" or not isinstance(error.name, str):
        return error
    for name, recorded in _read(records, what):
        if manifold_key(name) == manifold_key(error.name):
            return _missing(name, recorded, what)
    return error


def _missing(name: str, recorded: Provider, what: str) -> UnknownNameError:
    return UnknownNameError(
        f"{what} needs the manifold {name!r} of {recorded}, which is not installed: {_install(recorded)}"
    )


def _install(recorded: Provider) -> str:
    return f"pip install '{recorded.distribution}=={recorded.version}'"


def _key(origin: Provider) -> tuple[str, str]:
    return distribution_key(origin.distribution), origin.version


def _read(records: object, what: str) -> list[tuple[str, Provider]]:
    if not isinstance(records, Mapping):
        raise ValueError(f"{what}: plugins must be a table of manifold names, got {type(records).__name__}")
    found = []
    for name, record in records.items():
        if not (isinstance(name, str) and isinstance(record, Mapping) and _is_record(record)):
            raise ValueError(
                f"{what}: the record of plugin {shown(name)} must be a table of two strings, distribution and version, "
                f"got {shown(record)}"
            )
        found.append((name, Provider(record["distribution"], record["version"])))
    return found


def _is_record(record: Mapping[Any, Any]) -> bool:
    return set(record) == {"distribution", "version"} and all(
        isinstance(record[key], str) and pattern.fullmatch(record[key]) is not None
        for key, pattern in (("distribution", _NAME), ("version", _VERSION))
    )


# -------------------------------------------------------------------------------------------------- of state dicts


def note_plugins(manifold: Manifold, destination: Any, prefix: str) -> None:
    """Write the plugins of a module's manifold into the metadata of the state dict that it is saved to."""
    records = plugin_records(manifold)
    if records and hasattr(destination, "_metadata"):
        destination._metadata[prefix[:-1]][_METADATA_KEY] = records


def plugin_errors(metadata: Mapping[str, Any]) -> list[str]:
    """What forbids loading a module's part of a state dict, as far as plugins go. May warn."""
    try:
        # Without the module's name: a model of many layers gives one warning.
        check_plugin_records(metadata.get(_METADATA_KEY, {}), "the checkpoint")
    except ValueError as error:
        return [str(error)]
    return []
