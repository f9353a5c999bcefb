"""Device pairs of every manifold and gate against their torch maps; and the names that torch operators carry."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from broken_pairs import BROKEN_PAIRS, Diagonal
from fused_cases import DEVICE, EXACT, EXACT_DTYPE, exhaustive, reference_gradients, relative_error
from hyperconn import gates
from hyperconn.kernels import saturate, skew
from hyperconn.kernels.fused import pair as pair_module
from hyperconn.kernels.fused.constrain import constrain_backward, constrain_forward
from hyperconn.kernels.fused.maps.spectral_sphere import tanh, tanh_derivative
from hyperconn.kernels.fused.maps.stiefel import stiefel_pair
from hyperconn.kernels.fused.maps.trivial import IDENTITY, _identity_backward, _identity_forward
from hyperconn.kernels.fused.pair import DevicePair, pair_named
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

BIRKHOFF_OPTIONS: tuple[dict[str, Any], ...] = (
    {"iterations": 1},
    {"iterations": 2, "first_axis": "rows", "finish": "round"},
    {"iterations": 3, "eps": 1e-2},
    {"iterations": 3, "eps": 1e-2, "eps_mode": "softmax", "first_axis": "rows", "finish": "round"},
    {"iterations": 4, "gradient": "implicit"},
    {"iterations": 4, "gradient": "implicit", "finish": "round", "eps": 1e-6},
)

GATES = tuple(gate for gate in gates.BUILT_IN if gate(n=2).kernel is not None)
PLAIN = (Stiefel, SpectralSphere, Grassmann, Unconstrained, Identity)
# Gates of three and four streams have the kernel laws in test_laws.
PAIRS: tuple[Map, ...] = (
    *(Birkhoff(n=3, **options) for options in BIRKHOFF_OPTIONS),
    *(Birkhoff(n=n, iterations=2, finish="round") for n in (1, 4)),
    *(Permutation(n=n) for n in (1, 3, 4)),
    Kronecker(n=4),
    Kronecker(n=6, factors=(3, Identity(n=1), 2)),
    *(kind(n=n) for kind in PLAIN for n in (1, 3)),
    Stiefel(n=4, method="iterative", alpha=0.7, steps=3),
    Stiefel(n=3, generator="full"),
    Stiefel(n=3, generator="full", method="iterative"),
    SpectralSphere(n=2, gamma=1.7),
    SpectralSphere(n=3, isometric=True, gamma=0.3),
    SpectralSphere(n=3, preserve_mean=False),
    SpectralSphere(n=2, preserve_mean=False, isometric=True),
    Grassmann(n=4, p=3),
)
MORE: tuple[Map, ...] = (
    *(Birkhoff(n=n, **options) for n in (4, 8) for options in BIRKHOFF_OPTIONS),
    *(Birkhoff(n=n, iterations=3, finish="round") for n in (5, 6, 8, 11, 16)),
    *(Birkhoff(n=3, finish=finish, gradient=g) for finish in ("none", "round") for g in ("unrolled", "implicit")),
    Birkhoff(n=4, first_axis="rows", eps=1e-6, eps_mode="softmax"),  # DeepSeek-V4's
    Birkhoff(n=4, iterations=32),
    *(Permutation(n=n) for n in (2, 5, 6)),
    *(Kronecker(n=n) for n in (2, 3, 8, 9)),
    *(Kronecker(n=math.prod(sizes), factors=sizes) for sizes in ((4, 4), (3, 5), (2, 6), (2, 4, 2), (1, 2, 1, 3))),
    *(kind(n=n) for kind in (*PLAIN, *GATES) for n in (2, 5)),
    *(kind(n=16) for kind in (Unconstrained, Identity, *GATES)),
    Stiefel(n=9),
    Stiefel(n=5, method="iterative", alpha=0.7, steps=7),
    Stiefel(n=4, generator="full"),
    Stiefel(n=3, method="iterative", alpha=0.3, steps=0),
    SpectralSphere(n=5, isometric=True, gamma=0.3),
    SpectralSphere(n=4, preserve_mean=False, isometric=True),
    Grassmann(n=5, p=4),
)
EVERY = [
    *(pytest.param(subject, (1.0, 1e4), id=expression(subject)) for subject in PAIRS),
    *(pytest.param(subject, (1.0,), id=expression(subject), marks=exhaustive) for subject in MORE),
]


@pytest.mark.parametrize(("subject", "scales"), EVERY)
def test_forward_and_backward(subject: Map, scales: tuple[float, ...]) -> None:
    exact, *rounded = kernel_checks.dtypes()
    for dtype, scale in (*((exact, scale) for scale in scales), *((dtype, 1.0) for dtype in rounded)):
        kernel_checks.check_forward(subject, dtype, scale)
        if subject.num_coordinates:
            kernel_checks.check_backward(subject, dtype, scale)


# The quickest of a kind, but for the two ways back through the sweeps.
SWEEPS = (Birkhoff(n=3, iterations=2, finish="round"), Birkhoff(n=3, iterations=2, gradient="implicit"))
OF_EVERY_KIND = (*SWEEPS, *(kind(n=3) for kind in PLAIN), Permutation(n=3), Kronecker(n=4))


@pytest.mark.parametrize(
    "subject",
    (*OF_EVERY_KIND[:3], *(pytest.param(subject, marks=exhaustive) for subject in OF_EVERY_KIND[3:])),
    ids=expression,
)
def test_tokens_and_bits(subject: Map) -> None:
    """The business of what runs the pairs, whatever they compute."""
    kernel_checks.check_tokens(subject)
    kernel_checks.check_repeatable(subject)


@pytest.mark.parametrize("subject", [m for m in OF_EVERY_KIND if m.num_coordinates], ids=expression)
def test_bad_tokens(subject: Map) -> None:
    kernel_checks.check_bad_tokens(subject)


def test_what_has_a_pair() -> None:
    """Up to sixteen streams all do, but what would need a program of its own; and a name is enough to find one."""
    assert len(PAIRS) > 25 and len(MORE) > 60
    assert {type(subject) for subject in PAIRS} == {type(subject) for subject in OF_EVERY_KIND}
    for subject in (*PAIRS, *MORE):
        assert pair_named(subject.kernel.key) == subject.kernel  # type: ignore[union-attr]
    for kind in (Birkhoff, *PLAIN, *GATES):
        assert kind(n=17).kernel is None
    assert Birkhoff(n=4, iterations=33).kernel is None
    assert Birkhoff(n=4, iterations=33, gradient="implicit").kernel is not None
    assert Kronecker(n=18).kernel is None
    assert Kronecker(n=4, factors=(2, Stiefel(n=2))).kernel is None


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


@pytest.mark.parametrize("n", (3, 4))
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
    pair = stiefel_pair(False, (cap, cap))

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


_PAIR_MODULE = """
import triton
import triton.language as tl
from hyperconn.kernels.fused.pair import DevicePair

@triton.jit
def _identity_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return theta

@triton.jit
def _identity_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return theta

PAIR = DevicePair(_identity_forward, _identity_backward)
"""


def test_pairs_are_named_by_their_own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pair_of_a_plugin.py").write_text(_PAIR_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("pair_of_a_plugin")
    monkeypatch.setitem(sys.modules, "pair_of_a_plugin", module)
    assert module.PAIR.key != IDENTITY.key  # whose functions have the same names
    assert pair_named(module.PAIR.key) is module.PAIR
    first, second = module.PAIR, importlib.reload(module).PAIR  # as running a notebook cell again does
    assert pair_named(second.key) is second is not first
    with pytest.raises(ValueError, match="two device pairs are called .*other names"):
        _ = first.key


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([1.0], TypeError, "options are a tuple, got"),
        ((np.float64(1.0),), TypeError, r"got np.float64\(1.0\); convert it"),
        (((1, torch.tensor(2)),), TypeError, "an option is a number, boolean, string or tuple"),
        ((None,), TypeError, "got None"),
        ((float("inf"),), ValueError, "options are finite, got inf"),
        ((float("nan"),), ValueError, "options are finite, got nan"),
    ],
)
def test_options_that_no_name_can_carry(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DevicePair(_identity_forward, _identity_backward, options)


def test_options_of_every_kind_come_back_from_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = DevicePair(_identity_forward, _identity_backward, (1, 2.5, True, "a|b", (3, (4.0,))))
    key = pair.key
    monkeypatch.delitem(pair_module._PAIRS, key)
    assert pair_named(key) == pair and pair_named(key) is not pair


def test_a_pair_takes_kernel_functions() -> None:
    with pytest.raises(TypeError, match="backward takes a @triton.jit function, got <function"):
        DevicePair(_identity_forward, lambda theta, dH, n, N, OPTIONS: dH)
