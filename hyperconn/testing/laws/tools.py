"""Small questions that several laws ask of a manifold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperconn.manifolds import Invariant, Manifold
from hyperconn.testing.case import Case
from hyperconn.testing.law import CRASHES

COTANGENT = 2


def worst_residual(invariants: Sequence[Invariant], H: Tensor) -> Tensor:
    """``[...]`` the largest residual of ``H [..., n, n]`` over some invariants."""
    residuals = [invariant.residual(H) for invariant in invariants]
    return torch.stack(residuals).amax(0) if residuals else torch.zeros(H.shape[:-2], dtype=torch.float64)


def is_member(manifold: Manifold, H: Tensor) -> Tensor:
    """``[...]`` whether each matrix is in the set to rounding, and so must be accepted by ``coordinates``."""
    limit = min(manifold.tolerance(H.dtype), torch.finfo(H.dtype).eps ** 0.5 / 2)
    return manifold.violation(H) <= limit


def is_constant(manifold: Manifold, device: str) -> bool:
    """Whether the map takes all coordinates to one matrix, judged by three random points far apart."""
    theta = Case(seed=17, scale=2.0, batch=(3,), dtype=torch.float64, device=device).smooth_coordinates(manifold)
    H = manifold(theta)
    return bool((H - H[:1]).abs().amax() <= 100 * manifold.tolerance(torch.float64))


def has_right_inverse(manifold: Manifold) -> bool:
    """Whether ``coordinates`` is there at all; what it is worth is for a law to say."""
    try:
        manifold.coordinates(manifold(manifold.identity(dtype=torch.float64)))
    except NotImplementedError:
        return False
    except CRASHES:  # an iterative manifold may be too far from its own set; a bug is for the law to report
        return True
    return True


def pull_back(manifold: Manifold, theta: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """The gradient of ``⟨w, m(theta)⟩`` for a random w, and H; zeros where the map is constant."""
    theta = theta.detach().requires_grad_()
    H = manifold(theta)
    w = case.normal(*H.shape, stream=COTANGENT)
    return gradient_of((H * w).sum(), theta, create_graph=False), H.detach()


def gradient_of(value: Tensor, theta: Tensor, *, create_graph: bool, retain_graph: bool | None = None) -> Tensor:
    """Gradient of a scalar by the coordinates; zeros where it does not depend on them."""
    if not value.requires_grad:
        return torch.zeros_like(theta)
    (gradient,) = torch.autograd.grad(
        value, theta, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
    )
    return torch.zeros_like(theta) if gradient is None else gradient
