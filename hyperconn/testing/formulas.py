"""One sublayer of each published system, written from its formulas, for one token at a time: the naive account.

Nothing of the library is imported: this file is the second, independent account of what a preset must compute. It is
slow and plain on purpose. Every function takes a token ``x [n, C]`` (``[m, C/m]`` for fractions), the parameters of
the predictor and the branch, and returns ``(x', pre, post, H)`` with ``H`` the matrix that multiplies ``x``. All of
it is differentiable, so the gradients are references too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Branch = Callable[[Tensor], Tensor]


class Sublayer(NamedTuple):
    """What one sublayer computes for one token."""

    out: Tensor
    pre: Tensor
    post: Tensor
    H: Tensor


def write(x: Tensor, pre: Tensor, post: Tensor, H: Tensor, branch: Branch) -> Sublayer:
    """``u = preᵀ x``, ``y = F(u)``, ``x' = H x + post yᵀ``, entry by entry over the streams."""
    n = x.shape[0]
    u = sum((pre[i] * x[i] for i in range(n)), torch.zeros_like(x[0]))
    y = branch(u)
    rows = []
    for i in range(n):
        mixed = sum((H[i, j] * x[j] for j in range(n)), torch.zeros_like(x[0]))
        rows.append(mixed + post[i] * y)
    return Sublayer(torch.stack(rows), pre, post, H)


def flat_logits(
    x: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    groups: tuple[int, ...],
    eps: float,
    weight: Tensor | None = None,
    outside: bool = False,
) -> list[Tensor]:
    """``scale · (w ∘ vec x · φ) / r + base``, cut into groups; the bias is not divided by ``r`` (arXiv 2512.24880).

    ``r = √(mean(vec x²) + eps)``, or with eps ``outside`` of the root ``√mean(vec x²) + eps`` (Megatron).
    """
    vec = x.reshape(-1)
    mean_square = (vec**2).sum() / vec.numel()
    r = torch.sqrt(mean_square) + eps if outside else torch.sqrt(mean_square + eps)
    vec = vec if weight is None else vec * weight
    assert sum(groups) == base.numel() and len(groups) == scale.numel()
    logits, start = [], 0
    for group, size in enumerate(groups):
        rows = [scale[group] * (fn[start + k] @ vec) / r + base[start + k] for k in range(size)]
        logits.append(torch.stack(rows))
        start += size
    return logits


def sigmoid(t: Tensor) -> Tensor:
    """``1 / (1 + e⁻ᵗ)``."""
    return 1 / (1 + torch.exp(-t))


def mhc(x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, branch: Branch, eps: float) -> Sublayer:
    """mHC, arXiv 2512.24880: twenty sweeps over exp(logits), columns first and rows last."""
    n = x.shape[0]
    l_pre, l_post, l_res = flat_logits(x, fn, base, scale, (n, n, n * n), eps)
    M = torch.exp(l_res.reshape(n, n))
    for _ in range(20):
        M = M / M.sum(0, keepdim=True)
        M = M / M.sum(1, keepdim=True)
    return write(x, sigmoid(l_pre), 2 * sigmoid(l_post), M, branch)


def mhc_lite(
    x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, branch: Branch, eps: float, weight: Tensor
) -> Sublayer:
    """mHC-lite: a convex combination of all n! permutation matrices, in lexicographic order."""
    n = x.shape[0]
    l_pre, l_post, l_res = flat_logits(x, fn, base, scale, (n, n, math.factorial(n)), eps, weight)
    return write(x, sigmoid(l_pre), 2 * sigmoid(l_post), permutation_mixture(l_res, n), branch)


def permutation_mixture(logits: Tensor, n: int) -> Tensor:
    """``Σ softmax(logits)ₖ Pₖ`` over the permutation matrices in lexicographic order."""
    weights = torch.exp(logits - logits.max()) / torch.exp(logits - logits.max()).sum()
    H = torch.zeros(n, n, dtype=logits.dtype)
    for weight, order in zip(weights, itertools.permutations(range(n)), strict=True):
        P = torch.zeros(n, n, dtype=logits.dtype)
        for row, column in enumerate(order):
            P[row, column] = 1.0
        H = H + weight * P
    return H


def kromhc(x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, branch: Branch, eps: float, weight: Tensor) -> Sublayer:
    """KromHC: ``U₁ ⊗ … ⊗ U_K`` with one permutation mixture for each prime factor of n."""
    n = x.shape[0]
    primes = prime_factors(n)
    sizes = [math.factorial(p) for p in primes]
    l_pre, l_post, l_res = flat_logits(x, fn, base, scale, (n, n, sum(sizes)), eps, weight)
    H = torch.ones(1, 1, dtype=x.dtype)
    start = 0
    for p, size in zip(primes, sizes, strict=True):
        H = kronecker_product(H, permutation_mixture(l_res[start : start + size], p))
        start += size
    return write(x, sigmoid(l_pre), 2 * sigmoid(l_post), H, branch)


def prime_factors(n: int) -> list[int]:
    """Primes of n, in ascending order."""
    factors, p = [], 2
    while n > 1:
        while n % p == 0:
            factors.append(p)
            n //= p
        p += 1
    return factors


def kronecker_product(A: Tensor, B: Tensor) -> Tensor:
    """``[[a₀₀B, a₀₁B, …], …]``"""
    return torch.cat([torch.cat([A[i, j] * B for j in range(A.shape[1])], 1) for i in range(A.shape[0])], 0)


def jpmhc(x: Tensor, fn: Tensor, weight: Tensor, bias: Tensor, branch: Branch, eps: float) -> Sublayer:
    """JPmHC, arXiv 2602.18308: LayerNorm, n² logits each, gates by row and by column, the exact Cayley map."""
    n = x.shape[0]
    logits = fn @ layer_norm(x.reshape(-1), weight, bias, eps)
    l_pre, l_post, l_res = logits.reshape(3, n * n)
    E = torch.exp(l_pre.reshape(n, n))
    H_pre = E / E.sum(1, keepdim=True)  # each row sums to one
    E = torch.exp(l_post.reshape(n, n))
    H_post = E / E.sum(0, keepdim=True)  # each column sums to one
    pre = H_pre.T @ torch.ones(n, dtype=x.dtype) / n
    post = H_post @ torch.ones(n, dtype=x.dtype)
    W = l_res.reshape(n, n)
    upper = torch.stack([(W - W.T)[i, j] / 2 for i, j in itertools.combinations(range(n), 2)])
    result = write(x, pre, post, cayley(upper, n), branch)
    # The paper's own wording of the same thing: average the mixed streams, and mix n copies of the output.
    y = branch((H_pre @ x).mean(0))
    copies = torch.stack([y] * n)
    return result._replace(out=result.H @ x + H_post @ copies)


def cayley(upper: Tensor, n: int) -> Tensor:
    """``(I + A)⁻¹ (I − A)`` of the skew matrix with this strict upper triangle, row by row."""
    A = torch.zeros(n, n, dtype=upper.dtype)
    for value, (i, j) in zip(upper, itertools.combinations(range(n), 2), strict=True):
        basis = torch.zeros(n, n, dtype=upper.dtype)
        basis[i, j], basis[j, i] = 1.0, -1.0
        A = A + value * basis
    identity = torch.eye(n, dtype=upper.dtype)
    return torch.linalg.inv(identity + A) @ (identity - A)


def shc(x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, branch: Branch, eps: float, gamma: float) -> Sublayer:
    """sHC, arXiv 2603.20896: ``J + Z U diag(tanh s) Vᵀ Zᵀ``, ``U`` and ``V`` Cayley of ``γ tanh``; three groups."""
    n = x.shape[0]
    k = (n - 1) * (n - 2) // 2
    sizes = tuple(size for size in (n, n, k, k, n - 1) if size)
    l_pre, l_post, *rest = flat_logits(x, fn, base, scale, sizes, eps)
    nothing = torch.zeros(0, dtype=x.dtype)
    u, v, s = rest if k else (nothing, nothing, rest[0])
    U, V = cayley(gamma * torch.tanh(u), n - 1), cayley(gamma * torch.tanh(v), n - 1)
    E = U @ torch.diag(torch.tanh(s)) @ V.T
    Z = helmert(n).to(x.dtype)
    H = torch.full((n, n), 1 / n, dtype=x.dtype) + Z @ E @ Z.T
    return write(x, sigmoid(l_pre), 2 * sigmoid(l_post), H, branch)


def helmert(n: int) -> Tensor:
    """Orthonormal columns, each orthogonal to the ones: column k is ``(1, …, 1, −k, 0, …) / √(k(k+1))``."""
    columns = []
    for k in range(1, n):
        column = [1.0] * k + [-float(k)] + [0.0] * (n - k - 1)
        columns.append(torch.tensor(column, dtype=torch.float64) / math.sqrt(k * (k + 1)))
    return torch.stack(columns, 1)


def ihc(x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, branch: Branch, eps: float) -> Sublayer:
    """Identity residual with the gates of mHC: no residual coordinates at all."""
    n = x.shape[0]
    l_pre, l_post = flat_logits(x, fn, base, scale, (n, n), eps)
    H = torch.eye(n, dtype=x.dtype)
    return write(x, sigmoid(l_pre), 2 * sigmoid(l_post), H, branch)


def deepseek_v4(x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, branch: Branch, eps: float) -> Sublayer:
    """DeepSeek-V4: row softmax + eps, one column step, then nineteen (row, column) pairs; applied transposed."""
    pre, post, H = deepseek_v4_coefficients(x, fn, base, scale, eps)
    return write(x, pre, post, H, branch)


def deepseek_v4_coefficients(
    x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``pre``, ``post`` and the matrix that multiplies x."""
    n = x.shape[0]
    hc_eps = 1e-6
    l_pre, l_post, l_res = flat_logits(x, fn, base, scale, (n, n, n * n), eps)
    comb = torch.exp(l_res.reshape(n, n))
    comb = comb / comb.sum(1, keepdim=True) + hc_eps
    comb = comb / (comb.sum(0, keepdim=True) + hc_eps)
    for _ in range(19):
        comb = comb / (comb.sum(1, keepdim=True) + hc_eps)
        comb = comb / (comb.sum(0, keepdim=True) + hc_eps)
    return sigmoid(l_pre) + hc_eps, 2 * sigmoid(l_post), comb.T


def deepseek_v41(
    x: Tensor, carried: Tensor, fn: Tensor, base: Tensor, scale: Tensor, branch: Branch, eps: float
) -> Sublayer:
    """DeepSeek-V4.1: what the sublayer before left is read with; ``pre`` of the result is for the next one.

    ``u = Σᵢ carriedᵢ xᵢ``, ``x' = combᵀ x + post F(u)ᵀ``. The first sublayer is given 1 for stream 0, and the ``pre``
    of the last one collapses the streams.
    """
    pre, post, H = deepseek_v4_coefficients(x, fn, base, scale, eps)
    return write(x, carried, post, H, branch)._replace(pre=pre)


def hy_v4(
    x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, branch: Branch, eps: float, magnitude: float, hc_eps: float
) -> Sublayer:
    """hy_v4 of Hugging Face transformers: no mixing, ``pre = σ + eps``, ``post = magnitude · σ + eps``."""
    n = x.shape[0]
    l_pre, l_post = flat_logits(x, fn, base, scale, (n, n), eps)
    H = torch.eye(n, dtype=x.dtype)
    return write(x, sigmoid(l_pre) + hc_eps, magnitude * sigmoid(l_post) + hc_eps, H, branch)


def deepseek_v4_head(x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, eps: float, hc_eps: float) -> Tensor:
    """The learned collapse: ``Σᵢ (σ(s · (vec x φ)ᵢ / r + bᵢ) + eps) xᵢ``."""
    n = x.shape[0]
    (logits,) = flat_logits(x, fn, base, scale, (n,), eps)
    weights = sigmoid(logits) + hc_eps
    return sum((weights[i] * x[i] for i in range(n)), torch.zeros_like(x[0]))


def layer_norm(row: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``(row − mean) / √(variance + eps)``, times ``weight`` plus ``bias`` where there are any."""
    centred = row - row.mean()
    normed = centred / torch.sqrt((centred**2).mean() + eps)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def rms_norm(row: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``row / √(mean(row²) + eps)``, likewise."""
    normed = row / torch.sqrt((row**2).mean() + eps)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


class HCParameters(NamedTuple):
    """The letters of arXiv 2409.19606, and of 2503.14125 where ``A_m`` is the matrix ``Y``.

    ``W_m [C, columns of A_m]``, ``W_b [C, 1]``, ``W_r [C, n]``; static parts ``A_m0 [n, columns]``, ``B0 [n]``,
    ``A_r0 [n, n]``; ``s_a`` and ``s_b`` are scalars.
    """

    W_m: Tensor
    W_b: Tensor
    W_r: Tensor
    A_m0: Tensor
    B0: Tensor
    A_r0: Tensor
    s_a: Tensor
    s_b: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    norm: Callable[..., Tensor] = layer_norm
    activation: Branch = torch.tanh


def hc_matrices(x: Tensor, p: HCParameters, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``A_m [n, ·]``, ``B [n]`` and ``A_r [n, n]``, row i of each predicted from stream i alone."""
    A_m, B, A_r = [], [], []
    for i in range(x.shape[0]):
        h = p.norm(x[i], p.norm_weight, p.norm_bias, eps)
        A_m.append(p.s_a * p.activation(h @ p.W_m) + p.A_m0[i])
        B.append((p.s_b * p.activation(h @ p.W_b) + p.B0[i])[0])
        A_r.append(p.s_a * p.activation(h @ p.W_r) + p.A_r0[i])
    return torch.stack(A_m), torch.stack(B), torch.stack(A_r)


def hc_dynamic(x: Tensor, p: HCParameters, branch: Branch, eps: float) -> Sublayer:
    """Dynamic hyper-connections: ``A_rᵀ x + B F(A_mᵀ x)ᵀ``."""
    A_m, B, A_r = hc_matrices(x, p, eps)
    return write(x, A_m[:, 0], B, A_r.T, branch)


def hc_static(x: Tensor, A_m: Tensor, B: Tensor, A_r: Tensor, branch: Branch) -> Sublayer:
    """Static hyper-connections: the same, with learned constants."""
    return write(x, A_m, B, A_r.T, branch)


def fc_dynamic(x: Tensor, p: HCParameters, branch: Branch, eps: float) -> Sublayer:
    """Frac-Connections: ``m`` fractions of one vector; the branch sees the whole vector ``Yᵀ x``."""
    Y, B, A = hc_matrices(x, p, eps)
    return fc_write(x, Y, B, A, branch)


def fc_write(x: Tensor, Y: Tensor, B: Tensor, A: Tensor, branch: Branch) -> Sublayer:
    """The fractions are read with a matrix, and each is written its own part of the output."""
    m, width = x.shape
    fractions = []
    for j in range(m):
        fractions.append(sum((Y[i, j] * x[i] for i in range(m)), torch.zeros_like(x[0])))
    y = branch(torch.cat(fractions))
    rows = []
    for j in range(m):
        mixed = sum((A[i, j] * x[i] for i in range(m)), torch.zeros_like(x[0]))
        rows.append(mixed + B[j] * y[j * width : (j + 1) * width])
    return Sublayer(torch.stack(rows), Y, B, A.T)
