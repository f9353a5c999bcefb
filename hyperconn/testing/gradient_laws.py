"""What the derivatives of a map promise.

Derivatives are checked along random directions, token by token: ``⟨∇⟨w, m(θ)⟩, d⟩`` against a difference of
``⟨w, m(θ ± h d)⟩``. A map may have kinks (a minimum, a clamp), where any value between the one-sided derivatives
is right. Half the gap between the two one-sided differences is added to the bound: next to a kink that is the
size of its jump, and elsewhere it is h times a curvature, which is nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hyperconn.gates import Gate
from hyperconn.manifolds import Invariant, Manifold
from hyperconn.manifolds.core.map import Map
from hyperconn.testing.case import Case
from hyperconn.testing.law import SINGLE_AND_DOUBLE, law
from hyperconn.testing.law_tools import (
    COTANGENT,
    DIRECTION,
    SECOND_DIRECTION,
    available,
    gradient_of,
    has_coordinates,
    is_constant,
    pull_back,
    rounding,
)
from hyperconn.testing.measured import Measured, at_least, at_most, fact

# The error of a difference is the rounding of its two values, some eps, over the step: about 1e-9.
_STEP = 1e-6
_RELATIVE = 1e-6
# Within these scales the maps are neither saturated nor, if iterative, far from their limit.
_MODERATE = (0.3, 1.0)


@law(kind=Map, dtypes=(*SINGLE_AND_DOUBLE, torch.bfloat16))
def finite(subject: Map, case: Case) -> Iterator[Measured]:
    """H and its gradient are finite at any scale, zero coordinates included."""
    gradient, H = pull_back(subject, case.coordinates(), case)
    yield at_most("entries of H that are not finite", (~H.isfinite()).sum(), 0.0)
    yield at_most("entries of the gradient that are not finite", (~gradient.isfinite()).sum(), 0.0)


@law(kind=(Manifold, Gate), condition=has_coordinates)
def bounded_gradients(subject: Map, case: Case) -> Iterator[Measured]:
    """The derivative of H by a coordinate is at most 100 n times the larger of 1 and the largest entry of H.

    The worst of the built-in maps comes to 4. Dividing by a rounding error, the classic mistake, gives 1e7 in
    float32 and 1e17 in float64.
    """
    gradient, H = pull_back(subject, case.coordinates(), case)
    tokens = case.count
    gradient = gradient.reshape(tokens, -1).double()
    # What is not finite is the business of another law.
    largest = torch.where(gradient.isfinite(), gradient, 0.0).abs().amax(-1)
    w = case.normal(*H.shape, stream=COTANGENT).double()
    size = H.double().reshape(tokens, -1).abs().amax(-1).nan_to_num(1.0).clamp(min=1.0)
    derivative = largest / w.reshape(tokens, -1).norm(dim=-1) / size
    yield at_most("gradient of ⟨w, H⟩, ‖w‖ = 1", derivative.amax(), 100.0 * subject.n)


@law(kind=Map, condition=has_coordinates, scales=_MODERATE, dtypes=(torch.float64,), batches=((4,),), smooth=True)
def first_derivative(subject: Map, case: Case) -> Iterator[Measured]:
    """The gradient is the derivative of the map, in float64, and every coordinate has a part in it."""
    theta = case.coordinates()

    def values(theta: Tensor) -> Tensor:
        H = subject(theta)
        return (H * case.normal(*H.shape, stream=COTANGENT)).reshape(case.count, -1).sum(-1)

    differentiable = theta.clone().requires_grad_()
    gradient = gradient_of(values(differentiable).sum(), differentiable)
    direction = case.normal(*theta.shape, stream=DIRECTION)
    reference, excess = _compare(values, theta, direction, (gradient * direction).sum(-1))
    constant = is_constant(subject, case.device)  # as a single stream leaves many maps, and a static predictor always
    if not constant:
        yield at_least("largest reference derivative", reference.abs().amax(), 1e-4)
    if subject.n > 1 and (isinstance(subject, (Manifold, Gate)) or not constant):
        used = gradient.abs().reshape(-1, subject.num_coordinates).amax(0)
        idle = set(subject.idle_coordinates) if isinstance(subject, Manifold) else set()
        counted = [k for k in range(subject.num_coordinates) if k not in idle]
        yield at_least("gradient of the coordinate that H depends on least", used[counted].amin(), 1e-9)
        yield at_most("gradient of coordinates that are said to be idle", used[sorted(idle)].sum(), 0.0)
    yield at_most("error of the derivative beyond the gap at a kink", excess.amax(), _RELATIVE)


@law(
    kind=Map,
    condition=has_coordinates,
    scales=(*_MODERATE, 10.0),
    dtypes=(torch.float32,),
    batches=((4,),),
    smooth=True,
)
def gradient_precision(subject: Map, case: Case) -> Iterator[Measured]:
    """The gradient in float32 is that of float64, whose derivatives the other laws check: within a tenth."""
    # A tenth, because next to a kink (a minimum, a clamp) rounding decides between the derivatives of its two sides.
    theta = case.coordinates()
    single, H = pull_back(subject, theta, case)
    cotangent = case.normal(*H.shape, stream=COTANGENT).double()
    leaf = theta.double().requires_grad_()
    double = gradient_of((subject(leaf) * cotangent).sum(), leaf)
    error = (single.double() - double).abs().amax()
    bound = 0.1 * float(double.abs().amax()) + 100 * rounding(subject, case.dtype)
    yield at_most("difference of the gradients in float32 and float64", error, bound)


@law(kind=Map, condition=has_coordinates, scales=_MODERATE, dtypes=(torch.float64,), batches=((4,),), smooth=True)
def second_derivative(subject: Map, case: Case) -> Iterator[Measured]:
    """The gradient of a gradient is the derivative of the gradient, in float64."""
    theta = case.coordinates()
    direction = case.normal(*theta.shape, stream=DIRECTION)
    towards = case.normal(*theta.shape, stream=SECOND_DIRECTION)

    def slopes(theta: Tensor, *, create_graph: bool = False) -> Tensor:
        if not theta.requires_grad:
            theta = theta.clone().requires_grad_()
        H = subject(theta)
        value = (H * case.normal(*H.shape, stream=COTANGENT)).sum()
        return (gradient_of(value, theta, create_graph=create_graph) * towards).sum(-1)

    differentiable = theta.clone().requires_grad_()
    second = gradient_of(slopes(differentiable, create_graph=True).sum(), differentiable)
    _, excess = _compare(slopes, theta, direction, (second * direction).sum(-1))
    yield fact("the second derivative is finite", bool(second.isfinite().all()))
    yield at_most("error of the second derivative beyond the gap at a kink", excess.amax(), _RELATIVE)


def _equations(manifold: Manifold) -> list[Invariant]:
    return [invariant for invariant in manifold.exact_invariants if invariant.normal is not None]


@law(
    condition=lambda manifold: has_coordinates(manifold) and bool(_equations(manifold)),
    scales=(0.0, 1.0, 10.0, 1e2),
    dtypes=SINGLE_AND_DOUBLE,
)
def tangent(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """No coordinate moves H off an exact equation, like sums or HᵀH = I: at random ones and at initial()."""
    starts = [manifold.initial(sharpness, dtype=case.dtype, device=case.device) for sharpness in (1.0, 4.0, 8.0)]
    theta = torch.cat([case.coordinates().reshape(-1, manifold.num_coordinates), torch.stack(starts)])
    theta.requires_grad_()
    H = manifold(theta)
    for invariant in _equations(manifold):
        assert invariant.normal is not None
        W = case.normal(*H.shape, stream=COTANGENT)
        normal = invariant.normal(H.detach(), W)
        normal = normal / torch.linalg.matrix_norm(normal, keepdim=True).clamp(min=1)
        gradient = gradient_of((H * normal).sum(), theta, retain_graph=True)
        relative = gradient.abs().amax() / H.detach().abs().amax().clamp(min=1)
        yield at_most(f"gradient off {invariant.name}", relative, 10 * manifold.tolerance(case.dtype))


def _has_forward_mode(subject: Map) -> bool:
    theta = torch.zeros(subject.num_coordinates, dtype=torch.float64)
    return has_coordinates(subject) and available(lambda: _push_forward(subject, theta, theta))


@law(kind=Map, condition=_has_forward_mode, scales=_MODERATE, dtypes=(torch.float64,), batches=((4,),), smooth=True)
def forward_mode(subject: Map, case: Case) -> Iterator[Measured]:
    """Forward-mode differentiation, where a map has it, agrees with the gradient."""
    theta = case.coordinates()
    direction = case.normal(*theta.shape, stream=DIRECTION)
    tangent = _push_forward(subject, theta, direction)
    gradient, _ = pull_back(subject, theta, case)
    forward = (tangent * case.normal(*tangent.shape, stream=COTANGENT)).sum()
    backward = (gradient * direction).sum()
    error = (forward - backward).abs() / (1 + backward.abs())
    yield at_most("difference of ⟨w, J d⟩ and ⟨Jᵀ w, d⟩", error, 100 * rounding(subject, case.dtype))


def _push_forward(subject: Map, theta: Tensor, direction: Tensor) -> Tensor:
    """``[..., n, n]`` the derivative of H along a direction; zeros where H does not depend on the coordinates."""
    with forward_ad.dual_level(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch loads a deprecated part of itself for this
        H = forward_ad.unpack_dual(subject(forward_ad.make_dual(theta, direction)))
    return torch.zeros_like(H.primal) if H.tangent is None else H.tangent


def _compare(
    function: Callable[[Tensor], Tensor], theta: Tensor, direction: Tensor, derivative: Tensor
) -> tuple[Tensor, Tensor]:
    """Central differences ``[T]`` of a function, and how far ``derivative [T]`` is outside of what they allow."""
    with torch.enable_grad():
        centre = function(theta).detach()
        ahead = (function(theta + _STEP * direction).detach() - centre) / _STEP
        behind = (centre - function(theta - _STEP * direction).detach()) / _STEP
    reference = (ahead + behind) / 2
    error = (derivative.detach() - reference).abs() - (ahead - behind).abs() / 2
    return reference, error.clamp(min=0) / (1 + reference.abs())
