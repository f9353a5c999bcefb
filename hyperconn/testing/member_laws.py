"""What being a member of the set promises, alone, among others, and at the ends of floating point."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperconn.manifolds import Invariant, Manifold, invariants
from hyperconn.manifolds.core.symmetries import relabelled
from hyperconn.testing.case import Case
from hyperconn.testing.law import SINGLE_AND_DOUBLE, TOKENS, law
from hyperconn.testing.law_tools import DRAW, has_coordinates, pull_back, worst_residual
from hyperconn.testing.measured import Measured, at_least, at_most, fact

# Violating one of these takes no more than one wrong entry, wherever it stands.
_ENTRYWISE = {invariants.row_sums, invariants.column_sums, invariants.orthogonal, invariants.is_identity}

# These leave room on no side: some entry, off by a little, breaks them.
_WITHOUT_INTERIOR = {invariants.spectral_norm, invariants.symmetric, invariants.idempotent}

_NUDGE = 0.01
_DEPTHS = (1, 10, 100, 1000)
_SWEEPS = (1, 2, 3, 5, 10, 20, 40)
_PROBE, _WEIGHTS = 8, 9
_Matrix = NDArray[Any]


@law(
    condition=lambda manifold: manifold.exact or bool(manifold.exact_invariants),
    dtypes=(*SINGLE_AND_DOUBLE, torch.bfloat16),
)
def membership(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """H violates no promised invariant by more than tolerance(dtype), at any scale of the coordinates."""
    H = manifold(case.coordinates())
    bound = manifold.tolerance(case.dtype)
    if manifold.exact:
        yield at_most("violation", manifold.violation(H).amax(), bound)
    else:
        promised = manifold.exact_invariants
        names = ", ".join(invariant.name for invariant in promised)
        yield at_most(f"violation of {names}", worst_residual(promised, H).amax(), bound)
        yield at_most("violation, of which nothing is promised", manifold.violation(H).amax(), math.inf)


def _adversarial(P: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[T, P]`` finite coordinates: largest, smallest, denormal, equal, one-hot, alternating and mixed ones."""
    finfo = torch.finfo(dtype)
    denormal, large = finfo.tiny * finfo.eps, min(1e30, finfo.max)
    values = torch.tensor(
        [large, -large, finfo.max, finfo.min, finfo.tiny, denormal, -denormal, -0.0, 1e4, 88.8, -104.0],
        dtype=torch.float64,
    )
    generator = torch.Generator().manual_seed(0)
    places = torch.eye(P, dtype=torch.float64)[sorted({0, P // 2, P - 1})]
    one_hot = [value * places for value in (large, -large, finfo.max, finfo.min, denormal)]
    odd = torch.arange(P, dtype=torch.float64) % 2
    alternating = finfo.max * torch.stack([2 * odd - 1, 0.01 * (1 - odd) - odd])
    mixed = values[torch.randint(len(values), (8, P), generator=generator)]
    normal = torch.randn(3, P, dtype=torch.float64, generator=generator)
    sizes = torch.tensor([[finfo.max], [large], [1e4]], dtype=torch.float64)
    directions = normal / normal.abs().amax(-1, keepdim=True) * sizes
    everything = torch.cat([values[:, None].expand(-1, P), *one_hot, alternating, mixed, directions])
    return everything.to(dtype=dtype, device=device)


def _grows(manifold: Manifold, case: Case) -> bool:
    """Whether an exact set promises no bound, and has none: entries grow with the coordinates."""
    far = Case.of(manifold, 5, 1e4, (8,), torch.float64, str(case.device))
    unbounded = manifold.exact and manifold.norm_bound is None
    return unbounded and bool(manifold(far.theta).abs().amax() > 1e3)


@law(
    condition=lambda manifold: bool(manifold.exact_invariants) and has_coordinates(manifold),
    scales=(1.0,),
    dtypes=(*SINGLE_AND_DOUBLE, torch.bfloat16, torch.float16),
    random=False,
)
def extremes(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """Exact invariants hold, and H and its gradient are finite, at any finite coordinates: 1e30, denormals, ties.

    In a set without a bound, up to the fourth root of the largest float.
    """
    theta = _adversarial(manifold.num_coordinates, case.dtype, case.device)
    if _grows(manifold, case):  # products of large entries overflow, and have to
        largest = torch.finfo(case.dtype).max ** 0.25
        theta = theta.clamp(-largest, largest)
    gradient, H = pull_back(manifold, theta, case)
    worst = worst_residual(manifold.exact_invariants, H).amax()
    yield at_most("violation of an exact invariant", worst, manifold.tolerance(case.dtype))
    yield at_most("entries of the gradient that are not finite", (~gradient.isfinite()).sum(), 0.0)


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
    theta = case.coordinates()
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
    composed = torch.eye(manifold.n, dtype=case.dtype, device=case.device)
    for depth, member in enumerate(_members(manifold, case, kept), start=1):
        composed = member @ composed
        if manifold.norm_bound is None and not composed.isfinite().all():
            break  # nothing says that products of these stay small
        if depth in _DEPTHS:
            bound = depth * manifold.tolerance(case.dtype)
            yield at_most(f"violation at depth {depth}", worst_residual(kept, composed), bound)


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


def _relabelling(manifold: Manifold) -> tuple[Invariant, ...]:
    return tuple(invariant for invariant in manifold.exact_invariants if invariant.closed_under_relabelling)


@law(condition=lambda manifold: bool(_relabelling(manifold)), scales=(0.0, 1.0, 10.0, 1e4))
def relabelling(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """P H Pᵀ keeps, for every permutation P of the streams, what does not care for their order."""
    kept = _relabelling(manifold)
    H = _members(manifold, case, kept)
    if len(H):
        renamed = relabelled(H, case.normal(2, manifold.n, stream=DRAW))
        yield at_most("violation of P H Pᵀ", worst_residual(kept, renamed).amax(), 2 * manifold.tolerance(case.dtype))


def _members(manifold: Manifold, case: Case, kept: tuple[Invariant, ...]) -> Tensor:
    H = manifold(case.coordinates()).reshape(-1, manifold.n, manifold.n)
    return H[worst_residual(kept, H) <= manifold.tolerance(case.dtype)]


@law(
    condition=lambda manifold: manifold.norm_bound is not None,
    dtypes=(*SINGLE_AND_DOUBLE, torch.bfloat16),
    batches=((max(_DEPTHS),), *TOKENS),
)
def norm_bound(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """‖H‖₂ never exceeds norm_bound, nor does the norm of a product of k members its k-th power, k up to 1000."""
    bound, tolerance = manifold.norm_bound, manifold.tolerance(case.dtype)
    assert bound is not None
    H = manifold(case.coordinates()).double().reshape(-1, manifold.n, manifold.n)
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
    noise = case.normal(n, n, stream=_PROBE)
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

    H = manifold(case.coordinates()).reshape(-1, n, n)
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


# Each once more, for one matrix, by somebody else's linear algebra.
_FORMULAS: dict[str, Callable[[_Matrix], float]] = {
    "row_sums": lambda H: np.abs(H @ np.ones(len(H)) - 1).max(),
    "column_sums": lambda H: np.abs(np.ones(len(H)) @ H - 1).max(),
    "nonnegative": lambda H: max(0.0, -H.min()),
    "orthogonal": lambda H: np.abs(np.einsum("ki,kj->ij", H, H) - np.eye(len(H))).max(),
    "spectral_norm": lambda H: abs(np.linalg.norm(H, 2) - 1),
    "non_expansive": lambda H: max(0.0, np.linalg.norm(H, 2) - 1),
    "symmetric": lambda H: np.abs(H - H.T).max(),
    "idempotent": lambda H: np.abs(np.einsum("ik,kj->ij", H, H) - H).max(),
    "is_identity": lambda H: np.abs(H - np.eye(len(H))).max(),
}


def _formula(invariant: Invariant) -> Callable[[_Matrix], float] | None:
    """The formula of one of the library's conditions; None for those of others, who may measure as they like."""
    if invariant.name.startswith("trace_") and invariant.name[6:].isdecimal():
        value = int(invariant.name[6:])
        return (lambda H: abs(np.trace(H) - value)) if invariant == invariants.trace(value) else None
    return _FORMULAS.get(invariant.name) if invariant == getattr(invariants, invariant.name, None) else None


@law(
    condition=lambda manifold: any(_formula(invariant) is not None for invariant in manifold.invariants),
    scales=(1.0,),
    dtypes=(torch.float64,),
)
def measures(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """Residuals of the library's own invariants are those of their formulas, at members and anywhere else."""
    n = manifold.n
    noise = case.normal(4, n, n, stream=_PROBE)
    eye = torch.eye(n, dtype=noise.dtype, device=noise.device)
    H = manifold(case.coordinates()).reshape(-1, n, n)[:4]
    probes = torch.cat([noise, noise.abs(), 0.1 * noise, 1e160 * noise, noise / noise.norm(dim=-2, keepdim=True), H])
    probes = torch.cat([probes, torch.stack([eye, eye / 2, -eye, 1 - eye])])
    for invariant in manifold.invariants:
        formula = _formula(invariant)
        if formula is None:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            expected = torch.tensor([float(formula(probe)) for probe in probes.cpu().numpy()], dtype=torch.float64)
        apart = (invariant.residual(probes).cpu() - expected).abs() / (1 + expected)
        seen = expected.isfinite()  # squares of 1e160 are not
        yield at_most(f"difference of {invariant.name} and its formula", apart[seen].amax(), 1e-12)
