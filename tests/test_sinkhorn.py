"""Birkhoff: variants, gradients and rounding; the laws hold the values to its naive account."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fused_cases import noting_saved
from hyperconn.kernels import round_to_doubly_stochastic, sinkhorn
from hyperconn.manifolds import Birkhoff

ROUNDED = Birkhoff(n=4, finish="round")


def logits(*shape: int, std: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (std * torch.randn(*shape, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize(("std", "low", "high"), [(1.0, 2e-5, 3e-3), (2.0, 5e-3, 0.1), (5.0, 0.03, 0.5)])
def test_twenty_sweeps_are_not_exact(std: float, low: float, high: float) -> None:
    """Documented: about 4e-4, 0.03 and 0.07; the worst of a sample scatters."""
    m = Birkhoff(n=4)
    H = m(logits(4096, 16, std=std))
    assert low < m.violation(H).max() < high
    assert (H.sum(-1) - 1).abs().max() < 1e-14, "rows are normalised last"
    H = Birkhoff(n=4, first_axis="rows")(logits(4096, 16, std=std))
    assert (H.sum(-2) - 1).abs().max() < 1e-14, "columns are normalised last"


def naive(L: Tensor, iterations: int) -> Tensor:
    M = L.exp()
    for _ in range(iterations):
        M = M / M.sum(-2, keepdim=True)
        M = M / M.sum(-1, keepdim=True)
    return M


def pulled_back(H: Tensor, theta: Tensor, cotangent: Tensor) -> Tensor:
    return torch.autograd.grad(H, theta, cotangent)[0]


@pytest.mark.parametrize(("n", "std"), [(4, 70.0), (5, 1e3), (8, 80.0), (16, 100.0), (4, 1e4)])
def test_entries_that_single_precision_cannot_hold_are_not_missed(n: int, std: float) -> None:
    """Many entries of these matrices vanish in float32, some of them for a few sweeps only."""
    L = logits(200, n, n, std=std, dtype=torch.float32).requires_grad_()
    wide = L.detach().double().requires_grad_()
    balanced = wide
    for _ in range(20):
        balanced = balanced - balanced.logsumexp(-2, keepdim=True)
        balanced = balanced - balanced.logsumexp(-1, keepdim=True)
    expected, found = balanced.exp(), sinkhorn(L, 20)
    assert (expected.float() == 0).double().mean() > 0.1
    assert (found - expected).abs().max() < 1e-5
    cotangent = torch.randn(200, n, n)
    gradient = pulled_back(expected, wide, cotangent.double())
    assert gradient.abs().max() > 1e-5
    assert (pulled_back(found, L, cotangent) - gradient).abs().max() < 1e-5


# Forward mode of torch's own operators still loads its decompositions through torch.jit.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
def test_derivatives_of_every_kind() -> None:
    """The sweeps carry their own backward: forward mode, batched and second derivatives go through it too."""
    L, tangent = logits(3, 4, 4, std=2.0), torch.randn(3, 4, 4, dtype=torch.float64)

    def sweeps(L: Tensor) -> Tensor:
        return sinkhorn(L, 3)

    _, found = torch.func.jvp(sweeps, (L,), (tangent,))
    _, expected = torch.func.jvp(lambda L: naive(L, 3), (L,), (tangent,))
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    for derivative in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        found, expected = derivative(sweeps)(L[0]), derivative(lambda L: naive(L, 3))(L[0])
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_implicit_gradient_is_that_of_the_limit() -> None:
    theta = logits(32, 16).requires_grad_()
    cotangent = torch.randn(32, 4, 4, dtype=torch.float64)
    unrolled = pulled_back(Birkhoff(n=4, iterations=500)(theta), theta, cotangent)
    implicit = pulled_back(Birkhoff(n=4, iterations=500, gradient="implicit")(theta), theta, cotangent)
    assert unrolled.abs().max() > 0.1
    torch.testing.assert_close(implicit, unrolled, rtol=1e-8, atol=1e-10)
    # Three sweeps are far from the limit, and there the two are different things.
    few = [Birkhoff(n=4, iterations=3, gradient=g) for g in ("unrolled", "implicit")]  # type: ignore[arg-type]
    one, other = (pulled_back(m(theta), theta, cotangent) for m in few)
    assert (one - other).abs().max() > 1e-3


def test_implicit_gradient_needs_no_state_per_sweep() -> None:
    def size(m: Birkhoff) -> int:
        theta = logits(8, 16).requires_grad_()
        with noting_saved() as saved:
            m(theta)
        return sum(tensor.numel() for tensor in saved)

    implicit = [size(Birkhoff(n=4, iterations=t, gradient="implicit")) for t in (10, 400)]
    unrolled = [size(Birkhoff(n=4, iterations=t)) for t in (10, 400)]
    assert implicit[0] == implicit[1] and unrolled[1] > 5 * unrolled[0]


@pytest.mark.parametrize("std", [0.0, 1e-3, 0.1, 1.0, 2.0, 5.0, 10.0, 1e2, 1e4])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_rounding_is_exact_in_single_precision(n: int, std: float) -> None:
    """Documented: sums are off by at most 8e-7, nothing is negative."""
    theta = logits(4096, n * n, std=std, dtype=torch.float32)
    m = Birkhoff(n=n, finish="round")
    H = m(theta)
    assert H.min() >= 0
    assert m.violation(H).max() <= 8e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-9, 1e-6, 1e-3, 0.1, 1.0])
def test_rounding_moves_no_sums(spread: float, dtype: torch.dtype) -> None:
    """A cotangent that sees row sums or column sums alone has no gradient, at any distance from the set."""
    near = ROUNDED.initial(4.0, dtype=torch.float64)
    theta = (near + spread * torch.randn(512, 16, dtype=torch.float64)).to(dtype).requires_grad_()
    constant = torch.randn(512, 4, 1, dtype=dtype).expand(512, 4, 4)
    generic = pulled_back(ROUNDED(theta), theta, torch.randn(512, 4, 4, dtype=dtype)).abs().max()
    assert generic > 1e-3
    for cotangent in (constant, constant.mT):
        leak = pulled_back(ROUNDED(theta), theta, cotangent).abs().max()
        assert leak < 64 * torch.finfo(dtype).eps * generic


def test_rounding_a_doubly_stochastic_matrix_projects_the_gradient() -> None:
    """Next to the set the derivative is the orthogonal projection onto matrices whose sums are 0."""
    M = torch.full((4, 4), 0.25, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(4, 4, dtype=torch.float64)
    centre = torch.eye(4, dtype=torch.float64) - 0.25
    expected = centre @ cotangent @ centre
    torch.testing.assert_close(pulled_back(round_to_doubly_stochastic(M), M, cotangent), expected)


def test_rounding_fills_empty_rows() -> None:
    M = torch.tensor([[0.0, 0.0], [2.0, 0.5]], dtype=torch.float64)
    H = round_to_doubly_stochastic(M)
    assert Birkhoff(n=2).violation(H) < 1e-15


def test_exactness_is_declared_as_it_is() -> None:
    names = {m: [i.name for i in m.exact_invariants] for m in Birkhoff.examples()}
    assert names[Birkhoff(n=4)] == ["row_sums", "nonnegative"]
    assert names[Birkhoff(n=3, first_axis="rows")] == ["column_sums", "nonnegative"]
    assert names[Birkhoff(n=4, iterations=3, eps=1e-6)] == ["nonnegative"]
    assert names[ROUNDED] == ["row_sums", "column_sums", "nonnegative"]
    assert Birkhoff(n=4).norm_bound is None and ROUNDED.norm_bound == 1.0
