"""Parts by name: those of this library, those registered in the process, and those that plugins provide."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from hyperconn.manifolds.core.class_check import require_contract
from hyperconn.manifolds.core.errors import (
    NotAllowedError,
    PartError,
    PluginError,
    did_you_mean,
    shown,
    unknown_name,
)
from hyperconn.manifolds.registry import plugins
from hyperconn.manifolds.registry.plugins import Plugin, Provider
from hyperconn.manifolds.registry.plugins import part_key as _key

_NAME = re.compile(r"\w[\w.-]*")

P = TypeVar("P")
C = TypeVar("C", bound=type)


class _Entry(NamedTuple):
    name: str
    cls: type[Any]
    aliases: tuple[str, ...]


class Registry(Generic[P]):
    """Names of the parts of one kind, and the classes behind them.

    A name means one class for the life of the process. What comes with the library wins over plugins; a plugin is
    imported when its name is first asked for, and fails alone.

    Args:
        kind: what messages call such a part, ``"manifold"``; entry points of the group ``hyperconn.manifolds`` are
            plugins.
        base: the class that all of them derive from.
        require: raises what is wrong with an instance of such a class.
    """

    all: ClassVar[list[Registry[Any]]] = []

    def __init__(self, kind: str, base: type[Any], require: Callable[[Any], None]) -> None:
        self.kind, self.base, self.require = kind, base, require
        # Classes of which an instance was seen to work.
        self._working: WeakSet[type[Any]] = WeakSet()
        self._shadows_told = False
        # Under the keys of names and aliases alike. Written with the lock held, read without.
        self._entries: dict[str, _Entry] = {}
        self._providers: WeakKeyDictionary[type[Any], Provider | None] = WeakKeyDictionary()
        # Never held while foreign code runs: an import takes locks of its own, and two orders of two locks are a
        # deadlock.
        self._lock = threading.RLock()
        Registry.all.append(self)

    def register(self, name: str, *aliases: str) -> Callable[[C], C]:
        """Class decorator that makes a part available as ``make(name, …)``.

        Registering a name or alias that another class has raises ValueError. ``-`` and ``_`` are the same, and so are
        upper and lower case.

        Raises:
            TypeError: no complete subclass of the base, or annotated fields without ``@dataclass(frozen=True)``.
            ValueError: a name that is taken or none, a class with another name of its own or written for another API
                version.
        """
        for each in (name, *aliases):
            if not isinstance(each, str):
                raise TypeError(
                    f'{self.kind} names are strings, got {shown(each)}; write @register("my-name") above the class'
                )
            if _NAME.fullmatch(each) is None:
                raise ValueError(
                    f"register({shown(each)}): a {self.kind} name is made of letters, digits, -, _ and ., without "
                    "blanks, for it stands in configs and on command lines"
                )

        def add(cls: C) -> C:
            require_contract(cls, self.base, f"register({name!r})")
            with self._lock:
                for taken in (name, *aliases):
                    owner = self._entries.get(_key(taken))
                    if owner is not None and (owner.cls is not cls or _key(owner.name) != _key(name)):
                        raise ValueError(
                            f"{self.kind} name {taken!r} is already taken by "
                            f"{owner.cls.__module__}.{owner.cls.__name__}; register {cls.__qualname__} under another "
                            f"name, or first forget the old one: unregister({taken!r})"
                        )
                own = vars(cls).get("name", name)  # an inherited name would be the parent's
                if not isinstance(own, str) or _key(own) != _key(name):
                    raise ValueError(
                        f"register({name!r}): {cls.__module__}.{cls.__qualname__} calls itself name = {own!r}; "
                        "use one name in both places"
                    )
                cls.name = own  # type: ignore[attr-defined]
                before = self._entries.get(_key(name))  # the same class, which may have aliases already
                entry = _Entry(name, cls, (*before.aliases, *aliases) if before else aliases)
                self._entries.update({_key(each): entry for each in (name, *entry.aliases)})
            return cls

        return add

    def unregister(self, name: str) -> None:
        """Forget a part and its aliases, for tests and interactive work. A plugin is looked up anew the next time."""
        with self._lock:
            entry = self._entries.get(_key(self._require_str(name)))
            if entry is None:
                raise unknown_name(self.kind, name, self._entries)
            for alias in {_key(entry.name), *map(_key, entry.aliases)}:
                del self._entries[alias]

    def _require_str(self, name: object) -> str:
        if not isinstance(name, str):
            raise TypeError(f"a {self.kind} is chosen by name, a string; got {shown(name)}")
        return name

    def _find(self, name: str) -> _Entry:
        entry = self._entries.get(_key(self._require_str(name)))
        if entry is None:
            return self._load(name)
        if not self._shadows_told:
            self._tell_shadows()
        return entry

    def _tell_shadows(self) -> None:
        """Warn of plugins that are not used because of their names, once a process: it takes reading metadata."""
        self._shadows_told = True
        for plugin in plugins.installed(self.kind):
            taken = self.shadow(plugin)
            if taken is not None and plugins.is_allowed(plugin):
                warnings.warn(
                    f"{plugin} is not used: the name belongs to {taken.__module__}.{taken.__qualname__}; rename the "
                    "entry point and the class to use it",
                    stacklevel=4,
                )

    def _load(self, name: str) -> _Entry:
        """The entry of a plugin, imported now."""
        candidates = plugins.called(self.kind, name)
        allowed = [plugin for plugin in candidates if plugins.is_allowed(plugin)]
        if candidates and not allowed:
            raise NotAllowedError(
                f"unknown {self.kind} {shown(name)}: {candidates[0].provider} provides it, but the environment "
                f"variable {plugins.VARIABLE} does not allow that; add {candidates[0].provider.distribution!r} to its "
                "comma-separated list, or unset it"
            )
        if not allowed:
            raise unknown_name(self.kind, name, {*self.available(), *self._entries})
        plugin = plugins.require_one(allowed)
        try:
            cls = plugins.import_class(plugin)
            try:
                self.register(plugin.name)(cls)
            except (TypeError, ValueError) as error:
                raise PluginError(f"{plugin} cannot be used: {error}") from error
        except PluginError:
            self._forget(plugin)
            raise
        self._providers[cls] = plugin.provider
        return self._entries[_key(plugin.name)]

    def _forget(self, plugin: Plugin) -> None:
        """What a plugin registered before its mistake must not answer to a name the next time."""
        module = plugin.target.partition(":")[0]
        with self._lock:
            for key, entry in list(self._entries.items()):
                if entry.cls.__module__ not in sys.modules or (
                    entry.cls.__module__ == module and _key(entry.name) == _key(plugin.name)
                ):
                    del self._entries[key]

    def resolve(self, name: str) -> str:
        """The registered name behind a name or alias; raises UnknownNameError with the nearest names."""
        return self._find(name).name

    def get(self, name: str) -> type[P]:
        """The class behind a name or alias. A plugin's is imported when it is first asked for.

        Raises:
            UnknownNameError: no such part, or a plugin that ``HYPERCONN_PLUGINS`` does not allow.
            PluginError: a plugin that cannot be used, or two that share the name.
        """
        return self._find(name).cls

    def available(self) -> tuple[str, ...]:
        """Sorted names of all parts, aliases left out. Those of plugins are among them, imported or not."""
        with self._lock:
            known = dict(self._entries)
        names = {entry.name for entry in known.values()}
        found = {_key(p.name): p.name for p in plugins.installed(self.kind) if plugins.is_allowed(p)}
        return tuple(sorted(names | {name for key, name in found.items() if key not in known}))

    def aliases(self, name: str) -> tuple[str, ...]:
        """The other names of a part."""
        entry = self._find(name)
        return tuple(sorted({_key(alias) for alias in entry.aliases} - {_key(entry.name)}))

    def make(self, name: str, **options: Any) -> P:
        """The part called ``name``: a registered name or alias, or the name of a plugin.

        Options are ``n``, the number of streams (predictors have none), and the fields of that part's class.

        Raises:
            UnknownNameError: no such part (a KeyError and a ValueError).
            PluginError: a plugin that cannot be used (a ValueError).
            TypeError: an option that the part does not have.
            ValueError: an option value that it refuses.

        >>> from hyperconn import manifolds
        >>> manifolds.make("kronecker", n=4, factors=(2, 2)).num_coordinates
        4
        """
        cls = self.get(name)
        fields = [field for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
        known = [field.name for field in fields]
        others = ", ".join(field for field in known if field != "n") or "none"
        for option in options:
            if option not in known:
                raise TypeError(
                    f"{self.kind} {self.resolve(name)!r} has no option {shown(option)}; "
                    f"its options are: {others}.{did_you_mean(option, known)}"
                )
        for field in fields:
            if field.name not in options and field.default is field.default_factory is dataclasses.MISSING:
                raise TypeError(
                    f"{self.kind} {self.resolve(name)!r} needs the option {field.name!r}, which has no default; its "
                    f"options are: {others}"
                )
        try:
            part: P = cls(**options)
        except dataclasses.FrozenInstanceError as error:
            raise PartError(
                f"{self.kind} {cls.__qualname__}: {error}, for parts are frozen: leave __init__ to the dataclass, and "
                "make what __post_init__ would store a property"
            ) from error
        self.check(part)
        return part

    def check(self, part: P) -> None:
        """Refuse a part that does not do what its class has to; the first instance of a class is looked at.

        Raises:
            TypeError, ValueError: what ``register`` raises.
            PartError: what only an instance shows, a ``forward`` that returns another shape, say.
        """
        cls = type(part)
        # The laws look at the library's own; to do it here would import what torch needs for the meta device.
        if cls in self._working or cls.__module__.startswith(f"{plugins.LIBRARY}."):
            return
        origin = self.provider(cls)
        what = f"{self.kind} {cls.__qualname__}" + ("" if origin is None else f" of {origin}")
        require_contract(cls, self.base, what)
        try:
            self.require(part)
        except PartError as error:
            raise PartError(f"{what}: {error}") from error
        self._working.add(cls)

    def provider(self, part: str | P | type[P]) -> Provider | None:
        """The distribution that a part comes from, given its name, class or instance; None if no distribution did.

        >>> from hyperconn import manifolds
        >>> manifolds.provider("stiefel").distribution
        'hyperconn'
        """
        cls: type[Any] = self.get(part) if isinstance(part, str) else part if isinstance(part, type) else type(part)
        if cls not in self._providers:
            self._providers[cls] = self._origin(cls)
        return self._providers[cls]

    def _origin(self, cls: type[Any]) -> Provider | None:
        if cls.__module__.startswith(f"{plugins.LIBRARY}."):
            return Provider(plugins.LIBRARY, importlib.metadata.version(plugins.LIBRARY))
        # Whoever imports a plugin's module by hand gets the plugin's class too.
        lies_at = f"{cls.__module__}:{cls.__qualname__}"
        same_name = plugins.called(self.kind, getattr(cls, "name", ""))
        return next((plugin.provider for plugin in same_name if plugin.target.replace(" ", "") == lies_at), None)

    def shadow(self, plugin: Plugin) -> type[P] | None:
        """The registered class of that name that is used in place of the plugin; None if the plugin's own is."""
        entry = self._entries.get(_key(plugin.name))
        return None if entry is None or self.provider(entry.cls) == plugin.provider else entry.cls
