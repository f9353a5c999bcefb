"""Named defining conditions of sets of matrices, each with a residual that says how far a matrix is from it.

Residuals are measured in float64 whatever the matrix is stored in, so that they report the error of the
matrix and not of the measurement. NaN in, NaN out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Invariant:
    """A condition on an n×n matrix.

    Attributes:
        name: the field's name for it.
        statement: the condition as a formula.
        measure: ``[..., n, n] -> [...]``, zero exactly where the condition holds, never negative.
        closed_under_products, closed_under_kronecker: the condition survives ``A @ B``, ``A ⊗ B``.
        closed_under_mixtures: the condition survives ``tA + (1 − t)B``, t in [0, 1].
        closed_under_relabelling: the condition survives ``P H Pᵀ``, P a permutation matrix.
        normal: for an equation, ``(H, W) -> [..., n, n]``: a direction made from W that is orthogonal to every one in
            which H can move without breaking it; None for an inequality, or where nobody wrote it down.
    """

    name: str
    statement: str
    measure: Callable[[Tensor], Tensor]
    closed_under_products: bool = False
    closed_under_kronecker: bool = False
    closed_under_mixtures: bool = False
    closed_under_relabelling: bool = False
    normal: Callable[[Tensor, Tensor], Tensor] | None = None

    def residual(self, H: Tensor) -> Tensor:
        """How far ``H [..., n, n]`` is from the condition: ``[...]``, float64."""
        return self.measure(H.detach().double())

    def __repr__(self) -> str:
        return f"<{self.name}: {self.statement}>"


def _largest(residual: Tensor) -> Tensor:
    return residual.abs().amax((-2, -1))


def _gram_error(H: Tensor) -> Tensor:
    return _largest(H.mT @ H - torch.eye(H.shape[-1], dtype=H.dtype, device=H.device))


def spectral_norm_of(H: Tensor) -> Tensor:
    """Largest singular value of ``H [..., n, n]``: ``[...]``; NaN where H is not finite (LAPACK would raise).

    By the eigenvalues of HᵀH: at norm 1 they are ten times more accurate than LAPACK's singular values, which lose
    up to 40 eps where several of them nearly coincide.
    """
    finite = H.isfinite().all(-1).all(-1)
    H = torch.where(finite[..., None, None], H, torch.zeros_like(H))
    # Scaled first, so that squaring cannot overflow.
    scale = H.abs().amax((-2, -1)).clamp(min=torch.finfo(H.dtype).tiny)
    H = H / scale[..., None, None]
    norm = torch.linalg.eigvalsh(H.mT @ H)[..., -1].clamp(min=0).sqrt() * scale
    return torch.where(finite, norm, torch.full_like(norm, torch.nan))


def _within_the_blocks(H: Tensor, W: Tensor) -> Tensor:
    """``HᵀWHᵀ + (I − Hᵀ)W(I − Hᵀ)``: a projector only moves by what takes its range out of itself, or its kernel."""
    eye = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
    return H.mT @ W @ H.mT + (eye - H.mT) @ W @ (eye - H.mT)


row_sums = Invariant(
    "row_sums", "H 1 = 1", lambda H: (H.sum(-1) - 1).abs().amax(-1), normal=lambda H, W: W[..., :1].expand_as(H),
    closed_under_products=True, closed_under_kronecker=True, closed_under_mixtures=True, closed_under_relabelling=True,
)  # fmt: skip
column_sums = Invariant(
    "column_sums", "Hᵀ 1 = 1", lambda H: (H.sum(-2) - 1).abs().amax(-1), normal=lambda H, W: W[..., :1, :].expand_as(H),
    closed_under_products=True, closed_under_kronecker=True, closed_under_mixtures=True, closed_under_relabelling=True,
)  # fmt: skip
nonnegative = Invariant(
    "nonnegative", "H ≥ 0", lambda H: (-H).clamp(min=0).amax((-2, -1)),
    closed_under_products=True, closed_under_kronecker=True, closed_under_mixtures=True, closed_under_relabelling=True,
)  # fmt: skip
orthogonal = Invariant(
    "orthogonal", "Hᵀ H = I", _gram_error, normal=lambda H, W: H @ (W + W.mT),
    closed_under_products=True, closed_under_kronecker=True, closed_under_relabelling=True,
)  # fmt: skip
spectral_norm = Invariant(
    "spectral_norm", "‖H‖₂ = 1", lambda H: (spectral_norm_of(H) - 1).abs(),
    closed_under_kronecker=True, closed_under_relabelling=True,
)  # fmt: skip
non_expansive = Invariant(
    "non_expansive", "‖H‖₂ ≤ 1", lambda H: (spectral_norm_of(H) - 1).clamp(min=0),
    closed_under_products=True, closed_under_kronecker=True, closed_under_mixtures=True, closed_under_relabelling=True,
)  # fmt: skip
symmetric = Invariant(
    "symmetric", "H = Hᵀ", lambda H: _largest(H - H.mT), normal=lambda H, W: W - W.mT,
    closed_under_kronecker=True, closed_under_mixtures=True, closed_under_relabelling=True,
)  # fmt: skip
idempotent = Invariant(
    "idempotent", "H² = H", lambda H: _largest(H @ H - H), normal=_within_the_blocks,
    closed_under_kronecker=True, closed_under_relabelling=True,
)  # fmt: skip
is_identity = Invariant(
    "is_identity", "H = I", lambda H: _largest(H - torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)),
    closed_under_products=True, closed_under_kronecker=True, closed_under_mixtures=True, closed_under_relabelling=True,
)  # fmt: skip


DOUBLY_STOCHASTIC = (row_sums, column_sums, nonnegative)


@cache  # one object a value, so that invariants compare equal
def trace(value: int) -> Invariant:
    """The condition ``tr H = value`` (for an idempotent matrix: its rank)."""

    def measure(H: Tensor) -> Tensor:
        return (H.diagonal(dim1=-2, dim2=-1).sum(-1) - value).abs()

    return Invariant(
        f"trace_{value}", f"tr H = {value}", measure, closed_under_mixtures=True, closed_under_relabelling=True
    )
