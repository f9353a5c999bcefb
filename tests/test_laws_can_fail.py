"""Every law is refuted by a manifold that keeps all the others."""

import dataclasses
import sys
from dataclasses import replace

import pytest
import torch

from broken_gradients import IsATenthOff
from broken_manifolds import BROKEN
from healthy_manifold import HEALTHY, Ball, Circulant, Positive
from hyperconn import gates, manifolds, predictors, testing
from hyperconn.testing import LAWS, Case, ContractError, LawViolation, check_law, get_law, verify
from hyperconn.testing.cases import grid
from hyperconn.testing.runner import judge
from hyperconn.testing.subjects import PredictorCase, choose
from hyperconn.testing.survey import failures


def failing(manifold):
    return {verdict.law for verdict in verify(manifold, examples=1, seed=1) if not verdict.holds}


MANIFOLD_LAWS = {law.name for law in LAWS if law.applies(HEALTHY)} | {"iterations"}


def test_the_healthy_manifold_keeps_every_law() -> None:
    verdicts = verify(HEALTHY, examples=20)
    assert len(MANIFOLD_LAWS) == 33 and [verdict for verdict in verdicts if not verdict.holds] == []
    assert all(verdict.cases > 0 for verdict in verdicts)


@pytest.mark.parametrize("manifold", (Ball(n=3), Positive(n=4)), ids=repr)
def test_sets_with_an_interior_keep_every_law(manifold: Ball) -> None:
    """What is right must not be called wrong: neither a wrong entry nor a large product leaves such a set."""
    verdicts = verify(manifold, examples=20)
    assert len(verdicts) > 20 and [verdict.law for verdict in verdicts if not verdict.holds] == []


@pytest.mark.parametrize("manifold", BROKEN, ids=lambda manifold: f"{manifold.breaks}-{type(manifold).__name__}")
def test_a_broken_manifold_fails_exactly_its_law(manifold) -> None:
    assert failing(manifold) == {manifold.breaks, *getattr(manifold, "also", ())}


def test_every_law_has_a_broken_manifold() -> None:
    assert {manifold.breaks for manifold in BROKEN} == MANIFOLD_LAWS


@dataclasses.dataclass(frozen=True)
class Leans(gates.Softmax):
    def inverse(self, weights):
        return weights  # and not their logarithms


@dataclasses.dataclass(frozen=True)
class WritesALittle(gates.Sigmoid):
    def forward(self, theta):
        return 0.9 * super().forward(theta)


@dataclasses.dataclass(frozen=True)
class SeesTheOthers(gates.Softmax):
    def forward(self, theta):
        return super().forward(theta * (1 + theta.mean()))


@dataclasses.dataclass(frozen=True)
class ReadsTheSquare(gates.Softmax):
    def read(self, x, weights):
        return super().read(x * x.abs(), weights)


@dataclasses.dataclass(frozen=True)
class SaysAnotherScale(predictors.Flat):
    def logits(self, x, raw, parameters, layout):
        return super().logits(x, raw, {**parameters, "scale": parameters["scale"].flip(0)}, layout)


@dataclasses.dataclass(frozen=True)
class ForgetsItsScale(predictors.Flat):
    def reset(self, parameters, layout, start):
        super().reset({**parameters, "scale": torch.ones(3)}, layout, start)


def renamed(parameters):
    return {"base" if name == "offset" else name: value for name, value in parameters.items()}


class CallsItsBiasOtherwise(predictors.Flat):
    """Nothing is wrong with it."""

    def parameters(self, layout):
        return {"offset": (layout.total,), **predictors.Flat(bias=False).parameters(layout)}

    def reset(self, parameters, layout, start):
        super().reset(renamed(parameters), layout, start)

    def logits(self, x, raw, parameters, layout):
        return super().logits(x, raw, renamed(parameters), layout)

    def affine(self, raw, parameters, layout):
        return super().affine(raw, renamed(parameters), layout)


@dataclasses.dataclass(frozen=True)
class DetachesItsWeights(predictors.PerStream):
    def logits(self, x, raw, parameters, layout):
        return super().logits(x, raw, {**parameters, "fn": parameters["fn"].detach()}, layout)


@dataclasses.dataclass(frozen=True)
class NormsTheBatch(predictors.PerStream):
    def logits(self, x, raw, parameters, layout):
        return super().logits(x - x.mean(0), raw, parameters, layout)


@dataclasses.dataclass(frozen=True)
class DividesByZero(predictors.Flat):
    def logits(self, x, raw, parameters, layout):
        return super().logits(x, raw, parameters, layout) + 0 * raw[:, -1:].rsqrt()


@pytest.mark.parametrize(
    ("part", "broken"),
    [
        (Leans(n=3), {"inverse"}),
        (WritesALittle(n=3), {"write_start", "inverse"}),
        (SeesTheOthers(n=3), {"batched", "not_a_number"}),
        (ReadsTheSquare(n=3), {"reading"}),
        (PredictorCase(3, SaysAnotherScale()), {"fused_form"}),
        (PredictorCase(3, ForgetsItsScale()), {"parameters"}),
        (PredictorCase(3, CallsItsBiasOtherwise()), set()),
        (PredictorCase(2, DetachesItsWeights()), {"parameter_gradients"}),
        (PredictorCase(2, NormsTheBatch()), {"batched", "not_a_number"}),
        (PredictorCase(2, DividesByZero(), norm_eps=0.0), {"zero_token"}),
    ],
    ids=lambda value: type(getattr(value, "predictor", value)).__name__,
)
def test_broken_gates_and_predictors_are_caught(part, broken) -> None:
    if isinstance(part, PredictorCase):
        assert not failing(replace(part, predictor=type(part.predictor).__mro__[1]()))
    assert broken <= failing(part) and (broken or not failing(part))


def test_a_violation_names_everything_and_can_be_seen_again() -> None:
    with pytest.raises(LawViolation) as caught:
        check_law("first_derivative", IsATenthOff(n=3), examples=5)
    violation = caught.value
    assert violation.law == "first_derivative" and violation.subject == IsATenthOff(n=3)
    assert not violation.measured.holds and violation.measured.value > violation.measured.bound
    for part in ("IsATenthOff(n=3)", "'first_derivative'", "promised ≤ 1e-06", "Case(torch.tensor("):
        assert part in str(violation)
    with pytest.raises(LawViolation) as again:
        exec(
            str(violation).partition("see it again: ")[2], vars(testing) | {"torch": torch, "IsATenthOff": IsATenthOff}
        )
    assert again.value.measured == violation.measured


def test_a_violation_is_shrunk() -> None:
    class BreaksSometimes(Circulant):
        def violation(self, H):
            return super().violation(H) + (H[..., 0, 0].amax() > 0.85)

    law = replace(get_law("membership"), scales=(4.0,), dtypes=(torch.float32,), batches=((), (2, 3)))
    broken = BreaksSometimes(n=3)
    with pytest.raises(LawViolation) as caught:
        check_law(law, broken, examples=300, seed=2)
    assert caught.value.case.theta.shape == (3,), "of (2, 3, 3), where it is seen as often"
    assert len(grid(law, broken)) == 2


def test_an_error_inside_a_manifold_is_a_violation_that_keeps_its_cause() -> None:
    class AlwaysRaises(Circulant):
        def forward(self, theta):
            raise RuntimeError("a bug of its own")

    holding = {verdict.law for verdict in verify(AlwaysRaises(n=3), examples=1) if verdict.holds}
    assert holding == {"wrong_inputs", "tolerance", "declarations"}, "verified to the end"
    with pytest.raises(LawViolation, match="a bug of its own") as caught:
        get_law("membership").check(AlwaysRaises(n=3), Case(torch.zeros(3)))
    assert isinstance(caught.value.__cause__, RuntimeError)


def raises(self, theta):
    raise RuntimeError("a bug of its own \udc80 [/red] ‖")


def secretive(self):
    raise RuntimeError("a bug of its own")


@pytest.mark.parametrize(
    ("broken", "members"),
    [
        ("membership", {"forward": raises}),
        ("membership", {"forward": lambda self, theta: sys.exit(0)}),
        ("shape", {"forward": lambda self, theta: None}),
        ("shape", {"forward": lambda self, theta: Circulant.forward(self, theta).tolist()}),
        ("shape", {"forward": lambda self, theta: Circulant.forward(self, theta)[..., 0]}),
        ("finite", {"forward": lambda self, theta: Circulant.forward(self, theta) * float("nan")}),
        ("tolerance", {"tolerance": lambda self, dtype: float("inf")}),
        ("membership", {"tolerance": lambda self, dtype: None}),
        ("shape", {"num_coordinates": "n"}),
        ("membership", {"invariants": ("row_sums",)}),
        ("value_semantics", {"__hash__": None}),
        ("wrong_inputs", {"__repr__": secretive, "__call__": Circulant.forward}),
    ],
)
def test_whatever_a_class_does_is_a_verdict(broken, members) -> None:
    odd = type("Odd", (Circulant,), members)(n=3)
    verdict = judge(get_law(broken), odd, examples=2, seed=0)
    assert not verdict.holds and "Odd(n=3)" in failures([verdict])[0]


def examples_of(*found):
    return {"examples": classmethod(lambda cls: found)}


@pytest.mark.parametrize(
    ("members", "sizes", "says"),
    [
        (examples_of(), None, r"examples\(\) must return instances of the class, got \(\)"),
        (examples_of(4), None, r"got \(4,\)"),
        ({"examples": None}, None, "raised TypeError: .*; override it"),
        ({"__init__": lambda self, n: None}, None, "has no n: its __init__ does not set the field"),
        ({"__init__": lambda self, n, temperature: None}, None, "raised TypeError"),
        ({}, (0,), "n=0 is refused: ValueError"),
    ],
)
def test_what_no_law_can_run_on_is_refused(members, sizes, says) -> None:
    with pytest.raises(ContractError, match=says):
        choose(type("Odd", (Circulant,), members), sizes)


def test_a_size_that_is_refused_is_said() -> None:
    with pytest.warns(UserWarning, match="Permutation: n=7 is refused: ValueError"):
        assert {each.n for each in choose(manifolds.Permutation, (2, 7))} == {2}
    with pytest.raises(ContractError, match=r"Unfinished is incomplete, it has to define: "):
        choose(type("Unfinished", (manifolds.Manifold,), {}))
    with pytest.raises(TypeError, match="laws run on an instance"):
        verify(Circulant)


def test_a_predictor_is_verified_in_each_layout() -> None:
    layouts = {verdict.subject.layout for verdict in verify(predictors.Static(), examples=1)}
    assert len(layouts) == 4 and {layout.norm_eps for layout in layouts} >= {0.0, 1e-3}


def test_a_law_that_measures_nothing_fails() -> None:
    silent = replace(get_law("membership"), name="silent", measure=lambda manifold, case: iter(()))
    with pytest.raises(LawViolation, match="measured anything"):
        check_law(silent, HEALTHY, examples=5)
