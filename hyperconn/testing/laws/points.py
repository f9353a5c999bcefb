"""What the distinguished coordinates of a manifold promise: the identity, the start, and the right inverse."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hyperconn.manifolds import Manifold
from hyperconn.testing.case import Case
from hyperconn.testing.law import law
from hyperconn.testing.laws.tools import has_right_inverse, is_constant, is_member, pull_back
from hyperconn.testing.measured import Measured, at_least, at_most, fact

_NUDGE = 3
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
    distances = _gap(manifold(case.coordinates(manifold)))
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
    H = manifold(case.coordinates(manifold)).reshape(-1, manifold.n, manifold.n)
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
