"""Facts about the doubly stochastic and composed manifolds, and what all manifolds share, from independent values."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hyperconn import HyperConnection, HyperConnectionConfig, manifolds
from hyperconn.manifolds import (
    Birkhoff,
    Kronecker,
    Permutation,
    Unconstrained,
    UnknownNameError,
    make,
)

SIZES = range(1, 9)
ROTATION = {"manifold": "stiefel", "n": 2}


def normal(*shape: int, std: float = 1.0) -> Tensor:
    return std * torch.randn(*shape, dtype=torch.float64)


COUNTS: dict[str, list[int | None]] = {
    "birkhoff": [1, 4, 9, 16, 25, 36, 49, 64],
    "permutation": [1, 2, 6, 24, 120, 720, None, None],
    "kronecker": [0, 2, 6, 4, 120, 8, None, 6],
    "stiefel": [0, 1, 3, 6, 10, 15, 21, 28],
    "spectral_sphere": [0, 1, 4, 9, 16, 25, 36, 49],
    "grassmann": [0, 1, 2, 4, 6, 9, 12, 16],
    "identity": [0] * 8,
    "unconstrained": [1, 4, 9, 16, 25, 36, 49, 64],
}


@pytest.mark.parametrize(("name", "n"), [(name, n) for name in COUNTS for n in SIZES])
def test_coordinate_counts(name: str, n: int) -> None:
    expected = COUNTS[name][n - 1]
    if expected is None:
        with pytest.raises(ValueError, match=rf"n={n}.*(kronecker|factors)"):  # what scales
            make(name, n=n)
    else:
        m = make(name, n=n)
        assert m.num_coordinates == expected
        assert m(torch.zeros(expected)).shape == (n, n)


def test_a_large_prime_points_to_factors() -> None:
    with pytest.raises(ValueError, match=r"n=14 has the prime factor 7, .* pass factors, .*'birkhoff'.*'round'"):
        Kronecker(n=14)
    advice = Kronecker(n=14, factors=({"manifold": "birkhoff", "n": 7, "finish": "round"}, 2))
    assert advice.exact and advice.num_coordinates == 51


def test_birkhoff_von_neumann_decomposition_takes_few_permutations() -> None:
    m = Permutation(n=4)
    H = Birkhoff(n=4, finish="round")(normal(50, 16, std=2.0))
    theta = m.coordinates(H)
    torch.testing.assert_close(m(theta), H, rtol=0, atol=1e-13)
    assert ((theta.exp() > 1e-12).sum(-1) <= 10).all(), "(n − 1)² + 1 permutations are enough"


def test_kronecker_inherits_what_survives() -> None:
    def names(*factors: Any) -> set[str]:
        return {invariant.name for invariant in Kronecker(n=4, factors=factors).invariants}

    assert names(2, 2) == {"row_sums", "column_sums", "nonnegative", "factors"}
    assert names(ROTATION, ROTATION) == {"orthogonal", "spectral_norm", "non_expansive", "factors"}
    assert names({"manifold": "spectral_sphere", "n": 2}, 2) >= {"row_sums", "column_sums"}
    assert "nonnegative" not in names({"manifold": "spectral_sphere", "n": 2}, 2)
    assert names(Unconstrained(n=2), 2) == {"factors"}
    # The identity says itself that it is non-expansive, which also follows from its being doubly stochastic.
    product = Kronecker(n=12, factors=({"manifold": "identity", "n": 2}, ROTATION, 3))
    assert sorted(invariant.name for invariant in product.invariants) == ["factors", "non_expansive", "spectral_norm"]
    raw = Kronecker(n=4, factors=({"manifold": "birkhoff", "n": 2}, 2))
    assert not raw.exact and {i.name for i in raw.exact_invariants} == {"row_sums", "nonnegative"}


SPHERE, PROJECTOR, FREE = ({"manifold": name, "n": 3} for name in ("spectral_sphere", "grassmann", "unconstrained"))


@pytest.mark.parametrize(
    "factors",
    [
        (ROTATION, 2),
        (2, ROTATION, 3),
        (PROJECTOR, ROTATION),
        (SPHERE, ROTATION, ROTATION),
        ({"manifold": "stiefel", "n": 3}, ROTATION),
        (FREE, ROTATION),
        (ROTATION, FREE, 2),
        (FREE, FREE),
        (3, FREE, PROJECTOR),
        (Kronecker(n=6, factors=(ROTATION, 3)), ROTATION),
    ],
    ids=str,
)
def test_unlike_factors_are_found_again(factors: tuple[Any, ...]) -> None:
    """Who owns a sign, or a scale, differs from one mixture to the next."""
    sizes = [factor if isinstance(factor, int) else getattr(factor, "n", 0) or factor["n"] for factor in factors]
    m = Kronecker(n=math.prod(sizes), factors=factors)
    theta = 4 * normal(64, m.num_coordinates)
    H = m(theta)
    assert (m(m.coordinates(H)) - H).abs().max() <= 1e-11 * H.abs().max()
    assert m.violation(H).max() <= m.tolerance(torch.float64)


def test_the_zero_matrix_is_a_product_where_a_factor_can_be_zero() -> None:
    zero = torch.zeros(2, 6, 6, dtype=torch.float64)
    m = Kronecker(n=6, factors=(2, FREE))
    assert torch.equal(m(m.coordinates(zero)), zero) and m.violation(zero).max() <= m.tolerance(torch.float64)
    assert Kronecker(n=6).violation(zero).min() >= 1
    with pytest.raises(ValueError, match="pass a member"):
        Kronecker(n=6).coordinates(zero)


def test_products_of_strangers_and_multiples_of_members_are_no_members() -> None:
    m = Kronecker(n=6, factors=(ROTATION, 3))
    H = m(normal(5, m.num_coordinates))
    stranger = Kronecker(n=6, factors=(2, 3))(normal(5, 8))
    for wrong in (2 * H, -2 * H, 0 * H, stranger, H.mT.roll(1, -1)):
        assert m.violation(wrong).min() > 0.01
    assert m.violation(-H).max() < 1e-13, "the negative of a rotation of the plane is a rotation"
    assert m.violation(torch.full_like(H, torch.nan)).isnan().all()


Case = tuple[str, dict[str, Any], type[Exception], str]


def not_numbers(name: str, option: str) -> list[Case]:
    wrong = [("1e-6", TypeError), (True, TypeError), (None, TypeError), (math.inf, ValueError), (math.nan, ValueError)]
    return [(name, {"n": 4, option: value}, error, f"{option} must .*, got {value!r}") for value, error in wrong]


BAD: list[Case] = [
    *((name, {"n": 0}, ValueError, "n must be at least 1 and at most 1024, got 0") for name in manifolds.available()),
    *(
        (name, {"n": 1025}, ValueError, "n must be at least 1 and at most 1024, got 1025")
        for name in manifolds.available()
    ),
    *((name, {"n": 2.0}, TypeError, "n must be an int, got 2.0") for name in manifolds.available()),
    *((name, {"n": True}, TypeError, "n must be an int, got True") for name in manifolds.available()),
    ("birkhoff", {"n": 4, "iterations": 0}, ValueError, "iterations must be at least 1 .*, got 0"),
    ("birkhoff", {"n": 4, "iterations": 10_001}, ValueError, "iterations must be .* at most 10000, got 10001"),
    ("birkhoff", {"n": 4, "first_axis": "row"}, ValueError, "first_axis must be one of 'columns', 'rows', got 'row'"),
    *not_numbers("birkhoff", "eps"),
    ("birkhoff", {"n": 4, "eps": -1e-6}, ValueError, r"eps must .*, got -1e-06"),
    ("birkhoff", {"n": 4, "eps": 1.0}, ValueError, r"eps must lie in \[0, 1\), got 1.0"),
    (
        "kronecker",
        {"n": 4, "factors": (2, 3)},
        ValueError,
        r"factors .*\[2, 3\] multiply to 6, expected n=4; .*\(2, 2\)",
    ),
    ("kronecker", {"n": 4, "factors": 4}, TypeError, "factors must be a list of sizes, tables or manifolds, got 4"),
    ("kronecker", {"n": 4, "factors": "2,2"}, TypeError, "factors must be a list of sizes"),
    ("kronecker", {"n": 4, "factors": (2, "2")}, TypeError, "a factor is a size, a table or a manifold, got '2'"),
    ("kronecker", {"n": 2, "factors": ({"n": 2},)}, ValueError, "needs the keys 'manifold' and 'n'"),
    ("stiefel", {"n": 4, "method": "qr"}, ValueError, "method must be one of 'cayley', 'iterative', got 'qr'"),
    ("stiefel", {"n": 4, "steps": -1}, ValueError, "steps must be at least 0 .*, got -1"),
    ("stiefel", {"n": 4, "steps": 10_001}, ValueError, "steps must be .* at most 10000, got 10001"),
    *not_numbers("stiefel", "alpha"),
    ("stiefel", {"n": 4, "alpha": 0.0}, ValueError, "alpha must be .*positive, got 0.0"),
    *not_numbers("spectral_sphere", "gamma"),
    ("spectral_sphere", {"n": 4, "gamma": 0.0}, ValueError, "gamma must be .*positive, got 0.0"),
    ("spectral_sphere", {"n": 4, "isometric": 1}, TypeError, "isometric must .*, got 1"),
    ("spectral_sphere", {"n": 4, "preserve_mean": None}, TypeError, "preserve_mean must .*, got None"),
    ("grassmann", {"n": 4, "p": 5}, ValueError, "p must be at least 1 and at most 4, got 5"),
    ("grassmann", {"n": 4, "p": 0}, ValueError, "p must be at least 1 and at most 4, got 0"),
]


@pytest.mark.parametrize(("name", "options", "error", "message"), BAD)
def test_bad_options_are_refused(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^{manifolds.get(name).__name__}: .*{message}"):
        make(name, **options)


def options_of(name: str) -> list[str]:
    return [field.name for field in dataclasses.fields(manifolds.get(name)) if field.init and field.name != "n"]


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in manifolds.available() for option in options_of(name)]
)
def test_no_option_takes_nonsense(name: str, option: str) -> None:
    nonsense = object()
    with pytest.raises((TypeError, ValueError), match=rf"^{manifolds.get(name).__name__}: .*{option}"):
        make(name, n=2, **{option: nonsense})


def test_a_bad_factor_is_refused_by_its_own_name() -> None:
    with pytest.raises(UnknownNameError, match=r"^unknown manifold 'stifel'. Did you mean 'stiefel'"):
        Kronecker(n=2, factors=({"manifold": "stifel", "n": 2},))
    with pytest.raises(ValueError, match=r"^Permutation: n=7 would need 7!"):
        Kronecker(n=7, factors=(7,))
    with pytest.raises(TypeError, match=r"^Stiefel: alpha must .*, got '0.1'"):
        Kronecker(n=4, factors=({"manifold": "stiefel", "n": 2, "alpha": "0.1"}, 2))


def test_messages_name_the_manifold_and_what_it_takes() -> None:
    m = make("spectral_sphere", n=4)
    shapes, groups = r"coordinates of shape \[\.\.\., 9\], got \[2, 16\]", r"\{'u': 3, 'v': 3, 's': 3\}"
    with pytest.raises(ValueError, match=rf"SpectralSphere\(n=4.* takes {shapes}; .*{groups}"):
        m(torch.zeros(2, 16))
    with pytest.raises(TypeError, match=r"takes floating point coordinates, got torch.int64; convert with .float\(\)"):
        m(torch.zeros(9, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"maps a tensor of coordinates, got list"):
        m([0.0] * 9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"holds matrices of shape \[\.\.\., 4, 4\], got \[3, 3\]"):
        m.violation(torch.eye(3))


def test_right_sums_do_not_hide_a_negative_entry() -> None:
    trap = torch.tensor([[2.0, -1.0], [-1.0, 2.0]])
    for name in ("birkhoff", "permutation", "kronecker"):
        assert make(name, n=2).violation(trap) == 1.0


def test_violation_reports_the_worst_invariant() -> None:
    m = make("stiefel", n=2)
    H = torch.tensor([[1.0, 0.0], [0.0, 1.5]])
    assert float(m.violation(H)) == pytest.approx(1.25)  # 1.5² − 1, worse than the norm's 0.5
    assert make("unconstrained", n=2).violation(torch.full((2, 2), torch.inf)).isnan()


def test_tolerance_is_sixteen_n_eps() -> None:
    assert make("stiefel", n=4).tolerance(torch.float32) == 64 * 2.0**-23
    assert Kronecker(n=4).tolerance(torch.float64) > make("stiefel", n=4).tolerance(torch.float64)


def test_constants_born_in_inference_mode_can_be_trained_with() -> None:
    m = Permutation(n=3)
    with torch.inference_mode():
        m(torch.zeros(6, dtype=torch.float64))
    theta = normal(6).requires_grad_()
    m(theta).square().sum().backward()
    assert theta.grad is not None and theta.grad.abs().max() > 0


def test_starts_are_looked_at_where_tensors_have_no_numbers() -> None:
    """A layer checks its start while it is built, wherever its parameters are."""
    for preset in HyperConnectionConfig.presets():
        with FakeTensorMode():
            block = HyperConnection(None, 8, HyperConnectionConfig.preset(preset))
            start = block.manifold.initial(4.0)
        assert isinstance(start, FakeTensor) and start.shape == (block.manifold.num_coordinates,)
        assert block.manifold.initial(4.0).isfinite().all()


def test_no_gradient_is_asked_of_coordinates() -> None:
    H = make("spectral_sphere", n=4)(normal(9).requires_grad_())
    assert not make("spectral_sphere", n=4).coordinates(H).requires_grad
