"""Small questions that several laws ask of a map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hyperconn.manifolds import Invariant, Manifold
from hyperconn.manifolds.core.map import Map
from hyperconn.testing.case import Case
from hyperconn.testing.law import CRASHES

# Streams of random numbers that several laws share.
COTANGENT, DIRECTION, SECOND_DIRECTION, DRAW = 2, 3, 4, 5


def rounding(subject: Map, dtype: torch.dtype) -> float:
    """What rounding explains: a manifold says so itself, of other maps it is 16 n eps."""
    return subject.tolerance(dtype) if isinstance(subject, Manifold) else 16.0 * subject.n * torch.finfo(dtype).eps


def has_coordinates(subject: Map) -> bool:
    """Whether there is anything to differentiate by."""
    return subject.num_coordinates > 0


def available(call: Callable[[], object]) -> bool:
    """Whether something that is optional is there: it does not raise NotImplementedError.

    Any other error is a bug, which is for the law to report.
    """
    try:
        call()
    except NotImplementedError:
        return False
    except CRASHES:
        return True
    return True


def has_right_inverse(manifold: Manifold) -> bool:
    """Whether ``coordinates`` is there at all; what it is worth is for a law to say."""
    inherited = type(manifold).coordinates is Manifold.coordinates
    return not inherited and available(lambda: manifold.coordinates(manifold(manifold.identity(dtype=torch.float64))))


def worst_residual(invariants: Sequence[Invariant], H: Tensor) -> Tensor:
    """``[...]`` the largest residual of ``H [..., n, n]`` over some invariants."""
    residuals = [invariant.residual(H) for invariant in invariants]
    return torch.stack(residuals).amax(0) if residuals else torch.zeros(H.shape[:-2], dtype=torch.float64)


def is_member(manifold: Manifold, H: Tensor) -> Tensor:
    """``[...]`` whether each matrix is in the set to rounding, and so must be accepted by ``coordinates``."""
    limit = min(manifold.tolerance(H.dtype), torch.finfo(H.dtype).eps ** 0.5 / 2)
    return manifold.violation(H) <= limit


def is_constant(subject: Map, device: torch.device | str) -> bool:
    """Whether the map takes all coordinates to one value, judged by three random points far apart."""
    H = subject(Case.of(subject, 17, 2.0, (3,), torch.float64, str(device), smooth=True).theta)
    return bool((H - H[:1]).abs().amax() <= 100 * rounding(subject, torch.float64))


def pull_back(subject: Map, theta: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """The gradient of ``⟨w, m(theta)⟩`` for a random w, and m(theta); zeros where the map is constant."""
    theta = theta.detach().requires_grad_()
    H = subject(theta)
    w = case.normal(*H.shape, stream=COTANGENT)
    return gradient_of((H * w).sum(), theta), H.detach()


def gradient_of(
    value: Tensor, theta: Tensor, *, create_graph: bool = False, retain_graph: bool | None = None
) -> Tensor:
    """Gradient of a scalar by the coordinates; zeros where it does not depend on them."""
    if not value.requires_grad:
        return torch.zeros_like(theta)
    (gradient,) = torch.autograd.grad(
        value, theta, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
    )
    return torch.zeros_like(theta) if gradient is None else gradient
