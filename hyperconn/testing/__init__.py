"""The laws that every manifold, gate and predictor keeps, for anyone's.

A law is a promise with a measurement that can refute it. ``verify`` checks all that apply; ``check_law`` checks
one. The test suite of a plugin wants pytest classes of them, for the map and for its device pair::

    class TestMine(ManifoldLaws):  # or GateLaws, PredictorLaws
        subject = MyManifold

    TestMineOnTheDevice = kernel_laws(MyManifold)

Cases are drawn with hypothesis and numpy, which only this subpackage needs: ``pip install 'hyperconn[cli]'``.
``hyperconn verify --all`` checks everything that is registered and prints a table.

>>> from hyperconn import manifolds
>>> check_law("membership", manifolds.make("stiefel", n=3), examples=5).holds
True
"""

try:
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "hyperconn.testing draws its cases with hypothesis and numpy: pip install 'hyperconn[cli]'"
    ) from error

from hyperconn.testing.all_laws import LAWS, get_law
from hyperconn.testing.case import Case
from hyperconn.testing.cases import cases
from hyperconn.testing.law import SCALES, SHAPES, Law, LawViolation, law
from hyperconn.testing.measured import Measured, at_least, at_most, fact
from hyperconn.testing.runner import Verdict, check_law, verify
from hyperconn.testing.subjects import ContractError, PredictorCase
from hyperconn.testing.suites import (
    GateLaws,
    ManifoldLaws,
    PredictorLaws,
    gate_laws,
    kernel_laws,
    manifold_laws,
    predictor_laws,
)

__all__ = [
    "LAWS",
    "SCALES",
    "SHAPES",
    "Case",
    "ContractError",
    "GateLaws",
    "Law",
    "LawViolation",
    "ManifoldLaws",
    "Measured",
    "PredictorCase",
    "PredictorLaws",
    "Verdict",
    "at_least",
    "at_most",
    "cases",
    "check_law",
    "fact",
    "gate_laws",
    "get_law",
    "kernel_laws",
    "law",
    "manifold_laws",
    "predictor_laws",
    "verify",
]
