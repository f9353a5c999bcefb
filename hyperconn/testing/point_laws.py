"""What a manifold says of itself: its points, its right inverse, its second formula, its symmetries, its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hyperconn.manifolds import Manifold, invariants
from hyperconn.manifolds.core.map import Map
from hyperconn.testing.case import Case
from hyperconn.testing.law import law
from hyperconn.testing.law_tools import (
    DRAW,
    available,
    has_right_inverse,
    is_constant,
    is_member,
    pull_back,
    rounding,
)
from hyperconn.testing.measured import Measured, at_least, at_most, fact

_NUDGE = 8
_SHARPNESSES = (4.0, 8.0, 32.0)


def _gap(H: Tensor) -> Tensor:
    """Frobenius distance of ``H [..., n, n]`` to the identity: ``[...]`` float64."""
    H = H.double()
    return torch.linalg.matrix_norm(H - torch.eye(H.shape[-1], dtype=H.dtype, device=H.device))


@law(scales=(0.0, 1.0, 10.0, 1e4))
def identity(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """identity() maps to I if contains_identity says so; if not, no member is I, and none is nearer than identity()."""
    H = manifold(manifold.identity(dtype=case.dtype, device=case.device))
    if manifold.contains_identity:
        largest = (H.double() - torch.eye(manifold.n, dtype=torch.float64, device=H.device)).abs().amax()
        yield at_most("distance of m(identity()) to I", largest, manifold.tolerance(case.dtype))
        return
    if case.dtype != torch.float64:  # a set may miss the identity by less than narrower dtypes can tell
        return
    distances = _gap(manifold(case.coordinates()))
    bound = 10 * manifold.tolerance(case.dtype)
    yield at_least("distance of m(identity()) to I, said to be out of reach", _gap(H), bound)
    yield at_least("distance of other members to I, said to be out of reach", distances.amin(), bound)
    yield at_most("distance to I of m(identity()) beyond that of others", _gap(H) - distances.amin(), bound)


@law(scales=(0.0,), dtypes=(torch.float64,))
def initial(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """initial(sharpness) maps to finite H, nearer to the identity the sharper, and has gradients to learn from.

    Where the identity is in reach, but the bluntest start is not there yet, the sharpest has to be twice as near.
    """
    constant = is_constant(manifold, case.device)
    gaps: list[Tensor] = []
    for sharpness in _SHARPNESSES:
        start = manifold.initial(sharpness, dtype=case.dtype, device=case.device)
        H = manifold(start)
        yield fact(f"m(initial({sharpness})) is finite", bool(H.isfinite().all()))
        if sharpness <= 8.0 and not constant:  # sharper ones are asked for in order to stay where they are
            # One cotangent can be blind to where a map of few dimensions can go.
            gradient, _ = pull_back(manifold, start.expand(8, -1), case)
            yield at_least(f"gradient at initial({sharpness})", gradient.abs().amax(), 1e-6)
        gaps.append(_gap(H))
        if len(gaps) > 1:
            beyond = f"distance to I of m(initial({sharpness})) beyond that of a blunter one"
            yield at_most(beyond, gaps[-1] - gaps[-2], manifold.tolerance(case.dtype))
    if manifold.contains_identity and gaps[0] > 100 * manifold.tolerance(case.dtype):
        sharpest = f"distance to I of m(initial({_SHARPNESSES[-1]})), relative to that of the bluntest one"
        yield at_most(sharpest, gaps[-1] / gaps[0], 0.5)


@law(condition=has_right_inverse, scales=(0.0, 1e-3, 0.1, 1.0, 10.0, 1e2))
def round_trip(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """m(coordinates(H)) is H again, for members H and for the identity, and a projection of what rounding moved.

    Far out the coordinates themselves are ill-conditioned, but just where the map is flat: the derivative of the
    map undoes what that of its inverse does to a rounding error, and a few roundings are left in H. A hundred
    tolerances leave room for what is of second order.
    """
    bound = 100 * manifold.tolerance(case.dtype)
    H = manifold(case.coordinates()).reshape(-1, manifold.n, manifold.n)
    members = H[is_member(manifold, H)]
    if len(members):
        # [K, 1, 1]: rounding errors grow with the entries, where a set has no bound, and vanish with them.
        size = members.abs().amax((-2, -1), keepdim=True)
        room = size.clamp(min=1)
        again = manifold(manifold.coordinates(members))
        yield at_most("distance of m(coordinates(H)) to H", ((again - members) / room).abs().amax(), bound)
        # Stored in a narrower dtype, a member is off by a little; going there and back is to bring it back to the set
        # once and for all.
        nudge = torch.finfo(case.dtype).eps ** 0.5 / (16 * manifold.n)
        moved = members + size * nudge * case.normal(*members.shape, stream=_NUDGE).clamp(-3, 3) / 3
        once = manifold(manifold.coordinates(moved))
        limit = torch.finfo(case.dtype).eps ** 0.5
        yield at_most("distance of the projection to what it projects", ((once - moved) / room).abs().amax(), limit)
        stays = is_member(manifold, once)
        if bool(stays.any()):
            twice = manifold(manifold.coordinates(once[stays]))
            apart = ((twice - once[stays]) / room[stays]).abs().amax()
            yield at_most("distance of projecting twice to projecting once", apart, bound)
    if manifold.contains_identity:
        eye = torch.eye(manifold.n, dtype=case.dtype, device=case.device)
        again = manifold(manifold.coordinates(eye))
        yield at_most("distance of m(coordinates(I)) to I", (again - eye).abs().amax(), bound)


def _has_reference(subject: Map) -> bool:
    reference = getattr(subject, "reference", None)
    theta = torch.zeros(subject.num_coordinates, dtype=torch.float64)
    return reference is not None and available(lambda: reference(theta))


@law(kind=Map, condition=_has_reference, scales=(0.0, 1e-3, 1.0, 3.0))
def reference(subject: Any, case: Case) -> Iterator[Measured]:
    """m(theta) is what the second formula of the map gives in float64."""
    theta = case.coordinates()
    distance = (subject(theta).double() - subject.reference(theta.double())).abs().amax()
    # Far out the reference itself is the worse of the two. Here too, a solve multiplies rounding by the condition of
    # its matrix, which grows with the coordinates.
    yield at_most("distance to the reference", distance, (1 + case.scale) * rounding(subject, case.dtype))


@law(condition=lambda manifold: bool(manifold.symmetries), scales=(0.0, 1e-3, 0.3))
def symmetries(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """A symmetry of the map changes H as it says, and the violation of a member not at all."""
    theta = case.coordinates()
    H, draw = manifold(theta), case.normal(2, manifold.n, stream=DRAW)
    for symmetry in manifold.symmetries:
        moved = manifold(symmetry.coordinates(theta, draw))
        distance = (moved - symmetry.matrices(H, draw)).abs().amax()
        yield at_most(f"error of the symmetry {symmetry.name}", distance, manifold.tolerance(case.dtype))


_NORM_AT_MOST_ONE = (
    {invariants.orthogonal},
    {invariants.spectral_norm},
    {invariants.non_expansive},
    {invariants.is_identity},
    {invariants.row_sums, invariants.column_sums, invariants.nonnegative},
)


@law(scales=(1.0,), dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16), random=False)
def tolerance(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """tolerance(dtype) is what rounding explains, between eps and 1024 n² eps: a loose one would void other laws."""
    eps = torch.finfo(case.dtype).eps
    found = manifold.tolerance(case.dtype)
    yield at_least(f"tolerance in {case.dtype}", found, eps)
    yield at_most(f"tolerance in {case.dtype}", found, 1024 * manifold.n**2 * eps)


@law(scales=(1.0,), dtypes=(torch.float64,), random=False)
def declarations(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """Coordinate groups add up to num_coordinates, and what is declared of the set agrees with itself."""
    names = [name for name, _ in manifold.coordinate_groups]
    sizes = [size for _, size in manifold.coordinate_groups]
    P = manifold.num_coordinates
    yield fact(f"the groups {manifold.coordinate_groups} add up to {P} coordinates", sum(sizes) == P)
    yield fact(f"the group sizes {sizes} are positive", all(size > 0 for size in sizes))
    yield fact(f"the group names {names} are distinct and not empty", all(names) and len(set(names)) == len(names))
    # By name: a property may build its invariants anew each time it is read.
    promised = {invariant.name for invariant in manifold.exact_invariants}
    all_of_them = {invariant.name for invariant in manifold.invariants}
    yield fact("exact_invariants are among the invariants", promised <= all_of_them)
    yield fact("an exact manifold promises all of its invariants", promised == all_of_them or not manifold.exact)
    invariant_names = [invariant.name for invariant in manifold.invariants]
    yield fact(f"the invariants {invariant_names} are distinct", len(set(invariant_names)) == len(invariant_names))
    bound = manifold.norm_bound
    if bound is not None and any({i.name for i in implying} <= promised for implying in _NORM_AT_MOST_ONE):
        yield at_most("norm_bound, where the invariants promise ‖H‖₂ ≤ 1", bound, 1.0)
