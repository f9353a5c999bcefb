"""Orthogonal matrices by the Cayley transform."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from geotorch.so import cayley_map
from torch import Tensor

from hyperconn.kernels import cayley_inverse, polish_orthogonal, saturate, skew
from hyperconn.manifolds.core import invariants
from hyperconn.manifolds.core.invariants import Invariant
from hyperconn.manifolds.core.manifold import MAX_FUSED_STREAMS, Manifold
from hyperconn.manifolds.core.options import require_choice, require_int, require_number
from hyperconn.manifolds.core.symmetries import Symmetry, relabelled, transposed
from hyperconn.manifolds.registry import register

# Largest skew entry that is solved as it is. The solve loses about ‖A‖·eps; up to these sizes that is little enough
# for the polish to give it back.
LARGEST_SKEW = {torch.float32: 8e4, torch.float64: 1e10}


def cayley(A: Tensor) -> Tensor:
    """``(I + A)⁻¹(I − A)`` for skew ``A [..., n, n]``, orthogonal to rounding however large A is.

    Where the largest entry of A exceeds 8e4 in float32 (1e10 in float64) all of A is scaled down to it: still a
    rotation, but small entries beside such a large one lose their say. The solve is geotorch's; three Newton–Schulz
    steps polish it.
    """
    return polish_orthogonal(cayley_map(-2 * saturate(A, LARGEST_SKEW[A.dtype])))


def cayley_reference(A: Tensor) -> Tensor:
    """``(I + A)⁻¹(I − A)`` as it is written."""
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return torch.linalg.inv(eye + A) @ (eye - A)


def skew_reference(upper: Tensor, n: int) -> Tensor:
    """The skew matrix with this strict upper triangle, row by row, entry by entry."""
    A = upper.new_zeros(*upper.shape[:-1], n, n)
    for k, (i, j) in enumerate(itertools.combinations(range(n), 2)):
        A[..., i, j], A[..., j, i] = upper[..., k], -upper[..., k]
    return A


def skew_coordinates(A: Tensor) -> Tensor:
    """The strict upper triangle of ``A [..., n, n]``, row by row: ``[..., n(n-1)/2]``."""
    n = A.shape[-1]
    rows, columns = torch.triu_indices(n, n, offset=1, device=A.device)
    return A[..., rows, columns]


@register("stiefel", "cayley", "jpmhc")
@dataclass(frozen=True)
class Stiefel(Manifold):
    r"""Rotations: orthogonal matrices without the eigenvalue −1, by the Cayley transform.

    **Set**: :math:`H^\top H = I`, :math:`\det H = 1`.

    **Map**: the n(n−1)/2 coordinates are the strict upper triangle of a skew matrix A, row by row, and
    :math:`H = (I + A)^{-1}(I - A)`. The identity is θ = 0, exactly. The eigenvalue −1 is reached only in the
    limit of infinite coordinates.

    **Exactness**: ``method="cayley"`` is exact to rounding for any finite coordinates. ``method="iterative"``
    is the paper's fixed-point iteration ``Y ← I + (α/2) W (I + Y)`` from ``Y = I + αW``, with α = ``alpha`` and
    ``steps`` steps; it is **not exact** (``HᵀH`` is off by up to 8e-4, 0.011 and 0.6 for 4×4 coordinates of
    standard deviation 0.5, 1 and 4), and approaches the exact map at ``A = −(α/2) W``.

    Options:
        method: ``"cayley"`` or ``"iterative"``.
        alpha, steps: of the iterative method only.

    Raises:
        ValueError: an option outside its range.

    Source: JPmHC, arXiv 2602.18308; the solve is ``geotorch.so.cayley_map``.

    >>> import torch
    >>> Q = Stiefel(n=3)(torch.tensor([1.0, 2.0, 3.0]))
    >>> bool(torch.allclose(Q.mT @ Q, torch.eye(3), atol=1e-6))
    True
    """

    method: Literal["cayley", "iterative"] = "cayley"
    alpha: float = 0.1
    steps: int = 2

    name = "stiefel"
    source = "arXiv 2602.18308"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "method", ("cayley", "iterative"))
        require_int(self, "steps", minimum=0, maximum=10_000)
        require_number(self, "alpha", positive=True)

    @property
    def exact(self) -> bool:
        return self.method == "cayley"

    @property
    def num_coordinates(self) -> int:
        return self.n * (self.n - 1) // 2

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (invariants.orthogonal, invariants.spectral_norm, invariants.non_expansive)

    @property
    def norm_bound(self) -> float | None:
        return 1.0 if self.exact else None

    def reference(self, theta: Tensor) -> Tensor:
        """The Cayley transform, or the terms that the steps of the iteration add up to."""
        W = skew_reference(theta, self.n)
        if self.method == "cayley":
            return cayley_reference(W)
        half = W * self.alpha / 2
        term = Y = torch.eye(self.n, dtype=W.dtype, device=W.device).expand_as(W)
        for _ in range(self.steps + 1):  # I + 2h + 2h² + …, the series of (I − h)⁻¹(I + h)
            term = half @ term
            Y = Y + 2 * term
        return Y

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        def relabel(theta: Tensor, draw: Tensor) -> Tensor:
            return skew_coordinates(relabelled(skew(theta, self.n), draw))

        return (
            Symmetry("relabelling", "m(P A Pᵀ) = P m(A) Pᵀ", relabel, relabelled),
            Symmetry("transposition", "m(−A) = m(A)ᵀ", lambda theta, draw: -theta, transposed),
        )

    @property
    def kernel(self) -> Any | None:
        if self.n > MAX_FUSED_STREAMS:
            return None
        # Here and not above: nothing but the fused kernels may need triton.
        from hyperconn.kernels.fused.maps.stiefel import iterative_pair, stiefel_pair

        if self.method == "iterative":
            return iterative_pair(float(self.alpha), self.steps)
        return stiefel_pair((LARGEST_SKEW[torch.float32], LARGEST_SKEW[torch.float64]))

    def forward(self, theta: Tensor) -> Tensor:
        W = skew(theta, self.n)
        if self.method == "cayley":
            return cayley(W)
        eye = torch.eye(self.n, dtype=theta.dtype, device=theta.device)
        Y = eye + self.alpha * W
        for _ in range(self.steps):
            Y = eye + (self.alpha / 2) * (W @ (eye + Y))
        return Y

    def identity(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(self.num_coordinates, dtype=dtype, device=device)

    def coordinates(self, H: Tensor) -> Tensor:
        """Inverse Cayley transform.

        Raises:
            ValueError: H is not orthogonal, or has the eigenvalue −1, which the map does not reach.
            NotImplementedError: for the iterative method.
        """
        if self.method == "iterative":
            return super().coordinates(H)
        A = cayley_inverse(self._require_member(H, invariants.orthogonal))
        theta = skew_coordinates(A)
        miss = (self.forward(theta) - H).abs().amax() if H.numel() else torch.zeros(())
        if not bool(miss <= torch.finfo(H.dtype).eps ** 0.5):
            raise ValueError(f"{self!r} does not reach this matrix: it has an eigenvalue at or next to −1")
        return theta

    @classmethod
    def examples(cls) -> tuple[Stiefel, ...]:
        return (
            *(cls(n=n) for n in (1, 2, 3, 4, 5, 8, 16)),
            cls(n=4, method="iterative"),
            cls(n=3, method="iterative", alpha=0.2, steps=4),
            cls(n=3, method="iterative", steps=0),
        )
