"""Manifolds that installed distributions provide through the entry-point group ``hyperconn.manifolds``.

Nothing here is cached: reading the entry points of an environment takes milliseconds, and only a name that the registry
does not hold asks for it. So what is installed, uninstalled or allowed meanwhile counts at once.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution
from types import ModuleType
from typing import Any, NamedTuple

from hyperconn.manifolds.core.errors import PluginError
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.registry.names import distribution_key, manifold_key

LIBRARY = "hyperconn"
GROUP = "hyperconn.manifolds"
VARIABLE = "HYPERCONN_PLUGINS"

_TARGET = re.compile(r"(?P<module>\w+(\.\w+)*)(:(?P<path>\w+(\.\w+)*))?")


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
    """An entry point of the group: the name of a manifold, where its class lies, and who provides it."""

    name: str
    target: str
    provider: Provider

    def __str__(self) -> str:
        return f"manifold plugin {self.name!r} (entry point {self.name} = {self.target} of {self.provider})"


class Installed(NamedTuple):
    """What an environment offers: plugins, and what is wrong with distributions that cannot be read."""

    plugins: tuple[Plugin, ...]
    unreadable: tuple[str, ...]


def installed() -> Installed:
    """Every entry point of the group, allowed or not, sorted by name. Nothing is imported."""
    plugins, unreadable = set[Plugin](), set[str]()
    for distribution in importlib.metadata.distributions():
        try:
            if GROUP in (distribution.read_text("entry_points.txt") or ""):
                plugins |= _plugins_of(distribution)
        except (KeyError, TypeError, ValueError) as error:  # what the parsers raise depends on the Python
            unreadable.add(f"a distribution in {distribution.locate_file('')} cannot be read: {error!r}")
    order = sorted(plugins, key=lambda plugin: (manifold_key(plugin.name), plugin.provider.distribution, plugin.target))
    return Installed(tuple(order), tuple(sorted(unreadable)))


def _plugins_of(distribution: Distribution) -> set[Plugin]:
    # A distribution may be found twice: what counts is the first, which Python imports from.
    same_name = importlib.metadata.distributions(name=_metadata(distribution)["Name"])
    first = next(iter(same_name), distribution)  # none where a folder does not say what is in it
    data = _metadata(first)
    provider = Provider(data["Name"], data.get("Version") or "of no version")
    return {Plugin(found.name, found.value, provider) for found in first.entry_points if found.group == GROUP}


def _metadata(distribution: Distribution) -> dict[str, Any]:
    # Plain: in some Pythons what is missing is None, in some it warns, in some it is a KeyError.
    data = distribution.metadata
    return {key: data[key] for key in data or ()}


def allowed_entries() -> tuple[str, ...] | None:
    """The entries of ``HYPERCONN_PLUGINS``, read now; None where it is not set and every plugin is allowed."""
    value = os.environ.get(VARIABLE)
    return None if value is None else tuple(entry.strip() for entry in value.split(",") if entry.strip())


def matches(plugin: Plugin, entry: str) -> bool:
    """Whether an entry of ``HYPERCONN_PLUGINS`` names the plugin, or the distribution that provides it."""
    by_name = manifold_key(entry) == manifold_key(plugin.name)
    return by_name or distribution_key(entry) == distribution_key(plugin.provider.distribution)


def is_allowed(plugin: Plugin) -> bool:
    """Whether ``HYPERCONN_PLUGINS`` allows the plugin, as it is set now."""
    entries = allowed_entries()
    return entries is None or any(matches(plugin, entry) for entry in entries)


def called(name: str) -> list[Plugin]:
    """The installed plugins of that name, allowed or not."""
    return [plugin for plugin in installed().plugins if manifold_key(plugin.name) == manifold_key(name)]


def require_one(candidates: list[Plugin]) -> Plugin:
    """The plugin of a name, if there is one only; otherwise an error that names all of them."""
    first = candidates[0]
    if len(candidates) == 1:
        return first
    providers = list(dict.fromkeys(plugin.provider for plugin in candidates))
    if len(providers) == 1:
        targets = " and ".join(plugin.target for plugin in candidates)
        raise PluginError(f"{first.provider} has several entry points for the manifold {first.name!r}: {targets}")
    everyone = " and ".join(map(str, providers))
    others = " ".join(provider.distribution for provider in providers[1:])
    raise PluginError(
        f"the manifold {first.name!r} is provided by {everyone}: uninstall all but one (pip uninstall {others}), or "
        f"set {VARIABLE} to a comma-separated list of the distributions that may provide manifolds"
    )


def import_class(plugin: Plugin) -> object:
    """What the entry point points to: an attribute, or the manifold of that name in a module.

    Raises:
        PluginError: the module does not import, whatever it raises, or has no such attribute.
    """
    parsed = _parsed(plugin)
    if parsed is None:
        raise PluginError(f"{plugin}: an entry point reads name = package.module:Class, got {plugin.target!r}")
    module_name, path = parsed
    target: Any
    try:
        module = target = _import(module_name)
        for attribute in path:
            target = getattr(target, attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plugin must not end the program that looks for it
        raise PluginError(f"{plugin} cannot be imported: {type(error).__name__}: {error}") from error
    return target if path else _only(plugin, list(_of_that_name(plugin, vars(module))))


def provides(plugin: Plugin, cls: type[Manifold]) -> bool:
    """Whether the class is the plugin's, which somebody has imported by hand. Imports nothing."""
    module_name, path = _parsed(plugin) or ("", [])
    target: Any = sys.modules.get(module_name)
    if target is not None and not path:
        return cls in _of_that_name(plugin, vars(target))
    for attribute in path:
        target = getattr(target, attribute, None)
    return target is cls


def _parsed(plugin: Plugin) -> tuple[str, list[str]] | None:
    target = re.sub(r"\[.*\]$", "", plugin.target).replace(" ", "")  # extras are the installer's business
    parsed = _TARGET.fullmatch(target)
    return (parsed["module"], parsed["path"].split(".") if parsed["path"] else []) if parsed else None


def _import(name: str) -> ModuleType:
    importlib.invalidate_caches()  # a module that was installed this instant: its folder may have an old time stamp
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        # Two threads import two modules that need each other, and Python has told this thread so. It goes on with what
        # there is of the module, as an import in a circle within one thread does.
        if type(error).__name__ == "_DeadlockError" and name in sys.modules:
            return sys.modules[name]
        raise


def _of_that_name(plugin: Plugin, namespace: dict[str, Any]) -> Iterator[type[Manifold]]:
    for value in dict.fromkeys(value for value in namespace.values() if isinstance(value, type)):
        if issubclass(value, Manifold) and manifold_key(vars(value).get("name", "")) == manifold_key(plugin.name):
            yield value


def _only(plugin: Plugin, found: list[type[Manifold]]) -> type[Manifold]:
    if len(found) != 1:
        raise PluginError(
            f"{plugin} points to a module that holds {len(found)} manifolds with name = {plugin.name!r}, expected one: "
            f"let it point to the class, {plugin.name} = {plugin.target}:Class"
        )
    return found[0]
