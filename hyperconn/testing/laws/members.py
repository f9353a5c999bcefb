"""What being a member of the set promises."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hyperconn.manifolds import Invariant, Manifold, invariants
from hyperconn.testing.case import Case
from hyperconn.testing.law import SINGLE_AND_DOUBLE, TOKENS, law
from hyperconn.testing.laws.tools import worst_residual
from hyperconn.testing.measured import Measured, at_least, at_most, fact

# Violating one of these takes no more than one wrong entry, wherever it stands.
_ENTRYWISE = {invariants.row_sums, invariants.column_sums, invariants.orthogonal, invariants.is_identity}

# These leave room on no side: some entry, off by a little, breaks them.
_WITHOUT_INTERIOR = {invariants.spectral_norm, invariants.symmetric, invariants.idempotent}

_NUDGE = 0.01
_DEPTHS = (1, 10, 100, 1000)
_SWEEPS = (1, 2, 3, 5, 10, 20, 40)


@law(
    condition=lambda manifold: manifold.exact or bool(manifold.exact_invariants),
    dtypes=(*SINGLE_AND_DOUBLE, torch.bfloat16),
)
def membership(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """H violates no promised invariant by more than tolerance(dtype), at any scale of the coordinates."""
    H = manifold(case.coordinates(manifold))
    bound = manifold.tolerance(case.dtype)
    if manifold.exact:
        yield at_most("violation", manifold.violation(H).amax(), bound)
    else:
        promised = manifold.exact_invariants
        names = ", ".join(invariant.name for invariant in promised)
        yield at_most(f"violation of {names}", worst_residual(promised, H).amax(), bound)
        yield at_most("violation, of which nothing is promised", manifold.violation(H).amax(), math.inf)


def _has_iterations(manifold: Manifold) -> bool:
    return not manifold.exact and any(field.name == "iterations" for field in dataclasses.fields(manifold))


@law(condition=_has_iterations, scales=(1e-3, 1.0, 3.0, 10.0, 1e2, 1e4))
def iterations(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """More iterations never violate more; where no equation is exact, up to scale 3 and to single precision."""
    # Published code adds some 1e-6 to denominators. The sums of a converged matrix drift by as much, and where a
    # denominator is smaller than that, the sweeps do not converge at all.
    no_exact_equation = set(manifold.exact_invariants) <= {invariants.nonnegative}
    if no_exact_equation and (case.scale > 3.0 or case.dtype != torch.float32):
        return
    theta = case.coordinates(manifold)
    previous: Tensor | None = None
    for count in _SWEEPS:
        iterated = dataclasses.replace(manifold, iterations=count)  # type: ignore[call-arg]
        violation = iterated.violation(iterated(theta))
        if previous is not None:
            rise = (violation - previous).amax()
            yield at_most(f"rise of the violation up to {count} iterations", rise, manifold.tolerance(case.dtype))
        previous = violation


def _kept(manifold: Manifold) -> tuple[Invariant, ...]:
    return tuple(invariant for invariant in manifold.exact_invariants if invariant.closed_under_products)


@law(condition=lambda manifold: bool(_kept(manifold)), scales=(1.0, 10.0, 1e4), batches=((max(_DEPTHS),),))
def products(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """A product of up to 1000 members keeps what products keep; its error grows at most linearly with depth."""
    kept = _kept(manifold)
    H = manifold(case.coordinates(manifold)).reshape(-1, manifold.n, manifold.n)
    members = H[worst_residual(kept, H) <= manifold.tolerance(case.dtype)]
    composed = torch.eye(manifold.n, dtype=case.dtype, device=case.device)
    for depth, member in enumerate(members, start=1):
        composed = member @ composed
        if manifold.norm_bound is None and not composed.isfinite().all():
            break  # nothing says that products of these stay small
        if depth in _DEPTHS:
            bound = depth * manifold.tolerance(case.dtype)
            yield at_most(f"violation at depth {depth}", worst_residual(kept, composed), bound)


@law(
    condition=lambda manifold: manifold.norm_bound is not None,
    dtypes=(*SINGLE_AND_DOUBLE, torch.bfloat16),
    batches=((max(_DEPTHS),), *TOKENS),
)
def norm_bound(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """‖H‖₂ never exceeds norm_bound, nor does the norm of a product of k members its k-th power, k up to 1000."""
    bound, tolerance = manifold.norm_bound, manifold.tolerance(case.dtype)
    assert bound is not None
    H = manifold(case.coordinates(manifold)).double().reshape(-1, manifold.n, manifold.n)
    yield at_most("spectral norm beyond norm_bound", torch.linalg.matrix_norm(H, 2).amax() - bound, bound * tolerance)
    # Relative to the bound, so that its powers neither vanish nor overflow.
    depth, composed = len(H), H / bound
    while len(composed) > 1:
        odd = composed[len(composed) // 2 * 2 :]
        composed = torch.cat([composed[1::2] @ composed[: len(composed) // 2 * 2 : 2], odd])
    excess = torch.linalg.matrix_norm(composed, 2).amax() - 1
    yield at_most(f"norm of a product of {depth} beyond norm_bound^{depth}, relative", excess, depth * tolerance)


@law(
    condition=lambda manifold: bool(manifold.invariants),
    scales=(1e-3, 1.0),
    dtypes=(torch.float64,),
    batches=TOKENS[1:],
)
def perturbation(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """violation sees what leaves the set: one wrong entry, a negative entry behind right sums, any broken invariant."""
    n = manifold.n
    eye = torch.eye(n, dtype=case.dtype, device=case.device)
    noise = case.normal(n, n, stream=3)
    unseen = worst_residual(manifold.invariants, noise) - manifold.violation(noise)
    yield at_most("residual of a random matrix beyond its violation", unseen, 0.0)
    for invariant in manifold.invariants:
        residual = invariant.residual(torch.stack([noise, eye, 2 * eye - 1 / n]))
        yield at_least(f"residual of {invariant.name}, which is never negative", residual.amin(), 0.0)
    spoiled = noise.clone()
    spoiled[case.seed % n, case.seed // n % n] = math.nan
    yield fact("the violation of a matrix with one NaN is NaN", bool(manifold.violation(spoiled).isnan()))
    centred = noise - noise.mean(0) - noise.mean(1, keepdim=True) + noise.mean()
    number = not bool(manifold.violation(torch.stack([0 * eye, centred])).isnan().any())
    yield fact("the violation of a finite matrix is a number, also where sums are 0", number)
    if invariants.nonnegative in manifold.invariants and n > 1:
        # The block [[2, −1], [−1, 2]] has the right sums.
        difference = eye[0] - eye[1]
        yield at_least("violation of an entry −1", manifold.violation(eye + torch.outer(difference, difference)), 1.0)

    H = manifold(case.coordinates(manifold)).reshape(-1, n, n)
    members = H[manifold.violation(H).reshape(-1) <= _NUDGE / 1000]
    if not len(members):  # iterative maps are off by more than the nudge at large scales
        return
    entries = torch.eye(n * n, dtype=case.dtype, device=case.device).reshape(n * n, 1, n, n)
    # A set with an interior, such as all contractions, minds an entry only when it is off by more than members are
    # large.
    interior = not (_ENTRYWISE | _WITHOUT_INTERIOR) & set(manifold.invariants)
    nudge = 2 * (1 + n * float(members.abs().amax())) if interior else _NUDGE
    caught = torch.stack([manifold.violation(members + sign * nudge * entries) for sign in (-1, 1)]).flatten(0, 1)
    # A wrong entry moves a sum by itself, and a Gram matrix by itself times the largest entry of a unit vector,
    # which is at least 1/√n. A norm alone may not mind an entry, but it minds the one where its singular vectors
    # are largest, at least 1/n.
    floor = _NUDGE / (2 * n)
    if _ENTRYWISE & set(manifold.invariants):
        yield at_least("violation of an entry off by 0.01", caught.amin(), floor)
    else:
        yield at_least(f"violation of the worst entry off by {nudge:g}", caught.amax(0).amin(), floor)
