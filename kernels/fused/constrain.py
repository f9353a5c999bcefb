"""A device pair by itself: coordinates to matrices and back, without the rest of the coefficient step."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hyperconn.kernels.fused.launch import launch
from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.kernels.fused.tiles import matrix_entries
from hyperconn.kernels.fused.tuning import power_of_two


@triton.jit
def _entries(n: tl.constexpr, N: tl.constexpr, P: tl.constexpr, PP: tl.constexpr, BT: tl.constexpr, T):
    """Offsets and masks of a tile: of the coordinates, ``[BT, PP]``, and of the matrices, ``[BT, N, N]``."""
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    p = tl.arange(0, PP)
    entry, inside = matrix_entries(t, T, n, N, False)
    return t[:, None] * P + p[None, :], (t[:, None] < T) & (p[None, :] < P), entry, inside


@triton.jit
def _constrain_forward_kernel(
    theta_ptr, H_ptr, T,
    FORWARD: tl.constexpr, OPTIONS: tl.constexpr,
    n: tl.constexpr, N: tl.constexpr, P: tl.constexpr, PP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    coordinate, coordinate_inside, entry, inside = _entries(n, N, P, PP, BT, T)
    theta = tl.load(theta_ptr + coordinate, mask=coordinate_inside, other=0.0)
    tl.store(H_ptr + entry, FORWARD(theta, n, N, OPTIONS), mask=inside)


@triton.jit
def _constrain_backward_kernel(
    theta_ptr, dH_ptr, dtheta_ptr, T,
    BACKWARD: tl.constexpr, OPTIONS: tl.constexpr,
    n: tl.constexpr, N: tl.constexpr, P: tl.constexpr, PP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    coordinate, coordinate_inside, entry, inside = _entries(n, N, P, PP, BT, T)
    theta = tl.load(theta_ptr + coordinate, mask=coordinate_inside, other=0.0)
    dH = tl.load(dH_ptr + entry, mask=inside, other=0.0)
    tl.store(dtheta_ptr + coordinate, BACKWARD(theta, dH, n, N, OPTIONS), mask=coordinate_inside)


def tokens_per_program(n: int, coordinates: int) -> int:
    """How many tokens fit: some hundred numbers of the largest tile, whatever n is.

    What a pair keeps beside them grows with that number, and a few thousand tokens should occupy every multiprocessor.
    """
    N, PP = power_of_two(n), power_of_two(coordinates)
    return min(64, max(1, 256 // max(N * N, PP)))


def constrain_forward(theta: Tensor, pair: DevicePair, n: int) -> Tensor:
    """``theta [T, P]`` float32 to ``H [T, n, n]``."""
    H = theta.new_empty(len(theta), n, n)
    grid, sizes = _grid_and_sizes(theta, n)
    tensors = theta.contiguous(), H
    launch(_constrain_forward_kernel, grid, *tensors, len(theta), FORWARD=pair.forward, OPTIONS=pair.options, **sizes)
    return H


def constrain_backward(theta: Tensor, dH: Tensor, pair: DevicePair, n: int) -> Tensor:
    """Gradient ``[T, P]`` of ``theta [T, P]`` from that of H, ``dH [T, n, n]``."""
    dtheta = theta.new_empty(theta.shape)
    grid, sizes = _grid_and_sizes(theta, n)
    tensors = theta.contiguous(), dH.contiguous(), dtheta
    launch(
        _constrain_backward_kernel, grid, *tensors, len(theta), BACKWARD=pair.backward, OPTIONS=pair.options, **sizes
    )
    return dtheta


def _grid_and_sizes(theta: Tensor, n: int) -> tuple[tuple[int], dict[str, int]]:
    T, P = theta.shape
    BT = tokens_per_program(n, P)
    return (triton.cdiv(T, BT),), {"n": n, "N": power_of_two(n), "P": P, "PP": power_of_two(P), "BT": BT}
