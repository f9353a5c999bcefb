"""Orthogonal projectors of a fixed rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperconn.manifolds.core.invariants import Invariant, idempotent, non_expansive, spectral_norm, symmetric, trace
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.core.options import require_int
from hyperconn.manifolds.core.rotations import cayley
from hyperconn.manifolds.core.symmetries import Symmetry
from hyperconn.manifolds.registry import register


@register("grassmann")
@dataclass(frozen=True)
class Grassmann(Manifold):
    """Projectors onto p-dimensional subspaces.

    **Set**: ``H = Hᵀ = H², tr H = p``. It does **not** contain the identity (p < n).

    **Map**: the p(n−p) coordinates are a (n−p)×p block B, row by row; U is the first p columns of the Cayley
    transform of ``[[0, −Bᵀ], [B, 0]]`` and ``H = U Uᵀ``. Every
    projector of rank p is reached.

    **Exactness**: exact to rounding for any finite coordinates.

    Options:
        p: rank, between 1 and n, else ValueError; default ``max(1, n // 2)``.

    Source: the rank-p variant of JPmHC, arXiv 2602.18308.

    >>> import torch
    >>> H = Grassmann(n=4, p=2)(torch.randn(4))
    >>> round(float(H.trace()), 5)
    2.0
    """

    p: int | None = None

    name = "grassmann"
    source = "arXiv 2602.18308"
    exact = True
    norm_bound = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p is None:
            object.__setattr__(self, "p", max(1, self.n // 2))
        require_int(self, "p", minimum=1, maximum=self.n)

    @property
    def rank(self) -> int:
        """The rank p as an int."""
        assert self.p is not None
        return self.p

    @property
    def num_coordinates(self) -> int:
        return self.rank * (self.n - self.rank)

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (symmetric, idempotent, trace(self.rank), spectral_norm, non_expansive)

    @property
    def contains_identity(self) -> bool:
        return self.rank == self.n

    def device_pair(self) -> Any | None:
        from hyperconn.kernels.fused.maps.grassmann import grassmann_pair

        return grassmann_pair(self.rank)

    def forward(self, theta: Tensor) -> Tensor:
        p = self.rank
        B = theta.unflatten(-1, (self.n - p, p))
        top = torch.cat([B.new_zeros(*B.shape[:-2], p, p), -B.mT], -1)
        bottom = torch.cat([B, B.new_zeros(*B.shape[:-2], self.n - p, self.n - p)], -1)
        U = cayley(torch.cat([top, bottom], -2))[..., :p]
        return U @ U.mT

    def reference(self, theta: Tensor) -> Tensor:
        """The projector onto the range of ``[I − BᵀB; −2B]``."""
        B = theta.unflatten(-1, (self.n - self.rank, self.rank))
        eye = torch.eye(self.rank, dtype=B.dtype, device=B.device)
        U, _ = torch.linalg.qr(torch.cat([eye - B.mT @ B, -2 * B], -2))
        return U @ U.mT

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        def reflected(H: Tensor, draw: Tensor) -> Tensor:
            signs = H.new_ones(self.n)
            signs[self.rank :] = -1
            return signs[:, None] * H * signs

        return (Symmetry("reflection", "m(−B) = D m(B) D, D = diag(1, …, −1)", lambda theta, draw: -theta, reflected),)

    def identity_coordinates(self) -> list[float]:
        """Zeros: ``diag(1, …, 1, 0, …, 0)``. Every projector of rank p is at the same distance √(n − p) from I."""
        return [0.0] * self.num_coordinates

    def coordinates(self, H: Tensor) -> Tensor:
        """The basis of the range whose upper block is symmetric and positive determines B."""
        H = self._require_member(H, *self.invariants)
        p = self.rank
        U = torch.linalg.eigh(H.detach())[1][..., self.n - p :]
        left, _, right = torch.linalg.svd(U[..., :p, :])
        U = U @ (left @ right).mT
        eye = torch.eye(p, dtype=H.dtype, device=H.device)
        # U = [ (I + BᵀB)⁻¹(I − BᵀB) ; −2B(I + BᵀB)⁻¹ ], so I + (upper block) = 2(I + BᵀB)⁻¹.
        B = -torch.linalg.solve(eye + U[..., :p, :], U[..., p:, :], left=False)
        return B.flatten(-2)

    @classmethod
    def examples(cls) -> tuple[Grassmann, ...]:
        return (*(cls(n=n) for n in (1, 2, 3, 4, 8)), cls(n=4, p=1), cls(n=5, p=4), cls(n=3, p=3))
