"""Orthogonal matrices by the Cayley transform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hyperconn.kernels import cayley_inverse, skew
from hyperconn.manifolds.core.invariants import non_expansive, orthogonal, spectral_norm
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.core.options import require_choice, require_int, require_number
from hyperconn.manifolds.core.rotations import cayley, cayley_reference, skew_coordinates, skew_reference
from hyperconn.manifolds.core.symmetries import Symmetry, relabelled, transposed
from hyperconn.manifolds.registry import register


@register("stiefel", "cayley", "jpmhc")
@dataclass(frozen=True)
class Stiefel(Manifold):
    """Rotations: orthogonal matrices without the eigenvalue −1, by the Cayley transform.

    **Set**: ``Hᵀ H = I``, ``det H = 1``.

    **Map**: the n(n−1)/2 coordinates are the strict upper triangle of a skew matrix A, row by row, and
    ``H = (I + A)⁻¹(I − A)``. With ``generator="full"`` they are the n² entries of a matrix W, row by row, and
    ``A = (W − Wᵀ)/2``: so many JPmHC predicts. The identity is θ = 0, exactly.

    **Exactness**: ``method="cayley"`` is exact to rounding for any finite coordinates. ``method="iterative"``
    is the paper's fixed-point iteration ``Y ← I + (α/2) W (I + Y)`` from ``Y = I + αW``; it is **not exact** (``HᵀH``
    is off by up to 8e-4, 0.011 and 0.6 for 4×4 coordinates of standard deviation 0.5, 1 and 4).

    Options:
        generator: what the coordinates are, ``"upper"`` or ``"full"``.
        method: ``"cayley"`` or ``"iterative"``.
        alpha, steps: α and the number of steps, of the iterative method only.

    Raises:
        ValueError: an option outside its range.

    Source: JPmHC, arXiv 2602.18308.

    >>> import torch
    >>> Q = Stiefel(n=3)(torch.tensor([1.0, 2.0, 3.0]))
    >>> bool(torch.allclose(Q.mT @ Q, torch.eye(3), atol=1e-6))
    True
    """

    generator: Literal["upper", "full"] = "upper"
    method: Literal["cayley", "iterative"] = "cayley"
    alpha: float = 0.1
    steps: int = 2

    name = "stiefel"
    source = "arXiv 2602.18308"
    invariants = (orthogonal, spectral_norm, non_expansive)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "generator", ("upper", "full"))
        require_choice(self, "method", ("cayley", "iterative"))
        require_int(self, "steps", minimum=0, maximum=10_000)
        require_number(self, "alpha", positive=True)

    @property
    def exact(self) -> bool:
        return self.method == "cayley"

    @property
    def num_coordinates(self) -> int:
        return self.n**2 if self.generator == "full" else self.n * (self.n - 1) // 2

    @property
    def idle_coordinates(self) -> tuple[int, ...]:
        """The diagonal of a full generator, which is no part of a skew matrix."""
        return tuple(range(0, self.n**2, self.n + 1)) if self.generator == "full" else ()

    @property
    def norm_bound(self) -> float | None:
        return 1.0 if self.exact else None

    def reference(self, theta: Tensor) -> Tensor:
        """The Cayley transform, or the terms that the steps of the iteration add up to."""
        if self.generator == "full":
            W = theta.unflatten(-1, (self.n, self.n))
            W = W / 2 - W.mT / 2
        else:
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
            return self._coordinates_of(relabelled(self._skew(theta), draw))

        return (
            Symmetry("relabelling", "m(P A Pᵀ) = P m(A) Pᵀ", relabel, relabelled),
            Symmetry("transposition", "m(−A) = m(A)ᵀ", lambda theta, draw: -theta, transposed),
        )

    def device_pair(self) -> Any | None:
        from hyperconn.kernels.fused.maps.stiefel import iterative_pair, stiefel_pair

        full = self.generator == "full"
        if self.method == "iterative":
            return iterative_pair(float(self.alpha), self.steps, full)
        return stiefel_pair(full)

    def _skew(self, theta: Tensor) -> Tensor:
        if self.generator == "upper":
            return skew(theta, self.n)
        W = theta.unflatten(-1, (self.n, self.n)) / 2  # halved first, so that no difference overflows
        return W - W.mT

    def _coordinates_of(self, A: Tensor) -> Tensor:
        return A.flatten(-2) if self.generator == "full" else skew_coordinates(A)

    def forward(self, theta: Tensor) -> Tensor:
        W = self._skew(theta)
        if self.method == "cayley":
            return cayley(W)
        eye = torch.eye(self.n, dtype=theta.dtype, device=theta.device)
        Y = eye + self.alpha * W
        for _ in range(self.steps):
            Y = eye + (self.alpha / 2) * (W @ (eye + Y))
        return Y

    def identity_coordinates(self) -> list[float]:
        return [0.0] * self.num_coordinates

    def coordinates(self, H: Tensor) -> Tensor:
        """Inverse Cayley transform.

        Raises:
            ValueError: H is not orthogonal, or has the eigenvalue −1, which the map does not reach.
            NotImplementedError: for the iterative method.
        """
        if self.method == "iterative":
            return super().coordinates(H)
        A = cayley_inverse(self._require_member(H, orthogonal))
        theta = self._coordinates_of(A)
        miss = (self.forward(theta) - H).abs().amax() if H.numel() else torch.zeros(())
        if not bool(miss <= torch.finfo(H.dtype).eps ** 0.5):
            raise ValueError(f"{self!r} does not reach this matrix: it has an eigenvalue at or next to −1")
        return theta

    @classmethod
    def examples(cls) -> tuple[Stiefel, ...]:
        return (
            *(cls(n=n) for n in (1, 2, 3, 4, 5, 8, 16)),
            *(cls(n=n, generator="full") for n in (1, 2, 4)),
            cls(n=4, method="iterative"),
            cls(n=3, method="iterative", alpha=0.2, steps=4),
            cls(n=3, method="iterative", steps=0),
        )
