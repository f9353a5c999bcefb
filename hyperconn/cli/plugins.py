"""What ``hyperconn list`` and ``hyperconn doctor`` say about installed plugins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hyperconn import manifolds
from hyperconn.manifolds import Manifold, PluginError
from hyperconn.manifolds.registry import plugins
from hyperconn.manifolds.registry.plugins import VARIABLE, Plugin
from hyperconn.manifolds.registry.registry import shadow


class PluginState(NamedTuple):
    """What becomes of an installed plugin here: ``used``, ``not used`` or ``broken``, and why."""

    plugin: Plugin
    state: str
    reason: str = ""


def plugin_states() -> list[PluginState]:
    """The state of every installed plugin. Imports those that are used."""
    return [_state(plugin) for plugin in plugins.installed().plugins]


def _state(plugin: Plugin) -> PluginState:
    taken = shadow(plugin)
    if taken is not None:
        return PluginState(plugin, "not used", f"the name is taken by {taken.__module__}.{taken.__qualname__}")
    if not plugins.is_allowed(plugin):
        return PluginState(plugin, "not used", f"{VARIABLE} does not allow it")
    try:
        manifolds.get(plugin.name)
    except PluginError as error:
        return PluginState(plugin, "broken", str(error))
    return PluginState(plugin, "used")


def plugin_problems() -> list[str]:
    """Distributions that cannot be read, and entries of ``HYPERCONN_PLUGINS`` that match nothing."""
    found, unreadable = plugins.installed()
    unmatched = [
        f"{VARIABLE} allows {entry!r}, which is neither a distribution that provides manifolds nor one of their names"
        for entry in plugins.allowed_entries() or ()
        if not any(plugins.matches(plugin, entry) for plugin in found)
    ]
    return [*unreadable, *unmatched]


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
