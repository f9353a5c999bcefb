"""Doubly stochastic matrices from the squares of an orthogonal one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperconn.manifolds import Invariant, Manifold, Stiefel, invariants
from hyperconn.manifolds.core.map import MAX_STREAMS
from hyperconn.manifolds.core.options import require_int


@dataclass(frozen=True)
class Orthostochastic(Manifold):
    """Generalised orthostochastic matrices: mean squares over the s×s blocks of a rotation of size ns.

    **Set**: ``Hᵢⱼ = ‖Qᵢⱼ‖² / s`` for the s×s blocks of some ``Q ∈ SO(ns)``. All of it is doubly
    stochastic, because the rows and columns of Q have norm 1. s = 1 gives the orthostochastic matrices, and
    the larger s, the more of the doubly stochastic ones.

    **Map**: the ns(ns−1)/2 coordinates are those of ``Stiefel(n=n * s)``, the Cayley transform. The identity is
    θ = 0, exactly, but all first derivatives vanish there, since H is made of squares: ``initial`` starts beside it.

    **Exactness**: exact to rounding for any finite coordinates; beyond entries of 8e4 in float32 (1e10 in float64)
    Stiefel scales all of them down. Costs a solve of size ns.

    Options:
        s: size of a block, at least 1.

    Raises:
        ValueError: s below 1, or n·s beyond 1024.

    ``coordinates`` is not there: no way back from H to a Q is known.

    Source: go-mHC, arXiv 2604.02309.

    >>> import torch
    >>> H = Orthostochastic(n=3)(torch.randn(15))
    >>> bool((H >= 0).all()), bool(torch.allclose(H.sum(0), torch.ones(3)))
    (True, True)
    """

    s: int = 2

    name = "orthostochastic"
    api_version = 1
    exact = True
    source = "arXiv 2604.02309"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self, "s", minimum=1, maximum=MAX_STREAMS // self.n)

    @property
    def rotation(self) -> Stiefel:
        """The manifold of Q."""
        return Stiefel(n=self.n * self.s)

    @property
    def num_coordinates(self) -> int:
        return self.rotation.num_coordinates

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (invariants.row_sums, invariants.column_sums, invariants.nonnegative)

    @property
    def norm_bound(self) -> float:
        return 1.0

    def forward(self, theta: Tensor) -> Tensor:
        blocks = self.rotation(theta).unflatten(-1, (self.n, self.s)).unflatten(-3, (self.n, self.s))
        return blocks.square().sum((-3, -1)) / self.s  # [..., n, s, n, s] to [..., n, n]

    def reference(self, theta: Tensor) -> Tensor:
        """Q by an inverse, then the norm of one block after the other."""
        size, s = self.n * self.s, self.s
        i, j = torch.triu_indices(size, size, offset=1, device=theta.device)
        A = theta.new_zeros(*theta.shape[:-1], size, size)
        A[..., i, j], A[..., j, i] = theta, -theta
        eye = torch.eye(size, dtype=theta.dtype, device=theta.device)
        Q = torch.linalg.inv(eye + A) @ (eye - A)
        rows = [row.split(s, -1) for row in Q.split(s, -2)]
        norms = [torch.stack([torch.linalg.matrix_norm(block) for block in row], -1) for row in rows]
        return torch.stack(norms, -2) ** 2 / s

    def identity_coordinates(self) -> list[float]:
        return [0.0] * self.num_coordinates

    def initial_coordinates(self, sharpness: float) -> list[float]:
        """Equal small angles, with which an entry off the diagonal is about ``exp(-sharpness)``."""
        # To first order Q = I − 2A, so each of the s² numbers of a block is 2θ, and H_ij = 4 s θ².
        angle = math.exp(-sharpness / 2) / (2 * math.sqrt(self.s))
        return [angle] * self.num_coordinates

    @classmethod
    def examples(cls) -> tuple[Orthostochastic, ...]:
        return (*(cls(n=n) for n in (1, 2, 3, 8)), cls(n=4, s=1), cls(n=3, s=3))
