"""What calling a manifold promises, whatever its set: shapes, dtypes, devices, purity."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from hyperconn.manifolds import Manifold
from hyperconn.testing.case import Case
from hyperconn.testing.law import SHAPES, law
from hyperconn.testing.laws.tools import COTANGENT, gradient_of, has_right_inverse, is_member, pull_back
from hyperconn.testing.measured import Measured, at_most, fact

_ALL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@law(scales=(1e-3, 1.0), batches=SHAPES)
def shape(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """m takes [..., P] to [..., n, n] for the batch shapes (), (0,), (3,) and (2, 3), and coordinates takes it back."""
    n, P = manifold.n, manifold.num_coordinates
    theta = case.coordinates(manifold)
    H = manifold(theta)
    yield fact(f"[{', '.join(map(str, H.shape))}] is the shape of H", H.shape == (*case.batch, n, n))
    violation = manifold.violation(H)
    yield fact(f"{list(violation.shape)} is the shape of the violation", violation.shape == case.batch)
    gradient, _ = pull_back(manifold, theta, case)  # an empty batch must survive the way back too
    yield fact(f"{list(gradient.shape)} is the shape of the gradient", gradient.shape == theta.shape)
    for name, point in (("identity()", manifold.identity()), ("initial()", manifold.initial())):
        yield fact(f"{list(point.shape)} is the shape of {name}", point.shape == (P,))
    if has_right_inverse(manifold) and bool(is_member(manifold, H).all()):
        found = manifold.coordinates(H)
        yield fact(f"{list(found.shape)} is the shape of coordinates(H)", found.shape == (*H.shape[:-2], P))


@law(scales=(1e-3, 1.0), dtypes=_ALL_DTYPES)
def dtype(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """H has the dtype of the coordinates, and identity() and initial() have the dtype that they are asked for."""
    H = manifold(case.coordinates(manifold))
    yield fact(f"{H.dtype} is the dtype of H", H.dtype == case.dtype)
    violation = manifold.violation(H)
    yield fact(f"{violation.dtype}, the dtype of the violation, is float64", violation.dtype == torch.float64)
    points = {
        "identity()": manifold.identity(dtype=case.dtype),
        "initial()": manifold.initial(dtype=case.dtype),
        "initial(4.0)": manifold.initial(4.0, dtype=case.dtype),
    }
    for name, point in points.items():
        yield fact(f"{point.dtype} is the dtype of {name}", point.dtype == case.dtype)
    if has_right_inverse(manifold) and bool(is_member(manifold, H).all()):
        found = manifold.coordinates(H)
        at_least_single = torch.promote_types(case.dtype, torch.float32)
        yield fact(f"{found.dtype} is the dtype of coordinates(H)", found.dtype in (case.dtype, at_least_single))


@law(scales=(1.0,), random=False)
def device(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """H lies where the coordinates lie, the meta device included, where there is no data to look at."""
    theta = case.coordinates(manifold)
    for where in (theta, theta.to("meta")):
        kind = where.device.type
        H = manifold(where)
        yield fact(f"{H.device.type} is the device of H for coordinates on {kind}", H.device == where.device)
        for name, point in (
            ("identity()", manifold.identity(device=where.device)),
            ("initial()", manifold.initial(device=where.device)),
        ):
            yield fact(f"{point.device.type} is the device of {name} on {kind}", point.device == where.device)


@law(scales=(0.0, 1.0, 10.0), batches=tuple(batch for batch in SHAPES if 0 not in batch))
def batched(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """Every token is mapped as if it were alone.

    The order of a sum may differ between batch sizes, and a linear solve multiplies what that changes by the
    condition of its matrix, which grows with the coordinates: hence the scale in the bound.
    """
    theta = case.coordinates(manifold)
    together = manifold(theta).reshape(case.count, manifold.n, manifold.n)
    tokens = theta.reshape(case.count, manifold.num_coordinates)
    alone = torch.stack([manifold(token).reshape(manifold.n, manifold.n) for token in tokens])
    bound = (1 + case.scale) * manifold.tolerance(case.dtype)
    yield at_most("difference of H, batched and alone", (together - alone).abs().max(), bound)


@law(scales=(0.0, 1.0, 1e4))
def pure(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """Two calls return the same bits, two backwards too; nothing is drawn, and coordinates and H are left alone."""
    theta = case.coordinates(manifold)
    before, state = theta.clone(), torch.get_rng_state()
    first, second = manifold(theta), manifold(theta)
    yield fact("two calls return the same bits", _same_bits(first, second))
    yield fact("the coordinates are unchanged", torch.equal(theta, before))
    yield fact("no random number is drawn", torch.equal(torch.get_rng_state(), state))
    leaf = theta.clone().requires_grad_()
    H = manifold(leaf)
    value = (H * case.normal(*H.shape, stream=COTANGENT)).sum()
    once = gradient_of(value, leaf, create_graph=False, retain_graph=True)
    again = gradient_of(value, leaf, create_graph=False)
    yield fact("two backwards through one graph return the same bits", _same_bits(once, again))
    yield fact("H is unchanged by them", _same_bits(H, first))
    yield fact("the violation keeps no graph", not manifold.violation(H).requires_grad)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@law(scales=(1.0, 10.0), dtypes=(torch.float32,))
def autocast(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """Autocast to bfloat16 changes neither H, beyond rounding, nor its dtype."""
    theta = case.coordinates(manifold)
    plain = manifold(theta)
    with torch.autocast(device_type=theta.device.type, dtype=torch.bfloat16):
        cast = manifold(theta)
    yield fact(f"{cast.dtype} under autocast is the dtype of H", cast.dtype == plain.dtype)
    yield at_most("change of H under autocast", (cast - plain).abs().max(), manifold.tolerance(case.dtype))


@law(scales=(1.0,), batches=((3,),), dtypes=(torch.float32,), random=False)
def compiled(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """torch.compile takes the map as one graph, which computes the same H."""
    theta = case.coordinates(manifold)
    torch.compiler.reset()  # a graph for each manifold: many at once are taken for a mistake
    # The backend does not matter for what the graph means, and this one needs no compiler.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch, about what torch.compile does itself
        traced = torch.compile(manifold.__call__, fullgraph=True, backend="eager")(theta)
    yield at_most("change of H in a graph", (traced - manifold(theta)).abs().max(), manifold.tolerance(case.dtype))
