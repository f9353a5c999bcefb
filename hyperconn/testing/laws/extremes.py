"""What a map promises at the edges of floating point."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hyperconn.manifolds import Manifold
from hyperconn.testing.case import Case
from hyperconn.testing.law import SINGLE_AND_DOUBLE, law
from hyperconn.testing.laws.tools import pull_back, worst_residual
from hyperconn.testing.measured import Measured, at_most


def adversarial(P: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
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
    far = Case(seed=5, scale=1e4, batch=(8,), dtype=torch.float64, device=case.device)
    unbounded = manifold.exact and manifold.norm_bound is None
    return unbounded and bool(manifold(far.coordinates(manifold)).abs().amax() > 1e3)


@law(
    condition=lambda manifold: bool(manifold.exact_invariants) and manifold.num_coordinates > 0,
    scales=(1.0,),
    dtypes=(*SINGLE_AND_DOUBLE, torch.bfloat16, torch.float16),
    random=False,
)
def extremes(manifold: Manifold, case: Case) -> Iterator[Measured]:
    """Exact invariants hold, and H and its gradient are finite, at any finite coordinates: 1e30, denormals, ties.

    In a set without a bound, up to the fourth root of the largest float.
    """
    theta = adversarial(manifold.num_coordinates, case.dtype, case.device)
    if _grows(manifold, case):  # products of large entries overflow, and have to
        largest = torch.finfo(case.dtype).max ** 0.25
        theta = theta.clamp(-largest, largest)
    gradient, H = pull_back(manifold, theta, case)
    worst = worst_residual(manifold.exact_invariants, H).amax()
    yield at_most("violation of an exact invariant", worst, manifold.tolerance(case.dtype))
    yield at_most("entries of the gradient that are not finite", (~gradient.isfinite()).sum(), 0.0)
