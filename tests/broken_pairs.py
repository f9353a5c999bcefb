"""A manifold with a device pair of its own, and the same with pairs that are wrong in one way each."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.manifolds import Manifold


@triton.jit
def diagonal_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    i = tl.arange(0, N)
    return tl.where(i[None, :, None] == i[None, None, :], OPTIONS[0] * theta[:, None, :], 0.0)


@triton.jit
def diagonal_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    i = tl.arange(0, N)
    return tl.sum(tl.where(i[None, :, None] == i[None, None, :], OPTIONS[0] * dH, 0.0), 1)


@dataclass(frozen=True)
class Diagonal(Manifold):
    """Diagonal matrices."""

    factor: float = 1.5

    name = "test-diagonal"
    exact = True
    invariants = ()
    functions = (diagonal_forward, diagonal_backward)

    @property
    def num_coordinates(self):
        return self.n

    @property
    def kernel(self):
        return DevicePair(*self.functions, (self.factor,))

    def forward(self, theta):
        return torch.diag_embed(self.factor * theta)

    def identity_coordinates(self):
        return [1 / self.factor] * self.n


@triton.jit
def forgets_the_factor(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return diagonal_forward(theta, n, N, (1.0,))


@triton.jit
def rounds_to_float32(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return diagonal_forward(theta.to(tl.float32).to(theta.dtype), n, N, OPTIONS)


@triton.jit
def adds_up_tokens(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return diagonal_forward(theta + 0.0 * tl.sum(theta, 0)[None, :], n, N, OPTIONS)


@triton.jit
def hides_nan(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return diagonal_forward(tl.where(theta == theta, theta, 0.0), n, N, OPTIONS)


@triton.jit
def sees_eight_tokens(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    t = tl.arange(0, theta.shape[0])
    return diagonal_forward(tl.where(t[:, None] < 8, theta, 0.0), n, N, OPTIONS)


@triton.jit
def clamps_far_out(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return diagonal_forward(tl.minimum(theta, 1000.0), n, N, OPTIONS)


@triton.jit
def has_half_the_slope(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return 0.5 * diagonal_backward(theta, dH, n, N, OPTIONS)


@triton.jit
def sums_all_of_dH(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return OPTIONS[0] * tl.sum(dH, 1)


def _pair(name, forward=diagonal_forward, backward=diagonal_backward):
    return type(name, (Diagonal,), {"functions": (forward, backward)})


class NeverLearns(Diagonal):
    """Its torch map is cut off from the coordinates, so that no gradient could be compared."""

    def forward(self, theta):
        return super().forward(theta.detach())


class Wavers(Diagonal):
    """Another factor every second time."""

    calls = itertools.count()

    @property
    def kernel(self):
        return DevicePair(*self.functions, (self.factor * (1 + 1e-6 * (next(self.calls) % 2)),))


ForgetsTheFactor = _pair("ForgetsTheFactor", forgets_the_factor)
HasHalfTheSlope = _pair("HasHalfTheSlope", backward=has_half_the_slope)

# check -> classes that it must refuse
BROKEN_PAIRS = {
    "check_forward": (
        ForgetsTheFactor,
        _pair("RoundsToFloat32", rounds_to_float32),
        _pair("ClampsFarOut", clamps_far_out),
    ),
    "check_backward": (HasHalfTheSlope, _pair("SumsAllOfDH", backward=sums_all_of_dH), NeverLearns),
    "check_tokens": (_pair("SeesEightTokens", sees_eight_tokens),),
    "check_bad_tokens": (_pair("AddsUpTokens", adds_up_tokens), _pair("HidesNaN", hides_nan)),
    "check_repeatable": (Wavers,),
    "check_layer": (ForgetsTheFactor, HasHalfTheSlope),
}
