"""Manifolds by name: those of this library, those registered in the process, and those that plugins provide."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from hyperconn.manifolds.core.class_check import require_contract
from hyperconn.manifolds.core.errors import NotAllowedError, PluginError, shown, unknown_name
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.registry import plugins
from hyperconn.manifolds.registry.names import manifold_key as _key
from hyperconn.manifolds.registry.plugins import Plugin, Provider

C = TypeVar("C", bound=type[Manifold])


class _Entry(NamedTuple):
    name: str
    cls: type[Manifold]
    aliases: tuple[str, ...]


# Under the keys of names and aliases alike. Written with the lock held, read without.
_ENTRIES: dict[str, _Entry] = {}
_PROVIDERS: WeakKeyDictionary[type[Manifold], Provider | None] = WeakKeyDictionary()
# Never held while foreign code runs: an import takes locks of its own, and two orders of two locks are a deadlock.
_LOCK = threading.RLock()


class _Thread(threading.local):
    """What the plugins register that this thread is importing; None while it imports none."""

    staged: dict[str, _Entry] | None = None


_THREAD = _Thread()


# ---------------------------------------------------------------------------------------------------- registering


def register(name: str, *aliases: str) -> Callable[[C], C]:
    """Class decorator that makes a manifold available as ``make(name, n=…)``.

    The registry guarantees that a name means one class for the life of the process: registering a name or alias that
    another class has raises ValueError. ``-`` and ``_`` are the same, and so are upper and lower case.

    Raises:
        TypeError: no complete subclass of Manifold, or one with annotated fields but no ``@dataclass(frozen=True)``.
        ValueError: a name that is taken, a class with another name of its own or written for another API version.
    """

    def add(cls: C) -> C:
        require_contract(cls, f"register({name!r})")
        with _LOCK:
            entry = _with_aliases({**_ENTRIES, **(_THREAD.staged or {})}, _Entry(name, cls, aliases))
            own = vars(cls).get("name", name)  # an inherited name would be the parent's
            if not isinstance(own, str) or _key(own) != _key(name):
                raise ValueError(
                    f"register({name!r}): {cls.__module__}.{cls.__qualname__} calls itself name = {own!r}; "
                    "use one name in both places"
                )
            cls.name = own
            _write(_ENTRIES if _THREAD.staged is None else _THREAD.staged, entry)
        return cls

    return add


def _with_aliases(known: dict[str, _Entry], entry: _Entry) -> _Entry:
    """The entry together with the aliases that its class has already; raises ValueError where a name is taken."""
    for taken in (entry.name, *entry.aliases):
        owner = known.get(_key(taken))
        if owner is not None and (owner.cls is not entry.cls or _key(owner.name) != _key(entry.name)):
            raise ValueError(f"manifold name {taken!r} is already taken by {owner.cls.__module__}.{owner.cls.__name__}")
    before = known.get(_key(entry.name))
    return entry if before is None else before._replace(aliases=(*before.aliases, *entry.aliases))


def _write(entries: dict[str, _Entry], entry: _Entry) -> None:
    entries.update({_key(name): entry for name in (entry.name, *entry.aliases)})


def unregister(name: str) -> None:
    """Forget a manifold and its aliases, for tests and interactive work. A plugin is looked up anew the next time."""
    with _LOCK:
        entry = _ENTRIES.get(_key(_require_str(name)))
        if entry is None:
            raise unknown_name("manifold", name, _ENTRIES)
        for alias in {_key(entry.name), *map(_key, entry.aliases)}:
            del _ENTRIES[alias]


# ------------------------------------------------------------------------------------------------------- looking up


def _require_str(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a manifold is chosen by name, a string; got {shown(name)}")
    return name


def _find(name: str) -> _Entry:
    key = _key(_require_str(name))
    entry = _ENTRIES.get(key) or (_THREAD.staged or {}).get(key)
    return _load(name) if entry is None else entry


def _load(name: str) -> _Entry:
    """The entry of a plugin, imported now."""
    candidates = plugins.called(name)
    allowed = [plugin for plugin in candidates if plugins.is_allowed(plugin)]
    if candidates and not allowed:
        raise NotAllowedError(
            f"unknown manifold {shown(name)}: {candidates[0].provider} provides it, but the environment variable "
            f"{plugins.VARIABLE} does not allow that; add {candidates[0].provider.distribution!r} to its "
            "comma-separated list, or unset it"
        )
    if not allowed:
        raise unknown_name("manifold", name, {*available(), *_ENTRIES})
    plugin = plugins.require_one(allowed)
    with _staging() as staged:
        try:
            cls = plugins.import_class(plugin)
            try:
                register(plugin.name)(cls)  # type: ignore[type-var]  # it checks
            except (TypeError, ValueError) as error:
                raise PluginError(f"{plugin} cannot be used: {error}") from error
        except PluginError:
            # What its module registered before the mistake must not answer to the name the next time.
            for key in [key for key, entry in staged.items() if _key(entry.name) == _key(plugin.name)]:
                del staged[key]
            raise
        entry = staged[_key(plugin.name)]
        _PROVIDERS[entry.cls] = plugin.provider
        return entry


@contextmanager
def _staging() -> Iterator[dict[str, _Entry]]:
    """Hide what this thread registers from other threads until every module that it is importing is complete."""
    if _THREAD.staged is not None:  # a plugin that looks up another one
        yield _THREAD.staged
        return
    _THREAD.staged = {}
    try:
        yield _THREAD.staged
    finally:
        staged, _THREAD.staged = _THREAD.staged, None
        with _LOCK:
            for entry in staged.values():
                # Python forgets a module whose import failed, and so do we what it registered.
                if entry.cls.__module__ in sys.modules:
                    _write(_ENTRIES, _with_aliases(_ENTRIES, entry))


def resolve(name: str) -> str:
    """The registered name behind a name or alias; raises UnknownNameError with the nearest names."""
    return _find(name).name


def get(name: str) -> type[Manifold]:
    """The class behind a name or alias. A plugin's is imported when it is first asked for.

    Raises:
        UnknownNameError: no such manifold, or a plugin that ``HYPERCONN_PLUGINS`` does not allow.
        PluginError: a plugin that cannot be used, or two that share the name.
    """
    return _find(name).cls


def available() -> tuple[str, ...]:
    """Sorted names of all manifolds, aliases left out. Those of plugins are among them, imported or not."""
    with _LOCK:
        known = dict(_ENTRIES)
    names = {entry.name for entry in known.values()}
    found = {_key(plugin.name): plugin.name for plugin in plugins.installed().plugins if plugins.is_allowed(plugin)}
    return tuple(sorted(names | {name for key, name in found.items() if key not in known}))


def aliases(name: str) -> tuple[str, ...]:
    """The other names of a manifold."""
    entry = _find(name)
    return tuple(sorted({_key(alias) for alias in entry.aliases} - {_key(entry.name)}))


def make(name: str, n: int, **options: Any) -> Manifold:
    """The manifold called ``name`` for n streams.

    Args:
        name: a registered name or alias, or the name of a plugin.
        n: number of streams, at least 1.
        **options: the fields of that manifold's class.

    Raises:
        UnknownNameError: no such manifold (a KeyError and a ValueError).
        PluginError: a plugin that cannot be used (a ValueError).
        TypeError: an option that the manifold does not have.
        ValueError: an option value that it refuses.

    >>> make("kronecker", n=4, factors=(2, 2)).num_coordinates
    4
    """
    cls = get(name)
    known = [field.name for field in dataclasses.fields(cls) if field.init and field.name != "n"]
    for option in options:
        if option not in known:
            raise TypeError(
                f"manifold {resolve(name)!r} has no option {shown(option)}; its options are: "
                f"{', '.join(known) or 'none'}"
            )
    return cls(n=n, **options)


# -------------------------------------------------------------------------------------------------- where it is from


def provider(manifold: str | Manifold | type[Manifold]) -> Provider | None:
    """The distribution that a manifold comes from, given its name, class or instance; None if no distribution did.

    >>> provider("stiefel").distribution
    'hyperconn'
    """
    cls = get(manifold) if isinstance(manifold, str) else manifold if isinstance(manifold, type) else type(manifold)
    if cls not in _PROVIDERS:
        _PROVIDERS[cls] = _origin(cls)
    return _PROVIDERS[cls]


def _origin(cls: type[Manifold]) -> Provider | None:
    if cls.__module__.startswith(f"{__package__}."):
        return Provider(plugins.LIBRARY, importlib.metadata.version(plugins.LIBRARY))
    # Whoever imports a plugin's module by hand gets the plugin's class too.
    same_name = plugins.called(getattr(cls, "name", ""))
    return next((plugin.provider for plugin in same_name if plugins.provides(plugin, cls)), None)


def shadow(plugin: Plugin) -> type[Manifold] | None:
    """The registered class of that name that is used in place of the plugin; None if the plugin's own is."""
    entry = _ENTRIES.get(_key(plugin.name))
    return None if entry is None or provider(entry.cls) == plugin.provider else entry.cls
