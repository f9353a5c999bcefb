"""What a law measures, and the error that it raises."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """A number and the bound that a law puts on it.

    Attributes:
        what: the quantity in words.
        value: what was found.
        bound: what was promised.
        lower: the bound is a lower one.
    """

    what: str
    value: float
    bound: float
    lower: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value respects the bound; NaN never does."""
        return self.value >= self.bound if self.lower else self.value <= self.bound

    @property
    def severity(self) -> float:
        """The fraction of the bound that is used up, at most 1 where the law holds; inf for NaN."""
        if math.isnan(self.value) or (not self.holds and math.isinf(self.value)):
            return math.inf
        top, bottom = (self.bound, self.value) if self.lower else (self.value, self.bound)
        if top <= 0:
            return 0.0
        return top / bottom if bottom > 0 else math.inf

    def __str__(self) -> str:
        sign = "≥" if self.lower else "≤"
        return f"{self.what}: {self.value:.3g}, promised {sign} {self.bound:.3g}"


def at_most(what: str, value: object, bound: object) -> Measured:
    """A number, or a tensor of one element, that must not exceed ``bound``."""
    return Measured(what, _number(value), _number(bound))


def at_least(what: str, value: object, bound: object) -> Measured:
    """A number, or a tensor of one element, that must reach ``bound``."""
    return Measured(what, _number(value), _number(bound), lower=True)


def fact(what: str, holds: bool) -> Measured:
    """A statement that is true or false: the number of its failures, promised to be 0."""
    return Measured(f"failures of “{what}”", 0.0 if holds else 1.0, 0.0)


def _number(value: object) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)  # type: ignore[arg-type]
