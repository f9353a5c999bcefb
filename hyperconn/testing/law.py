"""A law: a promise about every map of a kind, with the measurement that can refute it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from hyperconn.manifolds import Manifold
from hyperconn.manifolds.core.map import Map
from hyperconn.testing.case import Case
from hyperconn.testing.expressions import expression
from hyperconn.testing.measured import Measured

Measurement = Callable[[Any, Case], Iterator[Measured]]

SCALES = (0.0, 1e-3, 1.0, 10.0, 1e2, 1e4)
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (3,), (2, 3))
TOKENS: tuple[tuple[int, ...], ...] = ((), (3,), (2, 3), (32,))
SINGLE_AND_DOUBLE = (torch.float32, torch.float64)

# What code under test may raise: anything but a request to stop. Whatever it is, it is reported as a violation with
# the error as its cause. SystemExit is among them, because sys.exit(0) in a plugin must not look like success.
CRASHES: tuple[type[BaseException], ...] = (Exception, SystemExit)

_LONGEST_ERROR = 300


class LawViolation(AssertionError):
    """Something breaks a law.

    Attributes:
        subject, law: what was checked; ``law`` is the name.
        measured: the worst value and its bound.
        case: where, or None where no case shows it.
    """

    def __init__(self, subject: Map, law: str, case: Case | None, measured: Measured) -> None:
        self.subject, self.law, self.case, self.measured = subject, law, case, measured
        super().__init__(
            f"{expression(subject)} breaks the law {law!r}: {measured}\nsee it again: {again(subject, law, case)}"
        )


def again(subject: Map, law: str, case: Case | None) -> str:
    """The call that raises a violation once more, on a case that is written out where it is short."""
    if case is None:
        return f"check_law({law!r}, {expression(subject)})"
    return f"get_law({law!r}).check({expression(subject)}, {case!r})"


def crash(error: BaseException) -> Measured:
    """The measurement that an error of the code under test amounts to, on one line that any terminal can print.

    The error itself is the cause of the LawViolation, in full. One that came up in a law's own lines, and not below
    them in the map, is no statement about the map.
    """
    said = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode("utf-8")
    said = said if len(said) <= _LONGEST_ERROR else f"{said[:_LONGEST_ERROR]} …"
    kind = "not measured, the law itself met" if _in_a_law(error) else "error"
    return Measured(f"{kind} {type(error).__name__}: {said}; failures", 1.0, 0.0)


def _in_a_law(error: BaseException) -> bool:
    """Whether the innermost line that Python saw is one of this package."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        trace = trace.tb_next
    return module.startswith("hyperconn.testing.")


@dataclass(frozen=True)
class Law:
    """A promise about maps.

    Attributes:
        name: short name, a Python identifier.
        statement: the promise in words.
        measure: yields what it finds in a case, each with its bound; yields nothing where a case says nothing.
        kind: the class whose instances it concerns, as far as ``condition`` says so.
        scales, dtypes, batches: the cases that it is checked in; every scale is met in every dtype.
        smooth: whether coordinates are in general position, where no map has a kink.
        random: whether the numbers matter; a law about declarations alone is checked once per scale and dtype.
    """

    name: str
    statement: str
    measure: Measurement = field(repr=False)
    kind: type[Map] | tuple[type[Map], ...] = Manifold
    condition: Callable[[Any], bool] | None = field(default=None, repr=False)
    scales: tuple[float, ...] = SCALES
    dtypes: tuple[torch.dtype, ...] = SINGLE_AND_DOUBLE
    batches: tuple[tuple[int, ...], ...] = TOKENS
    smooth: bool = False
    random: bool = True

    def concerns(self, subject: Map) -> bool:
        """Whether the law concerns this map; raises what asking it raises."""
        return isinstance(subject, self.kind) and (self.condition is None or bool(self.condition(subject)))

    def applies(self, subject: Map) -> bool:
        """Whether the law concerns this map; where asking raises, it does, and ``check_law`` reports the error."""
        try:
            return self.concerns(subject)
        except CRASHES:
            return True

    def check(self, subject: Map, case: Case) -> tuple[Measured, ...]:
        """Everything that the law measures in this case.

        Raises:
            LawViolation: the worst measurement exceeds its bound, or the map raised an error of its own.
        """
        try:
            found = tuple(self.measure(subject, case))
        except CRASHES as error:
            raise LawViolation(subject, self.name, case, crash(error)) from error
        broken = [measured for measured in found if not measured.holds]
        if broken:
            raise LawViolation(subject, self.name, case, max(broken, key=lambda measured: measured.severity))
        return found


def law(**options: Any) -> Callable[[Measurement], Law]:
    """Make a law of a measurement: its name is the function's, its statement the first line of the docstring.

    The options are the fields of ``Law`` from ``kind`` on.
    """

    def build(measure: Measurement) -> Law:
        statement = (measure.__doc__ or "").strip().splitlines()[0]
        return Law(measure.__name__, statement, measure, **options)

    return build
