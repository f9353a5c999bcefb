"""Matrices of spectral norm one that keep the mean of the streams."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperconn.kernels import cayley_inverse, skew
from hyperconn.manifolds.core.constants import constant
from hyperconn.manifolds.core.invariants import (
    Invariant,
    column_sums,
    non_expansive,
    orthogonal,
    row_sums,
    spectral_norm,
)
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.core.options import require_bool, require_number
from hyperconn.manifolds.core.rotations import (
    cayley,
    cayley_reference,
    cayley_signature,
    rotation_root,
    skew_coordinates,
    skew_reference,
)
from hyperconn.manifolds.core.symmetries import Symmetry, transposed
from hyperconn.manifolds.registry import register

# Up to this n one product for all tokens with the n²×(n−1)² matrix Z ⊗ Z is faster than two small ones for each.
_SMALL = 8


def helmert(n: int) -> Tensor:
    """``[n, n-1]`` float64: the Helmert basis of the vectors whose entries sum to zero; orthonormal columns."""
    Z = torch.zeros(n, n - 1, dtype=torch.float64)
    for k in range(1, n):
        Z[:k, k - 1] = 1.0 / math.sqrt(k * (k + 1))
        Z[k, k - 1] = -k / math.sqrt(k * (k + 1))
    return Z


def helmert_square(n: int) -> Tensor:
    """``[(n-1)², n²]`` float64: ``vec E`` times it is ``vec Z E Zᵀ``, row by row, with Z the Helmert basis."""
    Z = helmert(n)
    return torch.kron(Z, Z).mT.contiguous()


@register("spectral_sphere", "shc")
@dataclass(frozen=True)
class SpectralSphere(Manifold):
    """Spectral norm one, row and column sums one, signs free.

    **Set**: ``‖H‖₂ = 1, H 1 = 1, Hᵀ 1 = 1``.

    **Map**: ``H = J + Z U diag(tanh s) Vᵀ Zᵀ`` with ``J = 11ᵀ/n``, Z the Helmert
    basis of the complement of 1, and U, V the Cayley transforms of the skew matrices with upper triangles
    ``γ tanh(z)``. Coordinates in the groups u | v | s: (n−1)(n−2)/2 twice, and n−1.

    **Exactness**: exact to rounding for any finite coordinates. The singular values are ``|tanh s|`` and 1.

    Options:
        gamma: bound of the skew entries, where the released code learns it from 1; 1 reaches every E of norm below 1.
        isometric: singular values fixed at 1 (no group s): the rotations that fix the mean.
        preserve_mean: False gives the plain sphere ``U diag(1, tanh s) Vᵀ`` with U, V of size n, where only
            the norm is promised.

    Raises:
        ValueError: gamma is not positive.

    Source: sHC, arXiv 2603.20896.

    >>> import torch
    >>> m = SpectralSphere(n=4)
    >>> m.coordinate_groups
    (('u', 3), ('v', 3), ('s', 3))
    >>> round(float(torch.linalg.matrix_norm(m(torch.randn(9)), 2)), 5)
    1.0
    """

    gamma: float = 1.0
    isometric: bool = False
    preserve_mean: bool = True

    name = "spectral_sphere"
    source = "arXiv 2603.20896"
    exact = True
    norm_bound = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number(self, "gamma", positive=True)
        require_bool(self, "isometric")
        require_bool(self, "preserve_mean")

    @property
    def _core(self) -> int:
        """Size of the free factor ``U diag(σ) Vᵀ``."""
        return self.n - 1 if self.preserve_mean else self.n

    @property
    def coordinate_groups(self) -> tuple[tuple[str, int], ...]:
        angles = self._core * (self._core - 1) // 2
        groups = (("u", angles), ("v", angles), ("s", 0 if self.isometric else self.n - 1))
        return tuple(group for group in groups if group[1])

    @property
    def num_coordinates(self) -> int:
        return sum(size for _, size in self.coordinate_groups)

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        sums = (row_sums, column_sums) if self.preserve_mean else ()
        return (*sums, *((orthogonal,) if self.isometric else ()), spectral_norm, non_expansive)

    def device_pair(self) -> Any | None:
        from hyperconn.kernels.fused.maps.spectral_sphere import spectral_sphere_pair

        return spectral_sphere_pair(float(self.gamma), self.isometric, self.preserve_mean)

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angles = self._core * (self._core - 1) // 2
        u, v, s = theta.split([angles, angles, self.num_coordinates - 2 * angles], -1)
        return u, v, s

    def _singular_values(self, s: Tensor) -> Tensor:
        if self.isometric:
            return s.new_ones(*s.shape[:-1], self._core)
        sigma = torch.tanh(s)
        if self.preserve_mean:
            return sigma
        # Off the mean-preserving sphere nothing else has norm 1, so the first singular value is held there.
        return torch.cat([sigma.new_ones(*s.shape[:-1], 1), sigma], -1)

    def forward(self, theta: Tensor) -> Tensor:
        u, v, s = self._split(theta)
        # U and V in one batch: two small solves cost as much as one of twice the batch.
        U, V = cayley(skew(self.gamma * torch.tanh(torch.stack([u, v])), self._core)).unbind(0)
        E = (U * self._singular_values(s).unsqueeze(-2)) @ V.mT
        if not self.preserve_mean:
            return E
        if self.n <= _SMALL:
            lifted = (E.flatten(-2) @ constant(helmert_square, self.n, theta)).unflatten(-1, (self.n, self.n))
        else:
            Z = constant(helmert, self.n, theta)
            lifted = Z @ E @ Z.mT
        return 1.0 / self.n + lifted

    def reference(self, theta: Tensor) -> Tensor:
        """``J + Z U diag(tanh s) Vᵀ Zᵀ``."""
        angles = math.comb(self._core, 2)
        skews = (skew_reference(self.gamma * t.tanh(), self._core) for t in theta[..., : 2 * angles].chunk(2, -1))
        U, V = map(cayley_reference, skews)
        sigma = theta.new_ones(*theta.shape[:-1], self._core)
        if not self.isometric and self.n > 1:
            sigma[..., 1 - self.n :] = theta[..., 2 * angles :].tanh()
        E = U @ torch.diag_embed(sigma) @ V.mT
        Z = helmert(self.n).to(theta.device)
        return 1 / self.n + Z @ E @ Z.mT if self.preserve_mean else E

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        def exchange(theta: Tensor, draw: Tensor) -> Tensor:
            u, v, s = self._split(theta)
            return torch.cat([v, u, s], -1)

        return (Symmetry("transposition", "m(v, u, s) = m(u, v, s)ᵀ", exchange, transposed),)

    def initial_coordinates(self, sharpness: float) -> list[float]:
        singular = dict(self.coordinate_groups).get("s", 0)
        # Half the gap of two logits is the argument of the tanh that has the same sensitivity as their softmax.
        return [0.0] * (self.num_coordinates - singular) + [sharpness / 2] * singular

    def coordinates(self, H: Tensor) -> Tensor:
        """Singular value decomposition, with signs chosen so that U and V lie within reach (see ``signature``).

        Raises:
            ValueError: H is not on the sphere, or it is a reflection and the sphere is isometric.
            NotImplementedError: for ``preserve_mean=False``, whose first singular value cannot take a sign, and for
                gamma < 1, where the U and V that H was made of are not those that the decomposition finds.
        """
        if not self.preserve_mean or self.gamma < 1:
            return super().coordinates(H)
        H = self._require_member(H, *self.invariants)
        Z = helmert(self.n).to(H.device)
        cores = Z.mT @ H.detach().double() @ Z
        # The number of tokens is said outright: with one stream there is no core entry to infer it from.
        tokens = math.prod(H.shape[:-2])
        rows = [self._core_coordinates(E) for E in cores.reshape(tokens, self.n - 1, self.n - 1)]
        theta = torch.stack(rows) if rows else H.new_empty(0, self.num_coordinates)
        return theta.reshape(*H.shape[:-2], self.num_coordinates).to(H.dtype)

    def _core_coordinates(self, E: Tensor) -> Tensor:
        U, sigma, Vh = torch.linalg.svd(E)
        if self.isometric:
            E = U @ Vh  # the nearest orthogonal matrix: H may have been rounded
            if float(torch.linalg.det(E)) < 0:
                raise ValueError(f"{self!r} does not reach this matrix: its determinant is −1, a reflection")
            # E is a rotation; half of it on either side keeps both skew matrices within norm 1.
            V = rotation_root(E).mT
            A_u, A_v = cayley_inverse(E @ V), cayley_inverse(V)
            sigma = sigma[:0]
        else:
            sign_u, A_u = cayley_signature(U)
            sign_v, A_v = cayley_signature(Vh.mT)
            sigma = sigma * sign_u * sign_v
        ratio = torch.stack([skew_coordinates(A_u), skew_coordinates(A_v)]) / self.gamma
        edge = 1 - torch.finfo(torch.float64).eps
        return torch.cat([ratio.clamp(-edge, edge).atanh().flatten(), sigma.clamp(-edge, edge).atanh()])

    @classmethod
    def examples(cls) -> tuple[SpectralSphere, ...]:
        return (
            *(cls(n=n) for n in (1, 2, 3, 4, 5, 8, 10)),
            cls(n=4, isometric=True),
            cls(n=5, isometric=True, gamma=2.0),
            cls(n=4, gamma=0.5),
            cls(n=4, preserve_mean=False),
            cls(n=3, preserve_mean=False, isometric=True),
        )
