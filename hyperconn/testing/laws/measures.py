"""Whether the library's own conditions measure what their formulas say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hyperconn.manifolds import Invariant, Manifold, invariants
from hyperconn.testing.case import Case
from hyperconn.testing.law import law
from hyperconn.testing.measured import Measured, at_most

_PROBE = 3
_Matrix = NDArray[Any]

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
    H = manifold(case.coordinates(manifold)).reshape(-1, n, n)[:4]
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
