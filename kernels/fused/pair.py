"""What a constraint or a gate brings to the fused coefficient step: two device functions."""

from __future__ import annotations

import ast
import importlib
import math
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DevicePair:
    """The map of a manifold or a gate and its backward, on a tile of tokens held in registers.

    Attributes:
        forward: ``@triton.jit`` function ``(theta, n, N, OPTIONS) -> H``; a gate's returns weights.
        backward: ``@triton.jit`` function ``(theta, dH, n, N, OPTIONS) -> dtheta``.
        options: finite numbers, booleans, strings or tuples of those, which both functions get as the ``constexpr``
            tuple OPTIONS; a new value is a new compilation.

    Raises:
        TypeError, ValueError: no kernel function, or an option that a kernel's name could not carry.

    Shapes: theta and dtheta ``[BT, PP]``, H and dH ``[BT, N, N]``, weights ``[BT, N]``, where BT is the number of
    tokens of the tile, N the next power of two of n, and PP the next power of two of the number of coordinates.
    Everything beyond n and beyond the coordinates is padding: it is zero in theta and dH, and whatever it is in H and
    dtheta is ignored. Tiles are float32; in the interpreter also float64, so take the dtype from theta.
    """

    forward: Any
    backward: Any
    options: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        for role in ("forward", "backward"):
            if not hasattr(getattr(self, role), "fn"):
                raise TypeError(f"DevicePair: {role} takes a @triton.jit function, got {getattr(self, role)!r}")
        _require_literals(self.options)

    @property
    def key(self) -> str:
        """A name of this pair that torch operators can carry; ``pair_named`` turns it back, in another process too."""
        key = "|".join((_address(self.forward), _address(self.backward), repr(self.options)))
        if _PAIRS.setdefault(key, self) != self:
            # A module or a notebook cell that ran again defines its functions anew.
            if not (_is_at_its_address(self.forward) and _is_at_its_address(self.backward)):
                raise ValueError(f"two device pairs are called {key}: give the functions of one of them other names")
            _PAIRS[key] = self
        return key


_PAIRS: dict[str, DevicePair] = {}


def pair_named(key: str) -> DevicePair:
    """The pair whose ``key`` this is.

    Raises:
        ImportError, AttributeError: its functions cannot be imported where their key says; define them in a module.
    """
    if key not in _PAIRS:  # a compiled or unpickled layer brings no more than the key
        forward, backward, options = key.split("|", 2)
        _PAIRS[key] = DevicePair(_at(forward), _at(backward), ast.literal_eval(options))
    return _PAIRS[key]


def _require_literals(options: Any) -> None:
    if not isinstance(options, tuple):
        raise TypeError(f"DevicePair: options are a tuple, got {options!r}")
    for option in options:
        if isinstance(option, tuple):
            _require_literals(option)
        # Exactly these: numpy's numbers are floats too, and print as something else.
        elif type(option) not in (bool, int, float, str):
            raise TypeError(
                f"DevicePair: an option is a number, boolean, string or tuple of those, got {option!r}; "
                "convert it with int() or float()"
            )
        elif isinstance(option, float) and not math.isfinite(option):
            raise ValueError(f"DevicePair: options are finite, got {option!r}; let a boolean stand for it")


def _address(function: Any) -> str:
    # What the interpreter makes of a kernel says that it lives in the interpreter's own module.
    return f"{function.fn.__module__}:{function.fn.__name__}"


def _at(address: str) -> Any:
    module, name = address.split(":")
    return getattr(importlib.import_module(module), name)


def _is_at_its_address(function: Any) -> bool:
    return getattr(sys.modules.get(function.fn.__module__), function.fn.__name__, None) is function
