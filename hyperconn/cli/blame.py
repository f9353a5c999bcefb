"""Whose fault an error is: code of plugins runs here, and they are named where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hyperconn.manifolds import PluginError
from hyperconn.manifolds.core.errors import PartError
from hyperconn.manifolds.registry import MANIFOLDS, Registry
from hyperconn.predictors import PREDICTORS

_STREAMS = 4


@contextmanager
def blaming_plugins(name: str, registry: Registry[Any] = MANIFOLDS) -> Iterator[bool]:
    """Turn whatever the code of a plugin raises into a PluginError; what a built-in raises keeps its traceback.

    Gives whether a plugin provides the name.
    """
    origin = registry.provider(name)
    foreign = origin is not None and not origin.built_in
    try:
        yield foreign
    except BaseException as error:
        if not foreign or isinstance(error, KeyboardInterrupt):
            raise
        if isinstance(error, PartError):  # which names the class and who provides it
            raise PluginError(str(error)) from error
        raise PluginError(f"{name} of {origin}: {type(error).__name__}: {error}") from error


def shown_instance(name: str, registry: Registry[Any] = MANIFOLDS) -> Any:
    """The part of a name with default options, at n=4; where its class refuses that, its first example."""
    cls = registry.get(name)
    try:
        return cls() if registry is PREDICTORS else cls(n=_STREAMS)
    except (ValueError, TypeError):
        return cls.examples()[0]
