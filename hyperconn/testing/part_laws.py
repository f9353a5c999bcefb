"""What gates and predictors promise beyond being maps: where they start, and whose gradients they have."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hyperconn.gates import Gate
from hyperconn.predictors import Start
from hyperconn.testing.case import Case
from hyperconn.testing.law import law
from hyperconn.testing.law_tools import COTANGENT, DIRECTION
from hyperconn.testing.measured import Measured, at_least, at_most, fact
from hyperconn.testing.subjects import PredictorCase

_STEP = 1e-6


@law(kind=Gate, condition=lambda gate: gate.reads, scales=(1.0,), dtypes=(torch.float64,), random=False)
def read_start(gate: Gate, case: Case) -> Iterator[Measured]:
    """A read starts at weights that sum to 1 and lean on its stream; a gate of more weights says where itself."""
    for stream in range(gate.n):
        logits = gate.read_start(stream)
        yield fact(f"{list(logits.shape)} is the shape of read_start", logits.shape == (gate.num_coordinates,))
        if gate.value_shape != (gate.n,):
            continue
        weights = gate(logits)
        yield at_most("distance of the sum of the read weights to 1", (weights.sum() - 1).abs(), 1e-6)
        others = torch.cat([weights[:stream], weights[stream + 1 :], torch.zeros(1, dtype=weights.dtype)])
        yield at_least("weight of the preferred stream beyond the others", (weights[stream] - others).amin(), 0.1)


@law(kind=Gate, condition=lambda gate: gate.writes, scales=(1.0,), dtypes=(torch.float64,), random=False)
def write_start(gate: Gate, case: Case) -> Iterator[Measured]:
    """A write starts at weights of 1."""
    logits = gate.write_start()
    yield fact(f"{list(logits.shape)} is the shape of write_start", logits.shape == (gate.num_coordinates,))
    yield at_most("distance of the write weights to 1", (gate(logits) - 1).abs().amax(), 1e-6)


@law(kind=Gate, condition=lambda gate: gate.value_shape == (gate.n,), scales=(0.0, 1.0, 3.0), dtypes=(torch.float64,))
def inverse(gate: Gate, case: Case) -> Iterator[Measured]:
    """The gate of inverse(weights) is weights again, for weights in its reach."""
    for logits in case.coordinates().reshape(-1, gate.num_coordinates)[:4]:
        weights = gate(logits)
        again = gate(gate.inverse(weights))
        yield at_most("distance of the weights of the inverse", (again - weights).abs().amax(), 1e-6)


@law(kind=PredictorCase, scales=(1.0,), dtypes=(torch.float64, torch.float32))
def parameters(subject: PredictorCase, case: Case) -> Iterator[Measured]:
    """reset writes every parameter; with prediction weights of 0 all logits are the start's, or 0 without a bias."""
    layout, predictor = subject.layout, subject.predictor
    shapes = predictor.parameters(layout)
    named = all(part.isidentifier() for name in shapes for part in name.split("."))
    yield fact(f"the parameters {sorted(shapes)} have names", named and all(name.count(".") < 2 for name in shapes))
    yield fact("every parameter has a dimension", all(len(shape) >= 1 for shape in shapes.values()))
    started = {name: torch.full(shape, torch.nan, dtype=case.dtype) for name, shape in shapes.items()}
    start = case.normal(layout.total, stream=DIRECTION).double()
    with torch.no_grad():
        predictor.reset(started, layout, Start(start))
    lost = [name for name, value in started.items() if not bool(value.isfinite().all())]
    yield fact(f"reset writes {lost or 'everything'}", not lost)
    wanted = start.to(case.dtype) if "base" in shapes else torch.zeros(layout.total, dtype=case.dtype)
    found = subject.logits(case.coordinates(), started)
    yield at_most("distance of the logits at the start to the start", (found - wanted).abs().amax(), 1e-6)


@law(kind=PredictorCase, scales=(1.0,), dtypes=(torch.float64,), batches=((4,),), smooth=True)
def parameter_gradients(subject: PredictorCase, case: Case) -> Iterator[Measured]:
    """The gradient of every parameter is the derivative of the logits by it, and not zero."""
    theta = case.coordinates()
    leaves = {name: value.detach().requires_grad_() for name, value in subject.parameters(theta).items()}
    logits = subject.logits(theta, leaves)
    w = case.normal(*logits.shape, stream=COTANGENT)
    gradients = torch.autograd.grad((logits * w).sum(), list(leaves.values()), allow_unused=True)
    for stream, (name, gradient) in enumerate(zip(leaves, gradients, strict=True), start=10):
        direction = case.normal(*leaves[name].shape, stream=stream)

        def value(step: float, name: str = name, direction: Tensor = direction) -> Tensor:
            moved = {**leaves, name: leaves[name] + step * direction}
            return (subject.logits(theta, moved) * w).sum().detach()

        slope = (value(_STEP) - value(-_STEP)) / (2 * _STEP)
        found = torch.zeros(()) if gradient is None else (gradient * direction).sum()
        # One of a norm's parameters may do nothing where there is a single number to norm.
        yield at_least(f"gradient of {name}", slope.abs(), 1e-6)
        yield at_most(f"error of the gradient of {name}", (found - slope).abs().detach() / (1 + slope.abs()), 1e-6)


@law(kind=PredictorCase, condition=lambda s: s.norm_eps == 0, scales=(1.0,), batches=((3,),))
def zero_token(subject: PredictorCase, case: Case) -> Iterator[Measured]:
    """Without an eps a token of zeros has finite logits and gradients, and disturbs no other."""
    theta = case.coordinates()
    clean = subject(theta)
    theta[1] = 0.0
    theta.requires_grad_()
    logits = subject(theta)
    yield fact("the logits are finite", bool(logits.isfinite().all()))
    yield at_most("change of the other tokens", (logits[[0, 2]] - clean[[0, 2]]).abs().amax(), 1e-5)
    w = case.normal(*logits.shape, stream=COTANGENT)
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad((logits * w).sum(), theta)
        yield fact("the gradient is finite", bool(gradient.isfinite().all()))
