"""Checks that option values share."""

from __future__ import annotations

import sys

from hyperconn.manifolds.core.errors import shown


def require_choice(part: object, option: str, choices: tuple[str, ...]) -> None:
    """Refuse an option that is not one of the ``choices``."""
    value = getattr(part, option)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{type(part).__name__}: {option} must be one of {', '.join(map(repr, choices))}, got {shown(value)}"
        )


def require_int(part: object, option: str, minimum: int, maximum: int | None = None) -> None:
    """Refuse an option that is not an int of the given range."""
    value = getattr(part, option)
    upper = "" if maximum is None else f" and at most {maximum}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{type(part).__name__}: {option} must be an int, got {shown(value)}")
    if value < minimum or (maximum is not None and value > maximum):
        raise ValueError(f"{type(part).__name__}: {option} must be at least {minimum}{upper}, got {shown(value)}")


def require_number(part: object, option: str, *, positive: bool = False) -> None:
    """Refuse an option that is not a finite number of at least 0, or above 0 if ``positive``."""
    value = getattr(part, option)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = "; YAML reads 1e-6 as text, write 1.0e-6" if isinstance(value, str) else ""
        raise TypeError(f"{type(part).__name__}: {option} must be a number, got {shown(value)}{hint}")
    if not 0 <= value <= sys.float_info.max or (positive and value == 0):
        wanted = "positive" if positive else "at least 0"
        raise ValueError(f"{type(part).__name__}: {option} must be finite and {wanted}, got {shown(value)}")


def require_bool(part: object, option: str) -> None:
    """Refuse an option that is not true or false."""
    value = getattr(part, option)
    if not isinstance(value, bool):
        raise TypeError(f"{type(part).__name__}: {option} must be true or false, got {shown(value)}")
