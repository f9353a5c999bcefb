"""Rotations by the Cayley transform: the map, its naive account, its coordinates, and what brings others into reach."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from hyperconn.kernels.maps.cayley import LARGEST_SKEW, cayley_inverse, polish_orthogonal, saturate


def cayley(A: Tensor) -> Tensor:
    """``(I + A)⁻¹(I − A)`` for skew ``A [..., n, n]``, orthogonal to rounding however large A is.

    Where the largest entry of A exceeds 8e4 in float32 (1e10 in float64) all of A is scaled down to it: still a
    rotation, but small entries beside such a large one lose their say. Three Newton–Schulz steps polish the solve.
    """
    A = saturate(A, LARGEST_SKEW[A.dtype])
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    # The symmetric part of I + A is the identity, so no pivot of the elimination is small.
    return polish_orthogonal(torch.linalg.solve_ex(eye + A, eye - A)[0])


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


def cayley_signature(U: Tensor) -> tuple[Tensor, Tensor]:
    """Signs ``d [k]`` and skew ``A [k, k]`` such that ``U diag(d)`` is the Cayley transform of A and every |A_ij| ≤ 1.

    Such signs exist for every orthogonal ``U [k, k]``, float64. Elimination on ``U + diag(d)``, with each sign chosen
    to enlarge its pivot, gives a first choice without the eigenvalue −1; flipping the two signs that belong to an
    entry of A beyond 1 multiplies ``det(I + U diag(d))`` by that entry squared, so the flips end.

    Source: O'Dorney, "Minimizing the Cayley transform of an orthogonal matrix by multiplying by signature
    matrices", arXiv 1310.1934.
    """
    k = U.shape[-1]
    schur = U.clone()
    signs = torch.ones(k, dtype=U.dtype, device=U.device)
    for j in range(k):
        signs[j] = 1.0 if schur[j, j] >= 0 else -1.0
        schur[j, j] += signs[j]
        schur[j + 1 :, j + 1 :] -= torch.outer(schur[j + 1 :, j] / schur[j, j], schur[j, j + 1 :])
    A = cayley_inverse(U * signs)
    # A hair above 1, so that rounding cannot make two choices alternate for ever.
    while k > 1 and float(A.abs().max()) > 1 + 1e-13:
        i, j = divmod(int(A.abs().argmax()), k)
        signs[i], signs[j] = -signs[i], -signs[j]
        A = cayley_inverse(U * signs)
    return signs, A


def rotation_root(Q: Tensor) -> Tensor:
    """A square root of a rotation ``Q [k, k]``, float64; good to 1e-3 next to the eigenvalue −1, else to rounding.

    It is the polar factor of ``I + Q``; on the eigenspace of −1, where that vanishes, quarter turns will do. They
    turn the way Q turns, so that what they leave of Q is no more than a quarter turn either.
    """
    k = Q.shape[-1]
    eye = torch.eye(k, dtype=Q.dtype, device=Q.device)
    cosines, vectors = torch.linalg.eigh((Q + Q.mT) / 2)
    # The cosines of a rotation other than 1 come in pairs, which rounding may put on either side of the threshold.
    count = int((cosines < -1 + 1e-6).sum())
    flipped = vectors[:, : count + count % 2]
    first, second = flipped[:, 0::2], flipped[:, 1::2]
    way = torch.where((second * (Q @ first) - first * (Q @ second)).sum(0) < 0, -1.0, 1.0).to(Q.dtype)
    U, _, Vh = torch.linalg.svd(eye + Q + (way * second) @ first.mT - (way * first) @ second.mT)
    return U @ Vh
