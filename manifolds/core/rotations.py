"""Sign choices that bring an orthogonal matrix into the reach of a bounded Cayley transform."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperconn.kernels import cayley_inverse


def cayley_signature(U: Tensor) -> tuple[Tensor, Tensor]:
    """Signs ``d`` and skew ``A`` such that ``U diag(d)`` is the Cayley transform of A and every |A_ij| ≤ 1.

    Such signs exist for every orthogonal U. Elimination on ``U + diag(d)``, with each sign chosen to enlarge its
    pivot, gives a first choice without the eigenvalue −1; flipping the two signs that belong to an entry of A
    beyond 1 multiplies ``det(I + U diag(d))`` by that entry squared, so the flips end.

    Args:
        U: ``[k, k]`` orthogonal, float64.

    Returns:
        ``d [k]`` of ±1, ``A [k, k]``.

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
    """A square root of a rotation, good to about 1e-3 next to the eigenvalue −1 and to rounding elsewhere.

    It is the polar factor of ``I + Q``; on the eigenspace of −1, where that vanishes, quarter turns will do. They
    turn the way Q turns, so that what they leave of Q is no more than a quarter turn either.

    Args:
        Q: ``[k, k]`` orthogonal with determinant 1, float64.
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
