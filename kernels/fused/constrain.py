"""A device pair by itself: coordinates to matrices and back, without the rest of the coefficient step."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperconn.kernels.fused.launch import Launch
from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.kernels.fused.tiles import matrix_entries
from hyperconn.kernels.fused.tuning import power_of_two


@triton.jit
def _constrain_forward_kernel(
    theta_ptr, H_ptr, T,
    FORWARD: tl.constexpr, OPTIONS: tl.constexpr,
    n: tl.constexpr, N: tl.constexpr, P: tl.constexpr, PP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    p = tl.arange(0, PP)
    inside = (t[:, None] < T) & (p[None, :] < P)
    theta = tl.load(theta_ptr + t[:, None] * P + p[None, :], mask=inside, other=0.0)
    entry, H_inside = matrix_entries(t, T, n, N, False)
    tl.store(H_ptr + entry, FORWARD(theta, n, N, OPTIONS), mask=H_inside)


@triton.jit
def _constrain_backward_kernel(
    theta_ptr, dH_ptr, dtheta_ptr, T,
    BACKWARD: tl.constexpr, OPTIONS: tl.constexpr,
    n: tl.constexpr, N: tl.constexpr, P: tl.constexpr, PP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    p = tl.arange(0, PP)
    inside = (t[:, None] < T) & (p[None, :] < P)
    theta = tl.load(theta_ptr + t[:, None] * P + p[None, :], mask=inside, other=0.0)
    entry, dH_inside = matrix_entries(t, T, n, N, False)
    dH = tl.load(dH_ptr + entry, mask=dH_inside, other=0.0)
    dtheta = BACKWARD(theta, dH, n, N, OPTIONS)
    tl.store(dtheta_ptr + t[:, None] * P + p[None, :], dtheta, mask=inside)


def tokens_per_program(n: int, coordinates: int) -> int:
    """How many tokens fit: some hundred numbers of the largest tile, whatever n is.

    What a pair keeps beside them grows with that number, four warps have 255 registers a thread, and a batch of a few
    thousand tokens should still occupy every multiprocessor.
    """
    N, PP = power_of_two(n), power_of_two(coordinates)
    return min(64, max(1, 256 // max(N * N, PP)))


def constrain_forward(theta: Tensor, pair: DevicePair, n: int) -> Tensor:
    """``theta [T, P]`` float32 to ``H [T, n, n]``."""
    (T, P), theta = theta.shape, theta.contiguous()
    H = theta.new_empty(T, n, n)
    BT = tokens_per_program(n, P)
    Launch(
        _constrain_forward_kernel,
        (triton.cdiv(T, BT),),
        {"theta_ptr": theta, "H_ptr": H, "T": T},
        {"FORWARD": pair.forward, "OPTIONS": pair.options, **_sizes(n, P), "BT": BT},
    ).run()
    return H


def constrain_backward(theta: Tensor, dH: Tensor, pair: DevicePair, n: int) -> Tensor:
    """Gradient ``[T, P]`` of ``theta [T, P]`` from that of H, ``dH [T, n, n]``."""
    (T, P), theta, dH = theta.shape, theta.contiguous(), dH.contiguous()
    dtheta = torch.empty_like(theta)
    BT = tokens_per_program(n, P)
    Launch(
        _constrain_backward_kernel,
        (triton.cdiv(T, BT),),
        {"theta_ptr": theta, "dH_ptr": dH, "dtheta_ptr": dtheta, "T": T},
        {"BACKWARD": pair.backward, "OPTIONS": pair.options, **_sizes(n, P), "BT": BT},
    ).run()
    return dtheta


def _sizes(n: int, P: int) -> dict[str, int]:
    return {"n": n, "N": power_of_two(n), "P": P, "PP": power_of_two(P)}
