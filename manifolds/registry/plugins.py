"""Parts that installed distributions provide through entry points, ``hyperconn.manifolds`` and its siblings.

Nothing here is cached: reading the entry points of an environment takes milliseconds, and only a name that a registry
does not hold asks for it. So what is installed, uninstalled or allowed meanwhile counts at once.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from dataclasses import dataclass
from typing import Any

from hyperconn.manifolds.core.errors import PluginError

LIBRARY = "hyperconn"
VARIABLE = "HYPERCONN_PLUGINS"

_TARGET = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*( *\[.*\])?")


def part_key(name: str) -> str:
    """The name of a part without what does not matter: case, blanks around it, ``_`` or ``-``."""
    return name.strip().lower().replace("_", "-")


def distribution_key(name: str) -> str:
    """A distribution's name in the normal form of PEP 503."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


@dataclass(frozen=True)
class Provider:
    """An installed distribution, as ``pip`` names it."""

    distribution: str
    version: str

    @property
    def built_in(self) -> bool:
        """Whether it is this library."""
        return self.distribution == LIBRARY

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Plugin:
    """An entry point: the kind and name of a part, where its class lies, and who provides it."""

    kind: str
    name: str
    target: str
    provider: Provider

    def __str__(self) -> str:
        return f"{self.kind} plugin {self.name!r} (entry point {self.name} = {self.target} of {self.provider})"


def installed(kind: str) -> tuple[Plugin, ...]:
    """Every entry point for parts of a kind (``"manifold"``), allowed or not, sorted by name. Nothing is imported."""
    found = set()
    for point in importlib.metadata.entry_points(group=f"{LIBRARY}.{kind}s"):
        # A damaged distribution has no name or version.
        name, version = (point.dist.name, point.dist.version) if point.dist else (None, None)
        provider = Provider(name or "an unnamed distribution", version or "of no version")
        found.add(Plugin(kind, point.name, point.value, provider))
    return tuple(sorted(found, key=lambda p: (part_key(p.name), p.provider.distribution, p.target)))


def allowed_entries() -> tuple[str, ...] | None:
    """The entries of ``HYPERCONN_PLUGINS``, read now; None where it is not set and every plugin is allowed."""
    value = os.environ.get(VARIABLE)
    return None if value is None else tuple(entry.strip() for entry in value.split(",") if entry.strip())


def matches(plugin: Plugin, entry: str) -> bool:
    """Whether an entry of ``HYPERCONN_PLUGINS`` names the plugin, or the distribution that provides it."""
    by_name = part_key(entry) == part_key(plugin.name)
    return by_name or distribution_key(entry) == distribution_key(plugin.provider.distribution)


def is_allowed(plugin: Plugin) -> bool:
    """Whether ``HYPERCONN_PLUGINS`` allows the plugin, as it is set now."""
    entries = allowed_entries()
    return entries is None or any(matches(plugin, entry) for entry in entries)


def called(kind: str, name: str) -> list[Plugin]:
    """The installed plugins of that kind and name, allowed or not."""
    return [plugin for plugin in installed(kind) if part_key(plugin.name) == part_key(name)]


def require_one(candidates: list[Plugin]) -> Plugin:
    """The plugin of a name, if there is one only; otherwise an error that names all of them."""
    first = candidates[0]
    if len(candidates) == 1:
        return first
    everyone = " and ".join(str(plugin.provider) for plugin in candidates)
    targets = " and ".join(plugin.target for plugin in candidates)
    raise PluginError(
        f"the {first.kind} {first.name!r} is provided by {everyone} ({targets}): uninstall all but one, or set "
        f"{VARIABLE} to a comma-separated list of the distributions that may provide parts"
    )


def import_class(plugin: Plugin) -> Any:
    """What the entry point points to.

    Raises:
        PluginError: the module does not import, whatever it raises, or has no such attribute.
    """
    if _TARGET.fullmatch(plugin.target) is None:
        raise PluginError(f"{plugin}: an entry point reads name = package.module:Class, got {plugin.target!r}")
    importlib.invalidate_caches()  # a module that was installed this instant: its folder may have an old time stamp
    try:
        return importlib.metadata.EntryPoint(plugin.name, plugin.target, plugin.kind).load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plugin must not end the program that looks for it
        raise PluginError(f"{plugin} cannot be imported: {type(error).__name__}: {error}") from error
