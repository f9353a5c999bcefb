"""Laws between several matrices, or several ways to one: symmetries, mixtures, a second formula."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hyperconn.manifolds import Invariant, Manifold
from hyperconn.manifolds.core.symmetries import relabelled
from hyperconn.testing.case import Case
from hyperconn.testing.law import CRASHES, TOKENS, law
from hyperconn.testing.laws.tools import worst_residual
from hyperconn.testing.measured import Measured, at_most

_DRAW, _WEIGHTS = 3, 4


def _has_reference(manifold: Manifold) -> bool:
    try:
        manifold.reference(manifold.identity(dtype=torch.float64))
    except NotImplementedError:
        return False
    except CRASHES:  # a bug is for the law to report
        return True
    return True


@law(condition=_has_reference, scales=(0.0, 1e-3, 1.0, 3.0))
def reference(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """m(theta) is what the manifold's second formula of its map gives in float64."""
    theta = case.coordinates(manifold)
    distance = (manifold(theta).double() - manifold.reference(theta.double())).abs().amax()
    # Far out the reference itself is the worse of the two. Here too, a solve multiplies rounding by the condition of
    # its matrix, which grows with the coordinates.
    yield at_most("distance of H to the reference", distance, (1 + case.scale) * manifold.tolerance(case.dtype))


@law(condition=lambda manifold: bool(manifold.symmetries), scales=(0.0, 1e-3, 0.3), batches=TOKENS)
def symmetries(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """A symmetry of the map changes H as it says, and the violation of a member not at all."""
    theta = case.coordinates(manifold)
    H, draw = manifold(theta), case.normal(2, manifold.n, stream=_DRAW)
    for symmetry in manifold.symmetries:
        moved = manifold(symmetry.coordinates(theta, draw))
        distance = (moved - symmetry.matrices(H, draw)).abs().amax()
        yield at_most(f"error of the symmetry {symmetry.name}", distance, manifold.tolerance(case.dtype))


def _mixed(manifold: Manifold) -> tuple[Invariant, ...]:
    return tuple(invariant for invariant in manifold.exact_invariants if invariant.closed_under_mixtures)


@law(condition=lambda manifold: bool(_mixed(manifold)), scales=(0.0, 1.0, 10.0, 1e4), batches=TOKENS[1:])
def mixtures(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """Convex combinations of members keep what mixtures keep."""
    kept = _mixed(manifold)
    H = _members(manifold, case, kept)
    weights = case.normal(len(H), len(H), stream=_WEIGHTS).softmax(-1)
    mixed = (weights @ H.flatten(1)).unflatten(-1, (manifold.n, manifold.n)) if len(H) else H
    if len(H):
        # Each row of weights sums to 1 up to a rounding, and so does each sum that runs over it.
        bound = 2 * manifold.tolerance(case.dtype)
        yield at_most("violation of a mixture", worst_residual(kept, mixed).amax(), bound)


def _relabelled(manifold: Manifold) -> tuple[Invariant, ...]:
    return tuple(invariant for invariant in manifold.exact_invariants if invariant.closed_under_relabelling)


@law(condition=lambda manifold: bool(_relabelled(manifold)), scales=(0.0, 1.0, 10.0, 1e4))
def relabelling(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """P H Pᵀ keeps, for every permutation P of the streams, what does not care for their order."""
    kept = _relabelled(manifold)
    H = _members(manifold, case, kept)
    if len(H):
        renamed = relabelled(H, case.normal(2, manifold.n, stream=_DRAW))
        yield at_most("violation of P H Pᵀ", worst_residual(kept, renamed).amax(), 2 * manifold.tolerance(case.dtype))


def _members(manifold: Manifold, case: Case, kept: tuple[Invariant, ...]) -> Tensor:
    H = manifold(case.coordinates(manifold)).reshape(-1, manifold.n, manifold.n)
    return H[worst_residual(kept, H) <= manifold.tolerance(case.dtype)]
