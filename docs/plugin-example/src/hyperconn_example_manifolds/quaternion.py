"""Rotations of four streams by two unit quaternions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperconn.manifolds import Invariant, Manifold, invariants

determinant_one = Invariant(
    "determinant_one",
    "det H = 1",
    lambda H: (torch.linalg.det(H) - 1).abs(),
    closed_under_products=True,
    closed_under_kronecker=True,
    closed_under_relabelling=True,
)


@dataclass(frozen=True)
class Quaternion(Manifold):
    """The rotations of four streams, x ↦ p x q with unit quaternions p and q.

    **Set**: ``Hᵀ H = I, det H = 1``, n = 4.

    **Map**: ``H = L(p) R(q)``, a left and a right isoclinic rotation, which commute. Three coordinates v each, by
    stereographic projection, ``p = (1 + v)² / (1 + |v|²)``, with v as a quaternion without real part. The
    identity is θ = 0, exactly. A quaternion p = −1 is the limit of infinite coordinates; as (p, q) and (−p, −q) are
    one rotation, every rotation but −I is reached, and −I in the limit.

    **Exactness**: exact to rounding for any finite coordinates. Costs no solve.

    Raises:
        ValueError: n is not 4.

    Source: oHC, arXiv 2609.02672.

    >>> import torch
    >>> H = Quaternion(n=4)(torch.randn(6))
    >>> bool(torch.allclose(H.mT @ H, torch.eye(4), atol=1e-5)), round(float(torch.linalg.det(H)), 4)
    (True, 1.0)
    """

    name = "quaternion"
    api_version = 1
    exact = True
    source = "arXiv 2609.02672"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n != 4:
            raise ValueError(
                f"Quaternion: n must be 4 streams, the dimensions that quaternions have, got n={self.n}. Use manifold "
                "'stiefel' for rotations of another size, or 'kronecker' with a quaternion factor for multiples of 4"
            )

    @property
    def num_coordinates(self) -> int:
        return 6

    @property
    def coordinate_groups(self) -> tuple[tuple[str, int], ...]:
        return (("left", 3), ("right", 3))

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (invariants.orthogonal, invariants.spectral_norm, invariants.non_expansive, determinant_one)

    @property
    def norm_bound(self) -> float:
        return 1.0

    def forward(self, theta: Tensor) -> Tensor:
        p, q = unit_quaternion(theta.unflatten(-1, (2, 3))).unbind(-2)
        return left(p) @ right(q)

    def reference(self, theta: Tensor) -> Tensor:
        """The products p e q with the four units e, by Hamilton's rule."""
        v = theta.unflatten(-1, (2, 3))
        squared = v.square().sum(-1, keepdim=True)
        p, q = (torch.cat([1 - squared, 2 * v], -1) / (1 + squared)).unbind(-2)
        units = torch.eye(4, dtype=theta.dtype, device=theta.device)
        return torch.stack([product(product(p, e.expand_as(p)), q) for e in units], -1)

    def identity_coordinates(self) -> list[float]:
        return [0.0] * 6

    def coordinates(self, H: Tensor) -> Tensor:
        """The two quaternions of a rotation, by the decomposition of van Elfrinkhof.

        Raises:
            ValueError: H is no rotation, or is −I.
        """
        rotation = self._require_member(H, *self.invariants).detach()
        units = torch.eye(4, dtype=rotation.dtype, device=H.device)
        # The 16 products L(e_a) R(e_b) are orthogonal to each other, so this is p_a q_b, of rank 1 and norm 1.
        products = torch.einsum("...ij,aik,bkj->...ab", rotation, left(units), right(units)) / 4
        U, _, Vh = torch.linalg.svd(products)
        p, q = U[..., 0], Vh[..., 0, :]
        # Of the two signs the one further from −1.
        pair = torch.stack([p, q], -2) * torch.where(p[..., 0] + q[..., 0] < 0, -1.0, 1.0)[..., None, None].to(p)
        theta = stereographic(pair).flatten(-2)
        miss = (self.forward(theta) - rotation).abs().amax() if H.numel() else torch.zeros(())
        if not bool(miss <= torch.finfo(H.dtype).eps ** 0.5):
            raise ValueError(f"{self!r} does not reach this matrix: it is −I, or next to it")
        return theta

    @classmethod
    def examples(cls) -> tuple[Quaternion, ...]:
        return (cls(n=4),)


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product of two quaternions ``[..., 4]``."""
    scalar = a[..., :1] * b[..., :1] - (a[..., 1:] * b[..., 1:]).sum(-1, keepdim=True)
    vector = a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:] + torch.linalg.cross(a[..., 1:], b[..., 1:])
    return torch.cat([scalar, vector], -1)


def unit_quaternion(v: Tensor) -> Tensor:
    """``[..., 3]`` to the unit quaternion ``(1 + v)² / |1 + v|²``, ``[..., 4]``, real part first."""
    # |1 + v| cancels whatever 1 + v is scaled by: a constant for the derivatives that keeps squares from overflowing.
    largest = v.detach().abs().amax(-1, keepdim=True).clamp(min=1)
    root = torch.cat([1 / largest, v / largest], -1)
    root = root / root.square().sum(-1, keepdim=True).sqrt()
    real, imaginary = root[..., :1], root[..., 1:]
    return torch.cat([real.square() - imaginary.square().sum(-1, keepdim=True), 2 * real * imaginary], -1)


def stereographic(q: Tensor) -> Tensor:
    """``[..., 4]`` unit quaternions to ``[..., 3]``, the inverse of ``unit_quaternion``; not finite at −1."""
    real, imaginary = q[..., :1], q[..., 1:]
    # imaginary / (1 + real), without the cancellation at real = −1.
    return torch.where(
        real < 0, imaginary * (1 - real) / imaginary.square().sum(-1, keepdim=True), imaginary / (1 + real)
    )


def left(p: Tensor) -> Tensor:
    """``L(p) [..., 4, 4]`` with ``L(p) x = p x``, of ``p [..., 4]``."""
    w, x, y, z = p.unbind(-1)
    return torch.stack([w, -x, -y, -z, x, w, -z, y, y, z, w, -x, z, -y, x, w], -1).unflatten(-1, (4, 4))


def right(q: Tensor) -> Tensor:
    """``R(q) [..., 4, 4]`` with ``R(q) x = x q``, of ``q [..., 4]``."""
    w, x, y, z = q.unbind(-1)
    return torch.stack([w, -x, -y, -z, x, w, z, -y, y, -z, w, x, z, y, -x, w], -1).unflatten(-1, (4, 4))
