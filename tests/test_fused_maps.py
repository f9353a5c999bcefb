"""Device pairs of every manifold and gate against their torch maps, and the tiles that pairs are made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from broken_pairs import BROKEN_PAIRS
from fused_cases import DEVICE, EXACT, EXACT_DTYPE, exhaustive, reference_gradients, relative_error
from fused_layer_cases import Diagonal
from hyperconn import gates
from hyperconn.kernels import round_to_doubly_stochastic, saturate, skew
from hyperconn.kernels.fused import tiles
from hyperconn.kernels.fused.constrain import constrain_backward, constrain_forward
from hyperconn.kernels.fused.maps.rounding import round_backward, round_forward
from hyperconn.kernels.fused.maps.spectral_sphere import tanh, tanh_derivative
from hyperconn.kernels.fused.maps.stiefel import stiefel_pair
from hyperconn.kernels.fused.pair import pair_named
from hyperconn.kernels.fused.tiles import flat_from_square, put, saturate_backward, square_from_flat, take
from hyperconn.manifolds import (
    Birkhoff,
    Grassmann,
    Identity,
    Kronecker,
    Manifold,
    Permutation,
    SpectralSphere,
    Stiefel,
    Unconstrained,
)
from hyperconn.manifolds.core.map import Map
from hyperconn.testing import kernel_checks
from hyperconn.testing.expressions import expression

DEEPSEEK: dict[str, Any] = {"first_axis": "rows", "eps": 1e-6, "eps_mode": "softmax"}

BIRKHOFF_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"finish": "round"},
    {"iterations": 1},
    {"iterations": 2, "first_axis": "rows", "finish": "round"},
    {"iterations": 6, "eps": 1e-2},
    {"iterations": 6, "eps": 1e-2, "eps_mode": "softmax", "first_axis": "rows", "finish": "round"},
    DEEPSEEK,
    {"iterations": 40, "gradient": "implicit"},
    {"gradient": "implicit", "finish": "round", "eps": 1e-6},
)

GATES = tuple(gate for gate in gates.BUILT_IN if gate(n=2).kernel is not None)
PAIRS: tuple[Map, ...] = (
    *(Birkhoff(n=3, **options) for options in BIRKHOFF_OPTIONS),
    *(Birkhoff(n=n, finish="round") for n in (1, 2, 4, 5, 8)),
    Birkhoff(n=4, iterations=32),
    *(Permutation(n=n) for n in (1, 3, 4, 5)),
    *(Kronecker(n=n) for n in (2, 4, 6, 8)),
    Kronecker(n=6, factors=(3, Identity(n=1), 2)),
    *(Stiefel(n=n) for n in (1, 2, 3, 4, 8)),
    Stiefel(n=5, method="iterative", alpha=0.7, steps=7),
    *(Stiefel(n=n, generator="full") for n in (3, 4)),
    Stiefel(n=3, generator="full", method="iterative"),
    *(SpectralSphere(n=n) for n in (1, 2, 3, 4, 5)),
    SpectralSphere(n=4, gamma=1.7),
    SpectralSphere(n=5, isometric=True, gamma=0.3),
    SpectralSphere(n=3, preserve_mean=False),
    SpectralSphere(n=4, preserve_mean=False, isometric=True),
    *(Grassmann(n=n) for n in (1, 3, 4)),
    Grassmann(n=5, p=4),
    *(Unconstrained(n=n) for n in (1, 3, 4)),
    *(Identity(n=n) for n in (1, 3)),
    *(gate(n=n) for gate in GATES for n in (1, 3, 4)),
)
MORE: tuple[Map, ...] = (
    *(Birkhoff(n=n, **options) for n in (2, 4, 5, 8, 16) for options in BIRKHOFF_OPTIONS),
    *(Birkhoff(n=n, iterations=3, finish="round") for n in range(6, 16)),
    Permutation(n=6),
    *(Kronecker(n=n) for n in (3, 9, 10, 12, 15, 16)),
    *(Kronecker(n=math.prod(sizes), factors=sizes) for sizes in ((4, 4), (3, 5), (2, 6), (2, 4, 2), (1, 2, 1, 3))),
    *(kind(n=n) for kind in (Stiefel, SpectralSphere, Grassmann, Unconstrained, Identity) for n in (6, 11, 16)),
    Stiefel(n=3, method="iterative", alpha=0.3, steps=0),
    *(gate(n=n) for gate in GATES for n in (2, 5, 8, 16)),
)
every_pair = pytest.mark.parametrize("subject", PAIRS, ids=expression)
every_dtype = pytest.mark.parametrize("dtype", kernel_checks.dtypes(), ids=str)


@every_pair
@every_dtype
def test_forward_and_backward(subject: Map, dtype: torch.dtype) -> None:
    check_numbers(subject, dtype)


@exhaustive
@pytest.mark.parametrize("subject", MORE, ids=expression)
@every_dtype
def test_forward_and_backward_of_the_rest(subject: Map, dtype: torch.dtype) -> None:
    check_numbers(subject, dtype)


def check_numbers(subject: Map, dtype: torch.dtype) -> None:
    for scale in (0.0, 1.0, 3.0, 1e2, 1e4):
        kernel_checks.check_forward(subject, dtype, scale)
        if subject.num_coordinates:
            kernel_checks.check_backward(subject, dtype, scale)


@pytest.mark.parametrize("subject", [m for m in PAIRS if m.n in (3, 4)], ids=expression)
def test_tokens_and_bits(subject: Map) -> None:
    kernel_checks.check_tokens(subject)
    kernel_checks.check_repeatable(subject)
    if subject.num_coordinates:
        kernel_checks.check_bad_tokens(subject)


def test_what_has_a_pair() -> None:
    """Up to sixteen streams all do, but what would need a program of its own; and a name is enough to find one."""
    assert len(PAIRS) > 60 and len(MORE) > 100
    for subject in (*PAIRS, *MORE):
        assert pair_named(subject.kernel.key) == subject.kernel  # type: ignore[union-attr]
    for kind in (Stiefel, SpectralSphere, Grassmann, Unconstrained, Identity, Birkhoff, *GATES):
        assert kind(n=17).kernel is None
    assert Birkhoff(n=4, iterations=33).kernel is None
    assert Birkhoff(n=4, iterations=33, gradient="implicit").kernel is not None
    assert Kronecker(n=18).kernel is None
    assert Kronecker(n=4, factors=(2, Stiefel(n=2))).kernel is None


# ------------------------------------------------------------------------------- the checks can fail


@pytest.mark.parametrize(
    ("check", "cls"),
    [(check, cls) for check, classes in BROKEN_PAIRS.items() for cls in classes],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_broken_pair_is_refused(check: str, cls: type[Manifold]) -> None:
    if cls.__name__ == "RoundsToFloat32" and DEVICE == "cuda":
        pytest.skip("float64 runs in the interpreter alone")
    scaled = check in ("check_forward", "check_backward")
    calls = [(dtype, scale) for dtype in kernel_checks.dtypes() for scale in kernel_checks.SCALES] if scaled else [()]
    assert any(refuses(check, cls(n=3), *arguments) for arguments in calls)
    assert not refuses(check, Diagonal(n=3), *calls[0])


def refuses(check: str, manifold: Manifold, *arguments: object) -> bool:
    try:
        getattr(kernel_checks, check)(manifold, *arguments)
    except AssertionError as error:
        return f"{type(manifold).__name__}(n=3)" in str(error)
    return False


def test_every_check_of_pairs_can_fail() -> None:
    assert {name for name in kernel_checks.__all__ if name.startswith("check_")} == set(BROKEN_PAIRS)


# ------------------------------------------------------------------------------------------- corners


def agree(manifold: Manifold, theta: Tensor) -> None:
    dH = torch.randn(len(theta), manifold.n, manifold.n, dtype=theta.dtype, device=DEVICE)
    (expected,) = reference_gradients(manifold.forward, (theta,), dH)
    assert relative_error(constrain_forward(theta, manifold.kernel, manifold.n), manifold.forward(theta)) <= EXACT
    assert relative_error(constrain_backward(theta, dH, manifold.kernel, manifold.n), expected) <= EXACT


@pytest.mark.parametrize("options", [*BIRKHOFF_OPTIONS, {"iterations": 1, "eps": 0.3}], ids=str)
def test_equal_logits(options: dict[str, Any]) -> None:
    """Ties, which share the gradient of a maximum, and a matrix that is doubly stochastic to rounding."""
    agree(Birkhoff(n=3, **options), torch.full((2, 9), 0.7, dtype=EXACT_DTYPE, device=DEVICE))


@pytest.mark.parametrize("options", [{}, {"eps": 1e-2}, {"gradient": "implicit"}], ids=str)
def test_logits_at_the_end_of_the_range(options: dict[str, Any]) -> None:
    largest = torch.finfo(EXACT_DTYPE).max
    theta = torch.tensor([[1.0, -1.0, 0.5, 1.0], [1.0, 1.0, 1.0, 1.0]], dtype=EXACT_DTYPE, device=DEVICE) * largest
    manifold = Birkhoff(n=2, **options)
    H = constrain_forward(theta, manifold.kernel, 2)
    dtheta = constrain_backward(theta, torch.randn_like(H), manifold.kernel, 2)
    assert relative_error(H, manifold.forward(theta)) <= EXACT
    assert bool(dtheta.isfinite().all())


@pytest.mark.parametrize("n", (3, 4, 8))
def test_very_large_coordinates_stay_rotations(n: int) -> None:
    m = Stiefel(n=n)
    theta = torch.cat([scale * torch.randn(16, m.num_coordinates) for scale in (7e4, 1e6, 1e30)]).to(DEVICE)
    H = constrain_forward(theta, m.kernel, n)
    dtheta = constrain_backward(theta, torch.randn_like(H), m.kernel, n)
    assert float(m.violation(H).amax()) <= m.tolerance(torch.float32)
    assert float(torch.linalg.det(H.double()).amin()) > 0.999
    assert dtheta.isfinite().all()


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


# ---------------------------------------------------------------------------------------------------------- rounding


@triton.jit
def _round_kernel(M_ptr, d_ptr, rounded_ptr, dM_ptr, n: tl.constexpr, N: tl.constexpr, BT: tl.constexpr):
    t, i = tl.arange(0, BT), tl.arange(0, N)
    entry = t[:, None, None] * (n * n) + i[None, :, None] * n + i[None, None, :]
    inside = (i[None, :, None] < n) & (i[None, None, :] < n) & (t[:, None, None] >= 0)
    M = tl.load(M_ptr + entry, mask=inside, other=0.0)
    d = tl.load(d_ptr + entry, mask=inside, other=0.0)
    tl.store(rounded_ptr + entry, round_forward(M, n, N), mask=inside)
    tl.store(dM_ptr + entry, round_backward(M, d, n, N), mask=inside)


def nonnegative_matrices(n: int) -> dict[str, Tensor]:
    """``[n, n]`` each, on all sides of every branch."""
    balanced = Birkhoff(n=n, iterations=300)(torch.randn(n * n, dtype=EXACT_DTYPE))
    balanced = round_to_doubly_stochastic(balanced)
    noise = torch.rand(n, n, dtype=EXACT_DTYPE)
    zero_column, zero_row = torch.rand(2, n, n, dtype=EXACT_DTYPE) / n
    zero_column[:, 0] = 0
    zero_row[0] = 0
    return {
        "doubly stochastic": balanced,
        "a little above": balanced + 1e-4 * noise,
        "a little below": balanced - 1e-4 * noise * balanced,
        "mixed": balanced * (1 + 1e-2 * torch.randn(n, n, dtype=EXACT_DTYPE)),
        "sums below 1": noise / (2 * n),
        "sums above 1": 1 + noise,
        "rows only": row_stochastic(n),
        "columns only": row_stochastic(n).T,
        "zero column": zero_column,
        "zero row": zero_row,
        "zero": torch.zeros(n, n, dtype=EXACT_DTYPE),
    }


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_rounding_on_all_sides_of_its_branches(n: int) -> None:
    cases = nonnegative_matrices(n)
    assert len(cases) == 11
    N, BT = triton.next_power_of_2(n), 16
    M = torch.stack([*cases.values(), *[torch.eye(n, dtype=EXACT_DTYPE)] * (BT - len(cases))]).to(DEVICE)
    d = torch.randn_like(M)
    rounded, dM = torch.full_like(M, math.nan), torch.full_like(M, math.nan)
    _round_kernel[(1,)](M, d, rounded, dM, n, N, BT)
    (expected,) = reference_gradients(round_to_doubly_stochastic, (M,), d)
    for k, name in enumerate(cases):
        assert relative_error(rounded[k], round_to_doubly_stochastic(M)[k]) <= EXACT, name
        assert relative_error(dM[k], expected[k]) <= EXACT, name


def row_stochastic(n: int) -> Tensor:
    """Binary fractions: whatever the order of summation, the row sums are 1, where a minimum has its kink."""
    parts = torch.randint(1, 8, (n, n), dtype=EXACT_DTYPE)
    parts[:, 0] = 64 - parts[:, 1:].sum(1)
    return parts / 64


# ------------------------------------------------------------------------------------------------------------- tiles


@triton.jit
def _square_kernel(
    flat_ptr, square_ptr, back_ptr, n: tl.constexpr, N: tl.constexpr, PP: tl.constexpr, BT: tl.constexpr
):  # fmt: skip
    t, p, i = tl.arange(0, BT), tl.arange(0, PP), tl.arange(0, N)
    square = square_from_flat(tl.load(flat_ptr + t[:, None] * PP + p[None, :]), n, N)
    tl.store(square_ptr + t[:, None, None] * N * N + i[None, :, None] * N + i[None, None, :], square)
    tl.store(back_ptr + t[:, None] * PP + p[None, :], flat_from_square(square, n, N, PP))


@pytest.mark.parametrize("n", range(1, 17))
def test_squares(n: int) -> None:
    N, PP, BT = triton.next_power_of_2(n), triton.next_power_of_2(n * n), 2
    flat = torch.randn(BT, PP, dtype=EXACT_DTYPE, device=DEVICE)
    flat[:, n * n :] = 0
    flat[:, 0] = math.inf  # moved about, not multiplied
    square, back = flat.new_full((BT, N, N), math.nan), torch.full_like(flat, math.nan)
    _square_kernel[(1,)](flat, square, back, n, N, PP, BT)
    expected = torch.zeros_like(square)
    expected[:, :n, :n] = flat[:, : n * n].unflatten(1, (n, n))
    assert torch.equal(square, expected)
    assert torch.equal(back, flat)


@triton.jit
def _window_kernel(
    flat_ptr, window_ptr, back_ptr, start, length, W: tl.constexpr, PP: tl.constexpr, BT: tl.constexpr
):  # fmt: skip
    t, p, w = tl.arange(0, BT), tl.arange(0, PP), tl.arange(0, W)
    window = take(tl.load(flat_ptr + t[:, None] * PP + p[None, :]), start, W)
    tl.store(window_ptr + t[:, None] * W + w[None, :], window)
    tl.store(back_ptr + t[:, None] * PP + p[None, :], put(window, start, length, PP))


@pytest.mark.parametrize("PP", [1, 2, 8, 32])
@pytest.mark.parametrize("W", [1, 2, 4, 8])
def test_windows(PP: int, W: int) -> None:
    BT = 2
    for start in {0, 1, PP // 3, PP // 2 + 1, PP - 1} & set(range(PP)):
        length = min(W, PP - start) - start % 2
        flat = torch.randn(BT, PP, dtype=EXACT_DTYPE, device=DEVICE)
        window, back = flat.new_full((BT, W), math.nan), torch.full_like(flat, math.nan)
        _window_kernel[(1,)](flat, window, back, start, length, W, PP, BT)
        expected = torch.nn.functional.pad(flat, (0, W))[:, start : start + W]
        assert torch.equal(window, expected)
        expected_back = torch.zeros_like(flat)
        expected_back[:, start : start + length] = expected[:, :length]
        assert torch.equal(back, expected_back)


@triton.jit
def _saturate_kernel(square_ptr, d_ptr, out_ptr, d_square_ptr, cap, N: tl.constexpr, BT: tl.constexpr):
    t, i = tl.arange(0, BT), tl.arange(0, N)
    entry = t[:, None, None] * N * N + i[None, :, None] * N + i[None, None, :]
    square, d = tl.load(square_ptr + entry), tl.load(d_ptr + entry)
    tl.store(out_ptr + entry, tiles.saturate(square, cap))
    tl.store(d_square_ptr + entry, saturate_backward(square, d, cap))


@pytest.mark.parametrize("cap", [0.5, 1.0, 100.0])
def test_saturation(cap: float) -> None:
    square = torch.randn(4, 4, 4, dtype=EXACT_DTYPE, device=DEVICE)
    square[0] = 1.0  # all of them largest, and one of the caps exactly
    square[1, 0, 0] = square[1, 0, 1] = -9.0
    d = torch.randn_like(square)
    out, d_square = torch.full_like(square, math.nan), torch.full_like(square, math.nan)
    _saturate_kernel[(1,)](square, d, out, d_square, cap, 4, 4)
    (expected,) = reference_gradients(lambda M: saturate(M, cap), (square,), d)
    assert relative_error(out, saturate(square, cap)) <= EXACT
    assert relative_error(d_square, expected) <= EXACT
