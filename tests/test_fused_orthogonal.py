"""Device pairs of the orthogonal family and of the trivial manifolds, against their torch maps."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_cases import DEVICE, EXACT, EXACT_DTYPE, exhaustive, reference_gradients, relative_error
from hyperconn.kernels import saturate, skew
from hyperconn.kernels.fused.constrain import constrain_backward, constrain_forward, tokens_per_program
from hyperconn.kernels.fused.maps.spectral_sphere import tanh, tanh_derivative
from hyperconn.kernels.fused.maps.stiefel import stiefel_pair
from hyperconn.kernels.fused.pair import DevicePair, pair_named
from hyperconn.kernels.poison import poisoned_memory
from hyperconn.manifolds import Grassmann, Identity, Manifold, SpectralSphere, Stiefel, Unconstrained

MANIFOLDS: tuple[Manifold, ...] = (
    *(Stiefel(n=n) for n in (1, 2, 3, 4, 5, 8)),
    Stiefel(n=4, method="iterative"),
    Stiefel(n=3, method="iterative", alpha=0.3, steps=0),
    Stiefel(n=5, method="iterative", alpha=0.7, steps=7),
    *(Stiefel(n=n, generator="full") for n in (2, 3, 4, 5)),
    Stiefel(n=3, generator="full", method="iterative"),
    *(SpectralSphere(n=n) for n in (1, 2, 3, 4, 5, 8)),
    SpectralSphere(n=4, gamma=1.7),
    SpectralSphere(n=5, isometric=True, gamma=0.3),
    SpectralSphere(n=3, preserve_mean=False),
    SpectralSphere(n=4, preserve_mean=False),
    SpectralSphere(n=1, preserve_mean=False),
    SpectralSphere(n=4, preserve_mean=False, isometric=True),
    *(Grassmann(n=n) for n in (1, 2, 3, 4, 5, 8)),
    Grassmann(n=4, p=1),
    Grassmann(n=5, p=4),
    Grassmann(n=3, p=3),
    *(Unconstrained(n=n) for n in (1, 2, 3, 4, 5, 8)),
    *(Identity(n=n) for n in (1, 3, 4)),
)
LARGE: tuple[Manifold, ...] = tuple(
    kind(n=n) for kind in (Stiefel, SpectralSphere, Grassmann, Unconstrained, Identity) for n in (6, 11, 16)
)
SCALES = (0.1, 1.0, 10.0, 1e4)
# On a GPU kernels run in float32 alone, where large coordinates are a matter of conditioning: see the float32 tests.
EXACT_SCALES = SCALES if DEVICE == "cpu" else SCALES[:2]


def name(manifold: object) -> str:
    return repr(manifold) if isinstance(manifold, Manifold) else str(manifold)


def coordinates(m: Manifold, T: int, scale: float) -> Tensor:
    """Coordinates of that scale, some of order one between very large ones: where all are large tanh is flat."""
    theta = scale * torch.randn(T, m.num_coordinates, dtype=torch.float64)
    if scale > 100:
        theta[:, ::2] /= scale
    return theta.to(DEVICE)


def run(m: Manifold, theta: Tensor, dH: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(m.kernel, DevicePair)
    with poisoned_memory():
        return constrain_forward(theta, m.kernel, m.n), constrain_backward(theta, dH, m.kernel, m.n)


def check(m: Manifold, T: int, scales: tuple[float, ...]) -> None:
    """All scales in one launch, each held against its own size."""
    theta = torch.cat([coordinates(m, T, scale) for scale in scales]).to(EXACT_DTYPE)
    dH = torch.randn(len(theta), m.n, m.n, dtype=theta.dtype, device=DEVICE)
    H, dtheta = run(m, theta, dH)
    for k, scale in enumerate(scales):
        part = slice(k * T, (k + 1) * T)
        # The projector does not change as U turns within its range, so dU is of order one where dB is of order
        # 1/scale²: either side loses that much, with torch's map as with ours.
        tolerance = EXACT * scale if isinstance(m, Grassmann) and scale > 100 else EXACT
        assert relative_error(H[part], m(theta[part])) < tolerance, scale
        if m.num_coordinates:
            (expected,) = reference_gradients(m, (theta[part],), dH[part])
            assert relative_error(dtheta[part], expected) < tolerance, scale
    assert dtheta.shape == theta.shape


@pytest.mark.parametrize("m", MANIFOLDS, ids=name)
def test_forward_and_backward(m: Manifold) -> None:
    check(m, 3, EXACT_SCALES)


@exhaustive
@pytest.mark.parametrize("m", LARGE, ids=name)
def test_forward_and_backward_of_large_matrices(m: Manifold) -> None:
    check(m, 3, EXACT_SCALES)


@pytest.mark.parametrize("m", (Stiefel(n=3), SpectralSphere(n=3), Grassmann(n=3), Unconstrained(n=3)), ids=name)
def test_several_programs(m: Manifold) -> None:
    T = 2 * tokens_per_program(m.n, m.num_coordinates) + 3
    check(m, T, (1.0,))
    H, dtheta = run(m, coordinates(m, 0, 1.0).to(EXACT_DTYPE), torch.zeros(0, 3, 3, dtype=EXACT_DTYPE, device=DEVICE))
    assert H.shape == (0, 3, 3) and dtheta.shape == (0, m.num_coordinates)


# ------------------------------------------------------------------ float32


def check_float32(m: Manifold) -> None:
    """As near to float64 as torch's map in float32 comes: where that loses digits to conditioning, so may we."""
    T = 64 // max(m.n, 4)
    theta = torch.cat([coordinates(m, T, scale) for scale in SCALES]).float()
    dH = torch.randn(len(theta), m.n, m.n, device=DEVICE)
    H, dtheta = run(m, theta, dH)
    assert H.dtype == dtheta.dtype == torch.float32
    if m.exact:
        assert float(m.violation(H).amax()) <= m.tolerance(torch.float32)
    room = 32 * m.n * torch.finfo(torch.float32).eps
    for k, scale in enumerate(SCALES):
        part = slice(k * T, (k + 1) * T)
        exact = m(theta[part].double())
        error, torch_error = relative_error(H[part], exact), relative_error(m(theta[part]), exact)
        assert error <= 4 * torch_error + room and (error < 1e-5 or scale > 1), scale
        if m.num_coordinates:
            (exact,) = reference_gradients(m, (theta[part].double(),), dH[part].double())
            (torch_own,) = reference_gradients(m, (theta[part],), dH[part])
            error, torch_error = relative_error(dtheta[part], exact), relative_error(torch_own, exact)
            assert error <= 4 * torch_error + room and (error < 1e-5 or scale > 1), scale


@pytest.mark.parametrize("m", MANIFOLDS, ids=name)
def test_float32(m: Manifold) -> None:
    check_float32(m)


@exhaustive
@pytest.mark.parametrize("m", LARGE, ids=name)
def test_float32_of_large_matrices(m: Manifold) -> None:
    check_float32(m)


@pytest.mark.parametrize("n", (3, 4, 8))
def test_very_large_coordinates_stay_rotations(n: int) -> None:
    m = Stiefel(n=n)
    theta = torch.cat([scale * torch.randn(16, m.num_coordinates) for scale in (7e4, 1e6, 1e30)]).to(DEVICE)
    H, dtheta = run(m, theta, torch.randn(48, n, n, device=DEVICE))
    assert float(m.violation(H).amax()) <= m.tolerance(torch.float32)
    assert float(torch.linalg.det(H.double()).amin()) > 0.999
    assert dtheta.isfinite().all()


# ------------------------------------------------------------------ corners


def test_saturated_skew_matrices() -> None:
    """With a low cap the scaled and the plain side, and ties for the largest entry, are all within reach."""
    cap = 1.5
    theta = torch.tensor([[0.5, -1.0, 1.4], [3.0, -1.0, 0.2], [2.0, -2.0, 0.3]], dtype=EXACT_DTYPE, device=DEVICE)
    dH = torch.randn(3, 3, 3, dtype=EXACT_DTYPE, device=DEVICE)
    pair = stiefel_pair((cap, cap))

    def reference(theta: Tensor) -> Tensor:
        A = saturate(skew(theta, 3), cap)
        eye = torch.eye(3, dtype=A.dtype, device=A.device)
        return torch.linalg.solve(eye + A, eye - A)

    assert relative_error(constrain_forward(theta, pair, 3), reference(theta)) < EXACT
    (expected,) = reference_gradients(reference, (theta,), dH)
    assert relative_error(constrain_backward(theta, dH, pair, 3), expected) < EXACT


# numpy, which computes in the interpreter, reports invalid operations.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("m", MANIFOLDS, ids=name)
def test_what_is_not_finite_stays_in_its_token(m: Manifold) -> None:
    if not m.num_coordinates:
        return
    theta = coordinates(m, 6, 1.0).to(EXACT_DTYPE)
    dH = torch.randn(6, m.n, m.n, dtype=theta.dtype, device=DEVICE)
    clean = run(m, theta, dH)
    for token, bad in ((1, torch.nan), (3, torch.inf), (5, -torch.inf)):
        theta[token, -1] = bad
        theta[token, : m.num_coordinates // 3] = bad
    H, dtheta = run(m, theta, dH)
    assert torch.equal(H[::2], clean[0][::2]) and torch.equal(dtheta[::2], clean[1][::2])
    if isinstance(m, Unconstrained):
        assert torch.equal(H[1::2].nan_to_num(7.0), theta[1::2].unflatten(-1, (m.n, m.n)).nan_to_num(7.0))
    elif m.exact:
        assert H[1].isnan().all()
        # A limit at infinity, or NaN: never a finite matrix off the set.
        for violation in m.violation(H[3::2]).tolist():
            assert math.isnan(violation) or violation <= m.tolerance(EXACT_DTYPE)


@triton.jit
def _tanh_kernel(x_ptr, tanh_ptr, derivative_ptr, size: tl.constexpr):
    i = tl.arange(0, size)
    x = tl.load(x_ptr + i)
    tl.store(tanh_ptr + i, tanh(x))
    tl.store(derivative_ptr + i, tanh_derivative(x))


def test_tanh_keeps_its_digits() -> None:
    """Relative to its own size, near 0 and in the tail of the derivative too."""
    sizes = torch.logspace(-30, 1.2, 512, dtype=torch.float64)
    x = torch.cat([sizes, -sizes]).to(device=DEVICE, dtype=EXACT_DTYPE)
    values, slopes = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    _tanh_kernel[(1,)](x, values, slopes, 1024)
    wide = x.double()
    eps = torch.finfo(EXACT_DTYPE).eps
    assert ((values.double() / wide.tanh() - 1).abs() < 8 * eps).all()
    assert ((slopes.double() * wide.cosh().square() - 1).abs() < 64 * eps).all()
    ends = torch.tensor([0.0, 1e4, -1e4, 60.0], device=DEVICE, dtype=EXACT_DTYPE).repeat(256)
    _tanh_kernel[(1,)](ends, values, slopes, 1024)
    assert torch.equal(values[:4], ends[:4].tanh()) and slopes[0] == 1 and slopes[1] == slopes[2] == 0


def test_every_manifold_here_has_a_pair_up_to_sixteen_streams() -> None:
    kinds = (Stiefel, SpectralSphere, Grassmann, Unconstrained, Identity)
    assert {type(m) for m in MANIFOLDS} == set(kinds)
    for kind in kinds:
        assert isinstance(kind(n=16).kernel, DevicePair) and kind(n=17).kernel is None
        assert pair_named(kind(n=16).kernel.key) == kind(n=16).kernel
