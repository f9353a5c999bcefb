"""What gates and predictors promise beyond being maps: where they start, and whose gradients they have."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hyperconn.gates import Gate
from hyperconn.kernels.passes.normalisation import inverse_rms
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
        published = gate.published_start(stream)
        if published is not None:
            finite = published.shape == (gate.num_coordinates,) and bool(published.isfinite().all())
            yield fact(f"{list(published.shape)} is the shape of published_start, which is finite", finite)
        logits = gate.read_start(stream)
        yield fact(f"{list(logits.shape)} is the shape of read_start", logits.shape == (gate.num_coordinates,))
        if gate.value_shape != (gate.n,):
            continue
        weights = gate(logits)
        yield at_most("distance to read_weights", (weights - gate.read_weights(stream)).abs().amax(), 1e-6)
        yield at_most("distance of the sum of the read weights to 1", (weights.sum() - 1).abs(), 1e-6)
        if gate.num_coordinates == 0:
            continue  # constant weights cannot lean on one stream or another
        others = torch.cat([weights[:stream], weights[stream + 1 :], torch.zeros(1, dtype=weights.dtype)])
        yield at_least("weight of the preferred stream beyond the others", (weights[stream] - others).amin(), 0.1)


@law(kind=Gate, condition=lambda gate: gate.writes, scales=(1.0,), dtypes=(torch.float64,), random=False)
def write_start(gate: Gate, case: Case) -> Iterator[Measured]:
    """A write starts at weights of 1."""
    logits = gate.write_start()
    yield fact(f"{list(logits.shape)} is the shape of write_start", logits.shape == (gate.num_coordinates,))
    yield at_most("distance of the write weights to 1", (gate(logits) - 1).abs().amax(), 1e-6)


def _one_weight_a_stream_from_logits(gate: Gate) -> bool:
    return gate.value_shape == (gate.n,) and gate.num_coordinates > 0


@law(kind=Gate, condition=_one_weight_a_stream_from_logits, scales=(0.0, 1.0, 3.0), dtypes=(torch.float64,))
def inverse(gate: Gate, case: Case) -> Iterator[Measured]:
    """The gate of inverse(weights) is weights again, for weights in its reach."""
    for logits in case.coordinates().reshape(-1, gate.num_coordinates)[:4]:
        weights = gate(logits)
        again = gate(gate.inverse(weights))
        yield at_most("distance of the weights of the inverse", (again - weights).abs().amax(), 1e-6)


@law(kind=Gate, condition=lambda gate: gate.reads, scales=(1.0,), dtypes=(torch.float64,), batches=((3,),))
def reading(gate: Gate, case: Case) -> Iterator[Measured]:
    """A read is linear in the streams, token by token, and at its start copies of a vector are read as that vector."""
    # A gate for every channel says how many there are.
    C = gate.value_shape[1] if len(gate.value_shape) > 1 else 4
    x, y = case.normal(2, 3, gate.n, C, stream=DIRECTION)
    weights = gate(case.coordinates())
    u = gate.read(x, weights)
    combined = gate.read(2 * x - y, weights) - (2 * u - gate.read(y, weights))
    yield at_most("error of the read of 2x − y", combined.abs().amax() / (1 + u.abs().amax()), 1e-12)
    alone = torch.cat([gate.read(x[k : k + 1], weights[k : k + 1]) for k in range(3)])
    yield at_most("difference of reads, batched and alone", (alone - u).abs().amax() / (1 + u.abs().amax()), 1e-12)
    vector = x[:, :1]
    start = gate(gate.read_start(0)).expand(3, *gate.value_shape)
    read = gate.read(vector.expand(-1, gate.n, -1), start).reshape(3, -1, C)  # n of them where all fractions are read
    yield at_most("distance of a read of copies to what is copied", (read - vector).abs().amax(), 1e-5)


@law(kind=PredictorCase, condition=lambda s: s.predictor.fuses, scales=(1.0,), smooth=True)
def fused_form(subject: PredictorCase, case: Case) -> Iterator[Measured]:
    """Logits that are said to fuse are scale · z + base, z the projection over the norm of the token."""
    theta, layout = case.coordinates().reshape(-1, subject.num_coordinates), subject.layout
    parameters = subject.parameters(theta)
    W = subject.predictor.projection(parameters, layout)
    if W is None:
        yield fact("a predictor that fuses has a projection", False)
        return
    raw = torch.cat([theta @ W.mT, theta.square().sum(-1, keepdim=True)], -1)
    base, scale = subject.predictor.affine(raw, parameters, layout)
    z = raw[:, :-1] * inverse_rms(raw[:, -1:], layout.width, layout.norm_eps, layout.norm_eps_mode == "outside")
    expected = torch.repeat_interleave(scale, torch.tensor(layout.sizes, device=scale.device)) * z + base
    distance = (subject(theta) - expected).abs().amax() / (1 + expected.abs().amax())
    yield at_most("distance of the logits to scale · z + base", distance, 64 * torch.finfo(case.dtype).eps)


@law(kind=PredictorCase, scales=(1.0,), dtypes=(torch.float64, torch.float32))
def parameters(subject: PredictorCase, case: Case) -> Iterator[Measured]:
    """reset writes every parameter; with prediction weights of 0 all logits are those of the start that has a bias."""
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
    if "base" not in shapes and not predictor.fuses:
        return  # nothing says where such a one starts
    found = subject.logits(case.coordinates(), started)
    distance = (found - start.to(case.dtype)).abs().amax()
    # One that fuses may call its bias otherwise, or have none.
    distance = distance if "base" in shapes else torch.minimum(distance, found.abs().amax())
    yield at_most("distance of the logits at the start to the start", distance, 1e-6)


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


@law(kind=PredictorCase, condition=lambda s: s.norm_eps == 0, scales=(1.0,), batches=((4,),))
def zero_token(subject: PredictorCase, case: Case) -> Iterator[Measured]:
    """Without an eps tokens of zeros, or nearly so, have finite logits and gradients, and disturb no other."""
    theta = case.coordinates()
    clean = subject(theta)
    theta[1], theta[3] = 0.0, 1e-20
    theta.requires_grad_()
    logits = subject(theta)
    yield fact("the logits are finite", bool(logits.isfinite().all()))
    yield at_most("change of the other tokens", (logits[[0, 2]] - clean[[0, 2]]).abs().amax(), 1e-5)
    w = case.normal(*logits.shape, stream=COTANGENT)
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad((logits * w).sum(), theta)
        yield fact("the gradient is finite", bool(gradient.isfinite().all()))
