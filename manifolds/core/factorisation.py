"""The factors of a Kronecker product, found from the product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from hyperconn.manifolds.core import invariants
from hyperconn.manifolds.core.manifold import Manifold


def kronecker_product(A: Tensor, B: Tensor) -> Tensor:
    """``A ⊗ B`` of ``[..., a, a]`` and ``[..., b, b]``: ``[..., ab, ab]``."""
    return (A[..., :, None, :, None] * B[..., None, :, None, :]).flatten(-2).flatten(-3, -2)


@dataclass(frozen=True)
class Misfit:
    """How far a matrix is from the products of members of ``parts``: the measure of an invariant.

    A matrix that is no product of matrices of these sizes is off by the nearest one, relative to its largest entry
    where that is above 1; a product is off by what its worst factor is off by.
    """

    parts: tuple[Manifold, ...]

    def __call__(self, H: Tensor) -> Tensor:
        finite = H.isfinite().all(-1).all(-1)
        H = torch.where(finite[..., None, None], H, torch.zeros_like(H))  # LAPACK would raise
        factors = nearest_factors(H, self.parts)
        size = H.abs().amax((-2, -1)).clamp(min=1)
        worst = (reduce(kronecker_product, factors) - H).abs().amax((-2, -1)) / size
        for part, factor in zip(self.parts, factors, strict=True):
            worst = torch.maximum(worst, part.violation(factor))
        # A factor without a scale, say of sums 0 where they have to be 1, cannot be brought to its set at all.
        return torch.where(finite, worst.nan_to_num(nan=torch.inf), torch.nan)


def nearest_factors(H: Tensor, parts: Sequence[Manifold]) -> list[Tensor]:
    """One factor ``[..., n_k, n_k]`` a part, whose product is the nearest to ``H [..., n, n]``, up to rounding.

    Factors are peeled off by the rank-one approximation of the rearranged matrix (Van Loan and Pitsianis, 1993). Only
    their product is determined, so that each is brought to the scale and sign of its own set; what is left of either
    goes to a factor whose set leaves it open, or else to the last one, and shows there.
    """
    factors: list[Tensor] = []
    rest = H
    for part in parts:
        factor, rest = _peel(rest, part)
        factors.append(factor)
    scale = rest[..., 0, 0]
    of_any_scale, of_any_sign = [], []
    for k, part in enumerate(parts):
        if {invariants.row_sums, invariants.column_sums} & {*part.invariants}:
            own = factors[k].sum((-2, -1)) / part.n
        elif invariants.spectral_norm in part.invariants:
            own = torch.linalg.matrix_norm(factors[k], 2)
            of_any_sign.append(k)
        else:
            of_any_scale.append(k)
            continue
        factors[k] = factors[k] / own[..., None, None]
        scale = scale * own
    flips = _flips([factors[k] for k in of_any_sign], parity=None if of_any_scale else scale < 0)
    for k, flip in zip(of_any_sign, flips, strict=True):
        sign = torch.where(flip, -1.0, 1.0).to(scale.dtype)
        factors[k] = factors[k] * sign[..., None, None]
        scale = scale * sign
    if factors:
        holder = of_any_scale[0] if of_any_scale else -1
        factors[holder] = factors[holder] * scale[..., None, None]
    return factors


def _peel(H: Tensor, part: Manifold) -> tuple[Tensor, Tensor]:
    """``A [..., a, a]`` of Frobenius norm 1 and ``B`` with ``A ⊗ B`` nearest to ``H``; a is the size of ``part``."""
    a = part.n
    size = H.shape[-1] // a
    blocks = H.unflatten(-1, (a, size)).unflatten(-3, (a, size)).transpose(-3, -2)  # [..., a, a, size, size]
    U, sigma, Vh = torch.linalg.svd(blocks.flatten(-2).flatten(-3, -2), full_matrices=False)  # of [..., a², size²]
    A = U[..., 0].unflatten(-1, (a, a))
    B = (sigma[..., :1] * Vh[..., 0, :]).unflatten(-1, (size, size))
    # Zero is a multiple of everything, so of a member too.
    start = part(part.initial(dtype=H.dtype, device=H.device))
    return torch.where(sigma[..., :1, None] == 0, start / torch.linalg.matrix_norm(start), A), B


def _flips(factors: Sequence[Tensor], parity: Tensor | None) -> list[Tensor]:
    """Which factors ``[...]`` to replace by their negatives, so that none has an eigenvalue next to −1 if possible.

    ``A ⊗ B = (−A) ⊗ (−B)``, and nothing else tells a rotation of even size from its negative, which a map that leaves
    out the eigenvalue −1 may not reach. The negatives of projectors, and of rotations of odd size, have it. ``parity``
    says where the number of flips has to be odd; None if it does not matter.
    """
    if not factors:
        return []
    eye = [torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device) for factor in factors]
    # [K, ...]: distance of each factor, and of its negative, to those with the eigenvalue −1
    kept = torch.stack([torch.linalg.svdvals(I + X)[..., -1] for I, X in zip(eye, factors, strict=True)])
    flipped = torch.stack([torch.linalg.svdvals(I - X)[..., -1] for I, X in zip(eye, factors, strict=True)])
    flip = flipped > kept
    if parity is not None:  # where it is wrong, change the one that it costs least
        wrong = (flip.sum(0) % 2 == 1) != parity
        cheapest = torch.minimum(kept, flipped).argmax(0, keepdim=True)
        flip = flip ^ (wrong & torch.zeros_like(flip).scatter(0, cheapest, True))
    return list(flip)
