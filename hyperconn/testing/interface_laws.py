"""What calling a map promises, whatever it maps to: shapes, dtypes, devices, purity, refusals, value semantics."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hyperconn.gates import Gate
from hyperconn.manifolds import Manifold
from hyperconn.manifolds.core.map import Map
from hyperconn.testing.case import Case
from hyperconn.testing.law import SHAPES, law
from hyperconn.testing.law_tools import (
    COTANGENT,
    gradient_of,
    has_coordinates,
    has_right_inverse,
    is_constant,
    is_member,
    pull_back,
    rounding,
)
from hyperconn.testing.measured import Measured, at_most, fact

_ALL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@law(kind=Map, scales=(1e-3, 1.0), batches=SHAPES)
def shape(subject: Map, case: Case) -> Iterator[Measured]:
    """m takes [..., P] to [..., *value_shape] for batches (), (0,), (3,) and (2, 3), and coordinates takes it back."""
    P = subject.num_coordinates
    theta = case.coordinates()
    H = subject(theta)
    if isinstance(subject, Manifold):
        yield fact(f"{subject.value_shape} is the shape of a matrix", subject.value_shape == (subject.n,) * 2)
    yield fact(f"{list(H.shape)} is the shape of the value", H.shape == (*case.batch, *subject.value_shape))
    gradient, _ = pull_back(subject, theta, case)  # an empty batch must survive the way back too
    yield fact(f"{list(gradient.shape)} is the shape of the gradient", gradient.shape == theta.shape)
    if not isinstance(subject, Manifold):
        return
    violation = subject.violation(H)
    yield fact(f"{list(violation.shape)} is the shape of the violation", violation.shape == case.batch)
    for name, point in (("identity()", subject.identity()), ("initial()", subject.initial())):
        yield fact(f"{list(point.shape)} is the shape of {name}", point.shape == (P,))
    if has_right_inverse(subject) and bool(is_member(subject, H).all()):
        found = subject.coordinates(H)
        yield fact(f"{list(found.shape)} is the shape of coordinates(H)", found.shape == (*case.batch, P))


@law(kind=Map, scales=(1e-3, 1.0), dtypes=_ALL_DTYPES)
def dtype(subject: Map, case: Case) -> Iterator[Measured]:
    """Values have the dtype of the coordinates, and identity() and initial() the dtype that they are asked for."""
    H = subject(case.coordinates())
    yield fact(f"{H.dtype} is the dtype of the value", H.dtype == case.dtype)
    if not isinstance(subject, Manifold):
        return
    violation = subject.violation(H)
    yield fact(f"{violation.dtype}, the dtype of the violation, is float64", violation.dtype == torch.float64)
    points = {
        "identity()": subject.identity(dtype=case.dtype),
        "initial()": subject.initial(dtype=case.dtype),
        "initial(4.0)": subject.initial(4.0, dtype=case.dtype),
    }
    for name, point in points.items():
        yield fact(f"{point.dtype} is the dtype of {name}", point.dtype == case.dtype)
    if has_right_inverse(subject) and bool(is_member(subject, H).all()):
        found = subject.coordinates(H)
        at_least_single = torch.promote_types(case.dtype, torch.float32)
        yield fact(f"{found.dtype} is the dtype of coordinates(H)", found.dtype in (case.dtype, at_least_single))


@law(kind=Map, scales=(1.0,), batches=((3,),), dtypes=(torch.float32,), random=False)
def device(subject: Map, case: Case) -> Iterator[Measured]:
    """Values lie where the coordinates lie, the meta device included, where there is no data to look at."""
    theta = case.coordinates()
    for where in (theta, theta.to("meta")):
        kind = where.device.type
        H = subject(where)
        yield fact(f"{H.device.type} is the device of the value for coordinates on {kind}", H.device == where.device)
        if isinstance(subject, Manifold):
            points = (subject.identity(device=where.device), subject.initial(device=where.device))
            for name, point in zip(("identity()", "initial()"), points, strict=True):
                yield fact(f"{point.device.type} is the device of {name} on {kind}", point.device == where.device)


@law(kind=Map, scales=(0.0, 1.0, 10.0), batches=tuple(batch for batch in SHAPES if 0 not in batch))
def batched(subject: Map, case: Case) -> Iterator[Measured]:
    """Every token is mapped as if it were alone.

    The order of a sum may differ between batch sizes, and a linear solve multiplies what that changes by the
    condition of its matrix, which grows with the coordinates: hence the scale in the bound.
    """
    theta = case.coordinates()
    together = subject(theta).reshape(case.count, *subject.value_shape)
    tokens = theta.reshape(case.count, subject.num_coordinates)
    alone = torch.stack([subject(token).reshape(subject.value_shape) for token in tokens])
    bound = (1 + case.scale) * rounding(subject, case.dtype)
    yield at_most("difference of the value, batched and alone", (together - alone).abs().max(), bound)


@law(kind=Map, scales=(0.0, 1.0, 1e4))
def pure(subject: Map, case: Case) -> Iterator[Measured]:
    """Two calls return the same bits, two backwards too; nothing is drawn, coordinates and values are left alone."""
    theta, state = case.coordinates(), torch.get_rng_state()
    first, second = subject(theta), subject(theta)
    yield fact("two calls return the same bits", _same_bits(first, second))
    yield fact("the coordinates are unchanged", torch.equal(theta, case.theta))
    yield fact("no random number is drawn", torch.equal(torch.get_rng_state(), state))
    leaf = theta.clone().requires_grad_()
    H = subject(leaf)
    value = (H * case.normal(*H.shape, stream=COTANGENT)).sum()
    once = gradient_of(value, leaf, retain_graph=True)
    again = gradient_of(value, leaf)
    yield fact("two backwards through one graph return the same bits", _same_bits(once, again))
    yield fact("the value is unchanged by them", _same_bits(H, first))
    if isinstance(subject, Manifold):
        yield fact("the violation keeps no graph", not subject.violation(H).requires_grad)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@law(kind=Map, scales=(1.0, 10.0), dtypes=(torch.float32,))
def autocast(subject: Map, case: Case) -> Iterator[Measured]:
    """Autocast to bfloat16 changes neither the value, beyond rounding, nor its dtype."""
    theta = case.coordinates()
    plain = subject(theta)
    with torch.autocast(device_type=theta.device.type, dtype=torch.bfloat16):
        cast = subject(theta)
    yield fact(f"{cast.dtype} under autocast is the dtype of the value", cast.dtype == plain.dtype)
    yield at_most("change under autocast", (cast - plain).abs().max(), rounding(subject, case.dtype))


@law(kind=Map, scales=(1.0,), batches=((3,),), dtypes=(torch.float32,), random=False)
def compiled(subject: Map, case: Case) -> Iterator[Measured]:
    """torch.compile takes the map as one graph, which computes the same."""
    theta = case.coordinates()
    torch.compiler.reset()  # a graph for each map: many at once are taken for a mistake
    # The backend does not matter for what the graph means, and this one needs no compiler.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch, about what torch.compile does itself
        traced = torch.compile(subject.__call__, fullgraph=True, backend="eager")(theta)
    yield at_most("change in a graph", (traced - subject(theta)).abs().max(), rounding(subject, case.dtype))


@law(kind=Map, scales=(1.0,), random=False)
def wrong_inputs(subject: Map, case: Case) -> Iterator[Measured]:
    """Integer and complex tensors, wrong widths, scalars and what is no tensor raise TypeError or ValueError."""
    n, P = subject.n, subject.num_coordinates
    new = partial(torch.zeros, device=case.device)
    wrong_coordinates: dict[str, object] = {
        "integer coordinates": new(3, P, dtype=torch.int64),
        "boolean coordinates": new(3, P, dtype=torch.bool),
        "complex coordinates": new(3, P, dtype=torch.complex64),
        "coordinates one too wide": new(3, P + 1, dtype=case.dtype),
        "coordinates twice too wide": new(3, 2 * P + 2, dtype=case.dtype),
        "a scalar": new((), dtype=case.dtype),
        "a list": [0.0] * P,
        "None": None,
    }
    if P:
        wrong_coordinates["coordinates one too narrow"] = new(3, P - 1, dtype=case.dtype)
    for what, value in wrong_coordinates.items():
        yield fact(f"{what} are refused", _refuses(subject, value))
    if not isinstance(subject, Manifold):
        return
    wrong_matrices = {
        "integer matrices": new(3, n, n, dtype=torch.int64),
        "complex matrices": new(3, n, n, dtype=torch.complex64),
        "matrices of another size": new(3, n + 1, n + 1, dtype=case.dtype),
        "a row of a matrix": new(n + 1, dtype=case.dtype),
    }
    for what, matrix in wrong_matrices.items():
        yield fact(f"the violation of {what} is refused", _refuses(subject.violation, matrix))


def _refuses(call: Callable[..., object], value: object) -> bool:
    try:
        call(value)
    except (TypeError, ValueError):
        return True
    return False


@law(kind=Map, condition=has_coordinates, scales=(1.0,), batches=((5,),), smooth=True)
def not_a_number(subject: Map, case: Case) -> Iterator[Measured]:
    """NaN or inf in one token changes no other token; NaN makes that token's value and violation NaN."""
    clean = case.coordinates()
    clean_gradient, clean_H = pull_back(subject, clean, case)
    token, k = case.seed % 5, (case.seed // 5) % subject.num_coordinates
    others = [i for i in range(5) if i != token]
    bound = rounding(subject, case.dtype)
    constant = not isinstance(subject, (Manifold, Gate)) and is_constant(subject, case.device)  # a static predictor
    for value in (math.nan, math.inf, -math.inf):
        theta = clean.clone()
        theta[token, k] = value
        gradient, H = pull_back(subject, theta, case)
        yield at_most(f"change of values beside {value}", _distance(H, clean_H, others), bound)
        # A gradient has no scale of its own: this bound only tells contamination from rounding.
        yield at_most(f"change of gradients beside {value}", _distance(gradient, clean_gradient, others), 1e-3)
        if math.isnan(value) and not constant:
            yield fact("the value is not finite for NaN", not bool(H[token].isfinite().all()))
        if math.isnan(value) and isinstance(subject, Manifold):
            violation = subject.violation(H)
            yield fact("the violation is NaN for NaN", bool(violation[token].isnan()))
            yield fact("the other violations are finite", bool(violation[others].isfinite().all()))


def _distance(a: Tensor, b: Tensor, tokens: list[int]) -> Tensor:
    return (a[tokens] - b[tokens]).abs().amax()


@law(kind=Map, scales=(1.0,), random=False)
def value_semantics(subject: Map, case: Case) -> Iterator[Measured]:
    """A map is a frozen value: rebuilt, copied and pickled ones are equal, hash alike and map alike."""
    part = getattr(subject, "predictor", subject)
    theta = case.coordinates()
    H = subject(theta)
    others = {
        "rebuilt": dataclasses.replace(subject),
        "deep-copied": copy.deepcopy(subject),
        "pickled": pickle.loads(pickle.dumps(subject)),
    }
    for how, other in others.items():
        yield fact(f"a {how} map is equal", other == subject)
        yield fact(f"a {how} map hashes alike", hash(other) == hash(subject))
        distance = (other(theta) - H).abs().amax()
        yield at_most(f"distance of what a {how} map gives", distance, rounding(subject, case.dtype))
    yield fact("a rebuilt part is equal", dataclasses.replace(part) == part)
    name: object = part.name
    yield fact(f"{name!r} is a name", isinstance(name, str) and bool(name.strip()))
    yield fact("a part differs from its name", part != name)
    yield fact("a part is frozen", _refuses_assignment(part))


def _refuses_assignment(part: Any) -> bool:
    # A class without options of its own freezes those that it inherits.
    name = next((field.name for field in dataclasses.fields(part)), "name")
    try:
        setattr(part, name, getattr(part, name))
    except dataclasses.FrozenInstanceError:
        return True
    return False
