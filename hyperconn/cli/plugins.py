"""What ``hyperconn list`` and ``hyperconn doctor`` say about installed plugins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from hyperconn import manifolds
from hyperconn.manifolds import Manifold, PluginError
from hyperconn.manifolds.registry import plugins
from hyperconn.manifolds.registry.plugins import VARIABLE, Plugin
from hyperconn.manifolds.registry.registry import Registry


class PluginState(NamedTuple):
    """What becomes of an installed plugin here: ``used``, ``not used`` or ``broken``, and why."""

    plugin: Plugin
    state: str
    reason: str = ""


def plugin_states() -> list[PluginState]:
    """The state of every installed plugin. Imports those that are used."""
    return [_state(registry, plugin) for registry in Registry.all for plugin in plugins.installed(registry.kind)]


def _state(registry: Registry[Any], plugin: Plugin) -> PluginState:
    taken = registry.shadow(plugin)
    if taken is not None:
        return PluginState(plugin, "not used", f"the name is taken by {taken.__module__}.{taken.__qualname__}")
    if not plugins.is_allowed(plugin):
        return PluginState(plugin, "not used", f"{VARIABLE} does not allow it")
    try:
        registry.get(plugin.name)
    except PluginError as error:
        return PluginState(plugin, "broken", str(error))
    return PluginState(plugin, "used")


def plugin_problems() -> list[str]:
    """Entries of ``HYPERCONN_PLUGINS`` that match nothing."""
    found = [plugin for registry in Registry.all for plugin in plugins.installed(registry.kind)]
    return [
        f"{VARIABLE} allows {entry!r}, which is neither a distribution that provides parts nor one of their names"
        for entry in plugins.allowed_entries() or ()
        if not any(plugins.matches(plugin, entry) for plugin in found)
    ]


@contextmanager
def blaming_plugins(name: str) -> Iterator[None]:
    """Turn whatever the code of a plugin raises into a PluginError; what a built-in raises keeps its traceback."""
    origin = manifolds.provider(name)
    if origin is None or origin.built_in:
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{name} of {origin}: {type(error).__name__}: {error}") from error


_STREAMS = 4


def shown_instance(name: str) -> Manifold:
    """The manifold of a name with default options at n=4; where its class refuses that, its first example."""
    cls = manifolds.get(name)
    try:
        return cls(n=_STREAMS)
    except (ValueError, TypeError):
        return cls.examples()[0]
