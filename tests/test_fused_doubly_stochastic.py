"""Device pairs of the doubly stochastic family, and the tiles they are made of, against torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_cases import (
    DEVICE,
    EXACT,
    EXACT_DTYPE,
    SIZES,
    exhaustive,
    reference_gradients,
    relative_error,
)
from hyperconn.kernels import round_to_doubly_stochastic
from hyperconn.kernels.fused.constrain import constrain_backward, constrain_forward, tokens_per_program
from hyperconn.kernels.fused.maps.rounding import round_backward, round_forward
from hyperconn.kernels.fused.pair import pair_named
from hyperconn.kernels.fused.tiles import flat_from_square, put, saturate, saturate_backward, square_from_flat, take
from hyperconn.kernels.maps.cayley import saturate as saturate_reference
from hyperconn.kernels.poison import poisoned_memory
from hyperconn.manifolds import Birkhoff, Identity, Kronecker, Manifold, Permutation, Stiefel

SCALES = (0.1, 1.0, 3.0, 10.0)
TOKENS_PER_SCALE = 3

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

PAIRS: tuple[Manifold, ...] = (
    *(Birkhoff(n=n, **options) for n in (3, 4) for options in BIRKHOFF_OPTIONS),
    *(Birkhoff(n=n, finish="round") for n in (2, 5, 8)),
    Birkhoff(n=4, iterations=32),
    *(Permutation(n=n) for n in (2, 3, 4, 5, 6)),
    *(Kronecker(n=n) for n in (2, 3, 4, 6, 8, 12, 16)),
    *(Kronecker(n=math.prod(sizes), factors=sizes) for sizes in ((5, 2), (1, 2, 1, 3))),
    Kronecker(n=6, factors=(3, Identity(n=1), 2)),
)

MORE_PAIRS: tuple[Manifold, ...] = (
    *(Birkhoff(n=n, **options) for n in (2, 5, 8, 16) for options in BIRKHOFF_OPTIONS),
    *(Birkhoff(n=n, iterations=3, finish="round") for n in (6, 7, 9, 10, 11, 12, 13, 14, 15)),
    *(Kronecker(n=n) for n in (9, 10, 15)),
    *(Kronecker(n=math.prod(sizes), factors=sizes) for sizes in ((4, 4), (3, 5), (2, 6), (2, 4, 2))),
)

ONE_STREAM: tuple[Manifold, ...] = (
    *(Birkhoff(n=1, **options) for options in BIRKHOFF_OPTIONS),
    Permutation(n=1),
    Kronecker(n=1, factors=(1, 1)),
)


def test_the_cases_are_all_there() -> None:
    assert len(PAIRS) == 2 * 9 + 3 + 1 + 5 + 7 + 2 + 1
    assert len(MORE_PAIRS) == 4 * 9 + 9 + 3 + 4
    assert len(ONE_STREAM) == 11
    assert {manifold.n for manifold in PAIRS + ONE_STREAM} >= set(SIZES)


def label(manifold: Manifold) -> str:
    return repr(manifold).replace(" ", "")


def coordinates(manifold: Manifold, dtype: torch.dtype = EXACT_DTYPE) -> Tensor:
    """``[12, P]``: three tokens of every scale."""
    scale = torch.tensor(SCALES, dtype=dtype).repeat_interleave(TOKENS_PER_SCALE)
    return (scale[:, None] * torch.randn(len(scale), manifold.num_coordinates, dtype=dtype)).to(DEVICE)


def fused(manifold: Manifold, theta: Tensor, dH: Tensor) -> tuple[Tensor, Tensor]:
    """What the kernels make of the coordinates, and the gradient of these."""
    with poisoned_memory():
        H = constrain_forward(theta, manifold.kernel, manifold.n)
        return H, constrain_backward(theta, dH, manifold.kernel, manifold.n)


def agree(manifold: Manifold, theta: Tensor, limit: float = EXACT) -> None:
    dH = torch.randn(len(theta), manifold.n, manifold.n, dtype=theta.dtype, device=theta.device)
    H, dtheta = fused(manifold, theta, dH)
    (expected,) = reference_gradients(manifold.forward, (theta,), dH)
    assert relative_error(H, manifold.forward(theta)) <= limit
    assert relative_error(dtheta, expected) <= limit


@pytest.mark.parametrize(
    "manifold", [*PAIRS, *(pytest.param(manifold, marks=exhaustive) for manifold in MORE_PAIRS)], ids=label
)
def test_pairs_against_autograd(manifold: Manifold) -> None:
    theta = coordinates(manifold)
    dH = torch.randn(len(theta), manifold.n, manifold.n, dtype=theta.dtype, device=DEVICE)
    H, dtheta = fused(manifold, theta, dH)
    expected_H = manifold.forward(theta)
    (expected,) = reference_gradients(manifold.forward, (theta,), dH)
    # Scale by scale: large gradients must not hide errors in small ones.
    for k, scale in enumerate(SCALES):
        tokens = slice(k * TOKENS_PER_SCALE, (k + 1) * TOKENS_PER_SCALE)
        assert relative_error(H[tokens], expected_H[tokens]) <= EXACT, scale
        assert relative_error(dtheta[tokens], expected[tokens]) <= EXACT, scale


@pytest.mark.parametrize("manifold", ONE_STREAM, ids=label)
def test_one_stream_has_nothing_to_learn(manifold: Manifold) -> None:
    theta = coordinates(manifold)
    H, dtheta = fused(manifold, theta, torch.randn(len(theta), 1, 1, dtype=theta.dtype, device=DEVICE))
    assert relative_error(H, manifold.forward(theta)) <= EXACT
    if isinstance(manifold, Birkhoff) and manifold.eps == 1e-2:
        return  # eps moves even the 1×1 matrix, and its gradient is in the other tests
    assert float(dtheta.abs().amax()) <= EXACT


def test_the_empty_product_has_no_coordinates() -> None:
    manifold = Kronecker(n=1)
    H, dtheta = fused(manifold, torch.empty(5, 0, device=DEVICE), torch.randn(5, 1, 1, device=DEVICE))
    assert torch.equal(H, torch.ones(5, 1, 1, device=DEVICE))
    assert dtheta.shape == (5, 0)


@pytest.mark.parametrize("manifold", [manifold for manifold in PAIRS if manifold.n in (3, 4, 12)], ids=label)
def test_pairs_in_float32(manifold: Manifold) -> None:
    theta = coordinates(manifold, torch.float32)
    dH = torch.randn(len(theta), manifold.n, manifold.n, device=DEVICE)
    H, dtheta = fused(manifold, theta, dH)
    assert H.dtype == dtheta.dtype == torch.float32
    (expected,) = reference_gradients(manifold.forward, (theta.double(),), dH.double())
    assert relative_error(H, manifold.forward(theta.double())) <= 1e-5
    assert relative_error(dtheta, expected) <= 2e-5
    if manifold.exact:
        assert float(manifold.violation(H).amax()) <= manifold.tolerance(torch.float32)


@pytest.mark.parametrize("manifold", [Birkhoff(n=3, finish="round"), Permutation(n=4), Kronecker(n=6)], ids=label)
def test_any_number_of_tokens(manifold: Manifold) -> None:
    P = manifold.num_coordinates
    several_programs = 2 * tokens_per_program(manifold.n, P) + 3
    for T in (1, 3, several_programs):
        agree(manifold, torch.randn(T, P, dtype=EXACT_DTYPE, device=DEVICE))
    H, dtheta = fused(manifold, torch.empty(0, P, device=DEVICE), torch.empty(0, manifold.n, manifold.n, device=DEVICE))
    assert H.shape == (0, manifold.n, manifold.n)
    assert dtheta.shape == (0, P)


# numpy has something to say of both in the interpreter.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
@pytest.mark.parametrize("manifold", [Birkhoff(n=3), Birkhoff(n=4, gradient="implicit"), Permutation(n=3)], ids=label)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_token_spoils_no_other(manifold: Manifold, bad: float) -> None:
    theta = torch.randn(5, manifold.num_coordinates, dtype=EXACT_DTYPE, device=DEVICE)
    dH = torch.randn(5, manifold.n, manifold.n, dtype=EXACT_DTYPE, device=DEVICE)
    good = fused(manifold, theta, dH)
    theta[2, 1] = bad
    spoiled = fused(manifold, theta, dH)
    for before, after in zip(good, spoiled, strict=True):
        assert torch.equal(before[[0, 1, 3, 4]], after[[0, 1, 3, 4]])
        assert bool(after[2].isnan().all())


# Half-sweeps with a large eps, and few of them, leave the sum of the gradient alive: the share of the largest logit.
@pytest.mark.parametrize("options", [*BIRKHOFF_OPTIONS, {"iterations": 1, "eps": 0.3}], ids=str)
def test_equal_logits(options: dict[str, Any]) -> None:
    """Ties, which share the gradient of a maximum, and a matrix that is doubly stochastic to rounding."""
    agree(Birkhoff(n=3, **options), torch.full((2, 9), 0.7, dtype=EXACT_DTYPE, device=DEVICE))


@pytest.mark.parametrize("options", [{}, {"eps": 1e-2}, {"gradient": "implicit"}], ids=str)
def test_logits_at_the_end_of_the_range(options: dict[str, Any]) -> None:
    largest = torch.finfo(EXACT_DTYPE).max
    theta = torch.tensor([[1.0, -1.0, 0.5, 1.0], [1.0, 1.0, 1.0, 1.0]], dtype=EXACT_DTYPE, device=DEVICE) * largest
    manifold = Birkhoff(n=2, **options)
    H, dtheta = fused(manifold, theta, torch.randn(2, 2, 2, dtype=EXACT_DTYPE, device=DEVICE))
    assert relative_error(H, manifold.forward(theta)) <= EXACT
    assert bool(dtheta.isfinite().all())


def test_manifolds_without_a_pair() -> None:
    assert Birkhoff(n=17).kernel is None
    assert Birkhoff(n=4, iterations=33).kernel is None
    assert Birkhoff(n=4, iterations=33, gradient="implicit").kernel is not None
    assert Kronecker(n=18).kernel is None
    assert Kronecker(n=4, factors=(2, Stiefel(n=2))).kernel is None
    assert Kronecker(n=4, factors=(2, Identity(n=2))).kernel is None


@pytest.mark.parametrize("manifold", [Birkhoff(n=3, **DEEPSEEK), Permutation(n=3), Kronecker(n=6)], ids=label)
def test_pairs_are_found_by_name(manifold: Manifold) -> None:
    assert pair_named(manifold.kernel.key) == manifold.kernel


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
    tl.store(out_ptr + entry, saturate(square, cap))
    tl.store(d_square_ptr + entry, saturate_backward(square, d, cap))


@pytest.mark.parametrize("cap", [0.5, 1.0, 100.0])
def test_saturation(cap: float) -> None:
    square = torch.randn(4, 4, 4, dtype=EXACT_DTYPE, device=DEVICE)
    square[0] = 1.0  # all of them largest, and one of the caps exactly
    square[1, 0, 0] = square[1, 0, 1] = -9.0
    d = torch.randn_like(square)
    out, d_square = torch.full_like(square, math.nan), torch.full_like(square, math.nan)
    _saturate_kernel[(1,)](square, d, out, d_square, cap, 4, 4)
    (expected,) = reference_gradients(lambda M: saturate_reference(M, cap), (square,), d)
    assert relative_error(out, saturate_reference(square, cap)) <= EXACT
    assert relative_error(d_square, expected) <= EXACT
