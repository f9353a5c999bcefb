"""Checking laws on the fixed cases and on those that hypothesis draws."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import hypothesis
from hypothesis import Phase

from hyperconn.manifolds.core.map import Map
from hyperconn.predictors import Predictor
from hyperconn.testing.all_laws import LAWS, get_law
from hyperconn.testing.case import Case
from hyperconn.testing.cases import cases, grid
from hyperconn.testing.expressions import expression
from hyperconn.testing.law import CRASHES, Law, LawViolation, crash
from hyperconn.testing.measured import Measured, fact
from hyperconn.testing.subjects import predictor_cases


@dataclass(frozen=True)
class Verdict:
    """What checking one law on one map came to.

    Attributes:
        subject, law, statement: what was checked, and the promise in words.
        holds: whether no case refuted it.
        worst: the measurement that came nearest to its bound; for a broken law that of the counterexample.
        case: where it was found; for a broken law the shrunk counterexample; None where no case shows it.
        cases: number of cases checked.
        worst_by_dtype: the nearest measurement for each dtype, "float32" and so on.
    """

    subject: Map
    law: str
    statement: str
    holds: bool
    worst: Measured
    case: Case | None
    cases: int
    worst_by_dtype: dict[str, Measured] = field(default_factory=dict)


def check_law(
    law: Law | str, subject: Map, *, examples: int | None = None, seed: int | None = None, device: str = "cpu"
) -> Verdict:
    """Check a law on every scale, dtype and batch shape once, and then on cases that hypothesis draws and shrinks.

    Args:
        law: a law or its name.
        subject: a manifold, a gate, or a predictor in a layout (``PredictorCase``) that the law applies to.
        examples: number of drawn cases, after the fixed grid; a law about declarations needs none. None takes
            ``max_examples`` of hypothesis' current profile.
        seed: of the draws and of the grid. None leaves it to the profile, with hypothesis' database of failures.
        device: where the tensors live.

    Raises:
        LawViolation: the law is broken, in the simplest case that was found.
        ValueError: the law does not apply, or examples is negative.
    """
    law = get_law(law) if isinstance(law, str) else law
    if not law.applies(subject):
        raise ValueError(f"the law {law.name!r} does not apply to {subject!r}: skip it where law.applies() is false")
    if examples is not None and examples < 0:
        raise ValueError(f"examples must be at least 0, got {examples}")
    tally = _Tally(law, subject)
    tally.run(examples, seed, device)
    return tally.verdict()


def verify(subject: Map | Predictor, examples: int = 100, seed: int = 0, *, device: str = "cpu") -> list[Verdict]:
    """Check every law that applies to a part, broken ones included, and return one verdict for each.

    Args:
        subject: a manifold, a gate or a predictor; of a predictor it is one verdict for each law and layout.
        examples: drawn cases for each law, after the fixed grid.
        seed: of the draws.
        device: where the tensors live.

    Raises:
        TypeError: it is none of these; laws run on instances, not on classes.
    """
    if not isinstance(subject, (Map, Predictor)):
        raise TypeError(f"laws run on an instance of a manifold, a gate or a predictor, got {subject!r}")
    subjects = predictor_cases(subject) if isinstance(subject, Predictor) else (subject,)
    pairs = [(law, each) for each in subjects for law in LAWS if law.applies(each)]
    return [judge(law, each, examples, seed, device=device) for law, each in pairs]


def judge(law: Law, subject: Map, examples: int, seed: int, *, device: str = "cpu") -> Verdict:
    """What ``check_law`` comes to, a broken law included."""
    tally = _Tally(law, subject)
    try:
        tally.run(examples, seed, device)
    except LawViolation as violation:
        return tally.verdict(violation)
    return tally.verdict()


class _Tally:
    """Checks cases, and remembers the worst measurements and the last violation."""

    def __init__(self, law: Law, subject: Map) -> None:
        self.law, self.subject = law, subject
        self.count = 0
        self.worst: tuple[Measured, Case] | None = None
        self.by_dtype: dict[str, Measured] = {}
        self.violation: LawViolation | None = None

    def run(self, examples: int | None, seed: int | None, device: str) -> None:
        try:
            self.law.concerns(self.subject)
            fixed = grid(self.law, self.subject, seed or 0, device)
        except CRASHES as error:
            raise LawViolation(self.subject, self.law.name, None, crash(error)) from error
        broken: LawViolation | None = None
        for case in fixed:
            try:
                self.check(case)
            except LawViolation as violation:
                broken = violation
                break
        if self.law.random and examples != 0:
            self.search(examples, seed, device)
        if broken is not None:
            raise broken
        if self.worst is None:
            silent = fact("the law measured anything", False)
            raise LawViolation(self.subject, self.law.name, None, silent)

    def search(self, examples: int | None, seed: int | None, device: str) -> None:
        def search(case: Case) -> None:
            self.check(case)

        # Hypothesis keeps failures by the name of the function, and shows it.
        search.__name__ = re.sub(r"\W+", "_", f"{self.law.name}_of_{expression(self.subject)}")
        changed: dict[str, object] = {} if examples is None else {"max_examples": examples}
        if seed is not None:
            changed |= {"database": None, "derandomize": False}
        settings = hypothesis.settings(
            deadline=None,
            report_multiple_bugs=False,
            phases=(Phase.reuse, Phase.generate, Phase.shrink),
            suppress_health_check=list(hypothesis.HealthCheck),
            verbosity=hypothesis.Verbosity.quiet,
            **changed,  # type: ignore[arg-type]
        )
        run = settings(hypothesis.given(cases(self.law, self.subject, device))(search))
        try:
            (run if seed is None else hypothesis.seed(seed)(run))()
        except hypothesis.errors.Flaky:
            # An impure map may break a law now and keep it a moment later: the violation that was seen stands.
            if self.violation is None:
                raise
            raise self.violation from None

    def check(self, case: Case) -> None:
        self.count += 1
        try:
            found = self.law.check(self.subject, case)
        except LawViolation as violation:
            self.violation = violation
            raise
        dtype = str(case.dtype).removeprefix("torch.")
        for measured in found:
            if self.worst is None or measured.severity > self.worst[0].severity:
                self.worst = measured, case
            if dtype not in self.by_dtype or measured.value > self.by_dtype[dtype].value:
                self.by_dtype[dtype] = measured

    def verdict(self, violation: LawViolation | None = None) -> Verdict:
        law, subject = self.law, self.subject
        if violation is not None:
            worst, case = violation.measured, violation.case
            return Verdict(subject, law.name, law.statement, False, worst, case, self.count, self.by_dtype)
        assert self.worst is not None
        worst, case = self.worst
        return Verdict(subject, law.name, law.statement, True, worst, case, self.count, self.by_dtype)
