"""Errors that tell the reader what to pass instead."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable


class UnknownNameError(KeyError, ValueError):
    """A name that no registry knows. Its message lists the nearest names and all the known ones.

    Attributes:
        kind, name: what was asked for, and by which name.
        known: the names that the message lists.
    """

    kind: str = ""
    name: object = None
    known: tuple[str, ...] = ()

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class PluginError(ValueError):
    """An installed plugin that cannot be used. Its message names the entry point, the distribution and its version."""


class PartError(TypeError, ValueError):
    """A part does not do what its class has to: the message names the member, what was expected and what it gave."""


class NotAllowedError(UnknownNameError):
    """The name of an installed plugin that ``HYPERCONN_PLUGINS`` does not allow."""


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 12
        self.maxstring = self.maxother = 200

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if value.bit_length() <= 128 else f"<int of {value.bit_length()} bits>"


_SHORT = _Short()


def shown(value: object) -> str:
    """The repr of a value in a message: short, whatever was passed by mistake."""
    return _SHORT.repr(value)


# Comparing takes time in proportion to the product of two lengths.
_LONGEST_COMPARED = 100


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A question with the nearest names, with a blank before it; empty where nothing is near."""
    text = name if isinstance(name, str) else shown(name)
    near = difflib.get_close_matches(text, list(known), n=3, cutoff=0.5) if len(text) <= _LONGEST_COMPARED else []
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """Build the error for an unknown ``name`` of a ``kind``, with suggestions."""
    names = sorted(known)
    error = UnknownNameError(f"unknown {kind} {shown(name)}.{did_you_mean(name, names)} Known: {', '.join(names)}.")
    error.kind, error.name, error.known = kind, name, tuple(names)
    return error
